"""Checks of values and of combinations of keys. Every message names the key, what it is and what to do."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from ovenet.config.defaults import MODEL_NAMES, OCR_NAMES

_ONE_OF: dict[str, tuple[Any, ...]] = {
    "DATASET.CACHE": ("none", "disk", "ram"),
    "LOSS.ENGINE": ("auto", "plain", "blocked", "triton"),
    "MODEL.NAME": MODEL_NAMES,
    "MODEL.EXTRA.OFFSET_BRANCH": (0, 2, 3, 4),
    "MODEL.EXTRA.FINAL_CONV_KERNEL": (1, 3),
    "TRAIN.OPTIMIZER": ("sgd", "adamw"),
    "TRAIN.PRECISION": ("fp32", "bf16", "fp16"),
    "TRAIN.COMPILE": ("none", "default", "reduce-overhead", "max-autotune"),
    "TEST.SCORE": ("softmax", "exp"),
    "TEST.PRECISION": ("fp32", "bf16", "fp16"),
    "TEST.COMPILE": ("none", "default", "reduce-overhead", "max-autotune"),
    "DEVICE": ("auto", "cpu", "cuda"),
}
_AT_LEAST: dict[str, float] = {
    "WORKERS": 0,
    "PRINT_FREQ": 1,
    "SEED": 0,
    "MODEL.EXTRA.ITERATIVE_REFINEMENT": 0,
    "MODEL.OCR.MID_CHANNELS": 1,
    "MODEL.OCR.KEY_CHANNELS": 1,
    "LOSS.OHEMKEEP": 1,
    "LOSS.KAPPA": 0,
    "LOSS.LAMBDA": 0,
    "DATASET.NUM_CLASSES": 2,
    "DATASET.AUDIT": 0,
    "TRAIN.BASE_SIZE": 1,
    "TRAIN.SCALE_FACTOR": 0,
    "TRAIN.RANDOM_BRIGHTNESS_SHIFT_VALUE": 0,
    "TRAIN.WD": 0,
    "TRAIN.BEGIN_EPOCH": 0,
    "TRAIN.BATCH_SIZE_PER_GPU": 1,
    "TRAIN.NUM_SAMPLES": 0,
    "TRAIN.EVAL_INTERVAL": 1,
    "TRAIN.MAX_SKIPPED": 1,
    "TRAIN.WARMUP": 0,
    "TRAIN.EXTRA_EPOCH": 0,
    "TRAIN.ACCUMULATE": 1,
    "TRAIN.CLIP_GRAD_NORM": 0,
    "TRAIN.CHECKPOINT_EVERY": 0,
    "TRAIN.CHECKPOINT_MINUTES": 0,
    "TRAIN.KEEP_CHECKPOINTS": 1,
    "DIST_TIMEOUT": 1,
    "TEST.BASE_SIZE": 1,
    "TEST.BATCH_SIZE_PER_GPU": 1,
    "TEST.NUM_SAMPLES": 0,
}
_POSITIVE = ("TRAIN.LR", "TRAIN.EXTRA_LR", "TRAIN.NONBACKBONE_MULT", "MODEL.EXTRA.OFFSET_THRESHOLD")
_FRACTIONS = ("TRAIN.MOMENTUM", "TRAIN.EMA", "MODEL.OCR.DROPOUT")  # in [0, 1)


def check_config(cfg: CfgNode) -> None:
    """Refuses values that cannot work.

    Args:
        cfg: all keys, each of the right type.

    Raises:
        ValueError: one line that names the key.
    """
    for key, allowed in _ONE_OF.items():
        _require(_get(cfg, key) in allowed, key, cfg, "one of " + ", ".join(map(str, allowed)))
    for key, least in _AT_LEAST.items():
        _require(_get(cfg, key) >= least, key, cfg, f"at least {least}")
    for key in _POSITIVE:
        _require(_get(cfg, key) > 0, key, cfg, "more than 0")
    for key in _FRACTIONS:
        _require(0 <= _get(cfg, key) < 1, key, cfg, "at least 0 and below 1")
    _require(0 < cfg.LOSS.OHEMTHRES <= 1, "LOSS.OHEMTHRES", cfg, "more than 0 and at most 1")
    _require(0 <= cfg.TRAIN.RARE_CLASS_CROPS <= 1, "TRAIN.RARE_CLASS_CROPS", cfg, "at least 0 and at most 1")
    for key in ("TRAIN.IMAGE_SIZE", "TEST.IMAGE_SIZE"):
        size = _get(cfg, key)
        ok = len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)
        _require(ok, key, cfg, "[width, height] in pixels, both whole numbers above 0")
    _require(
        len(cfg.TEST.SCALE_LIST) > 0 and all(s > 0 for s in cfg.TEST.SCALE_LIST),
        "TEST.SCALE_LIST",
        cfg,
        "at least one scale, all above 0",
    )
    _require(
        not 0 <= cfg.TRAIN.IGNORE_LABEL < cfg.DATASET.NUM_CLASSES,
        "TRAIN.IGNORE_LABEL",
        cfg,
        f"outside the classes 0 to {cfg.DATASET.NUM_CLASSES - 1}",
    )
    _require(
        cfg.TRAIN.BEGIN_EPOCH < cfg.TRAIN.END_EPOCH,
        "TRAIN.END_EPOCH",
        cfg,
        f"more than TRAIN.BEGIN_EPOCH, which is {cfg.TRAIN.BEGIN_EPOCH}",
    )
    _require(cfg.TEST.DETAILS or not cfg.TEST.REPORT, "TEST.DETAILS", cfg, "True with TEST.REPORT True")
    _check_outputs(cfg)
    _check_stages(cfg)


def _check_outputs(cfg: CfgNode) -> None:
    num_outputs = 2 if cfg.MODEL.NAME in OCR_NAMES else 1
    _require(
        len(cfg.LOSS.BALANCE_WEIGHTS) in (0, num_outputs),
        "LOSS.BALANCE_WEIGHTS",
        cfg,
        f"{num_outputs} weights for {cfg.MODEL.NAME}, or [] for the usual ones",
    )
    _require(
        -num_outputs <= cfg.TEST.OUTPUT_INDEX < num_outputs,
        "TEST.OUTPUT_INDEX",
        cfg,
        f"between {-num_outputs} and {num_outputs - 1} for {cfg.MODEL.NAME}",
    )
    _require(
        not cfg.MODEL.FREEZED_PAR or cfg.MODEL.EXTRA.OFFSET_BRANCH > 0,
        "MODEL.FREEZED_PAR",
        cfg,
        "False for a model without MODEL.EXTRA.OFFSET_BRANCH: nothing else would be trained",
    )
    _require(
        not cfg.MODEL.OFFSET_PRETRAINED or cfg.MODEL.EXTRA.OFFSET_BRANCH > 0,
        "MODEL.OFFSET_PRETRAINED",
        cfg,
        "'' for a model without MODEL.EXTRA.OFFSET_BRANCH",
    )


def _check_stages(cfg: CfgNode) -> None:
    extra = cfg.MODEL.EXTRA
    for name, node in extra.items():
        if not name.startswith("STAGE"):
            continue
        number, key = int(name[5]), f"MODEL.EXTRA.{name}"
        _require(number == node.NUM_BRANCHES, f"{key}.NUM_BRANCHES", cfg, f"{number}, the number of the stage")
        _require(node.BLOCK in ("BASIC", "BOTTLENECK"), f"{key}.BLOCK", cfg, "BASIC or BOTTLENECK")
        _require(node.FUSE_METHOD == "SUM", f"{key}.FUSE_METHOD", cfg, "SUM")
        _require(node.NUM_MODULES >= 1, f"{key}.NUM_MODULES", cfg, "at least 1")
        for field in ("NUM_BLOCKS", "NUM_CHANNELS"):
            values = node[field]
            ok = len(values) == number and all(isinstance(v, int) and v > 0 for v in values)
            _require(ok, f"{key}.{field}", cfg, f"{number} whole numbers above 0, one per resolution")


def _get(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for name in key.split("."):
        value = value[name]
    return value


def _require(condition: bool, key: str, cfg: CfgNode, expected: str) -> None:
    if not condition:
        raise ValueError(f"{key} is {_get(cfg, key)!r}; expected {expected}")
