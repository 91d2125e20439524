"""Which way up photographs are read, against the meaning that EXIF gives its tag."""

import re
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, features
from tests.photographs import SIDES, add_exif, as_stored, exif_block, picture, save_turned

from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import ListDataset
from ovenet.data.files import image_size, read_image, read_size, to_rgb
from ovenet.errors import UserError
from ovenet.inference.inputs import FrameReader, Input
from ovenet.inference.outputs import FrameWriter

EVERY = sorted(SIDES)
LOSSLESS = {"png": {}, "webp": {"lossless": True}, "tif": {}, "tiff": {"compression": "tiff_lzw"}}


def test_the_example_of_the_standard():
    """Orientation 6: row 0 is the right side, column 0 the top."""
    shown = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    np.testing.assert_array_equal(as_stored(shown, 6), [[3, 6], [2, 5], [1, 4]])


@pytest.mark.parametrize("orientation", EVERY)
@pytest.mark.parametrize("suffix", LOSSLESS)
def test_files_are_turned_upright(tmp_path, suffix, orientation):
    shown = picture()
    path = save_turned(shown, tmp_path / f"a.{suffix}", orientation, **LOSSLESS[suffix])
    np.testing.assert_array_equal(read_image(path), shown)
    assert read_size(path) == shown.shape[:2]
    with Image.open(path) as image:
        np.testing.assert_array_equal(to_rgb(image, "it"), shown)
    if not suffix.startswith("tif"):  # whose tag is obeyed by whatever reads the format
        np.testing.assert_array_equal(read_image(path, upright=False), as_stored(shown, orientation))
        assert image_size(path) == as_stored(shown, orientation).shape[:2]


@pytest.mark.parametrize("orientation", EVERY)
@pytest.mark.parametrize("suffix", ["jpg", "mpo", "avif"])
def test_lossy_files_are_turned_upright(tmp_path, suffix, orientation):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    shown = picture()
    options = {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]} if suffix == "mpo" else {}
    options |= {"quality": 95} if suffix == "avif" else {"quality": 95, "subsampling": 0}
    path = save_turned(shown, tmp_path / f"a.{suffix}", orientation, **options)
    image = read_image(path)
    assert image.shape == shown.shape
    assert np.abs(image.astype(int) - shown).mean() < 10  # of some 80 where it is turned otherwise
    assert read_size(path) == shown.shape[:2]


@pytest.mark.parametrize("orientation", EVERY)
@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_every_kind_of_pixels_is_turned(tmp_path, mode, orientation):
    """More rows than are converted at once."""
    grey = picture(152, 72)[..., 0]
    image = Image.fromarray(as_stored(grey, orientation).astype(np.uint16 if mode == "I;16" else np.uint8))
    image = image if mode == "I;16" else image.convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), as_shown(path, orientation))


def as_shown(path, orientation):
    """The pixels of the file without its tag, turned by looking for where each of them goes."""
    stored = read_image(path, upright=False)
    shown = np.empty((152, 72, 3), np.uint8)
    places = as_stored(np.arange(152 * 72).reshape(152, 72), orientation)
    shown.reshape(-1, 3)[places.ravel()] = stored.reshape(-1, 3)
    return shown


@pytest.mark.parametrize("orientation", EVERY)
def test_a_tag_behind_the_pixels_of_a_png(tmp_path, orientation):
    shown = picture()
    Image.fromarray(as_stored(shown, orientation)).save(tmp_path / "a.png")
    add_exif(tmp_path / "a.png", exif_block(3, 1, bytes([orientation])), late=True)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), shown)
    assert read_size(tmp_path / "a.png") == shown.shape[:2]
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(to_rgb(image, "it"), shown)


BROKEN = {
    "no EXIF data": b"garbage garbage",
    "the end is missing": b"II*\0",
    "empty": b"",
    "0": exif_block(3, 1, b"\0"),
    "9": exif_block(3, 1, b"\x09"),
    "65535": exif_block(3, 1, b"\xff\xff"),
    "a text": exif_block(2, 2, b"6"),
    "a real number": exif_block(11, 1, b"\0\0\xc0\x40"),
    "a fraction of nothing": exif_block(5, 1, b"\0\0\0\x10"),
    "bytes": exif_block(7, 1, b"\x06"),
    "of no type": exif_block(99, 1, b"\x06"),
    "no value": exif_block(3, 0, b"\x06"),
    "more values than bytes": exif_block(3, 2**31, b"\x06"),
    "negative": exif_block(8, 1, b"\xfa\xff"),
}


