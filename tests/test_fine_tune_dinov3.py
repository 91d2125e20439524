"""The commands of docs/fine_tune_dinov3.md run, with a small random network in place of DINOv3."""

import re
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
from safetensors.torch import save_file

import tests.models.small_timm  # noqa: F401  (registers small networks)
from ovenet.commands import main
from ovenet.config import load_config

TEXT = (Path(__file__).parents[1] / "docs/fine_tune_dinov3.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    ovenet (.+)$", TEXT, flags=re.MULTILINE)
FILES = dict(re.findall(r"Write `(\S+)`:\n\n```yaml\n(.*?)```", TEXT, flags=re.DOTALL))
SMALL = [
    "MODEL.BACKBONE.NAME", "small_dinov3", "MODEL.BACKBONE.PRETRAINED", "model.safetensors", "WORKERS", "0",
    "DEVICE", "cpu", "TRAIN.END_EPOCH", "1", "TRAIN.REPEATS", "1", "TRAIN.BATCH_SIZE_PER_GPU", "4",
]  # fmt: skip


def run(command: str, *overrides: str) -> None:
    """One command of the page in this process."""
    sys.argv = ["ovenet", *shlex.split(command), *overrides]
    try:
        main()
    except SystemExit as end:
        if end.code:
            pytest.fail(f"{command}: exit code {end.code}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Nine photographs of odd size with masks of three classes, and a file of weights by timm's names."""
    rng = np.random.default_rng(0)
    for number in range(9):
        labels = cv2.resize(rng.integers(0, 3, (5, 7)).astype(np.uint8), (95, 63), interpolation=cv2.INTER_NEAREST)
        photo = np.array([(40, 60, 90), (150, 90, 60), (220, 220, 190)])[labels] + rng.normal(0, 20, (63, 95, 3))
        for name, pixels in (("images", np.clip(photo, 0, 255).astype(np.uint8)), ("masks", labels)):
            path = tmp_path / f"data/cracks/{name}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    save_file(timm.create_model("small_dinov3").state_dict(), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return tmp_path


def run_page(folder: Path, names: set[str]) -> None:
    """The commands of these names, in the order of the page, with its files."""
    for command in COMMANDS:
        name = command.split()[0]
        if name in names:
            run(command, *(SMALL if name == "train" else []))
        if name == "prepare":
            for path, text in FILES.items():
                (folder / path).write_text(text)


@pytest.mark.ci
def test_the_commands_run(folder, capsys):
    """All but `plan`, which starts processes that do not know the small network."""
    run_page(folder, {"prepare", "audit", "config", "train", "test", "infer"})
    output = capsys.readouterr()
    assert "TRAIN.LR_LAYER_DECAY: 0.65" in output.out
    assert output.err.count("model.safetensors: 69 tensors loaded (100.0%), 0 missing") == 2
    runs = folder / "output/cracks"
    assert (runs / "dinov3/best.pth").is_file()
    assert (runs / "dinov3_frozen/best.pth").is_file()
    assert load_config(folder / "data/cracks/dinov3_base.yaml").MODEL.BACKBONE.PRETRAINED == "timm"


@pytest.mark.slow
def test_the_model_is_exported(folder):
    run_page(folder, {"prepare", "train", "export"})
    assert list(folder.rglob("*.onnx"))


def test_the_page_names_what_exists():
    names = {command.split()[0] for command in COMMANDS}
    assert names == {"prepare", "audit", "config", "plan", "train", "test", "infer", "export"}
    assert len(FILES) == 3
    recipes = re.findall(r"^\| `(dinov3_\w+\.yaml)` \|", TEXT, flags=re.MULTILINE)
    assert len(recipes) == 3
    for name in recipes:
        assert load_config(f"_base_/{name}").MODEL.BACKBONE.PRETRAINED == "timm"
