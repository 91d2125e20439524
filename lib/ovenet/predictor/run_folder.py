"""Paths of the files of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ovenet.config import default_config, flat_settings, load_config_text, present_settings
from ovenet.config.schema import affects_test, keys_of_role
from ovenet.engine.checkpoint import BEST, FINAL
from ovenet.errors import UserError
from ovenet.inference.temperature import FITTED, NONE, read_temperatures
from ovenet.models.pretrained import weights_path
from ovenet.models.weight_files import require_file
from ovenet.report.runs import RESULTS

SETTINGS = "evaluation_settings"  # key in the results: all that the counts depend on
WEIGHTS_DIGEST, _LIST_DIGEST = "weights (SHA-256)", "list (SHA-256)"  # keys in these settings


def run_directory(cfg: CfgNode, config_file: str | Path) -> Path:
    """``OUTPUT_DIR/<dataset>/<name of the config file>``."""
    return Path(cfg.OUTPUT_DIR) / cfg.DATASET.DATASET / Path(config_file).stem


def log_directory(cfg: CfgNode, config_file: str | Path) -> Path:
    """Folder of the TensorBoard files."""
    if cfg.LOG_DIR:
        return Path(cfg.LOG_DIR) / cfg.DATASET.DATASET / Path(config_file).stem
    return run_directory(cfg, config_file) / "tensorboard"


def find_model_file(cfg: CfgNode, run_dir: Path) -> Path:
    """``TEST.MODEL_FILE``, a path or a name, or the run's best or final weights.

    Raises:
        UserError: the setting is empty, and the run has no weights; or there is no model of that name.
    """
    if cfg.TEST.MODEL_FILE:
        return weights_path(cfg.TEST.MODEL_FILE)
    return weights_of_run(run_dir, "TEST.MODEL_FILE is not set, and ")


def weights_of_run(run_dir: Path, why: str = "") -> Path:
    """The best weights of a run, or its final ones.

    Raises:
        UserError: the run has neither; `why` is the beginning of the message.
    """
    for name in (BEST, FINAL):
        if (run_dir / name).exists():
            return run_dir / name
    raise UserError(f"{why}{run_dir} has neither {BEST} nor {FINAL}; train first")


def test_folder(cfg: CfgNode, run_dir: Path, model_file: Path, settings: Mapping[str, Any]) -> Path:
    """Folder of a test: ``<run>/test/<list>_<inference name>``, numbered if that one holds another evaluation.

    Args:
        cfg: the configuration.
        run_dir: folder of the run.
        model_file: the weights.
        settings: settings of this test, from `evaluation_settings`.
    """
    return _folder_of_test(
        run_dir / "test", f"{Path(cfg.DATASET.TEST_SET).stem}_{inference_name(cfg, model_file)}", settings
    )


def corrupted_test_folder(folder: Path, kind: str, severity: int, settings: Mapping[str, Any]) -> Path:
    """Folder of the test with a corruption that goes with the test in `folder`; numbered as in `test_folder`."""
    return _folder_of_test(folder / "corruptions", f"{kind}_{severity}", settings)


def _folder_of_test(parent: Path, name: str, settings: Mapping[str, Any]) -> Path:
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}_{number}")
        try:
            content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return folder
        except ValueError:
            continue  # damaged, or another program's: left alone
        saved = content.get(SETTINGS) if isinstance(content, dict) else None
        if isinstance(saved, dict) and present_settings(saved, settings) == json.loads(json.dumps(settings)):
            return folder
    raise AssertionError


def find_test(model_file: Path, places: Sequence[Path]) -> Path | None:
    """The newest test of these weights on clean images with detailed scores, or None.

    Args:
        model_file: the weights.
        places: folders of runs, whose ``test/*/results.json`` are looked at.
    """
    digest = hashlib.sha256(model_file.read_bytes()).hexdigest()
    found = [path for place in places for path in place.glob(f"test/*/{RESULTS}")]
    for path in sorted(found, key=lambda path: -path.stat().st_mtime):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            is_clean = not content[SETTINGS].get("TEST.CORRUPTION")
            if content[SETTINGS][WEIGHTS_DIGEST] == digest and "details" in content and is_clean:
                return path.parent
        except (ValueError, KeyError, TypeError):
            continue  # damaged, or another program's
    return None


def inference_name(cfg: CfgNode, model_file: Path) -> str:
    """The part of a folder's name that tells tests of a list apart.

    It is ``<weights>_<scales>[_flip][_<protocol>][_t<temperature>][_<corruption><severity>]``.
    """
    scales = "-".join(f"{scale:g}" for scale in cfg.TEST.SCALE_LIST)
    flip = "_flip" if cfg.TEST.FLIP_TEST else ""
    protocol = "" if cfg.TEST.PROTOCOL == "default" else f"_{cfg.TEST.PROTOCOL}"
    temperature = "" if cfg.TEST.TEMPERATURE == NONE else f"_t{cfg.TEST.TEMPERATURE}"
    corruption = f"_{cfg.TEST.CORRUPTION}{cfg.TEST.SEVERITY}" if cfg.TEST.CORRUPTION else ""
    return f"{model_file.stem}_s{scales}{flip}{protocol}{temperature}{corruption}"


def evaluation_settings(cfg: CfgNode, model_file: Path, list_path: Path) -> dict[str, Any]:
    """All that the counts of an evaluation depend on, by name: settings, weights and list.

    Raises:
        UserError: the file of weights does not exist.
        OSError: the weights or the list cannot be read.
    """
    flat = flat_settings(cfg)
    settings = {key: value for key, value in flat.items() if affects_test(key) or key == "DATASET.ROOT"}
    require_file(model_file)
    for name, path in ((WEIGHTS_DIGEST, model_file), (_LIST_DIGEST, list_path)):
        settings[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if cfg.TEST.TEMPERATURE == FITTED:
        settings["temperatures"] = read_temperatures(model_file)  # empty where the weights carry them
    return settings


def without_places(cfg: CfgNode) -> str:
    """A configuration as YAML, without the paths of this machine."""
    usual = flat_settings(default_config())
    overrides = [text for key in keys_of_role("place", "input") for text in (key, str(usual[key]))]
    return load_config_text(cfg.dump(), "the configuration", overrides).dump()
