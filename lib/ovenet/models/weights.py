"""Weights from files: published models' names as data, and reports of what matched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

StateDict = Mapping[str, Tensor]

MIN_MATCHED = 0.95  # share of the tensors to initialise that a file must provide

# Published prefix -> prefix here. The first that fits is taken; `{plain}` is where the model keeps its plain head.
_RENAMED: tuple[tuple[str, str], ...] = (
    ("conv1.", "backbone.conv1."),
    ("bn1.", "backbone.bn1."),
    ("conv2.", "backbone.conv2."),
    ("bn2.", "backbone.bn2."),
    ("layer1.", "backbone.layer1."),
    *((f"transition{n}{s}.", f"backbone.transition{n}{s}.") for n in (1, 2, 3) for s in ("", "_2")),
    *((f"stage{n}{s}.", f"backbone.stage{n}{s}.") for n in (2, 3, 4) for s in ("", "_2")),
    ("last_layer.", "{plain}."),
    ("head.layers.", "{plain}."),
    ("aux_head.", "head.auxiliary.layers."),
    ("offset_layer.", "offset_head.layers."),
    ("aux_head_offset.", "offset_head.layers."),
    ("conv3x3_ocr.", "head.pixels."),
    ("ocr_distri_head.object_context_block.f_pixel.0.", "head.attention.query.0."),
    ("ocr_distri_head.object_context_block.f_pixel.1.0.", "head.attention.query.1."),
    ("ocr_distri_head.object_context_block.f_pixel.2.", "head.attention.query.3."),
    ("ocr_distri_head.object_context_block.f_pixel.3.0.", "head.attention.query.4."),
    ("ocr_distri_head.object_context_block.f_object.0.", "head.attention.key.0."),
    ("ocr_distri_head.object_context_block.f_object.1.0.", "head.attention.key.1."),
    ("ocr_distri_head.object_context_block.f_object.2.", "head.attention.key.3."),
    ("ocr_distri_head.object_context_block.f_object.3.0.", "head.attention.key.4."),
    ("ocr_distri_head.object_context_block.f_down.0.", "head.attention.value.0."),
    ("ocr_distri_head.object_context_block.f_down.1.0.", "head.attention.value.1."),
    ("ocr_distri_head.object_context_block.f_up.0.", "head.attention.up.0."),
    ("ocr_distri_head.object_context_block.f_up.1.0.", "head.attention.up.1."),
    ("ocr_distri_head.conv_bn_dropout.0.", "head.join.0."),
    ("ocr_distri_head.conv_bn_dropout.1.0.", "head.join.1."),
    ("cls_head.", "head.classifier."),
)
# Published tensors that no model here has: the classification head of ImageNet models, the criterion's class weights,
# and the all-batch grid of the public code.
_UNUSED = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.", "loss.", "coords")
_WRAPPERS = ("module.", "model.")
_OFFSET_BRANCH = re.compile(r"backbone\.(transition|stage)(\d)_2\.")
_COUNTER = "num_batches_tracked"  # absent from files of PyTorch 0.4, and without effect on a prediction


@dataclass(frozen=True)
class LoadReport:
    """What a file gave to a model. All names are the model's, but those of `unexpected`, which are the file's.

    Attributes:
        source: the file, for messages.
        loaded: tensors that were copied.
        missing: tensors that the file should have initialised and does not have.
        mismatched: tensors of another shape, as ``name: file's shape, model's shape``.
        unexpected: tensors of the file that this model has no place for.
        untouched: tensors of parts that such a file does not have; they keep their random start.
        unused: how many of the file's tensors are known to have no use here.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    unexpected: tuple[str, ...]
    unused: int
    untouched: tuple[str, ...] = ()

    @property
    def num_expected(self) -> int:
        """Tensors that the file should have initialised."""
        return len(self.loaded) + len(self.missing) + len(self.mismatched)

    @property
    def matched_share(self) -> float:
        """Loaded tensors as a share of those that the file should have initialised."""
        return len(self.loaded) / self.num_expected if self.num_expected else 0.0

    def __str__(self) -> str:
        names = {
            "loaded": self.loaded,
            "missing": self.missing,
            "shape mismatch": self.mismatched,
            "unexpected": self.unexpected,
            "not in this kind of file": self.untouched,
        }
        counts = {kind: Counter(map(_block, entries)) for kind, entries in names.items()}
        lines = [
            f"{self.source}: {len(self.loaded)} tensors loaded ({self.matched_share:.1%}), "
            f"{len(self.missing)} missing, {len(self.mismatched)} of another shape, "
            f"{len(self.unexpected)} unexpected, {self.unused} known and unused"
        ]
        for block in sorted(set().union(*counts.values())):
            parts = [f"{table[block]} {kind}" for kind, table in counts.items() if table[block]]
            lines.append(f"  {block:<28} {', '.join(parts)}")
        lines += [f"  {entry}" for entry in self.mismatched]
        return "\n".join(lines)

    def require(self, share: float, *, allow_partial: bool = False) -> None:
        """Refuses a file that fits too little.

        Raises:
            ValueError: less than `share` matched and `allow_partial` is False.
        """
        if self.matched_share >= share or allow_partial:
            return
        examples = (*self.missing, *self.mismatched, *self.unexpected)[:3]
        raise ValueError(
            f"{self.source}: only {len(self.loaded)} of the {self.num_expected} tensors that it should initialise "
            f"match, at least {share:.0%} must (not: {', '.join(examples)}); check that the config describes this "
            "model, or set MODEL.ALLOW_PARTIAL True"
        )


