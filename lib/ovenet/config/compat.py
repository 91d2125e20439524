"""Keys of published YAML files and of configs of version 1, translated to the present schema.

They describe the model by ``MODEL.NAME`` and ``MODEL.EXTRA`` of an HRNet. Keys without effect, in the public code or
here, are inert: accepted, and named in a warning. `ovenet.config.merging` decides which of several settings holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from ovenet.errors import UserError
from ovenet.models.hrnet_stages import VARIANTS, StageSpec, usual_copy
from ovenet.models.registry import SEEDS
from ovenet.models.settings import NO_SEED

Setting = tuple[Any, str]  # value and source

HEAD_OF = {"seg_hrnet": "fcn", "branched_seg_hrnet": "fcn", "seg_hrnet_ocr": "ocr"}  # by MODEL.NAME
_OCR_CODE_KEYS = {"MODEL.ALIGN_CORNERS", "MODEL.NUM_OUTPUTS"}  # HRNet's code without OCR has none of them
_EXTRA = "MODEL.EXTRA."
_STAGE_FIELDS = ("NUM_MODULES", "NUM_BLOCKS", "NUM_CHANNELS", "BLOCK")
KEYWORDS, MULT = "TRAIN.NONBACKBONE_KEYWORDS", "TRAIN.NONBACKBONE_MULT"

# Published keys that correspond to one present key each.
TARGETS = {
    "MODEL.PRETRAINED": "MODEL.BACKBONE.PRETRAINED",
    "MODEL.OFFSET_PRETRAINED": "MODEL.SEED.PRETRAINED",
    "MODEL.FREEZED_PAR": "MODEL.FROZEN",
    "MODEL.OCR.MID_CHANNELS": "MODEL.HEAD.MID_CHANNELS",
    "MODEL.OCR.KEY_CHANNELS": "MODEL.HEAD.KEY_CHANNELS",
    "MODEL.OCR.DROPOUT": "MODEL.HEAD.DROPOUT",
    f"{_EXTRA}FINAL_CONV_KERNEL": "MODEL.HEAD.FINAL_KERNEL",
    f"{_EXTRA}OFFSET_THRESHOLD": "MODEL.SEED.MAX_OFFSET",
    f"{_EXTRA}ITERATIVE_REFINEMENT": "MODEL.SEED.NUM_REFINEMENTS",
    f"{_EXTRA}LOGITS": "MODEL.SEED.FUSE_LOGITS",
}

# The public code's names for the modules of a head and for the offset head; keywords are substrings of these.
_HEAD_MODULES = {"fcn": ("last_layer",), "ocr": ("conv3x3_ocr", "ocr_distri_head", "cls_head", "aux_head")}
_OFFSET_HEAD = {"fcn": "offset_layer", "ocr": "aux_head_offset"}
_WORDS = ("cls", "aux", "ocr", "last_layer", "head", "offset", "offset_layer")  # no substrings of a backbone's names

# Present names of keys in earlier configs of this project, which checkpoints carry.
RENAMED_KEYS = {"LOSS.ENGINE": "LOSS.BACKEND", "TEST.FOLD_BATCHNORM": "TEST.FUSE_CONV_BN"}

# Keys of settings that are gone, and the one value of each that changes nothing: checkpoints of then have every key.
REMOVED_KEYS: dict[str, Any] = {
    "LOSS.FUSION_WARMUP": 0,
    "LOSS.OFFSET": 0.0,
    "LOSS.OFFSET_TARGET": "same_class",
    "MODEL.SEED.CONFIDENCE_SEES_SCORES": False,
}
_COMMIT_WITH_REMOVED_KEYS = "7755ad6"

# Inert keys, and what to do instead.
INERT_KEYS: dict[str, str] = {
    "GPUS": "the number of processes decides: torchrun --nproc_per_node=N",
    "AUTO_RESUME": "use TRAIN.RESUME",
    "CUDNN.WORKSPACE_MIB": "cuDNN 9 does not obey it",  # was a default of this program for a while
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
    """Settings of a stage that a file leaves out: those of HRNet-W48, or of OVeNet's copy of it."""
    spec = VARIANTS["hrnet_w48"][number - 1]
    spec = usual_copy(spec, number) if suffix else spec
    values = (spec.num_modules, list(spec.num_blocks), list(spec.num_channels), spec.block)
    section = f"{_EXTRA}STAGE{number}{suffix}."
    branches = {"NUM_BRANCHES": number, "NUM_RANCHES": number, "FUSE_METHOD": "SUM"}  # misspelled there for stage 1
    return {section + key: value for key, value in (*zip(_STAGE_FIELDS, values, strict=True), *branches.items())}


