"""Published YAML files and configs of version 1, translated to the present schema once, when they are read.

They describe the model by ``MODEL.NAME`` and ``MODEL.EXTRA`` of an HRNet. A key that did nothing, or does nothing here,
is inert: accepted, and named in a warning.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from ovenet.config.defaults import NO_SEED
from ovenet.errors import UserError
from ovenet.models.backbones.hrnet import VARIANTS, StageSpec, usual_copy
from ovenet.utils.logging import get_logger

Setting = tuple[Any, str]  # value and source

HEAD_OF = {"seg_hrnet": "fcn", "branched_seg_hrnet": "fcn", "seg_hrnet_ocr": "ocr"}  # by MODEL.NAME
_OCR_CODE_KEYS = {"MODEL.ALIGN_CORNERS", "MODEL.NUM_OUTPUTS"}  # HRNet's code without OCR has none of them
_EXTRA = "MODEL.EXTRA."
_STAGE_FIELDS = ("NUM_MODULES", "NUM_BLOCKS", "NUM_CHANNELS", "BLOCK")
_HEAD_KEYS = {
    "MODEL.OCR.MID_CHANNELS": "MODEL.HEAD.MID_CHANNELS",
    "MODEL.OCR.KEY_CHANNELS": "MODEL.HEAD.KEY_CHANNELS",
    "MODEL.OCR.DROPOUT": "MODEL.HEAD.DROPOUT",
}
_SEED_KEYS = {
    f"{_EXTRA}OFFSET_THRESHOLD": "MODEL.SEED.MAX_OFFSET",
    f"{_EXTRA}ITERATIVE_REFINEMENT": "MODEL.SEED.NUM_REFINEMENTS",
    f"{_EXTRA}LOGITS": "MODEL.SEED.FUSE_LOGITS",
}

# Keys of earlier configs of this project, which checkpoints carry.
RENAMED_KEYS = {"LOSS.ENGINE": "LOSS.BACKEND", "TEST.FOLD_BATCHNORM": "TEST.FUSE_CONV_BN"}

# What to do instead.
INERT_KEYS: dict[str, str] = {
    "GPUS": "the number of processes decides: torchrun --nproc_per_node=N",
    "AUTO_RESUME": "use TRAIN.RESUME",
    "RANK": "the launcher sets it",
    "MODEL.NUM_OUTPUTS": "the head decides: 2 with OCR, else 1",
    "MODEL.OCR.SCALE": "attention is always scaled by KEY_CHANNELS^-0.5",
    "MODEL.EXTRA.FINAL_CONV_SEED": "the offset head's last convolution is 1x1",
    "MODEL.EXTRA.CONFIDENCE": "the confidence is always predicted",
    "TRAIN.DOWNSAMPLERATE": "crops are never downsampled",
    "TRAIN.LR_FACTOR": "the schedule is polynomial",
    "TRAIN.LR_STEP": "the schedule is polynomial",
    "TRAIN.OFFSET_DIR": "offsets are shown in TensorBoard",
    "TEST.VISUALIZATION": "use TEST.SAVE_PREDICTIONS",
    "TEST.MULTI_SCALE": "TEST.SCALE_LIST decides",
    "TEST.CENTER_CROP_TEST": "the whole image is always tested",
    "DEBUG.DEBUG": "pictures go to TensorBoard every epoch",
    "DEBUG.SAVE_BATCH_IMAGES_GT": "pictures go to TensorBoard every epoch",
    "DEBUG.SAVE_BATCH_IMAGES_PRED": "pictures go to TensorBoard every epoch",
    "DEBUG.SAVE_HEATMAPS_GT": "pictures go to TensorBoard every epoch",
    "DEBUG.SAVE_HEATMAPS_PRED": "pictures go to TensorBoard every epoch",
}


def _stage_defaults(number: int, suffix: str) -> dict[str, Any]:
    """What a file that leaves a stage out means: HRNet-W48's, and OVeNet's copies of them."""
    spec = VARIANTS["hrnet_w48"][number - 1]
    spec = usual_copy(spec, number) if suffix else spec
    values = (spec.num_modules, list(spec.num_blocks), list(spec.num_channels), spec.block)
    section = f"{_EXTRA}STAGE{number}{suffix}."
    branches = {"NUM_BRANCHES": number, "NUM_RANCHES": number, "FUSE_METHOD": "SUM"}  # misspelled there for stage 1
    return {section + key: value for key, value in (*zip(_STAGE_FIELDS, values, strict=True), *branches.items())}


# Every translated key, with a value of its type.
TRANSLATED: dict[str, Any] = {
    "MODEL.NAME": "seg_hrnet",
    "MODEL.PRETRAINED": "",
    "MODEL.OFFSET_PRETRAINED": "",
    "MODEL.FREEZED_PAR": False,
    "MODEL.OCR.MID_CHANNELS": 512,
    "MODEL.OCR.KEY_CHANNELS": 256,
    "MODEL.OCR.DROPOUT": 0.05,
    "MODEL.EXTRA.FINAL_CONV_KERNEL": 1,
    "MODEL.EXTRA.OFFSET_BRANCH": 0,
    "MODEL.EXTRA.OFFSET_THRESHOLD": 0.5,
    "MODEL.EXTRA.ITERATIVE_REFINEMENT": 0,
    "MODEL.EXTRA.LOGITS": True,
    "TRAIN.NONBACKBONE_KEYWORDS": [],
    "TRAIN.NONBACKBONE_MULT": 10.0,
    **{k: v for number in (1, 2, 3, 4) for k, v in _stage_defaults(number, "").items()},
    **{k: v for number in (2, 3, 4) for k, v in _stage_defaults(number, "_2").items()},
}
LISTS_OF_TEXTS = ("TRAIN.NONBACKBONE_KEYWORDS",)


def translate(
    published: Mapping[str, Setting], touched: AbstractSet[str], current: Mapping[str, Setting]
) -> dict[str, Setting]:
    """What published settings mean in the present schema.

    Args:
        published: all of them so far, by key; the values have the types of `TRANSLATED`.
        touched: those of the source at hand.
        current: settings of the present schema so far.

    Returns:
        Settings that take the place of the current ones; a part's ``NAME`` comes before its arguments.

    Raises:
        UserError: a value that the public code does not know either.
    """
    out: dict[str, Setting] = {}
    values = {key: value for key, (value, _) in published.items()}
    has_stages = any(_is_stage(key, "") for key in touched)
    if has_stages:
        source = next(published[key][1] for key in touched if _is_stage(key, ""))
        out |= {key: (value, source) for key, value in _backbone(values, current).items()}
    if "MODEL.PRETRAINED" in touched or (has_stages and "MODEL.PRETRAINED" in published):
        out["MODEL.BACKBONE.PRETRAINED"] = published["MODEL.PRETRAINED"]
    out |= _head(published, touched, current)
    out |= _seed(published, touched, {**current, **out}, with_stages=has_stages)
    if "MODEL.FREEZED_PAR" in touched:
        value, source = published["MODEL.FREEZED_PAR"]
        out["MODEL.FROZEN"] = (["backbone", "neck", "head"] if value else [], source)
    if touched & {"TRAIN.NONBACKBONE_KEYWORDS", "TRAIN.NONBACKBONE_MULT"} and values.get("TRAIN.NONBACKBONE_KEYWORDS"):
        keywords, source = published["TRAIN.NONBACKBONE_KEYWORDS"]
        if not set(keywords) <= {"cls", "aux", "ocr", "last_layer", "head"}:
            raise UserError(
                f"{source}: TRAIN.NONBACKBONE_KEYWORDS is {keywords}; expected some of cls, aux, ocr, last_layer and "
                "head, which are the head; TRAIN.LR_MULT.BACKBONE, HEAD and SEED set the factors of the parts"
            )
        out["TRAIN.LR_MULT.HEAD"] = (values.get("TRAIN.NONBACKBONE_MULT", TRANSLATED["TRAIN.NONBACKBONE_MULT"]), source)
    return out


def conventions(name: Setting, keys: AbstractSet[str]) -> dict[str, Setting]:
    """What the code that a published file is for does without a key for it.

    HRNet's code without OCR, and OVeNet's on it, resizes with half-pixel centres, and its BatchNorm has momentum 0.01.
    HRNet-OCR's code has keys of its own, the defaults of the present schema, and 0.1, for ``seg_hrnet`` too.

    Args:
        name: ``MODEL.NAME``.
        keys: those of the same source, inert ones among them.

    Returns:
        Settings that hold where nobody says otherwise.
    """
    value, source = name
    if HEAD_OF.get(value) == "fcn" and not keys & _OCR_CODE_KEYS:
        return {"MODEL.ALIGN_CORNERS": (False, source), "MODEL.BN_MOMENTUM": (0.01, source)}
    return {}


def warn_about_a_missing_branch(published: Mapping[str, Setting], merged: Mapping[str, Setting]) -> None:
    """The public code's name for a network with an offset branch does not make one."""
    is_named = published.get("MODEL.NAME", ("", ""))[0] == "branched_seg_hrnet"
    if is_named and merged.get("MODEL.SEED.NAME", (NO_SEED, ""))[0] == NO_SEED:
        get_logger().warning(
            "MODEL.NAME is branched_seg_hrnet, but MODEL.EXTRA.OFFSET_BRANCH is 0: this is the baseline; set it to 2, "
            "3 or 4 for an OVeNet"
        )


