"""Corrected label files: each format comes back with the classes that were meant, and its other pixels as they were."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from ovenet.data.corrections import LabelCorrector
from ovenet.data.info import DatasetInfo
from ovenet.data.labels import LabelDecoder
from ovenet.data.masks import read_mask
from ovenet.errors import UserError

COLORS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
# Ids 2 and 5 are both of the class b; 0 and 255 are ignored.
INFO = DatasetInfo("x", ("a", "b", "c"), COLORS, (1, 2, 3), (0, 255), ((9, 9, 9),), merged_ids=((5, 1),))
BY_COLOR = dataclasses.replace(INFO, label_format="colors", ignored_ids=(), merged_ids=())
SIZE = (7, 11)


def ids(seed=0):
    return np.random.default_rng(seed).choice(np.array([0, 1, 2, 3, 5, 255], np.uint8), SIZE)


def color_pixels():
    return np.array([*COLORS, (9, 9, 9)], np.uint8)[np.random.default_rng(0).integers(0, 4, SIZE)]


def image_of(kind):
    if kind == "palette":
        image = Image.fromarray(ids(), "L").convert("P")
        image.putdata(ids().ravel().tolist())
        image.putpalette([v for k in range(256) for v in (k, 255 - k, 7)])
        return image
    if kind == "palette of colours":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 4, SIZE).astype(np.uint8)).convert("P")
        image.putdata(np.random.default_rng(0).integers(0, 4, SIZE).ravel().tolist())
        image.putpalette([channel for color in (*COLORS[::-1], (9, 9, 9)) for channel in color])
        return image
    if kind == "colours":
        return Image.fromarray(color_pixels())
    if kind == "colours and alpha":
        return Image.fromarray(np.dstack([color_pixels(), np.full(SIZE, 255, np.uint8)]))
    return Image.fromarray(ids().astype({"16 bits": np.uint16, "32 bits": np.int32}.get(kind, np.uint8)))


FORMATS = [
    ("grey", "png", INFO), ("palette", "png", INFO), ("16 bits", "png", INFO), ("16 bits", "tif", INFO),
    ("32 bits", "tif", INFO), ("grey", "tif", INFO), ("grey", "bmp", INFO), ("grey", "pgm", INFO),
    ("colours", "png", BY_COLOR), ("colours", "bmp", BY_COLOR), ("colours and alpha", "png", BY_COLOR),
    ("palette of colours", "png", BY_COLOR),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "suffix", "info"), FORMATS)
def test_what_is_not_changed_keeps_its_value(tmp_path, kind, suffix, info):
    path, decoder = tmp_path / f"label.{suffix}", LabelDecoder(info, 255)
    image_of(kind).save(path)
    before, wanted = read_mask(path), decoder.read(path).copy()
    wanted[2, 3:6] = (0, 1, 2)
    wanted[4] = 255
    wanted[6, :] = 1
    content = path.read_bytes()
    LabelCorrector(decoder).write(path, wanted, tmp_path / "new" / path.name)

    after = read_mask(tmp_path / "new" / path.name)
    np.testing.assert_array_equal(decoder.read(tmp_path / "new" / path.name), wanted)
    same = wanted == decoder.read(path)
    np.testing.assert_array_equal(after.samples[same], before.samples[same])
    assert (after.form.file_format, after.form.mode) == (before.form.file_format, before.form.mode)
    assert after.form.palette == before.form.palette
    assert path.read_bytes() == content
    if info is INFO and kind == "grey":
        assert {5} <= set(after.samples[6].tolist()) | {5}  # an id of the same class stays
        assert set(after.samples[6].tolist()) <= {2, 5}
        assert set(after.samples[4].tolist()) <= {0, 255}


def test_a_smoothed_mask_is_read_as_corrected(tmp_path):
    info = dataclasses.replace(BY_COLOR, snap=True)
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, :5], pixels[:, 5], pixels[:, 6:] = COLORS[0], (100, 100, 0), COLORS[1]
    path, decoder = tmp_path / "label.png", LabelDecoder(info, 255)
    Image.fromarray(pixels).save(path)
    wanted = decoder.read(path).copy()
    wanted[:, 4] = wanted[:, 6] = 2  # the classes beside the smoothed edge
    LabelCorrector(decoder).write(path, wanted, tmp_path / "new.png")
    np.testing.assert_array_equal(decoder.read(tmp_path / "new.png"), wanted)


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    decoder = LabelDecoder(dataclasses.replace(INFO, ignored_ids=()), 255)
    path, new = tmp_path / "label.png", tmp_path / "new" / "label.png"
    Image.fromarray(np.ones(SIZE, np.uint8)).save(path)
    wanted = decoder.read(path).copy()
    wanted[0, 0] = 255
    corrector = LabelCorrector(decoder)
    assert not corrector.can_ignore(path)
    with pytest.raises(UserError, match=r"label\.png: .*without a label"):
        corrector.write(path, wanted, new)
    Image.fromarray(np.full((*SIZE, 3), 200, np.uint8)).save(tmp_path / "label.jpg")
    with pytest.raises(UserError, match=r"label\.jpg: .*JPEG"):
        corrector.write(tmp_path / "label.jpg", wanted, new)
    image = Image.fromarray(np.zeros(SIZE, np.uint8)).convert("P")
    image.putpalette([200, 0, 0])
    image.save(path)
    wanted[0, 0] = 1
    with pytest.raises(UserError, match=r"label\.png: .*'b'"):
        LabelCorrector(LabelDecoder(BY_COLOR, 255)).write(path, wanted, new)
    assert list(tmp_path.glob("new/*")) == []