# Every translated key, with its default.
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
TRANSLATED_TYPES: dict[str, Any] = {
    **{key: tuple[int, ...] if isinstance(value, list) else type(value) for key, value in TRANSLATED.items()},
    KEYWORDS: tuple[str, ...],
}


def without_removed(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A source's values without the keys of settings that are gone.

    Args:
        content: values by key.
        source: name of the source, for the message.

    Raises:
        UserError: one of them is switched on.
    """
    for key, off in REMOVED_KEYS.items():
        if content.get(key, off) != off:
            raise UserError(
                f"{source}: {key} is {content[key]!r}, a setting that is gone; leave it away, or use commit "
                f"{_COMMIT_WITH_REMOVED_KEYS}, which has it"
            )
    return {key: value for key, value in content.items() if key not in REMOVED_KEYS}


def present_value(key: str, value: Any, source: str) -> Any:
    """Translates the value of a published key to that of its present key in `TARGETS`.

    Raises:
        UserError: the public code does not accept the value either.
    """
    if key == "MODEL.FREEZED_PAR":
        return ["backbone", "neck", "head"] if value else []
    if key == f"{_EXTRA}FINAL_CONV_KERNEL" and value not in (1, 3):
        raise UserError(f"{source}: {key} is {value}; expected one of 1, 3")
    return value


def why_without_effect(key: str, value: Any, head: str, seed: str) -> str | None:
    """Why a key of `TARGETS` has no effect on a model of these parts; "" needs no warning, None: it has an effect."""
    if key.startswith("MODEL.OCR.") and head != "ocr":
        return f"the head is {head}"
    if key == f"{_EXTRA}FINAL_CONV_KERNEL" and head not in _HEAD_MODULES:
        return f"the head is {head}"
    if key == "MODEL.OFFSET_PRETRAINED":  # the checks refuse a file for a seed without copied stages
        return None if value or seed == "fork" else ""
    section, _, argument = TARGETS[key].rpartition(".")
    if section == "MODEL.SEED" and seed == NO_SEED:
        return "the model has no seed"
    if section != "MODEL.SEED" or seed == "fork":  # the published seed; looking others up imports torch
        return None
    if seed in SEEDS.names() and not SEEDS.takes(seed, argument.lower()):
        return f"the seed is {seed}"
    return None


def named_parts(published: Mapping[str, Setting]) -> dict[str, tuple[Setting, str]]:
    """The parts that published keys of a source name.

    Returns:
        Setting and published key, by present key.

    Raises:
        UserError: the public code does not accept a value either.
    """
    out: dict[str, tuple[Setting, str]] = {}
    if "MODEL.NAME" in published:
        name, source = published["MODEL.NAME"]
        if name not in HEAD_OF:
            raise UserError(f"{source}: MODEL.NAME is {name!r}; expected one of {', '.join(HEAD_OF)}")
        out["MODEL.HEAD.NAME"] = ((HEAD_OF[name], source), "MODEL.NAME")
    branch = f"{_EXTRA}OFFSET_BRANCH"
    if branch in published:
        stage, source = published[branch]
        if stage not in (0, 2, 3, 4):
            raise UserError(f"{source}: {branch} is {stage}; expected one of 0, 2, 3, 4")
        out["MODEL.SEED.NAME"] = (("fork" if stage else NO_SEED, source), branch)
        if stage:
            out["MODEL.SEED.STAGE"] = ((stage, source), branch)
    return out


def conventions(
    published: Mapping[str, Setting], keys: AbstractSet[str], settings: Mapping[str, Setting]
) -> dict[str, Setting]:
    """Conventions of the code that a published file is for, where that code has no key for them.

    HRNet's code without OCR, and OVeNet's based on it, resizes with half-pixel centres and BatchNorm momentum 0.01.
    HRNet-OCR's code has keys for both; its defaults are those of the present schema, for ``seg_hrnet`` too.

    Args:
        published: the published keys in force.
        keys: all keys of all files, inert ones included.
        settings: the present settings.

    Returns:
        Settings that hold unless a source sets them.
    """
    name, source = published.get("MODEL.NAME", ("", ""))
    is_plain = settings["MODEL.HEAD.NAME"][0] == "fcn" and stage_specs(settings) is not None
    if HEAD_OF.get(name) != "fcn" or not is_plain or keys & _OCR_CODE_KEYS:
        return {}
    return {"MODEL.ALIGN_CORNERS": (False, source), "MODEL.BN_MOMENTUM": (0.01, source)}


def shortens_validation(content: Mapping[str, Any]) -> bool:
    """Whether ``TEST.NUM_SAMPLES`` of a file shortens validation during training, as in the public code, not tests.

    Args:
        content: the file's values by key.
    """
    own = "TRAIN.EVAL_NUM_SAMPLES" in content
    return "MODEL.NAME" in content and not own and content.get("TEST.NUM_SAMPLES") not in (None, 0, "0")


def learning_rate_factors(words: Sequence[str], factor: float, head: str, seed: str) -> dict[str, float]:
    """Learning rate factors that ``TRAIN.NONBACKBONE_KEYWORDS`` set, by present key.

    The public code multiplies the learning rate of parameters with one of the keywords in their names.

    Args:
        words: the keywords, at least one.
        factor: on the learning rate of the matching parameters.
        head, seed: names of the parts.

    Raises:
        UserError: the keywords select anything but whole heads.
    """
    if not set(words) <= set(_WORDS):
        raise UserError(
            f"{KEYWORDS} is {list(words)}; expected some of {', '.join(_WORDS)}, names of heads; "
            "TRAIN.LR_MULT.BACKBONE, HEAD, SEED and OFFSET_HEAD set the factors of the parts"
        )
    if head not in _HEAD_MODULES:
        return {"TRAIN.LR_MULT.HEAD": factor}
    left_out = [module for module in _HEAD_MODULES[head] if not any(word in module for word in words)]
    if left_out and len(left_out) < len(_HEAD_MODULES[head]):
        raise UserError(
            f"{KEYWORDS} is {list(words)}, which leaves {', '.join(left_out)} of the head {head} out; name the whole "
            "head (cls, aux, ocr), or set TRAIN.LR_MULT.HEAD and OFFSET_HEAD"
        )
    out = {} if left_out else {"TRAIN.LR_MULT.HEAD": factor}
    if seed != NO_SEED and any(word in _OFFSET_HEAD[head] for word in words):
        out["TRAIN.LR_MULT.OFFSET_HEAD"] = factor
    return out


def is_stage(key: str, suffix: str) -> bool:
    """Whether a key belongs to a stage of the network (suffix ``""``) or of its offset branch (``_2``)."""
    return key.startswith(f"{_EXTRA}STAGE") and key[len(_EXTRA) + 6 :].split(".")[0] == suffix


def stage_number(key: str) -> int:
    """Number of the stage that a key belongs to, see `is_stage`."""
    return int(key[len(_EXTRA) + 5])


def stage_specs(settings: Mapping[str, Setting]) -> tuple[StageSpec, ...] | None:
    """Stages of the backbone in the present settings; None if it is not an HRNet."""
    name = settings["MODEL.BACKBONE.NAME"][0]
    if name != "hrnet":
        return VARIANTS.get(name)
    stages = settings.get("MODEL.BACKBONE.STAGES", (VARIANTS["hrnet_w48"], ""))[0]
    return tuple(_specs("MODEL.BACKBONE.STAGES", stages, range(1, 5)).values())


def _specs(key: str, stages: Any, numbers: Iterable[int]) -> dict[int, StageSpec]:
    """Stages of the present schema's form, by number."""
    if not isinstance(stages, (list, tuple)) or not all(isinstance(stage, (StageSpec, Mapping)) for stage in stages):
        raise UserError(f"{key} is {stages!r}; expected a list of tables, one per stage")
    return {number: StageSpec.of(stage, number) for number, stage in zip(numbers, stages, strict=False)}


def changed_stages(published: Mapping[str, Setting], before: Sequence[StageSpec]) -> tuple[StageSpec, ...]:
    """Stages of a network, changed by published keys.

    Raises:
        UserError: a value is out of range.
    """
    values = {key: value for key, (value, _) in published.items()}
    base: dict[str, Any] = {}
    for number, spec in enumerate(before, start=1):
        base |= _settings(spec, f"{_EXTRA}STAGE{number}.")
    return tuple(_stage(values, number, "", base) for number in (1, 2, 3, 4))


def backbone_of(specs: tuple[StageSpec, ...]) -> tuple[str, list[dict[str, Any]] | None]:
    """Name of the HRNet with these stages, and its ``STAGES``; None for a variant with a name of its own."""
    for variant, known in VARIANTS.items():
        if specs == known:
            return variant, None
    return "hrnet", [_settings(spec) for spec in specs]


def copied_stages(
    published: Mapping[str, Setting], own: Sequence[StageSpec], stage: int, *, so_far: Any = (), of_w48: bool
) -> list[dict[str, Any]] | None:
    """Stages of the offset branch; None if they are the usual ones of this backbone.

    Args:
        published: keys of stages.
        own: stages of the backbone.
        stage: number of the first copied stage.
        so_far: the copied stages in the present schema's form; empty for the usual ones.
        of_w48: missing values are those of HRNet-W48, the defaults that published files were written for.

    Raises:
        UserError: a value is out of range.
    """
    usual = {number: usual_copy(own[number - 1], number) for number in range(stage, 5)}
    base = TRANSLATED
    if not of_w48:
        specs = usual | _specs("MODEL.SEED.STAGES", so_far, usual)
        base = {k: v for n, spec in specs.items() for k, v in _settings(spec, f"{_EXTRA}STAGE{n}_2.").items()}
    values = {key: value for key, (value, _) in published.items()}
    copies = [_stage(values, number, "_2", base) for number in usual]
    return None if copies == list(usual.values()) else [_settings(spec) for spec in copies]


def _stage(values: Mapping[str, Any], number: int, suffix: str, base: Mapping[str, Any]) -> StageSpec:
    section = f"{_EXTRA}STAGE{number}{suffix}."
    for key, expected in (("NUM_BRANCHES", number), ("NUM_RANCHES", number), ("FUSE_METHOD", "SUM")):
        if key == "NUM_RANCHES" and section + "NUM_BRANCHES" in values:
            continue
        if values.get(section + key, expected) != expected:
            why = "the number of the stage" if key != "FUSE_METHOD" else "the only method"
            raise UserError(f"{section}{key} is {values[section + key]!r}; expected {expected}, {why}")
    fields = {key: values.get(section + key, base[section + key]) for key in _STAGE_FIELDS}
    if fields["BLOCK"] not in ("BASIC", "BOTTLENECK"):
        raise UserError(f"{section}BLOCK is {fields['BLOCK']!r}; expected BASIC or BOTTLENECK")
    if fields["NUM_MODULES"] < 1:
        raise UserError(f"{section}NUM_MODULES is {fields['NUM_MODULES']}; expected at least 1")
    for key in ("NUM_BLOCKS", "NUM_CHANNELS"):
        if len(fields[key]) != number or any(type(v) is not int or v < 1 for v in fields[key]):
            raise UserError(f"{section}{key} is {fields[key]}; expected {number} integers above 0, one per resolution")
    return StageSpec.of(fields, number)


def _settings(spec: StageSpec, prefix: str = "") -> dict[str, Any]:
    values = (spec.num_modules, list(spec.num_blocks), list(spec.num_channels), spec.block)
    return {prefix + key: value for key, value in zip(_STAGE_FIELDS, values, strict=True)}
