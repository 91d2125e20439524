"""Paths of the files of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ovenet.config import default_config, flat_settings, load_config_text, present_settings
from ovenet.config.schema import affects_test, keys_of_role
from ovenet.engine.checkpoint import BEST, FINAL
from ovenet.errors import UserError
from ovenet.inference.temperature import FITTED, NONE, read_temperatures
from ovenet.models.weight_files import require_file
from ovenet.report.runs import RESULTS

SETTINGS = "evaluation_settings"  # key in the results: all that the counts depend on


def run_directory(cfg: CfgNode, config_file: str | Path) -> Path:
    """``OUTPUT_DIR/<dataset>/<name of the config file>``."""
    return Path(cfg.OUTPUT_DIR) / cfg.DATASET.DATASET / Path(config_file).stem


def log_directory(cfg: CfgNode, config_file: str | Path) -> Path:
    """Folder of the TensorBoard files."""
    if cfg.LOG_DIR:
        return Path(cfg.LOG_DIR) / cfg.DATASET.DATASET / Path(config_file).stem
    return run_directory(cfg, config_file) / "tensorboard"


def find_model_file(cfg: CfgNode, run_dir: Path) -> Path:
    """``TEST.MODEL_FILE``, or the run's best or final weights.

    Raises:
        UserError: the setting is empty, and the run has no weights.
    """
    if cfg.TEST.MODEL_FILE:
        return Path(cfg.TEST.MODEL_FILE)
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
    parent, name = run_dir / "test", f"{Path(cfg.DATASET.TEST_SET).stem}_{inference_name(cfg, model_file)}"
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


def inference_name(cfg: CfgNode, model_file: Path) -> str:
    """``<weights>_<scales>[_flip][_<protocol>][_t<temperature>]``, which tells tests of a list apart."""
    scales = "-".join(f"{scale:g}" for scale in cfg.TEST.SCALE_LIST)
    protocol = "" if cfg.TEST.PROTOCOL == "default" else f"_{cfg.TEST.PROTOCOL}"
    temperature = "" if cfg.TEST.TEMPERATURE == NONE else f"_t{cfg.TEST.TEMPERATURE}"
    return f"{model_file.stem}_s{scales}{'_flip' if cfg.TEST.FLIP_TEST else ''}{protocol}{temperature}"


def evaluation_settings(cfg: CfgNode, model_file: Path, list_path: Path) -> dict[str, Any]:
    """All that the counts of an evaluation depend on, by name: settings, weights and list.

    Raises:
        UserError: the file of weights does not exist.
        OSError: the weights or the list cannot be read.
    """
    flat = flat_settings(cfg)
    settings = {key: value for key, value in flat.items() if affects_test(key) or key == "DATASET.ROOT"}
    require_file(model_file)
    for name, path in (("weights", model_file), ("list", list_path)):
        settings[f"{name} (SHA-256)"] = hashlib.sha256(path.read_bytes()).hexdigest()
    if cfg.TEST.TEMPERATURE == FITTED:
        settings["temperatures"] = read_temperatures(model_file)  # empty where the weights carry them
    return settings


def without_places(cfg: CfgNode) -> str:
    """A configuration as YAML, without the paths of this machine."""
    usual = flat_settings(default_config())
    overrides = [text for key in keys_of_role("place", "input") for text in (key, str(usual[key]))]
    return load_config_text(cfg.dump(), "the configuration", overrides).dump()
