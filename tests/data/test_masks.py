"""Label files give the samples that are stored in them, whatever Pillow does to them."""

import struct

import numpy as np
import pytest
from PIL import Image
from tests.data.pixel_files import png, tiff

from ovenet.data.files import read_image
from ovenet.data.masks import read_form, read_mask
from ovenet.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mask"


def random_samples(bits, size=(11, 13)):
    return RNG.integers(0, 2**bits, size)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("color_type", [0, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_samples_are_not_scaled(path, bits, color_type, interlaced):
    samples = random_samples(bits)
    chunks = [(b"PLTE", bytes(3 * 2**bits))] if color_type == 3 else []
    path.write_bytes(png(samples, bits, color_type=color_type, chunks=chunks, interlaced=interlaced))
    mask = read_mask(path)
    np.testing.assert_array_equal(mask.samples, samples)
    assert mask.samples.dtype == np.uint8
    assert (mask.form.bits, mask.form.is_interlaced, mask.form.holds_ids) == (bits, interlaced, True)
    assert mask.form == read_form(path)


@pytest.mark.parametrize("bits", [2, 4])
def test_small_samples_that_are_multiples_of_the_scale_stay(path, bits):
    samples = np.zeros((5, 7), int)
    samples[1:3, 2:4] = 2**bits - 1
    path.write_bytes(png(samples, bits))
    np.testing.assert_array_equal(read_mask(path).samples, samples)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tiff_samples_are_neither_scaled_nor_inverted(path, bits, photometric, order):
    samples = random_samples(bits)
    path.write_bytes(tiff(samples, bits, photometric=photometric, order=order))
    mask = read_mask(path)
    np.testing.assert_array_equal(mask.samples, samples)
    assert (mask.form.bits, mask.form.is_inverted) == (bits, photometric == 0)


@pytest.mark.parametrize("compression", [None, "group4", "tiff_lzw"])
def test_white_of_1_bit_is_1_whatever_a_tiff_calls_it(path, compression):
    samples = random_samples(1)
    Image.fromarray(samples.astype(bool)).save(path, format="TIFF", compression=compression)
    np.testing.assert_array_equal(read_mask(path).samples, samples)
    path.write_bytes(tiff(1 - samples, 1, photometric=0))
    np.testing.assert_array_equal(read_mask(path).samples, samples)


@pytest.mark.parametrize(
    ("dtype", "sample_format", "values"),
    [
        ("<u2", 1, [0, 7, 255, 65535]),
        (">u2", 1, [0, 7, 255, 65535]),
        ("<i2", 2, [0, 7, -1, -32768]),
        ("<i4", 2, [0, 7, -1, 2**31 - 1]),
        (">i4", 2, [0, 7, -1, -(2**31)]),
        ("<u4", 1, [0, 7, 255, 2**32 - 1]),
        ("<f4", 3, [0, 7, -1, 70000]),
    ],
)
def test_wide_tiffs_give_their_true_values(path, dtype, sample_format, values):
    samples = np.array([values, values[::-1]], dtype)
    path.write_bytes(tiff(samples, 8 * samples.itemsize, sample_format=sample_format, order=dtype[0]))
    assert read_mask(path).samples.tolist() == [values, values[::-1]]
    assert read_form(path).holds_ids


def test_signed_bytes_stay_signed(path):
    path.write_bytes(tiff(np.array([[0, 5, 255]]), 8, sample_format=2))
    assert read_mask(path).samples.tolist() == [[0, 5, -1]]


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf")])
def test_floats_that_are_no_ids_are_refused(path, value):
    path.write_bytes(tiff(np.array([[1, value, 2]], "<f4"), 32, sample_format=3))
    with pytest.raises(UserError, match=rf"mask: .*{value} \(1 pixels.*integers"):
        read_mask(path)


@pytest.mark.parametrize("max_sample", [3, 20, 254, 255])
@pytest.mark.parametrize("plain", [False, True])
def test_pgm_samples_are_not_scaled(path, max_sample, plain):
    samples = np.arange(max_sample + 1, dtype=np.uint8)[None]
    head = f"{'P2' if plain else 'P5'} {samples.size} 1 {max_sample}\n".encode()
    path.write_bytes(head + (" ".join(map(str, samples[0])).encode() if plain else samples.tobytes()))
    np.testing.assert_array_equal(read_mask(path).samples, samples)


def test_pgm_of_ten_bits(path):
    samples = np.arange(1024, dtype=">u2")[None]
    path.write_bytes(b"P5 1024 1 1023\n" + samples.tobytes())
    np.testing.assert_array_equal(read_mask(path).samples, samples)


def test_1_bit_bmp(path):
    samples = random_samples(1)
    Image.fromarray(samples.astype(bool)).save(path, format="BMP")
    np.testing.assert_array_equal(read_mask(path).samples, samples)
    assert read_form(path).bits == 1


def test_a_bmp_that_pillow_takes_for_another_is_refused(path):
    rows = b"".join(bytes(row).ljust(4, b"\0") for row in ([0, 1, 1], [1, 0, 0]))
    header = struct.pack("<IiiHHIIiiII", 40, 3, 2, 1, 8, 0, len(rows), 0, 0, 2, 0)  # 8 bits, two colours
    palette = bytes((0, 0, 0, 0, 255, 255, 255, 0))
    start = 14 + len(header) + len(palette)
    path.write_bytes(struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + header + palette + rows)
    with pytest.raises(UserError, match=r"BMP.* 8 bits.*PNG"):
        read_mask(path)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF"])
def test_the_palette_is_read_from_the_header(path, file_format):
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), "P")
    image.putpalette([9, 8, 7, 200, 10, 30, 0, 0, 255])
    image.save(path, format=file_format)
    mask = read_mask(path)
    assert mask.form.palette[:3] == read_form(path).palette[:3] == ((9, 8, 7), (200, 10, 30), (0, 0, 255))
    assert mask.samples.tolist() == [[0, 1, 2], [2, 1, 0]]
    assert mask.colors(path)[0].tolist() == [[9, 8, 7], [200, 10, 30], [0, 0, 255]]


