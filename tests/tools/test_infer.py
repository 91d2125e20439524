"""tools/infer.py on files that have nothing to do with a dataset."""

import csv
import json
import os
import re
import subprocess

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tests import forking
from tests.four_convolutions import small_settings

import ovenet
from ovenet import build_model, builders, load_config
from ovenet.inference.outputs import FrameWriter


@pytest.fixture
def run(small, tiny_data, tmp_path, write_config):
    """A small OVeNet with random weights: its config file and its run's folder, as training leaves it."""
    small["DATASET"]["ROOT"] = str(tiny_data)
    small["OUTPUT_DIR"] = str(tmp_path / "output")
    small["TRAIN"]["END_EPOCH"] = 1
    config = write_config(small, "tiny.yaml")
    folder = tmp_path / "output/camvid/tiny"
    folder.mkdir(parents=True)
    cfg = load_config(config)
    content = {"model": build_model(cfg).state_dict(), "config": cfg.dump()}
    torch.save(content | {"dataset_info": builders.dataset_info(cfg).as_dict()}, folder / "best.pth")
    return config, folder


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("views", [((), ()), (("TEST.SCALE_LIST", "0.5,1.5", "TEST.FLIP_TEST", "True"), ("--flip",))])
def test_the_same_bits_as_the_test(run, run_tool, tiny_data, tmp_path, views):
    config, folder = run
    (folder / "best.pth").unlink()
    assert run_tool("train", "--cfg", config).code == 0  # its checkpoint, with all that it carries
    scales = ("--scales", "0.5", "1.5") if views[0] else ()
    tested = run_tool("test", "--cfg", config, "TEST.SAVE_PREDICTIONS", True, *views[0])
    assert tested.code == 0, tested.err
    (expected,) = folder.glob("test/*/predictions")
    inferred = run_tool(
        "infer", folder / "best.pth", tiny_data / "camvid/val", "--output", tmp_path / "out", *scales, *views[1]
    )
    assert inferred.code == 0, inferred.err
    for i in range(3):
        for kind in ("ids", "color"):
            own = (tmp_path / f"out/{kind}/{i}.png").read_bytes()
            assert own == (expected / f"{kind}/val/{i}.png").read_bytes()


def test_every_kind_of_image_and_result(run, run_tool, tmp_path):
    _, folder = run
    source = tmp_path / "in"
    source.mkdir()
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (31, 45, 3)).astype(np.uint8)
    Image.fromarray(color).save(source / "color.png")
    Image.fromarray(color[..., 0]).save(source / "grey.jpg")
    Image.fromarray(np.dstack((color, color[..., :1]))).save(source / "alpha.png")
    Image.fromarray(color).quantize(8).save(source / "palette.png")
    cv2.imwrite(str(source / "deep.png"), rng.integers(0, 65536, (31, 45, 3)).astype(np.uint16))
    cv2.imwrite(str(source / "deep_grey.tif"), rng.integers(0, 65536, (31, 45)).astype(np.uint16))
    Image.fromarray(color[:1, :1]).save(source / "one_pixel.png")
    done = run_tool("infer", folder / "best.pth", source, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert re.search(r"7 inputs, 0 .*skipped", done.out)
    for name in ("color", "grey", "alpha", "palette", "deep", "deep_grey"):
        for kind in ("ids", "color", "overlay", "offset", "confidence"):
            assert pixels(tmp_path / f"out/{kind}/{name}.png").shape == (31, 45, 3)
        offset = np.load(tmp_path / f"out/offset/{name}.npy")
        assert offset.shape == (2, 31, 45)
        assert np.abs(offset[0]).max() <= 0.5 * 44 / 2 + 1e-4
    assert pixels(tmp_path / "out/ids/one_pixel.png").shape == (1, 1, 3)


def test_the_overlay_is_the_image_and_the_colours(run, run_tool, tiny_data, tmp_path):
    _, folder = run
    image = tiny_data / "camvid/val/0.png"
    assert (
        run_tool("infer", folder / "best.pth", image, "--output", tmp_path / "o", "--save", "overlay", "color").code
        == 0
    )
    mixed = 0.45 * pixels(image) + 0.55 * pixels(tmp_path / "o/color/0.png")
    np.testing.assert_allclose(pixels(tmp_path / "o/overlay/0.png"), mixed, atol=1)
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"overlay", "color", "legend.png"}