def _is_stage(key: str, suffix: str) -> bool:
    return key.startswith(f"{_EXTRA}STAGE") and key[len(_EXTRA) + 6 :].split(".")[0] == suffix


def _stage(values: Mapping[str, Any], number: int, suffix: str, base: Mapping[str, Any]) -> StageSpec:
    section = f"{_EXTRA}STAGE{number}{suffix}."
    for key, expected in (("NUM_BRANCHES", number), ("NUM_RANCHES", number), ("FUSE_METHOD", "SUM")):
        if key == "NUM_RANCHES" and section + "NUM_BRANCHES" in values:
            continue
        if values.get(section + key, expected) != expected:
            what = "the number of the stage" if key != "FUSE_METHOD" else "the only one"
            raise UserError(f"{section}{key} is {values[section + key]!r}; expected {expected}, {what}")
    fields = {key: values.get(section + key, base[section + key]) for key in _STAGE_FIELDS}
    if fields["BLOCK"] not in ("BASIC", "BOTTLENECK"):
        raise UserError(f"{section}BLOCK is {fields['BLOCK']!r}; expected BASIC or BOTTLENECK")
    if fields["NUM_MODULES"] < 1:
        raise UserError(f"{section}NUM_MODULES is {fields['NUM_MODULES']}; expected at least 1")
    for key in ("NUM_BLOCKS", "NUM_CHANNELS"):
        if len(fields[key]) != number or any(type(v) is not int or v < 1 for v in fields[key]):
            raise UserError(
                f"{section}{key} is {fields[key]}; expected {number} whole numbers above 0, one per resolution"
            )
    return StageSpec.of(fields, number)