@pytest.mark.parametrize("block", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_broken_tag_turns_nothing(tmp_path, suffix, block):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture()).save(path)
    plain = read_image(path)
    add_exif(path, block)
    np.testing.assert_array_equal(read_image(path), plain)
    np.testing.assert_array_equal(read_image(path, upright=False), plain)
    assert read_size(path) == plain.shape[:2]
    with Image.open(path) as image:
        np.testing.assert_array_equal(to_rgb(image, "it"), plain)


@pytest.mark.parametrize("late", [False, True])
def test_a_png_that_is_cut_off_is_named(tmp_path, late):
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    add_exif(path, exif_block(3, 1, b"\x06"), late=late)
    for length in range(30, path.stat().st_size // 2, 7):
        (tmp_path / "cut.png").write_bytes(path.read_bytes()[:length])
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'cut.png'}: the image")):
            read_image(tmp_path / "cut.png")


@pytest.mark.parametrize("orientation", EVERY)
def test_lists_are_read_as_their_dataset_says(tmp_path, orientation):
    """With labels, as for training, and without, as for a test server."""
    shown = picture()
    folder = tmp_path / "camvid"
    folder.mkdir()
    save_turned(shown, folder / "photo.png", orientation)
    Image.fromarray(np.zeros(shown.shape[:2], np.uint8)).save(folder / "upright.png")
    stored = as_stored(shown, orientation)
    Image.fromarray(np.zeros(stored.shape[:2], np.uint8)).save(folder / "stored.png")
    for upright, expected, label in ((True, shown, "upright.png"), (False, stored, "stored.png")):
        (tmp_path / "a.lst").write_text(f"photo.png {label}\n")
        (tmp_path / "b.lst").write_text("photo.png\n")
        for name in ("a.lst", "b.lst"):
            info = replace(CATALOG["camvid"], upright=upright)
            sample = ListDataset(tmp_path, tmp_path / name, info, ignore_label=255)[0]
            np.testing.assert_array_equal(sample.image, expected)


# Where a display matrix sends the x and the y axis of a frame, in 1/65536 (ISO 14496-12, tkhd), by quarters clockwise.
MATRICES = {0: (1, 0, 0, 1), 1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}


@pytest.mark.parametrize("quarters", MATRICES)
@pytest.mark.parametrize("kind", ["video", "pipe"])
def test_videos_are_turned_as_players_show_them(tmp_path, quarters, kind):
    """Red is where the stored frame has its upper left."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32] = (200, 0, 0)
    path = tmp_path / "a.mp4"
    writer = FrameWriter(path, 10)
    for _ in range(3):
        writer.write(frame)
    writer.close()
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    assert struct.unpack_from(">9i", content, start) == (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    a, b, c, d = (65536 * value for value in MATRICES[quarters])
    struct.pack_into(">9i", content, start, a, b, 0, c, d, 0, 0, 0, 2**30)
    path.write_bytes(content)
    with open(path, "rb") as file:
        reader = FrameReader(Input(kind, path if kind == "video" else file.fileno(), "a"))
        frames = list(reader)
        reader.close()
    assert len(frames) == 3
    height, width = (64, 48) if quarters % 2 else (48, 64)
    half = (slice(0, height // 2), slice(height // 2, None)), (slice(0, width // 2), slice(width // 2, None))
    row, column = {0: (0, 0), 1: (0, 1), 2: (1, 1), 3: (1, 0)}[quarters]
    for shown in frames:
        assert shown.shape == (height, width, 3)
        means = [[shown[rows, columns, 0].mean() for columns in half[1]] for rows in half[0]]
        assert means[row][column] > 150
        assert sum(map(sum, means)) - means[row][column] < 60