def test_what_cannot_be_read_is_named_and_skipped(run, run_tool, tiny_data, tmp_path):
    _, folder = run
    bad = tiny_data / "camvid/val/0.png"
    bad.write_bytes(b"no image")
    done = run_tool("infer", folder / "best.pth", tiny_data / "camvid/val", "--output", tmp_path / "o")
    assert done.code == 1
    assert re.search(rf"skipped: {re.escape(str(bad))}: .*replace it", done.err)
    assert (tmp_path / "o/ids/1.png").exists()
    strict = run_tool("infer", folder / "best.pth", tiny_data / "camvid/val", "--output", tmp_path / "s", "--strict")
    assert strict.code == 2
    assert not (tmp_path / "s/ids").exists()
    alone = run_tool("infer", folder / "best.pth", bad, "--output", tmp_path / "a")
    assert alone.code == 2
    assert re.search(rf"{re.escape(str(bad))}: .*replace it", alone.err)


def test_results_are_not_overwritten_unasked(run, run_tool, tiny_data, tmp_path):
    _, folder = run
    command = ("infer", folder / "best.pth", tiny_data / "camvid/val/1.png", "--output", tmp_path / "o")
    assert run_tool(*command).code == 0
    refused = run_tool(*command)
    assert refused.code == 2
    assert "add --overwrite" in refused.err
    assert run_tool(*command, "--overwrite").code == 0


def test_other_bad_input(run, run_tool, tiny_data, tmp_path):
    _, folder = run
    image = tiny_data / "camvid/val/1.png"
    (tmp_path / "file").write_text("")
    settings = small_settings()
    settings["DATASET"] |= {"DATASET": "cityscapes", "NUM_CLASSES": 19}
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps(settings))
    for arguments, message in (
        ((tmp_path / "none.pth", image, "--output", tmp_path / "a"), "no such checkpoint"),
        ((folder / "best.pth", tmp_path / "none.png", "--output", tmp_path / "a"), "does not exist"),
        ((folder / "best.pth", image, "--output", tmp_path / "file/a"), "Not a directory"),
        ((folder / "best.pth", image, "--output", tmp_path / "a", "--cfg", other), "(11,) in the file, (19,) here"),
        ((folder / "best.pth", image, "--output", tmp_path / "a", "--max-memory", "0.001"), "raise it"),
        ((folder / "best.pth", image, "--output", tmp_path / "a", "--long-side", "big"), "native"),
    ):
        done = run_tool("infer", *arguments)
        assert done.code == 2, message
        assert message in done.err
        assert len(done.err.strip().splitlines()) <= 3
        assert not (tmp_path / "a/ids").exists()


