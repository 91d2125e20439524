"""Checks of values and combinations of keys. Every message names the key, its value and what is expected."""

from __future__ import annotations

import math
from typing import Any

from yacs.config import CfgNode

from ovenet.config.schema import KEYS
from ovenet.data.corruption_kinds import KINDS, kinds_of, smallest_side
from ovenet.data.remote import check_address, is_address
from ovenet.data.settings import LARGEST_SIDE
from ovenet.errors import UserError, nearest
from ovenet.inference.settings import LARGEST_SCALE
from ovenet.models.settings import NO_SEED, PARTS

_PUBLISHED_AS = {"MODEL.FROZEN": "MODEL.FREEZED_PAR", "MODEL.SEED.PRETRAINED": "MODEL.OFFSET_PRETRAINED"}


def check_config(cfg: CfgNode) -> None:
    """Refuses values out of range, and combinations that contradict each other.

    Args:
        cfg: all keys, with values of the right type.

    Raises:
        UserError: one line that names the key.
    """
    _check_addresses(cfg)
    for key, one in KEYS.items():
        value = _get(cfg, key)
        require(one.setting.allows(value), key, cfg, one.setting.expected(value))
    require(
        not 0 <= cfg.TRAIN.IGNORE_LABEL < cfg.DATASET.NUM_CLASSES,
        "TRAIN.IGNORE_LABEL",
        cfg,
        f"outside the classes 0 to {cfg.DATASET.NUM_CLASSES - 1}",
    )
    require(
        cfg.TRAIN.BEGIN_EPOCH < cfg.TRAIN.END_EPOCH,
        "TRAIN.END_EPOCH",
        cfg,
        f"more than TRAIN.BEGIN_EPOCH, which is {cfg.TRAIN.BEGIN_EPOCH}",
    )
    require(
        not (cfg.TRAIN.ITERATIONS and cfg.TRAIN.EXTRA_EPOCH),
        "TRAIN.EXTRA_EPOCH",
        cfg,
        f"0 with TRAIN.ITERATIONS, which is {cfg.TRAIN.ITERATIONS}: extra epochs follow TRAIN.END_EPOCH alone",
    )
    require(cfg.TEST.DETAILS or not cfg.TEST.REPORT, "TEST.DETAILS", cfg, "True with TEST.REPORT True")
    require(cfg.TRAIN.LR_MIN <= cfg.TRAIN.LR, "TRAIN.LR_MIN", cfg, f"at most TRAIN.LR, which is {cfg.TRAIN.LR}")
    temperature = cfg.TEST.TEMPERATURE
    is_number = isinstance(temperature, float) and 0 < temperature < math.inf
    require(
        is_number or temperature in ("none", "fitted"), "TEST.TEMPERATURE", cfg, "none, fitted, or a number above 0"
    )
    _check_sizes(cfg)
    _check_corruptions(cfg)
    _check_model(cfg)


def _check_addresses(cfg: CfgNode) -> None:
    """Checks where data lies; first of all, since other messages repeat values."""
    for name in ("ROOT", "TRAIN_SET", "TEST_SET", "EXTRA_TRAIN_SET", "CACHE_DIR"):
        key = f"DATASET.{name}"
        check_address(_get(cfg, key), key)
        ok = name == "ROOT" or not is_address(_get(cfg, key))
        require(ok, key, cfg, "a path; only DATASET.ROOT may be an address")


def _check_sizes(cfg: CfgNode) -> None:
    """Checks sizes in pixels, and scales."""
    for key in ("TRAIN.IMAGE_SIZE", "TEST.IMAGE_SIZE"):
        size = _get(cfg, key)
        ok = len(size) == 2 and all(0 < n <= LARGEST_SIDE for n in size)
        require(ok, key, cfg, f"[width, height] in pixels, both from 1 to {LARGEST_SIDE}")
    require(
        len(cfg.TEST.SCALE_LIST) > 0 and all(0 < s <= LARGEST_SCALE for s in cfg.TEST.SCALE_LIST),
        "TEST.SCALE_LIST",
        cfg,
        f"at least one scale, all above 0 and at most {LARGEST_SCALE}",
    )
    scales = cfg.TRAIN.SCALE_RANGE
    ok = not scales or (len(scales) == 2 and 0 < scales[0] <= scales[1] <= LARGEST_SCALE)
    require(ok, "TRAIN.SCALE_RANGE", cfg, f"[low, high] within 0 to {LARGEST_SCALE}, or [] for TRAIN.SCALE_FACTOR")
    for key in ("TRAIN.BASE_BOX", "TEST.BASE_BOX"):
        box = _get(cfg, key)
        ok = not box or (len(box) == 2 and LARGEST_SIDE >= box[0] >= box[1] > 0)
        require(ok, key, cfg, f"[long side, short side] in pixels, from 1 to {LARGEST_SIDE}, or []")
    stride, window = cfg.TEST.STRIDE, cfg.TEST.IMAGE_SIZE
    ok = not stride or (len(stride) == 2 and all(0 < n <= side for n, side in zip(stride, window, strict=True)))
    require(ok, "TEST.STRIDE", cfg, f"[width, height] from 1 to those of TEST.IMAGE_SIZE, {list(window)}, or []")
    for key in ("TEST.BASE_BOX", "TEST.STRIDE"):
        protocol = cfg.TEST.PROTOCOL
        ok = protocol == "default" or not _get(cfg, key)
        require(ok, key, cfg, f"[] with TEST.PROTOCOL {protocol}, which sets it")