def load_weights(model: nn.Module, state: StateDict, source: str, *, whole: bool) -> LoadReport:
    """Copies a file's tensors into a model.

    Args:
        model: a `Segmentor`, changed in place.
        state: tensors by name, published names or the model's own.
        source: the file, for the report.
        whole: True if the file must initialise the whole model; False if only the main network and those parts of
            the heads and the offset branch that the file has anything for.

    Returns:
        The report; the caller decides whether it is good enough.
    """
    renamed, unused = rename_published(state, has_ocr=_has_ocr(model))
    parts = {_part(name) for name in renamed}
    names = _tensor_names(model)
    targets = [name for name in names if whole or _part(name) == "trunk" or _part(name) in parts]
    report = _copy(model, renamed, targets, source, unused)
    wanted = set(targets)
    return replace(report, untouched=tuple(name for name in names if name not in wanted))


def load_offset_branch(model: nn.Module, state: StateDict, source: str) -> LoadReport:
    """Initialises the offset branch from the same-named stages of a model without one.

    Args:
        model: an OVeNet, changed in place.
        state: tensors by name; an offset branch of its own is preferred where the file has one.
        source: the file, for the report.
    """
    renamed, unused = rename_published(state, has_ocr=_has_ocr(model))
    targets = [name for name in _tensor_names(model) if _OFFSET_BRANCH.match(name)]
    branch: dict[str, Tensor] = {}
    for name in targets:
        original = _OFFSET_BRANCH.sub(r"backbone.\1\2.", name)
        if name in renamed or original in renamed:
            branch[name] = renamed.get(name, renamed.get(original))
    return _copy(model, branch, targets, source, unused)


def rename_published(state: StateDict, *, has_ocr: bool) -> tuple[dict[str, Tensor], int]:
    """Translates published names, and those of a plain model saved here, to the names of the model at hand.

    Args:
        state: tensors by name, possibly with ``model.`` or ``module.`` before every name.
        has_ocr: whether the model that will receive them has an OCR head, whose auxiliary head is a plain one.

    Returns:
        The tensors by the names here, and how many were dropped because they are known to have no use.
    """
    plain = "head.auxiliary.layers" if has_ocr else "head.layers"
    renamed: dict[str, Tensor] = {}
    unused = 0
    for name, tensor in state.items():
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        if name.startswith(_UNUSED):
            unused += 1
            continue
        for old, new in _RENAMED:
            if name.startswith(old):
                name = new.format(plain=plain) + name[len(old) :]
                break
        renamed[name] = tensor
    return renamed, unused


def published_name(name: str, *, has_ocr: bool) -> str:
    """What the public implementations call a parameter of a model here.

    Args:
        name: the parameter's name here.
        has_ocr: whether the model has an OCR head.
    """
    for old, new in _RENAMED:
        if old in (
            ("last_layer.", "head.layers.", "offset_layer.") if has_ocr else ("head.layers.", "aux_head_offset.")
        ):
            continue
        new = new.format(plain="head.layers")
        if name.startswith(new):
            return old + name[len(new) :]
    return name


def _copy(model: nn.Module, state: StateDict, targets: Iterable[str], source: str, unused: int) -> LoadReport:
    own = model.state_dict()
    loaded, missing, mismatched = [], [], []
    with torch.no_grad():
        for name in targets:
            if name not in state:
                missing.append(name)
            elif state[name].shape != own[name].shape:
                mismatched.append(f"{name}: {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} here")
            else:
                own[name].copy_(state[name])
                loaded.append(name)
    for name, tensor in own.items():
        if name.endswith(_COUNTER) and name in state and tensor.shape == state[name].shape:
            tensor.copy_(state[name])
    unexpected = [name for name in state if name not in own]
    return LoadReport(source, tuple(loaded), tuple(missing), tuple(mismatched), tuple(unexpected), unused)


def _tensor_names(model: nn.Module) -> list[str]:
    return [name for name in model.state_dict() if not name.endswith(_COUNTER)]


def _has_ocr(model: nn.Module) -> bool:
    return any(name.startswith("head.auxiliary.") for name, _ in model.named_parameters())


def _part(name: str) -> str:
    if _OFFSET_BRANCH.match(name):
        return "offset branch"
    return "trunk" if name.startswith("backbone.") else ".".join(name.split(".")[:2])


def _block(name: str) -> str:
    return ".".join(name.split(":")[0].split(".")[: 2 if name.startswith("backbone.") else 1])
