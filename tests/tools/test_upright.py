"""One photograph of each EXIF orientation through every way to a prediction: as if it were saved upright."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import tiny_settings
from tests.photographs import SIDES, add_exif, as_stored, exif_block, picture, save_turned

from ovenet import Predictor, build_model, builders, load_config
from ovenet.commands.app import App
from ovenet.commands.make_submission import image_sizes
from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import ListDataset
from ovenet.deployment import Limits
from ovenet.evaluation.submission import save_submission_file, validate_zip, write_zip
from ovenet.inference.memory import MemoryGuard
from ovenet.predictor import export

EVERY = sorted(SIDES)
SHOWN = picture(40, 64)


@pytest.fixture
def photographs(tmp_path):
    """Files 1.png to 8.png, which viewers show alike, and the same pixels without a tag."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for orientation in EVERY:
        save_turned(SHOWN, folder / f"{orientation}.png", orientation)
    Image.fromarray(SHOWN).save(folder / "plain.png")
    return folder


@pytest.fixture
def weights(write_config, tmp_path):
    """A tiny OVeNet, whose dataset has masks for photographs as they are stored."""
    cfg = load_config(write_config(tiny_settings()))
    info = builders.dataset_info(cfg)
    assert not info.upright
    content = {"model": build_model(cfg).state_dict(), "config": cfg.dump(), "dataset_info": info.as_dict()}
    torch.save(content, tmp_path / "best.pth")
    return tmp_path / "best.pth"


def test_a_loaded_model(weights, photographs):
    predictor = Predictor.from_checkpoint(weights)
    expected = predictor(SHOWN)
    turned = predictor(as_stored(SHOWN, 3))
    assert (turned.mask != expected.mask).any()  # else this test could not fail
    for orientation in EVERY:
        path = photographs / f"{orientation}.png"
        with Image.open(path) as image:
            for result in (predictor(path), predictor(image), *predictor([str(path)]), *predictor(iter([path]))):
                np.testing.assert_array_equal(result.image, SHOWN)
                np.testing.assert_array_equal(result.mask, expected.mask)