def _check_corruptions(cfg: CfgNode) -> None:
    """Checks kinds of corruption, and that crops are large enough for them."""
    kind = cfg.TEST.CORRUPTION
    require(not kind or kind in KINDS, "TEST.CORRUPTION", cfg, f"{nearest(kind, KINDS)}, or one of {', '.join(KINDS)}")
    kinds = kinds_of(cfg.TRAIN.CORRUPTIONS, "TRAIN.CORRUPTIONS")
    if cfg.TRAIN.CORRUPTION_PROBABILITY:
        require(len(kinds) > 0, "TRAIN.CORRUPTIONS", cfg, "at least one kind with TRAIN.CORRUPTION_PROBABILITY above 0")
        smallest = max(map(smallest_side, kinds))
        ok = min(cfg.TRAIN.IMAGE_SIZE) >= smallest
        require(ok, "TRAIN.IMAGE_SIZE", cfg, f"at least {smallest} pixels on each side, which TRAIN.CORRUPTIONS need")


def _check_model(cfg: CfgNode) -> None:
    """Checks what the names of the parts say by themselves; `ovenet.config.parts` checks the parts."""
    for part in ("NECK", "SEED"):
        node, where = cfg.MODEL[part], f"MODEL.{part}"
        if node.NAME in (NO_SEED, "") and (settings := part_settings(node)):
            key = next(iter(settings))
            raise UserError(f"{where}.{key} is set, but {where}.NAME is {node.NAME!r}; name the part first")
    seed = cfg.MODEL.SEED.NAME
    require(
        seed != NO_SEED or cfg.LOSS.CONFIDENCE_TARGET == "same_class",
        "LOSS.CONFIDENCE_TARGET",
        cfg,
        "'same_class' without a seed",
    )
    require(
        not cfg.MODEL.SEED.PRETRAINED or seed == "fork",
        "MODEL.SEED.PRETRAINED",
        cfg,
        f"'' for a model whose seed (MODEL.SEED.NAME, MODEL.EXTRA.OFFSET_BRANCH) is {seed}: only a fork has copied "
        "stages",
    )
    for part in cfg.MODEL.FROZEN:
        require(
            part.split(".")[0] in PARTS,
            "MODEL.FROZEN",
            cfg,
            f"parts among {', '.join(PARTS)}, or modules in them such as backbone.layer1",
        )
    require(
        not set(PARTS) - {"seed"} <= set(cfg.MODEL.FROZEN) or seed != NO_SEED,
        "MODEL.FROZEN",
        cfg,
        "less for a model without a seed (MODEL.SEED.NAME, MODEL.EXTRA.OFFSET_BRANCH): nothing else would be trained",
    )


def part_settings(node: CfgNode) -> dict[str, Any]:
    """The arguments of a part: all keys of its section but the name and the weights."""
    return {key: value for key, value in node.items() if key not in ("NAME", "PRETRAINED")}


def _get(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for name in key.split("."):
        value = value[name]
    return value


def require(condition: bool, key: str, cfg: CfgNode, expected: str) -> None:
    """Refuses the value of a key.

    Args:
        condition: the value is right.
        key: with its sections.
        cfg: the configuration.
        expected: the right values, for the message.

    Raises:
        UserError: the condition does not hold.
    """
    if not condition:
        published = f" ({_PUBLISHED_AS[key]} in published files)" if key in _PUBLISHED_AS else ""
        raise UserError(f"{key}{published} is {_get(cfg, key)!r}; expected {expected}")