def _backbone(values: Mapping[str, Any], current: Mapping[str, Setting]) -> dict[str, Any]:
    base: dict[str, Any] = {}
    for number, spec in enumerate(_specs(current), start=1):
        base |= _settings(spec, f"{_EXTRA}STAGE{number}.")
    specs = tuple(_stage(values, number, "", base) for number in (1, 2, 3, 4))
    for variant, known in VARIANTS.items():
        if specs == known:
            return {"MODEL.BACKBONE.NAME": variant}
    return {"MODEL.BACKBONE.NAME": "hrnet", "MODEL.BACKBONE.STAGES": [_settings(spec) for spec in specs]}


def _specs(current: Mapping[str, Setting]) -> list[StageSpec]:
    """The stages of the backbone so far; HRNet-W48's where it is no HRNet."""
    name = current.get("MODEL.BACKBONE.NAME", ("hrnet_w48", ""))[0]
    stages = VARIANTS.get(name) or current.get("MODEL.BACKBONE.STAGES", (VARIANTS["hrnet_w48"], ""))[0]
    return [StageSpec.of(stage, number) for number, stage in enumerate(stages, start=1)]


def _settings(spec: StageSpec, prefix: str = "") -> dict[str, Any]:
    values = (spec.num_modules, list(spec.num_blocks), list(spec.num_channels), spec.block)
    return {prefix + key: value for key, value in zip(_STAGE_FIELDS, values, strict=True)}


