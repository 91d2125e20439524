"""Where the files of a run are."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ovenet.config import flat_settings
from ovenet.engine.trainer import BEST, FINAL
from ovenet.errors import UserError

_COUNTS_DEPEND_ON = re.compile(
    r"TRAIN\.IGNORE_LABEL|DATASET\.(ROOT|DATASET|NUM_CLASSES)|MODEL\.(?!BACKBONE\.PRETRAINED|SEED\.PRETRAINED|FROZEN)"
    r"|TEST\.(?!RESUME|REPORT|SAVE_PREDICTIONS|MODEL_FILE|BATCH_SIZE_PER_GPU)"
)


def run_directory(cfg: CfgNode, config_file: str | Path) -> Path:
    """``OUTPUT_DIR/<dataset>/<name of the config file>``."""
    return Path(cfg.OUTPUT_DIR) / cfg.DATASET.DATASET / Path(config_file).stem


def log_directory(cfg: CfgNode, config_file: str | Path) -> Path:
    """Where TensorBoard files go."""
    if cfg.LOG_DIR:
        return Path(cfg.LOG_DIR) / cfg.DATASET.DATASET / Path(config_file).stem
    return run_directory(cfg, config_file) / "tensorboard"


def find_model_file(cfg: CfgNode, run_dir: Path) -> Path:
    """``TEST.MODEL_FILE``, or the run's best or final weights.

    Raises:
        UserError: none is named and the run has none.
    """
    if cfg.TEST.MODEL_FILE:
        return Path(cfg.TEST.MODEL_FILE)
    for name in (BEST, FINAL):
        if (run_dir / name).exists():
            return run_dir / name
    raise UserError(f"TEST.MODEL_FILE is not set, and {run_dir} has neither {BEST} nor {FINAL}; train first")


def inference_name(cfg: CfgNode, model_file: Path) -> str:
    """``<weights>_<scales>[_flip]``, which tells tests of one list apart."""
    scales = "-".join(f"{scale:g}" for scale in cfg.TEST.SCALE_LIST)
    return f"{model_file.stem}_s{scales}{'_flip' if cfg.TEST.FLIP_TEST else ''}"


def evaluation_settings(cfg: CfgNode, model_file: Path, list_path: Path) -> dict[str, Any]:
    """All that an evaluation's counts depend on, by name: settings, weights and list.

    Raises:
        OSError: the weights or the list cannot be read.
    """
    settings = {key: value for key, value in flat_settings(cfg).items() if _COUNTS_DEPEND_ON.match(key)}
    for name, path in (("weights", model_file), ("list", list_path)):
        settings[f"{name} (SHA-256)"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return settings
