"""The audit of pairs: EXIF turns of an image and its label, repeated and copied files, stale lists."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.audit.audited import FIVE, RNG, Data, only

from ovenet.audit import copied_images, findings_about_both

UPRIGHT, AS_STORED = replace(FIVE, upright=True), FIVE


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


def save(path, shape, turn):
    """A photograph, or a label of one class, of ``(H, W)`` with an EXIF orientation."""
    exif = Image.Exif()
    if turn != 1:
        exif[0x0112] = turn
    size = (*shape, 3) if path.stem == "image" else shape
    pixels = RNG.integers(0, 256, size) if path.stem == "image" else np.ones(size)
    Image.fromarray(pixels.astype(np.uint8)).save(path, exif=exif)


WIDE, TALL, SQUARE = (16, 20), (20, 16), (16, 16)


@pytest.mark.parametrize(
    ("info", "image", "label", "expected"),
    [
        (UPRIGHT, (WIDE, 1), (WIDE, 1), None),
        (UPRIGHT, (WIDE, 6), (TALL, 1), "note: EXIF-rotated image: turned upright"),  # annotated as viewers show it
        (UPRIGHT, (WIDE, 6), (WIDE, 1), 'error: size differs: "upright": false'),
        (UPRIGHT, (SQUARE, 6), (SQUARE, 1), "note: EXIF-rotated image: the sizes cannot tell"),
        (UPRIGHT, (WIDE, 3), (WIDE, 1), "note: EXIF-rotated image: the sizes cannot tell"),
        (UPRIGHT, (WIDE, 6), (WIDE, 6), 'error: size differs: "upright": false'),
        (UPRIGHT, (SQUARE, 6), (SQUARE, 6), 'error: EXIF turns differ: "upright": false'),
        (UPRIGHT, (WIDE, 3), (WIDE, 3), 'error: EXIF turns differ: "upright": false'),
        (UPRIGHT, (SQUARE, 6), (SQUARE, 8), "note: EXIF turns differ: see in the pictures"),
        (UPRIGHT, (SQUARE, 1), (SQUARE, 6), "note: EXIF turns differ: see in the pictures"),
        (UPRIGHT, (WIDE, 1), (WIDE, 6), "note: EXIF turns differ: see in the pictures"),
        (UPRIGHT, (WIDE, 1), (TALL, 6), "error: size differs: save it turned, without tag"),
        (AS_STORED, (WIDE, 6), (WIDE, 6), "note: EXIF-rotated label: both are read as stored"),
        (AS_STORED, (SQUARE, 6), (SQUARE, 1), "note: EXIF-rotated image: the sizes cannot tell"),
        (AS_STORED, (WIDE, 6), (WIDE, 1), "note: EXIF-rotated image: read as stored"),
        (AS_STORED, (WIDE, 6), (TALL, 1), 'error: size differs: "upright": true'),
    ],
)
def test_turns_of_an_image_and_its_label(data, tmp_path, info, image, label, expected):
    save(tmp_path / "image.jpg", *image)
    save(tmp_path / "label.png", *label)
    data.pairs = [("image.jpg", "label.png")]
    found = data.found(info)
    if expected is None:
        assert found == []
        return
    level, kind, part = expected.split(": ", 2)
    assert (found[0].is_error, found[0].kind) == (level == "error", kind)
    assert part in found[0].message
    assert sum(finding.is_error for finding in found) == (level == "error")


def test_the_turn_of_an_image_without_a_label(data, tmp_path):
    save(tmp_path / "image.jpg", WIDE, 6)
    data.pairs = [("image.jpg", None)]
    report = data.audit(UPRIGHT)
    assert report.sizes == ((TALL, 1),)
    assert "turned upright" in data.notes(UPRIGHT)["EXIF-rotated image"]


def test_an_image_as_its_own_label(data):
    data.add([0, 1, 2, 3], name="a").add([4, 1, 2, 3])
    data.pairs.append(("a_label.png", "a_label.png"))
    kind, message, paths = only(data.errors())
    assert (kind, paths) == ("image as its own label", ("a_label.png",))
    assert "correct the list" in message


def test_an_image_with_two_labels_and_a_label_of_two_images(data):
    data.add([0, 1, 2, 3]).add([4, 1, 2, 3]).add([0, 0, 0, 0])
    assert data.found() == []
    data.pairs = [("0.png", "0_label.png"), ("0.png", "1_label.png"), ("2.png", "1_label.png")]
    found = {finding.kind: finding for finding in data.found()}
    assert found["image with several labels"].paths == ("0.png",)
    assert found["label of several images"].paths == ("1_label.png",)
    assert len(found) == 2
    assert not any(finding.is_error for finding in found.values())


def test_one_picture_under_two_names_in_both_lists(data, tmp_path):
    data.add([0, 1, 2, 3]).add([4, 1, 2, 3])
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "again.png").write_bytes((tmp_path / "0.png").read_bytes())
    almost = bytearray((tmp_path / "1.png").read_bytes())
    almost[40] ^= 1  # of the same size
    (tmp_path / "almost.png").write_bytes(almost)
    train, val = data.pairs, [("copy.png", "0_label.png"), ("almost.png", "1_label.png"), ("missing.png", None)]
    assert copied_images(tmp_path, train, val) == [("0.png", "copy.png")]
    finding = only(findings_about_both(tmp_path, [train, val], [data.audit()], FIVE))
    assert (finding.kind, finding.is_error, finding.paths) == ("shared image", False, ("copy.png",))
    assert re.match(r"1 images .*0\.png and copy\.png", finding.message)
    finding = only(findings_about_both(tmp_path, [[*train, ("again.png", "0_label.png")], val], [data.audit()], FIVE))
    assert finding.paths == ("copy.png",)  # once, however many it is like
    assert finding.message.startswith("1 ")


def test_a_removed_pair_names_the_command_that_writes_the_lists_anew(data, tmp_path):
    data.add([0, 1, 2, 3]).add([4, 1, 2, 3])
    for name in data.pairs[0]:
        (tmp_path / name).unlink()
    found = data.found(if_missing="run `ovenet prepare five`, which writes the lists anew")
    assert [finding.message for finding in found] == [
        f"the {role} does not exist; run `ovenet prepare five`, which writes the lists anew"
        for role in ("image", "label")
    ]
    assert "check DATASET.ROOT and the list file" in data.found()[0].message