def _head(
    published: Mapping[str, Setting], touched: AbstractSet[str], current: Mapping[str, Setting]
) -> dict[str, Setting]:
    out: dict[str, Setting] = {}
    relevant = {"MODEL.NAME", f"{_EXTRA}FINAL_CONV_KERNEL", *_HEAD_KEYS}
    if not touched & relevant:
        return out
    head = current.get("MODEL.HEAD.NAME", ("fcn", ""))[0]
    if "MODEL.NAME" in published:
        name, source = published["MODEL.NAME"]
        if name not in HEAD_OF:
            raise UserError(f"{source}: MODEL.NAME is {name!r}; expected one of {', '.join(HEAD_OF)}")
        if "MODEL.NAME" in touched:
            head = HEAD_OF[name]
            out["MODEL.HEAD.NAME"] = (head, source)
    chosen = relevant if "MODEL.NAME" in touched else touched
    if head == "ocr":
        out |= {new: published[old] for old, new in _HEAD_KEYS.items() if old in published and old in chosen}
    kernel = f"{_EXTRA}FINAL_CONV_KERNEL"
    if head in ("fcn", "ocr") and kernel in published and kernel in chosen:
        value, source = published[kernel]
        if value not in (1, 3):
            raise UserError(f"{source}: {kernel} is {value}; expected one of 1, 3")
        out["MODEL.HEAD.FINAL_KERNEL"] = (value, source)
    return out


def _seed(
    published: Mapping[str, Setting], touched: AbstractSet[str], current: Mapping[str, Setting], *, with_stages: bool
) -> dict[str, Setting]:
    out: dict[str, Setting] = {}
    branch = f"{_EXTRA}OFFSET_BRANCH"
    name = current.get("MODEL.SEED.NAME", (NO_SEED, ""))[0]
    copies_change = with_stages or any(_is_stage(key, "_2") for key in touched)
    chosen = set(touched)
    if branch in touched:
        stage, source = published[branch]
        if stage not in (0, 2, 3, 4):
            raise UserError(f"{source}: {branch} is {stage}; expected one of 0, 2, 3, 4")
        name = "fork" if stage else NO_SEED
        out["MODEL.SEED.NAME"] = (name, source)
        out |= {"MODEL.SEED.STAGE": (stage, source)} if stage else {}
        chosen |= {*_SEED_KEYS, "MODEL.OFFSET_PRETRAINED"}
    if name == "fork" and (branch in touched or copies_change):
        stage = out.get("MODEL.SEED.STAGE", current.get("MODEL.SEED.STAGE", (4, "")))[0]
        source = next(published[key][1] for key in touched if key == branch or key.startswith(f"{_EXTRA}STAGE"))
        out["MODEL.SEED.STAGES"] = (_copies(published, current, stage), source)
    if name != NO_SEED:
        out |= {new: published[old] for old, new in _SEED_KEYS.items() if old in published and old in chosen}
    if "MODEL.OFFSET_PRETRAINED" in published and "MODEL.OFFSET_PRETRAINED" in chosen:
        value, source = published["MODEL.OFFSET_PRETRAINED"]
        if value or name != NO_SEED:
            out["MODEL.SEED.PRETRAINED"] = (value, source)
    return out


def _copies(
    published: Mapping[str, Setting], current: Mapping[str, Setting], stage: int
) -> list[dict[str, Any]] | None:
    """The copied stages from `stage` on; None if they are the usual ones of this backbone.

    What a published file leaves out is HRNet-W48's, as in the schema that it was written for. Where the backbone is
    described in the present schema, it is the backbone's own.
    """
    own = _specs(current)
    usual = {number: usual_copy(own[number - 1], number) for number in range(stage, 5)}
    base = TRANSLATED
    if not any(_is_stage(key, "") for key in published):
        base = {k: v for number, spec in usual.items() for k, v in _settings(spec, f"{_EXTRA}STAGE{number}_2.").items()}
    values = {key: value for key, (value, _) in published.items()}
    copies = [_stage(values, number, "_2", base) for number in usual]
    return None if copies == list(usual.values()) else [_settings(spec) for spec in copies]
