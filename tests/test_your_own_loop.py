"""The programs of docs/your_own_loop.md run, at tiny sizes."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
import torch
import yaml
from nbclient import NotebookClient

import ovenet
from tests.four_convolutions import OVENET, registered

PAGE = Path(__file__).parents[1] / "docs" / "your_own_loop.md"
PROGRAMS = dict(re.findall(r"\n## ([^\n]+)\n.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL))
CLASSES = ["background", "thing", "other"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Five photographs of odd size with masks of three classes, in the working directory."""
    rng = np.random.default_rng(0)
    for number in range(5):
        labels = cv2.resize(rng.integers(0, 3, (5, 7)).astype(np.uint8), (95, 63), interpolation=cv2.INTER_NEAREST)
        noise = rng.normal(0, 20, (63, 95, 3))
        image = np.clip(np.array([(40, 60, 90), (150, 90, 60), (220, 220, 190)])[labels] + noise, 0, 255)
        labels[:4, :9] = 255
        for name, pixels in (("photos", image.astype(np.uint8)), ("masks", labels)):
            (tmp_path / name).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), pixels)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def tiny(code: str) -> str:
    """A program of the page with a small crop and one epoch."""
    for large, small in (("(512, 512)", "(64, 64)"), ("range(20)", "range(1)"), ("epochs=20", "epochs=1")):
        code = code.replace(large, small)
    assert not re.search(r"512|20\b", code)
    return code


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def run(code: str) -> dict:
    variables = {"__name__": "example"}
    exec(tiny(code), variables)
    return variables


def check_what_was_kept(model, folder):
    """The model, the folder and its predictor are one and the same."""
    kept = ovenet.from_pretrained(folder / "town")
    assert list(kept.metadata["class_names"]) == CLASSES
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), model.state_dict().values(), strict=True))
    assert ovenet.load(folder / "town")("photos/1.png").shape == (63, 95)


def test_there_are_four():
    assert list(PROGRAMS) == [
        "Plain torch", "Lightning", "Hugging Face", "A notebook", "Hooks of ovenet train", "What the parts take",
    ]  # fmt: skip


def test_plain_torch(folder, capsys):
    variables = run(PROGRAMS["Plain torch"])
    assert {"initial", "seed", "fused", "confidence"} <= variables["loss"].terms.keys()
    assert set(variables["scores"]) == {"initial", "seed", "fused"}
    assert re.match(r"0 \{'initial': \d", capsys.readouterr().out)
    assert variables["model"].training
    assert (folder / "overlay.png").is_file()
    check_what_was_kept(variables["model"], folder)


@needs("lightning")
@pytest.mark.ci
def test_lightning(folder):
    variables = run(PROGRAMS["Lightning"])
    metrics = variables["trainer"].callback_metrics
    assert {"val/fused", "val/initial", "val/seed", "train/confidence"} <= metrics.keys()
    network = variables["network"]
    expected = ovenet.evaluate(network.model, torch.utils.data.DataLoader(variables["validation"]))
    assert float(metrics["val/fused"]) == pytest.approx(expected["fused"].mean_iou, abs=1e-6)
    check_what_was_kept(network.model, folder)


@needs("accelerate")
@needs("transformers")
@pytest.mark.ci
def test_hugging_face(folder):
    check_what_was_kept(run(PROGRAMS["Hugging Face"])["model"], folder)


@pytest.mark.slow  # seconds to start its process; the cells are run by test_the_cells_of_the_notebook too
def test_a_notebook(folder):
    cells = [nbformat.v4.new_code_cell(cell) for cell in tiny(PROGRAMS["A notebook"]).split("# %%\n")[1:]]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    pictures = [sum("image/png" in o.get("data", {}) for o in cell.outputs) for cell in notebook.cells]
    assert pictures == [0, 0, 1, 5]  # the result draws itself, and five are shown


def test_the_cells_of_the_notebook(folder, monkeypatch):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("PIL.Image.Image.show", lambda picture: shown.append(picture.size))
    run(PROGRAMS["A notebook"])
    assert len(shown) == 5


def test_hooks_of_the_training(folder):
    town = folder / "data/town"
    town.mkdir(parents=True)
    (folder / "photos").rename(town / "images")
    (folder / "masks").rename(town / "labels")
    classes = [{"name": name} for name in CLASSES]
    (town / "dataset.json").write_text(json.dumps({"classes": classes, "ignore": [255], "val_share": 0.4}))
    settings = {
        "WORKERS": 0, "DEVICE": "cpu", "OUTPUT_DIR": "runs",
        "MODEL": {"BACKBONE": {"NAME": "four_convolutions"}, **OVENET},
        "DATASET": {
            "DATASET": "town", "NUM_CLASSES": 3, "TRAIN_SET": "list/town/train.lst", "TEST_SET": "list/town/val.lst",
        },
        "TRAIN": {"IMAGE_SIZE": [64, 64], "BASE_SIZE": 95, "BATCH_SIZE_PER_GPU": 2},
        "TEST": {"BASE_SIZE": 0, "IMAGE_SIZE": [128, 128]},
    }  # fmt: skip
    (town / "experiment.yaml").write_text(yaml.safe_dump(settings))
    with registered():
        variables = run(PROGRAMS["Hooks of ovenet train"].replace("patience=5", "patience=1"))
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    *before, last = (row["fused"] for row in rows)
    assert before == sorted(before)
    assert last <= before[-1]
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert {"initial", "seed", "fused"} < rows[0].keys()
    assert variables["run"] == Path("runs/town/experiment")
    assert list(variables["predictor"].info.class_names) == CLASSES


@needs("albumentations")
def test_a_pipeline_of_albumentations(folder):
    variables = run(PROGRAMS["What the parts take"])
    assert variables["image"].shape == (3, 256, 256)
    assert set(variables["labels"].unique().tolist()) <= {0, 1, 2, 255}
