"""What a command line names, and the frames of videos."""

import os
import re
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from ovenet.data.files import image_size, read_image
from ovenet.inference.inputs import FrameReader, Input, find_inputs


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "b/1.jpg", "a.PNG", "c.jpg", "c.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)
    (tmp_path / "in/notes.txt").write_text("no image")
    (tmp_path / "in/clip.mp4").write_bytes(b"")
    return tmp_path / "in"


def named(arguments):
    return [(one.kind, one.name) for one in find_inputs([str(a) for a in arguments])]


def test_folders_are_searched_at_any_depth(folder):
    images = [("image", n) for n in ("a", "b/1", "b/2", "c.jpg", "c.png")]
    assert sorted(named([folder])) == sorted([*images, ("video", "clip")])


def test_patterns_keep_the_folders_below_them(folder):
    assert named([folder / "*" / "*.png"]) == [("image", "b/2")]
    assert named([folder / "**" / "*.jpg"]) == [("image", "b/1"), ("image", "c")]


def test_files_and_cameras(folder):
    assert named([folder / "b/1.jpg", "camera:2"]) == [("image", "1"), ("camera", "camera_2")]
    assert find_inputs(["camera:2"]) == [Input("camera", 2, "camera_2")]
    assert str(find_inputs(["camera:2"])[0]) == "camera 2"


@pytest.mark.parametrize(
    ("argument", "message"),
    [("nowhere.png", "does not exist"), ("*.nothing", "no image"), ("empty", "no image"), ("camera:x", "camera:0")],
)
def test_what_names_nothing_is_refused(folder, monkeypatch, argument, message):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        find_inputs([argument])


def test_two_results_of_one_name_are_refused(folder):
    with pytest.raises(ValueError, match=r"c\.png.*c\.jpg: .* c; .*folders"):
        find_inputs([str(folder / "c.jpg"), str(folder / "c.png")])


def write_video(path, num_frames=6):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 7, (64, 48))
    for i in range(num_frames):
        writer.write(np.full((48, 64, 3), (0, 0, 40 * i), np.uint8))  # BGR: red
    writer.release()


def test_frames_are_rgb_in_order(tmp_path):
    write_video(tmp_path / "v.avi")
    reader = FrameReader(Input("video", tmp_path / "v.avi", "v"))
    assert (reader.rate, reader.num_frames) == (7, 6)
    means = [frame.reshape(-1, 3).mean(axis=0) for frame in reader]
    np.testing.assert_allclose(means, [(40 * i, 0, 0) for i in range(6)], atol=4)


@pytest.mark.parametrize("kind", ["video", "pipe"])
def test_a_broken_frame_is_told_and_the_next_ones_are_read(tmp_path, kind):
    write_video(tmp_path / "v.avi")
    data = bytearray((tmp_path / "v.avi").read_bytes())
    starts = [match.end() for match in re.finditer(rb"00dc....(?=\xff\xd8)", data, re.DOTALL)]  # of the JPEGs
    assert len(starts) == 6
    length = int.from_bytes(data[starts[2] - 4 : starts[2]], "little")
    data[starts[2] : starts[2] + length] = b"\0" * length
    (tmp_path / "v.avi").write_bytes(data)
    with open(tmp_path / "v.avi", "rb") as file:
        frames = list(FrameReader(Input(kind, tmp_path / "v.avi" if kind == "video" else file.fileno(), "v")))
    assert [frame is None for frame in frames] == [False, False, True, False, False, False]


def test_the_frames_that_a_file_lacks_are_told(tmp_path):
    write_video(tmp_path / "v.avi")
    data = (tmp_path / "v.avi").read_bytes()
    starts = [match.start() for match in re.finditer(rb"00dc....(?=\xff\xd8)", data, re.DOTALL)]
    (tmp_path / "v.avi").write_bytes(data[: starts[4]])
    frames = list(FrameReader(Input("video", tmp_path / "v.avi", "v")))
    assert [frame is None for frame in frames] == [False, False, False, False, True, True]


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are Unicode")
def test_the_name_of_a_video_need_not_be_unicode(tmp_path):
    path = tmp_path / os.fsdecode(b"v\xff.avi")
    write_video(tmp_path / "v.avi")
    (tmp_path / "v.avi").rename(path)
    assert len(list(FrameReader(Input("video", path, "v")))) == 6


def test_no_video_and_no_camera(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"v\.mp4: .*opened.*video"):
        FrameReader(Input("video", tmp_path / "v.mp4", "v"))
    with pytest.raises(ValueError, match="camera 97: cannot be opened"):
        FrameReader(Input("camera", 97, "camera_97"))


def test_the_size_comes_from_the_header_and_the_limit_is_ours(tmp_path):
    Image.fromarray(np.zeros((31, 49, 3), np.uint8)).save(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") == (31, 49)
    assert read_image(tmp_path / "a.png", max_pixels=31 * 49).shape == (31, 49, 3)
    with pytest.raises(ValueError, match="cannot be read"):
        read_image(tmp_path / "a.png", max_pixels=1000)
    assert Image.MAX_IMAGE_PIXELS > 10**7  # as it was before


def test_strips_make_up_the_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (250, 7, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels[..., :3])
    deep = np.random.default_rng(0).integers(0, 65536, (250, 7)).astype(np.uint16)
    for name in ("b.png", "b.tif"):
        cv2.imwrite(str(tmp_path / name), deep)
        np.testing.assert_array_equal(read_image(tmp_path / name), np.dstack([deep >> 8] * 3))
