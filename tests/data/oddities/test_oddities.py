"""Each oddity, prepared and audited as a user would: what is said about it, and which classes training reads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tests.data.oddities import ANY, IGNORED, Oddity, Truth
from tests.data.oddities.descriptions import DESCRIPTIONS
from tests.data.oddities.folders import FOLDERS
from tests.data.oddities.masks import MASKS
from tests.data.oddities.photographs import PHOTOGRAPHS
from tests.data.oddities.shapes import SHAPES
from tests.data.oddities.thin import THIN
from tests.tools.conftest import run_tool  # noqa: F401, a fixture

from ovenet import builders, load_config

ODDITIES = [*MASKS, *THIN, *PHOTOGRAPHS, *SHAPES, *FOLDERS, *DESCRIPTIONS]
QUIET = "nothing to remark"


@pytest.mark.parametrize("oddity", ODDITIES, ids=[oddity.name for oddity in ODDITIES])
def test_oddity(oddity: Oddity, run_tool, tmp_path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    truth = oddity.build(root)
    arguments = [text.replace("{root}", str(root)) for text in oddity.prepare]
    prepared = run_tool("prepare_data", oddity.name, "--root", root, *arguments)
    said = prepared.out + prepared.err
    if oddity.refused_by == "prepare":
        require_refused(prepared, oddity, said)
        return
    assert prepared.code == 0, said
    experiment = experiment_of(oddity.name, root, prepared.out)
    audited = run_tool("audit_data", "--cfg", experiment, "--pictures", 0, *settings(root, tmp_path))
    said += audited.out + audited.err
    if oddity.refused_by == "audit":
        require_refused(audited, oddity, said)
        return
    assert audited.code == 0, said
    for words in oddity.says:
        assert words in said, said
    if not oddity.says:
        assert QUIET in audited.out, said
    if truth:
        require_truth(truth, load_config(experiment, settings(root, tmp_path)))


def require_refused(result, oddity: Oddity, said: str) -> None:
    """One line with file or key, exit code 2."""
    assert result.code == 2, said
    assert "Traceback" not in said
    assert result.err.strip().splitlines()[-1].startswith("error: "), said
    for words in oddity.says:
        assert words in said, said


def settings(root: Path, tmp_path: Path) -> list[str]:
    return ["DATASET.ROOT", str(root), "OUTPUT_DIR", str(tmp_path / "output"), "WORKERS", "0"]


def experiment_of(name: str, root: Path, printed: str) -> str:
    """The drafted experiment, or one for a dataset that was described by hand."""
    found = re.search(r"--cfg (.+)", printed)
    if found:
        return found[1].strip().strip("'\"")
    path = root / "by_hand.yaml"
    path.write_text(
        f"_BASE_: folder/ovenet_hrnet_w18_small_v2\nDATASET:\n  DATASET: {name!r}\n"
        f"  NUM_CLASSES: {num_classes(root / name)}\n  TRAIN_SET: 'list/{name}/train.lst'\n"
        f"  TEST_SET: 'list/{name}/val.lst'\n"
    )
    return str(path)


def num_classes(folder: Path) -> int:
    return len(json.loads((folder / "dataset.json").read_text())["classes"])


def require_truth(truth: Truth, cfg) -> None:
    """Every class of the truth is one train id in all files, and two classes are never the same one."""
    train_ids: dict[int, int] = {IGNORED: cfg.TRAIN.IGNORE_LABEL}
    seen = set()
    for list_file in (cfg.DATASET.TRAIN_SET, cfg.DATASET.TEST_SET):
        dataset = builders.list_dataset(cfg, list_file)
        for index, (image, _) in enumerate(dataset.pairs):
            name = Path(image).stem
            labels = dataset[index].labels
            assert labels is not None
            expected = truth[name]
            assert labels.shape == expected.shape == dataset[index].image.shape[:2], name
            seen.add(name)
            for k in np.unique(expected[expected != ANY]):
                values = np.unique(labels[expected == k])
                assert len(values) == 1, f"{name}: class {k} was read as {values}"
                assert train_ids.setdefault(int(k), int(values[0])) == values[0], f"{name}: class {k}"
    assert len(set(train_ids.values())) == len(train_ids), train_ids
    assert seen == set(truth)