def test_an_index_beyond_the_palette_has_no_colour(path):
    path.write_bytes(png(np.array([[0, 3]]), 8, color_type=3, chunks=[(b"PLTE", bytes(6))]))
    assert read_mask(path).samples.tolist() == [[0, 3]]
    with pytest.raises(UserError, match=r"index 3.* 2 colours"):
        read_mask(path).colors(path)


@pytest.mark.parametrize(("bits", "samples"), [(1, [[0, 1]]), (2, [[0, 3]]), (4, [[0, 15]]), (8, [[0, 255]])])
def test_grey_files_as_colours_look_as_in_a_viewer(path, bits, samples):
    path.write_bytes(png(np.array(samples), bits))
    assert read_mask(path).colors(path).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_of_several_pages_the_first(path):
    pages = [Image.fromarray(np.full((2, 3), value, np.uint8)) for value in (4, 5, 6)]
    pages[0].save(path, format="TIFF", save_all=True, append_images=pages[1:])
    assert (read_mask(path).samples == 4).all()
    assert read_form(path).num_pages == 3


@pytest.mark.parametrize(
    ("file_format", "options", "is_lossy"),
    [
        ("JPEG", {}, True),
        ("WEBP", {}, True),
        ("WEBP", {"icc_profile": b"x" * 9}, True),
        ("WEBP", {"save_all": True, "append_images": [Image.new("RGB", (16, 16), "red")]}, True),
        ("WEBP", {"lossless": True}, False),
        ("WEBP", {"lossless": True, "icc_profile": b"x" * 9}, False),
        ("TIFF", {"compression": "jpeg"}, True),
        ("TIFF", {"compression": "tiff_lzw"}, False),
        ("PNG", {}, False),
    ],
)
def test_lossy_files_are_known_by_their_content(path, file_format, options, is_lossy):
    Image.fromarray(RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(path, format=file_format, **options)
    assert read_form(path).is_lossy == is_lossy


def test_alpha_of_each_kind(path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (255, 128, 0)
    path.write_bytes(png(rgba, 8, color_type=6))
    assert read_mask(path).alpha.tolist() == [[255, 128, 0]]
    assert read_form(path).alpha == "channel"
    palette = [(b"PLTE", bytes(range(9))), (b"tRNS", bytes((0, 128)))]
    path.write_bytes(png(np.array([[0, 1, 2]]), 8, color_type=3, chunks=palette))
    assert read_mask(path).alpha.tolist() == [[0, 128, 255]]
    assert read_form(path).alpha == "palette"
    path.write_bytes(png(np.array([[0, 1, 2]]), 2, chunks=[(b"tRNS", bytes((0, 2)))]))
    assert read_mask(path).alpha.tolist() == [[255, 255, 0]]
    path.write_bytes(
        png(np.array([[[1, 2, 3], [3, 2, 1]]]), 8, color_type=2, chunks=[(b"tRNS", bytes((0, 3, 0, 2, 0, 1)))])
    )
    assert read_mask(path).alpha.tolist() == [[255, 0]]
    assert read_form(path).alpha == "color"


def test_opaque_alpha_is_none(path):
    path.write_bytes(png(np.full((2, 3, 4), 255), 8, color_type=6))
    assert read_mask(path).alpha is None


def test_chunks_that_change_colours_are_named(path):
    chunks = [(b"gAMA", struct.pack(">I", 100_000)), (b"cHRM", struct.pack(">8I", *[31270] * 8))]
    path.write_bytes(png(np.zeros((2, 3), int), 8, chunks=chunks))
    assert read_form(path).color_chunks == ("gamma", "chromaticity")
    path.write_bytes(png(np.zeros((2, 3), int), 8, chunks=[(b"gAMA", struct.pack(">I", 45_455))]))  # of sRGB
    assert read_form(path).color_chunks == ()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_kinds_of_colours_are_refused(path, mode):
    Image.new(mode, (3, 2)).save(path, format="TIFF")
    with pytest.raises(UserError, match=f"mask: .*({mode}.*PNG|replace it)"):
        read_mask(path)


def test_the_header_alone_is_read(path):
    path.write_bytes(png(np.zeros((9, 9), int), 8)[:45])  # cut off in the pixels
    assert read_form(path).size == (9, 9)
    with pytest.raises(UserError, match=r"mask: .*label.*replace it"):
        read_mask(path)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_as_its_tag_says(path, compression):
    """Pillow 13 mixes up the rows of files that it maps into memory: uncompressed ones that it opens by name."""
    stored = Image.fromarray(np.array([[0, 1, 2], [3, 4, 5]], np.uint8))
    stored.save(path, format="TIFF", compression=compression, tiffinfo={0x0112: 6})
    assert read_mask(path).samples.tolist() == [[3, 0], [4, 1], [5, 2]]
    assert read_form(path).size == (3, 2)
    assert read_image(path)[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]
