"""Checks of values and of combinations of keys. Every message names the key, what it is and what to do."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from ovenet.config.schema import KEYS
from ovenet.data.settings import LARGEST_SIDE
from ovenet.errors import UserError
from ovenet.evaluation.settings import LARGEST_SCALE
from ovenet.models.factory import PROVIDED
from ovenet.models.registry import BACKBONES, HEADS, NECKS, SEEDS
from ovenet.models.settings import NO_SEED

_PUBLISHED_AS = {"MODEL.FROZEN": "MODEL.FREEZED_PAR", "MODEL.SEED.PRETRAINED": "MODEL.OFFSET_PRETRAINED"}
_REGISTRIES = {"BACKBONE": BACKBONES, "NECK": NECKS, "HEAD": HEADS, "SEED": SEEDS}


def check_config(cfg: CfgNode) -> None:
    """Refuses values that cannot work.

    Args:
        cfg: all keys, each of the right type.

    Raises:
        UserError: one line that names the key.
    """
    for key, one in KEYS.items():
        value = _get(cfg, key)
        _require(one.setting.allows(value), key, cfg, one.setting.expected(value))
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
    _require(
        not (cfg.TRAIN.ITERATIONS and cfg.TRAIN.EXTRA_EPOCH),
        "TRAIN.EXTRA_EPOCH",
        cfg,
        f"0 with TRAIN.ITERATIONS, which is {cfg.TRAIN.ITERATIONS}: extra epochs follow TRAIN.END_EPOCH alone",
    )
    _require(
        cfg.LOSS.OFFSET_TARGET == "same_class" or cfg.LOSS.OFFSET > 0,
        "LOSS.OFFSET_TARGET",
        cfg,
        "'same_class' without LOSS.OFFSET, the weight of that loss, which is 0",
    )
    _require(cfg.TEST.DETAILS or not cfg.TEST.REPORT, "TEST.DETAILS", cfg, "True with TEST.REPORT True")
    _require(cfg.TRAIN.LR_MIN <= cfg.TRAIN.LR, "TRAIN.LR_MIN", cfg, f"at most TRAIN.LR, which is {cfg.TRAIN.LR}")
    _check_sizes(cfg)
    _check_parts(cfg)
    _check_outputs(cfg)


def _check_sizes(cfg: CfgNode) -> None:
    """Checks sizes in pixels, and scales."""
    for key in ("TRAIN.IMAGE_SIZE", "TEST.IMAGE_SIZE"):
        size = _get(cfg, key)
        ok = len(size) == 2 and all(isinstance(n, int) and 0 < n <= LARGEST_SIDE for n in size)
        _require(ok, key, cfg, f"[width, height] in pixels, both whole numbers from 1 to {LARGEST_SIDE}")
    _require(
        len(cfg.TEST.SCALE_LIST) > 0 and all(0 < s <= LARGEST_SCALE for s in cfg.TEST.SCALE_LIST),
        "TEST.SCALE_LIST",
        cfg,
        f"at least one scale, all above 0 and at most {LARGEST_SCALE}",
    )
    scales = cfg.TRAIN.SCALE_RANGE
    ok = not scales or (len(scales) == 2 and 0 < scales[0] <= scales[1] <= LARGEST_SCALE)
    _require(ok, "TRAIN.SCALE_RANGE", cfg, f"[low, high] within 0 to {LARGEST_SCALE}, or [] for TRAIN.SCALE_FACTOR")
    for key in ("TRAIN.BASE_BOX", "TEST.BASE_BOX"):
        box = _get(cfg, key)
        ok = not box or (
            len(box) == 2 and all(isinstance(n, int) and 0 < n <= LARGEST_SIDE for n in box) and box[0] >= box[1]
        )
        _require(ok, key, cfg, f"[long side, short side] in pixels, whole numbers from 1 to {LARGEST_SIDE}, or []")
    stride, window = cfg.TEST.STRIDE, cfg.TEST.IMAGE_SIZE
    ok = not stride or (
        len(stride) == 2 and all(isinstance(n, int) and 0 < n <= w for n, w in zip(stride, window, strict=True))
    )
    _require(ok, "TEST.STRIDE", cfg, f"[width, height] from 1 to those of TEST.IMAGE_SIZE, {list(window)}, or []")
    for key in ("TEST.BASE_BOX", "TEST.STRIDE"):
        protocol = cfg.TEST.PROTOCOL
        ok = protocol == "default" or not _get(cfg, key)
        _require(ok, key, cfg, f"[] with TEST.PROTOCOL {protocol}, which says that itself")


def _check_parts(cfg: CfgNode) -> None:
    """Checks that every part exists and has the arguments that are set."""
    for part, registry in _REGISTRIES.items():
        node, where = cfg.MODEL[part], f"MODEL.{part}"
        settings = part_settings(node)
        if node.NAME in (NO_SEED, "") and part in ("NECK", "SEED"):
            if settings:
                key = next(iter(settings))
                raise UserError(f"{where}.{key} is set, but {where}.NAME is {node.NAME!r}; name the part first")
            continue
        try:
            registry[node.NAME]
        except UserError as error:
            raise UserError(f"{where}.NAME is {node.NAME!r}: {error}") from None
        registry.check(node.NAME, settings, PROVIDED[part.lower()], where)
    _require(
        not cfg.TRAIN.CHECKPOINT_ACTIVATIONS or BACKBONES.takes(cfg.MODEL.BACKBONE.NAME, "checkpoint_activations"),
        "TRAIN.CHECKPOINT_ACTIVATIONS",
        cfg,
        f"False: the backbone {cfg.MODEL.BACKBONE.NAME} cannot compute its activations twice",
    )
    seed = cfg.MODEL.SEED.NAME
    _require(
        not cfg.LOSS.OFFSET or (seed != NO_SEED and SEEDS[seed].has_offsets),
        "LOSS.OFFSET",
        cfg,
        f"0 with MODEL.SEED.NAME {seed}, which predicts no offsets",
    )
    for key, default in (("LOSS.FUSION_WARMUP", 0), ("LOSS.CONFIDENCE_TARGET", "same_class")):
        _require(seed != NO_SEED or _get(cfg, key) == default, key, cfg, f"{default!r} without a seed")
    _require(
        not cfg.MODEL.SEED.PRETRAINED or cfg.MODEL.SEED.NAME == "fork",
        "MODEL.SEED.PRETRAINED",
        cfg,
        f"'' for a model whose seed (MODEL.SEED.NAME, MODEL.EXTRA.OFFSET_BRANCH) is {cfg.MODEL.SEED.NAME}: only a fork "
        "has copied stages",
    )


def part_settings(node: CfgNode) -> dict[str, Any]:
    """The arguments of a part: what its section holds beside its name and its weights."""
    return {key: value for key, value in node.items() if key not in ("NAME", "PRETRAINED")}


def _check_outputs(cfg: CfgNode) -> None:
    head = cfg.MODEL.HEAD.NAME
    num_outputs = getattr(HEADS[head], "num_outputs", 1)
    _require(
        len(cfg.LOSS.BALANCE_WEIGHTS) in (0, num_outputs) and all(weight >= 0 for weight in cfg.LOSS.BALANCE_WEIGHTS),
        "LOSS.BALANCE_WEIGHTS",
        cfg,
        f"{num_outputs} weights of at least 0 for the head {head}, or [] for the usual ones",
    )
    _require(
        -num_outputs <= cfg.TEST.OUTPUT_INDEX < num_outputs,
        "TEST.OUTPUT_INDEX",
        cfg,
        f"between {-num_outputs} and {num_outputs - 1} for the head {head}",
    )
    for part in cfg.MODEL.FROZEN:
        _require(
            part.split(".")[0] in ("backbone", "neck", "head", "seed"),
            "MODEL.FROZEN",
            cfg,
            "parts among backbone, neck, head and seed, or modules in them such as backbone.layer1",
        )
    _require(
        not {"backbone", "neck", "head"} <= set(cfg.MODEL.FROZEN) or cfg.MODEL.SEED.NAME != NO_SEED,
        "MODEL.FROZEN",
        cfg,
        "less for a model without a seed (MODEL.SEED.NAME, MODEL.EXTRA.OFFSET_BRANCH): nothing else would be trained",
    )


def _get(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for name in key.split("."):
        value = value[name]
    return value


def _require(condition: bool, key: str, cfg: CfgNode, expected: str) -> None:
    if not condition:
        published = f" ({_PUBLISHED_AS[key]} in published files)" if key in _PUBLISHED_AS else ""
        raise UserError(f"{key}{published} is {_get(cfg, key)!r}; expected {expected}")
