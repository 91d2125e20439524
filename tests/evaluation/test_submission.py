"""Submissions: read by the official evaluation, and refused where a server would refuse them."""

import io
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from PIL import Image

from ovenet.data.catalog import CATALOG
from ovenet.evaluation.metrics import confusion_counts, scores_from_counts
from ovenet.evaluation.submission import (
    confidence_names,
    read_confidences,
    read_zip,
    save_confidence_file,
    save_submission_file,
    submission_names,
    validate_zip,
    write_zip,
)
from ovenet.synthetic.scenes import draw_scene

CITYSCAPES, ADE20K, ACDC = (CATALOG[name] for name in ("cityscapes", "ade20k", "acdc"))
IMAGES = [f"leftImg8bit/test/berlin/berlin_000000_00001{i}_leftImg8bit.png" for i in range(3)]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Label files of drawn scenes with every class and ignored, predictions that are right in half, and our counts."""
    folder, counts = tmp_path_factory.mktemp("scored"), torch.zeros((19, 19), dtype=torch.int64)
    table, rng, files = CITYSCAPES.train_id_table(255), np.random.default_rng(0), ([], [])
    for i in range(24):
        _, ids = draw_scene((128, 256), np.random.default_rng(i))
        labels = table[ids]
        guess = np.where(rng.random(labels.shape) < 0.5, labels, np.roll(labels, 9, axis=1))
        guess = np.where(guess == 255, rng.integers(0, 19, labels.shape), guess)  # ignored is predicted as something
        name = f"drawn_{i:06d}_000019"
        Image.fromarray(ids).save(folder / f"{name}_gtFine_labelIds.png")
        save_submission_file(torch.from_numpy(guess), folder / f"{name}_leftImg8bit.png", CITYSCAPES)
        counts += confusion_counts(torch.from_numpy(guess), torch.from_numpy(labels), 19, ignore_label=255)
        files[0].append(str(folder / f"{name}_leftImg8bit.png"))
        files[1].append(str(folder / f"{name}_gtFine_labelIds.png"))
    return files, counts


def test_the_score_is_the_one_of_the_cityscapes_scripts(scored, monkeypatch):
    (predictions, labels), counts = scored
    for name, value in {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True}.items():
        monkeypatch.setattr(official.args, name, value)
    theirs = official.evaluateImgLists(predictions, labels, official.args)
    ours = scores_from_counts(counts, CITYSCAPES.class_names)
    assert not ours.absent
    assert np.isin(
        np.stack([np.asarray(Image.open(f)) for f in labels]), CITYSCAPES.ignored_ids
    ).any()  # ignored regions
    assert 0.1 < ours.mean_iou < 0.9
    assert ours.mean_iou == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
    for name, iou in zip(CITYSCAPES.class_names, ours.iou, strict=True):
        assert iou == pytest.approx(theirs["classScores"][name], abs=1e-6)


def make_zip(tmp_path, info, images, size=(6, 8), change=lambda folder: None):
    """A valid zip, changed by a function of its folder before it is packed; and the sizes that are expected."""
    names = submission_names(images, info)
    folder = tmp_path / "files"
    for i, name in enumerate(names.values()):
        save_submission_file(torch.full(size, i % info.num_classes), folder / name, info)
    change(folder)
    found = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    write_zip(folder, found, tmp_path / "s.zip")
    return tmp_path / "s.zip", dict.fromkeys(names.values(), size)


@pytest.mark.parametrize(
    ("info", "image", "name", "ids"),
    [
        (CITYSCAPES, IMAGES[0], "berlin_000000_000010_leftImg8bit.png", [7, 8, 33]),
        (ADE20K, "testing/ADE_test_00000001.jpg", "ADE_test_00000001.png", [1, 2, 19]),
        (ACDC, "rgb_anon/fog/test/G/G_01_rgb_anon.png", "labelTrainIds/G_01_rgb_anon.png", [0, 1, 18]),
    ],
    ids=["cityscapes", "ade20k", "acdc"],
)  # fmt: skip
def test_names_and_ids_of_each_server(tmp_path, info, image, name, ids):
    names = submission_names([image], info)
    assert names == {image: name}
    save_submission_file(torch.tensor([[0, 1, 18]]), tmp_path / name, info)
    written = Image.open(tmp_path / name)
    assert written.mode == "L"
    assert np.asarray(written).tolist() == [ids]
    write_zip(tmp_path, [name], tmp_path / "s.zip")
    validate_zip(tmp_path / "s.zip", {name: (1, 3)}, info)
    (back,) = read_zip(tmp_path / "s.zip", [name], info)
    assert back.tolist() == [[0, 1, 18]]


def png(array, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", **options)
    return stream.getvalue()


LAST = "berlin_000000_000012_leftImg8bit.png"


def replaced(content):
    return lambda folder: (folder / LAST).write_bytes(content)


def renamed(name):
    def change(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / LAST).rename(folder / name)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / LAST).unlink(), rf"{LAST} is missing.*1 of 3"),
        (lambda folder: (folder / "notes.txt").write_text("x"), r"notes\.txt .*1 such"),
        (renamed(LAST.upper()), rf"{LAST.upper()} .*; expected {LAST}"),
        (renamed(LAST.replace("png", "bmp")), rf"bmp .*; expected {LAST}"),
        (renamed(f"a/{LAST}"), rf"a/{LAST} .*; expected {LAST}"),
        (replaced(png(np.full((6, 9), 7, np.uint8))), rf"{LAST} .*9x6 .*8x6"),
        (replaced(png(np.full((6, 8, 3), 7, np.uint8))), rf"{LAST} .*RGB; expected a PNG with one channel of 8 bits"),
        (replaced(png(np.full((6, 8), 7, np.uint16))), rf"{LAST} .*I;16; expected a PNG with one channel of 8 bits"),
        (replaced(png(np.full((6, 8), 18, np.uint8))), rf"{LAST} .* id 18\b.*label ids"),
        (replaced(b"text"), f"{LAST} "),
    ],
)
def test_a_zip_that_the_server_would_refuse(tmp_path, change, message):
    path, sizes = make_zip(tmp_path, CITYSCAPES, IMAGES)
    validate_zip(path, sizes, CITYSCAPES)
    path, sizes = make_zip(tmp_path, CITYSCAPES, IMAGES, change=change)
    with pytest.raises(ValueError, match=message):
        validate_zip(path, sizes, CITYSCAPES)


FRAMES = [f"rgb_anon/fog/test/G/G_0{i}_rgb_anon.png" for i in range(2)]
MAP = "confidence/G_01_rgb_anon.png"


def make_zip_with_maps(tmp_path, info, change=lambda folder: None):
    """As `make_zip`, with confidence maps."""
    levels = np.linspace(0, 65535, 48).round().astype(np.int32).reshape(6, 8)

    def add_maps(folder):
        for name in confidence_names(submission_names(FRAMES, info).values(), info).values():
            save_confidence_file(levels, folder / name, info)
        change(folder)

    return *make_zip(tmp_path, info, FRAMES, change=add_maps), levels


@pytest.mark.parametrize("bits", [8, 16])
def test_confidence_maps_come_back_as_they_were_written(tmp_path, bits):
    info = replace(ACDC, submission=replace(ACDC.submission, confidence_bits=bits))
    path, sizes, levels = make_zip_with_maps(tmp_path, info)
    validate_zip(path, sizes, info, confidences=True)
    with pytest.raises(ValueError, match=r"confidence/G_00_rgb_anon\.png .*\b2 such"):
        validate_zip(path, sizes, info)
    first, _ = read_confidences(path, sizes, info)
    assert np.abs(first - levels).max() <= {8: 128, 16: 0}[bits]  # half of the 257 levels from a value to the next
    assert (first[0, 0], first[-1, -1]) == (0, 65535)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, rf"{MAP} is missing.*1 of 4"),
        (png(np.zeros((6, 9), np.uint16)), rf"{MAP} .*9x6 .*8x6"),
        (png(np.zeros((6, 8), np.uint8)), rf"{MAP} .*mode L; expected a PNG with one channel of 16 bits"),
        (png(np.zeros((6, 8, 3), np.uint8)), rf"{MAP} .*mode RGB; expected a PNG with one channel of 16 bits"),
    ],
    ids=["missing", "size", "bits", "colour"],
)
def test_wrong_confidence_maps(tmp_path, content, message):
    def change(folder):
        (folder / MAP).unlink()
        if content:
            (folder / MAP).write_bytes(content)

    path, sizes, _ = make_zip_with_maps(tmp_path, ACDC, change)
    with pytest.raises(ValueError, match=message):
        validate_zip(path, sizes, ACDC, confidences=True)


def test_a_server_that_takes_no_confidence_maps():
    with pytest.raises(ValueError, match=r"cityscapes server .*TEST\.UNCERTAINTY to none"):
        confidence_names(["a.png"], CITYSCAPES)


def test_files_that_are_no_zip_or_hold_a_file_twice(tmp_path):
    path, sizes = make_zip(tmp_path, CITYSCAPES, IMAGES)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(LAST, b"again")
    with pytest.raises(ValueError, match=f"{LAST} .*twice"):
        validate_zip(path, sizes, CITYSCAPES)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{path.name}: not a zip"):
        validate_zip(path, sizes, CITYSCAPES)
    with pytest.raises(ValueError, match=r"none\.zip: "):
        validate_zip(tmp_path / "none.zip", sizes, CITYSCAPES)


def test_equal_files_give_equal_zips(tmp_path):
    path, _ = make_zip(tmp_path, CITYSCAPES, IMAGES)
    first = path.read_bytes()
    for file in (tmp_path / "files").iterdir():
        os.utime(file, (0, 0))
    assert make_zip(tmp_path, CITYSCAPES, IMAGES)[0].read_bytes() == first


def test_a_damaged_entry_is_named(tmp_path):
    path, sizes = make_zip(tmp_path, CITYSCAPES, IMAGES)
    content = bytearray(path.read_bytes())
    content[60 + len(IMAGES[0])] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"berlin_000000_000010_leftImg8bit\.png "):
        validate_zip(path, sizes, CITYSCAPES)


def test_names_that_collide_and_datasets_without_a_server():
    with pytest.raises(ValueError, match=r"b/x\.png: .*\bx\.png "):
        submission_names(["a/x.png", "b/x.png"], CITYSCAPES)
    with pytest.raises(ValueError, match=r"camvid .*test server"):
        submission_names(["a/x.png"], CATALOG["camvid"])