@pytest.mark.parametrize("model", ["camvid-lite0", "segnext_mscan-s_1xb16-adamw-160k_ade20k-512x512", "best.pth", "."])
def test_a_model_without_an_image(run, run_tool, tmp_path, model):
    """Without an image the first word is the image; a model there is a forgotten image."""
    given = run[1] / model if model in ("best.pth", ".") else model
    done = run_tool("infer", given, "--output", tmp_path / "a")
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert f"{given} is a model" in done.err
    assert "photo.jpg" in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(run, run_tool, tiny_data, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = run_tool("infer", run[1] / "best.pth", tiny_data / "camvid/val", "--output", tmp_path / "locked/a")
    assert done.code == 2
    assert "Permission denied" in done.err


def test_too_large_an_image_is_named_and_one_within_the_cap_is_the_same(run, run_tool, run_fork, tmp_path):
    _, folder = run
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (300, 500, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "b.png")
    native = ("--long-side", "native", "--save", "ids")
    free = run_tool("infer", folder / "best.pth", tmp_path / "a.png", "--output", tmp_path / "o", *native)
    assert free.code == 0, free.err
    pair = (tmp_path / "a.png", tmp_path / "b.png")
    command = ("tools/infer.py", folder / "best.pth", *pair, "--output", tmp_path / "p", *native, "--max-memory", "2.5")
    capped = run_fork(*command)  # this process has had a higher peak than that
    assert capped.returncode == 1, capped.stderr
    assert re.search(r"b\.png: .*20000 x 20000", capped.stderr)
    assert (tmp_path / "o/ids/a.png").read_bytes() == (tmp_path / "p/ids/a.png").read_bytes()


def write_video(path, num_frames):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for i in range(num_frames):
        writer.write(np.full((48, 64, 3), 20 * i, np.uint8))
    writer.release()


def test_a_video_becomes_a_video(run, run_tool, tmp_path):
    _, folder = run
    write_video(tmp_path / "v.mp4", 6)
    command = ("infer", folder / "best.pth", tmp_path / "v.mp4", "--output", tmp_path / "o")
    done = run_tool(*command, "--frames", "--save", "ids", "offset")
    assert done.code == 0, done.err
    capture = cv2.VideoCapture(str(tmp_path / "o/video/v.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert capture.read()[1].shape == (48, 64, 3)
    assert sorted(p.name for p in (tmp_path / "o/ids/v").iterdir()) == [f"{i:06d}.png" for i in range(6)]
    short = run_tool(*command, "--overwrite", "--max-frames", "2")
    assert short.code == 0
    assert cv2.VideoCapture(str(tmp_path / "o/video/v.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 2


def test_the_video_plays_in_a_browser(run, run_tool, tmp_path):
    """H.264 with halved colours, its index first; odd sides are made even."""
    writer = FrameWriter(tmp_path / "odd.mp4", 29.97)
    for value in range(4):
        writer.write(np.full((47, 63, 3), 60 * value, np.uint8))
    writer.close()
    with av.open(str(tmp_path / "odd.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.height, stream.width) == (48, 64)
        assert float(stream.average_rate) == pytest.approx(29.97, abs=0.01)
        grey = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(stream)]
    np.testing.assert_allclose(grey, [0, 60, 120, 180], atol=3)
    content = (tmp_path / "odd.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_a_video_from_a_pipe(run, tmp_path):
    write_video(tmp_path / "v.mp4", 5)
    stream = tmp_path / "v.mkv"
    with av.open(str(tmp_path / "v.mp4")) as source, av.open(str(stream), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    no_video = tmp_path / "no_video"
    no_video.write_bytes(b"no video")

    def infer_pipe(file, output):
        command = ["tools/infer.py", run[1] / "best.pth", "-", "--output", output]
        with subprocess.Popen(["cat", file], stdout=subprocess.PIPE) as source:
            return forking.run(command, stdin=source.stdout)

    done = infer_pipe(stream, tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert "the pipe: 5 frames, " in done.stdout
    assert cv2.VideoCapture(str(tmp_path / "o/video/pipe.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 5
    done = infer_pipe(no_video, tmp_path / "bad")
    assert done.returncode == 2
    assert "error: the pipe: holds no video that can be read" in done.stderr


def test_a_page_of_the_images(run, run_tool, tiny_data, tmp_path):
    source = tiny_data / "camvid/val"
    done = run_tool("infer", run[1] / "best.pth", source, "--page", "--output", tmp_path / "o")
    assert done.code == 0, done.err
    page = (tmp_path / "o/page.html").read_text()
    assert "3 of 3 images are shown" in page
    assert page.count('id="picture-0-') == 3
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    plain = run_tool("infer", run[1] / "best.pth", source, "--output", tmp_path / "plain")
    assert plain.code == 0
    for kind in ("ids", "offset", "confidence"):  # the page changes no other result
        assert (tmp_path / f"o/{kind}/1.png").read_bytes() == (tmp_path / f"plain/{kind}/1.png").read_bytes()


def test_shares_of_the_classes(run, run_tool, tiny_data, tmp_path):
    write_video(tmp_path / "v.mp4", 2)
    source = tiny_data / "camvid/val/1.png"
    done = run_tool(
        "infer",
        run[1] / "best.pth",
        source,
        tmp_path / "v.mp4",
        "--output",
        tmp_path / "o",
        "--save",
        "shares",
        "color",
    )
    assert done.code == 0, done.err
    with open(tmp_path / "o/class_shares.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["1", "v/000000", "v/000001"]
    info = ovenet.load(run[1] / "best.pth").info
    legend = np.asarray(Image.open(tmp_path / "o/legend.png").convert("RGB"))
    assert set(info.palette) <= set(map(tuple, legend.reshape(-1, 3).tolist()))
    train_ids = np.asarray(Image.open(tmp_path / "o/color/1.png"))
    assert float(rows[0]["sky"]) == pytest.approx((train_ids == 0).mean(), abs=1e-6)
    assert sum(float(share) for name, share in rows[0].items() if name != "name") == pytest.approx(1, abs=1e-5)


def test_a_camera_that_is_not_there(run, run_tool, tmp_path):
    done = run_tool("infer", run[1] / "best.pth", "camera:97", "--output", tmp_path / "o")
    assert done.code == 2
    assert "camera 97: cannot be opened" in done.err


@pytest.mark.parametrize("link", [False, True])
def test_inputs_are_never_written_over(run, run_tool, tmp_path, link):
    _, folder = run
    output = tmp_path / "out"
    (output / "overlay").mkdir(parents=True)
    photo = output / "overlay/photo.png"
    Image.new("RGB", (40, 30), (9, 9, 9)).save(photo)
    source = photo
    if link:
        source = tmp_path / "photo.png"
        photo.rename(tmp_path / "real.png")
        photo.symlink_to(tmp_path / "real.png")
        source.symlink_to(tmp_path / "real.png")
    before = source.read_bytes()
    done = run_tool("infer", folder / "best.pth", source, "--output", output, "--overwrite")
    assert done.code == 2
    assert re.search(r"input.*--output", done.err)
    assert source.read_bytes() == before


def test_a_pipe_is_no_image(run, run_tool, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    done = run_tool("infer", run[1] / "best.pth", tmp_path / "pipe.png", "--output", tmp_path / "out")
    assert done.code == 2
    assert re.search(r"pipe\.png: .*pipe.*expected a file", done.err)


def test_names_that_are_no_text(run, run_tool, tmp_path):
    """Linux takes any bytes; OpenCV ended the process on them."""
    name = os.fsdecode(b"bad\xff.png")
    Image.new("RGB", (40, 30), (9, 99, 9)).save(tmp_path / "good.png")
    os.rename(tmp_path / "good.png", tmp_path / name)
    done = run_tool("infer", run[1] / "best.pth", tmp_path / name, "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert pixels(tmp_path / "out/overlay" / name).shape == (30, 40, 3)


def test_results_stay_in_their_folder(run, run_tool, tmp_path):
    _, folder = run
    (tmp_path / "a/in/deep").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a/photo.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a/in/deep/other.png")
    done = run_tool(
        "infer", folder / "best.pth", f"{tmp_path}/a/in/*/../../photo.png", "--output", tmp_path / "a/out/x"
    )
    assert done.code == 0, done.err
    written = {p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*.png")}
    results = {name for name in written if name not in ("photo.png", "in/deep/other.png", "out/x/legend.png")}
    assert results == {f"out/x/{kind}/photo.png" for kind in ("ids", "color", "overlay", "offset", "confidence")}


def make_video(path, frames=3, size=(32, 24)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, size)
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), 40 * i, np.uint8))
    writer.release()


def test_frames_do_not_replace_results_of_images(run, run_tool, tmp_path):
    _, folder = run
    (tmp_path / "in/clip").mkdir(parents=True)
    make_video(tmp_path / "in/clip.mp4")
    Image.new("RGB", (8, 8)).save(tmp_path / "in/clip/000001.png")
    command = ("infer", folder / "best.pth", tmp_path / "in", "--output", tmp_path / "out")
    refused = run_tool(*command, "--frames")
    assert refused.code == 2
    assert "clip.mp4" in refused.err
    assert "000001.png" in refused.err
    assert run_tool(*command).code == 0  # without the frames there is one result each


def test_settings_may_be_given_one_by_one(run, run_tool, tiny_data, tmp_path):
    _, folder = run
    command = ("infer", folder / "best.pth", tiny_data / "camvid/val/1.png", "--output", tmp_path / "o")
    wrong = run_tool(*command, "--set", "TEST.SCOR", "exp", "--set", "TEST.FLIP_TEST", "True")
    assert wrong.code == 2
    assert "TEST.SCOR" in wrong.err
    assert run_tool(*command, "--set", "TEST.SCORE", "exp", "--set", "TEST.FLIP_TEST", "True").code == 0


def test_an_empty_name_is_not_the_current_folder(run, run_tool, tmp_path):
    _, folder = run
    done = run_tool("infer", folder / "best.pth", "", "--output", tmp_path / "o")
    assert done.code == 2
    assert "an empty name" in done.err


def test_ctrl_c_in_a_video_ends_all(run, run_tool, tmp_path, monkeypatch):
    from ovenet import Predictor

    _, folder = run
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        make_video(tmp_path / f"in/{name}.mp4", frames=5)
    predict, calls = Predictor.predict, []

    def interrupted(self, image, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(self, image, **options)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    done = run_tool("infer", folder / "best.pth", tmp_path / "in", "--output", tmp_path / "o")
    assert done.code == 130
    assert len(calls) == 3
    assert [p.name for p in (tmp_path / "o/video").iterdir()] == ["a.mp4"]
    capture = cv2.VideoCapture(str(tmp_path / "o/video/a.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 2  # what was done is whole


@pytest.mark.parametrize(
    ("source", "limit", "options"),
    [("clip.mp4", 2000, ()), ("photo.png", 300, ("--save", "ids"))],
)
def test_a_full_disk_is_told_and_leaves_nothing_broken(run, run_fork, tmp_path, source, limit, options):
    """A limit on the size of files fails writes as a full disk does."""
    _, folder = run
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for _ in range(20):
        writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    writer.release()
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
    code += "import runpy, sys; sys.argv[0] = 'tools/infer.py'; sys.dont_write_bytecode = True;"
    code += "runpy.run_path('tools/infer.py', run_name='__main__')"
    (tmp_path / "limited.py").write_text(code)
    command = (tmp_path / "limited.py", folder / "best.pth", tmp_path / source, "--output", tmp_path / "o")
    done = run_fork(*command, *options)
    assert done.returncode == 2, done.stderr + done.stdout
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert str(tmp_path / "o") in done.stderr.splitlines()[-1]
    left = [p for p in (tmp_path / "o").rglob("*") if p.is_file()]
    assert all(p.suffix == ".png" for p in left), left
    for path in left:
        Image.open(path).load()