def test_all_that_infer_writes(weights, photographs, run_tool, tmp_path):
    done = run_tool("infer", weights, photographs, "--page", "--output", tmp_path / "o")
    assert done.code == 0, done.err
    for kind, suffix in (*((k, "png") for k in ("ids", "color", "overlay", "offset", "confidence")), ("offset", "npy")):
        expected = (tmp_path / f"o/{kind}/plain.{suffix}").read_bytes()
        for orientation in EVERY:
            assert (tmp_path / f"o/{kind}/{orientation}.{suffix}").read_bytes() == expected
    assert Image.open(tmp_path / "o/ids/6.png").size == (64, 40)
    rows = (tmp_path / "o/class_shares.csv").read_text().splitlines()[1:]
    assert len({row.split(",", 1)[1] for row in rows}) == 1
    page = (tmp_path / "o/page.html").read_text()
    pictures = re.findall(r'<script[^>]*id="picture-0-\d+"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert len(pictures) == 9
    assert len({json.dumps({**json.loads(one), "name": ""}) for one in pictures}) == 1


def test_the_app(weights, photographs):
    app = App({"tiny": str(weights)}, "cpu", "torch", 2.0)
    expected = app.predict(photographs / "plain.png", "tiny", "torch")
    assert expected["size"] == [40, 64]
    for orientation in EVERY:
        assert app.predict(photographs / f"{orientation}.png", "tiny", "torch") == expected


def test_images_of_an_export(photographs):
    """Those that are compared, and those that a calibration learns from."""
    limits = Limits(0.1, 0.1)
    options = export.ExportOptions((40, 64), ("fused",), True, "float32", 17, limits, images=[str(photographs)])
    samples = list(export._samples(None, options, "", 9))
    assert len(samples) == 9
    for image, _ in samples:
        np.testing.assert_array_equal(image, SHOWN)


def test_the_guard_counts_the_turned_size(weights, photographs):
    predictor = Predictor.from_checkpoint(weights, long_side="native")
    guard = MemoryGuard(predictor, 11, 100)
    sizes = []
    guard.image_bytes = lambda size: sizes.append(size) or 0
    for orientation in EVERY:
        assert guard.check(photographs / f"{orientation}.png") == 40 * 64
    assert sizes == [(40, 64)] * 8


@pytest.mark.parametrize("upright", [False, True])
def test_a_submission_has_the_orientation_that_its_dataset_is_read_in(photographs, tmp_path, upright):
    (tmp_path / "data").mkdir()
    photographs.rename(tmp_path / "data/cityscapes")
    (tmp_path / "test.lst").write_text("".join(f"{o}.png\n" for o in EVERY))
    info = replace(CATALOG["cityscapes"], upright=upright)
    dataset = ListDataset(tmp_path / "data", tmp_path / "test.lst", info, ignore_label=255)
    names = {f"{o}.png": f"{o}_result.png" for o in EVERY}
    sizes = image_sizes(dataset, names)
    for index, orientation in enumerate(EVERY):
        image = dataset[index].image
        assert sizes[f"{orientation}_result.png"] == image.shape[:2]
        assert image.shape[:2] == ((40, 64) if upright or orientation < 5 else (64, 40))
        labels = torch.zeros(image.shape[:2], dtype=torch.uint8)
        save_submission_file(labels, tmp_path / f"z/{orientation}_result.png", info)
    write_zip(tmp_path / "z", names.values(), tmp_path / "z.zip")
    validate_zip(tmp_path / "z.zip", sizes, info)


def test_what_is_drafted_and_audited(run_tool, write_config, tmp_path, monkeypatch):
    """Upright masks for photographs of every turn and of every format, and for broken tags: nothing to say but that."""
    folder = tmp_path / "data/mine"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for suffix, options in (("png", {}), ("tif", {}), ("webp", {"lossless": True}), ("jpg", {"quality": 95})):
        for orientation in EVERY:
            save_turned(SHOWN, folder / f"images/{suffix}{orientation}.{suffix}", orientation, **options)
    for number, block in enumerate((b"garbage garbage", exif_block(3, 1, b"\x09"), exif_block(2, 2, b"6"))):
        for suffix in ("png", "jpg"):
            path = folder / f"images/broken{suffix}{number}.{suffix}"
            Image.fromarray(SHOWN).save(path)
            add_exif(path, block)
    for index, path in enumerate(sorted(folder.glob("images/*"))):
        mask = np.zeros(SHOWN.shape[:2], np.uint8)
        mask.ravel()[index:] = 1
        Image.fromarray(mask).save(folder / f"labels/{path.stem}.png")
    monkeypatch.chdir(tmp_path)  # where the experiment is drafted
    prepared = run_tool("prepare_data", "mine", "--root", tmp_path / "data")
    assert prepared.code == 0, prepared.err
    assert "64x40 pixels" in prepared.out
    settings = tiny_settings()
    settings["OUTPUT_DIR"] = str(tmp_path / "output")
    lists = {f"{kind}_SET": f"list/mine/{name}.lst" for kind, name in (("TRAIN", "train"), ("TEST", "val"))}
    settings["DATASET"] = {"DATASET": "mine", "ROOT": str(tmp_path / "data"), "NUM_CLASSES": 2, **lists}
    done = run_tool("audit_data", "--cfg", write_config(settings), "--pictures", 0)
    assert done.code == 0, done.out + done.err
    report = json.loads((tmp_path / "output/mine/audit/audit.json").read_text())
    findings = [finding for part in report["lists"].values() for finding in part["findings"]]
    assert not [finding for finding in findings if finding["error"]]
    assert not [path for finding in findings for path in finding["paths"] if "broken" in path or ".tif" in path]
