"""Loads tensors by name into a model: published names are translated, and a report says what matched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.interfaces import Part
from ovenet.models.segmentor import Segmentor

StateDict = Mapping[str, Tensor]

MIN_MATCHED = 0.95  # share of the tensors to initialise that a file must provide

_WRAPPERS = ("module.", "model.")
_TAIL = "seed.tail."
_RGB = 3  # channels
_COUNTER = "num_batches_tracked"  # absent from files of PyTorch 0.4, and without effect on a prediction
OWN_NAMES = "ovenet"


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from a file. All names are the model's, except those of `unexpected`, which are the file's.

    Attributes:
        source: the file, for messages.
        loaded: tensors that were copied.
        missing: tensors that the file should initialise and lacks.
        mismatched: tensors of another shape, as ``name: file's shape, model's shape``.
        unexpected: tensors of the file that are unknown to the model.
        unused: number of the file's tensors that are known to have no use here.
        untouched: tensors of parts that this kind of file does not have; they stay randomly initialised.
        adapted: tensors for images with three channels that were adapted to the model's number of channels.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    unexpected: tuple[str, ...]
    unused: int
    untouched: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()

    @property
    def num_expected(self) -> int:
        """Number of tensors that the file should initialise."""
        return len(self.loaded) + len(self.missing) + len(self.mismatched)

    @property
    def matched_share(self) -> float:
        """Share of `num_expected` that was loaded, in [0, 1]."""
        return len(self.loaded) / self.num_expected if self.num_expected else 0.0

    def __str__(self) -> str:
        names = {
            "loaded": self.loaded,
            "missing": self.missing,
            "shape mismatch": self.mismatched,
            "unexpected": self.unexpected,
            "not in this kind of file": self.untouched,
        }
        lines = [
            f"{self.source}: {len(self.loaded)} tensors loaded ({self.matched_share:.1%}), "
            f"{len(self.missing)} missing, {len(self.mismatched)} of another shape, "
            f"{len(self.unexpected)} unexpected, {self.unused} known and unused"
        ]
        counts = {kind: Counter(map(_block, entries)) for kind, entries in names.items()}
        for block in sorted(set().union(*counts.values())):
            if all(kind == "loaded" or not table[block] for kind, table in counts.items()):
                continue  # complete
            parts = [f"{table[block]} {kind}" for kind, table in counts.items() if table[block]]
            lines.append(f"  {block:<28} {', '.join(parts)}")
        lines += [f"  {entry}" for entry in self.mismatched]
        lines += [f"  {entry}: adapted from images with three channels" for entry in self.adapted]
        return "\n".join(lines)

    def require(self, share: float, *, allow_partial: bool = False) -> None:
        """Refuses a file that matches too few tensors.

        Args:
            share: least `matched_share`.
            allow_partial: accept any share.

        Raises:
            UserError: too few tensors match.
        """
        if self.matched_share >= share or allow_partial:
            return
        examples = (*self.missing, *self.mismatched, *self.unexpected)[:3]
        raise UserError(
            f"{self.source}: only {len(self.loaded)} of the {self.num_expected} tensors that it should initialise "
            f"match, at least {share:.0%} must (not: {', '.join(examples)}); check that the config describes this "
            "model, or set MODEL.ALLOW_PARTIAL True"
        )


def load_weights(model: Segmentor, state: StateDict, source: str, *, whole: bool) -> LoadReport:
    """Copies a file's tensors into a model.

    Args:
        model: changed in place.
        state: tensors by published names or the model's own.
        source: the file, for the report.
        whole: whether the file should initialise the whole model, or only the backbone and the other parts of which it
            has any tensor.

    Returns:
        The report; the caller decides whether enough matched.
    """
    renamed, unused = rename_published(state, model)
    parts = {_part(name) for name in renamed}
    names = _tensor_names(model)
    targets = [name for name in names if whole or _part(name) == "backbone" or _part(name) in parts]
    adapted = () if whole else _adapt_input(model, renamed)
    report = _copy(model, renamed, targets, source, unused)
    wanted = set(targets)
    return replace(report, untouched=tuple(name for name in names if name not in wanted), adapted=adapted)


def _adapt_input(model: Segmentor, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Adapts the weights that read a file's three channels to the model's number of channels, as timm does it.

    Args:
        model: a model of images with another number of channels, or with three, for which nothing is done.
        state: tensors by the model's names; changed in place.

    Returns:
        The names of the adapted tensors.
    """
    num_channels = model.backbone.in_channels
    if num_channels == _RGB:
        return ()
    from timm.models import adapt_input_conv  # timm takes a second to import

    own = model.state_dict()
    names = [
        name
        for name, tensor in state.items()
        if name.startswith("backbone.")
        and name in own
        and _reads_channels(tensor, _RGB)
        and _reads_channels(own[name], num_channels)
        and len(tensor) == len(own[name])
    ]
    for name in names:
        state[name] = adapt_input_conv(num_channels, state[name])
    return tuple(names)


def _reads_channels(weight: Tensor, num_channels: int) -> bool:
    """Whether a tensor is the weight of a convolution of maps with so many channels."""
    return weight.ndim == 4 and weight.shape[1] == num_channels


def load_offset_branch(model: Segmentor, state: StateDict, source: str) -> LoadReport:
    """Initialises the copied stages of a forked seed from the same stages of a model without one.

    Args:
        model: an OVeNet with a fork, changed in place.
        state: tensors by name; where the file has copied stages itself, they are used.
        source: the file, for the report.
    """
    renamed, unused = rename_published(state, model)
    targets = [name for name in _tensor_names(model) if name.startswith(_TAIL)]
    tail: dict[str, Tensor] = {}
    for name in targets:
        original = "backbone." + name.removeprefix(_TAIL)
        if name in renamed or original in renamed:
            tail[name] = renamed[name if name in renamed else original]
    return _copy(model, tail, targets, source, unused)


def rename_published(state: StateDict, model: nn.Module) -> tuple[dict[str, Tensor], int]:
    """Translates the tensors of a published file, or of an earlier version, to those of the model.

    Args:
        state: tensors by name, possibly with ``model.`` or ``module.`` before every name.
        model: the model that will receive them.

    Returns:
        The tensors by the model's names, and the number of tensors dropped because they are known to have no use.
    """
    table, names = _best_table(state, model)
    renamed: dict[str, Tensor] = {}
    for old, new in names.items():
        if new is not None:
            pieces = _expand(new)
            parts = state[old].chunk(len(pieces)) if len(pieces) > 1 else [state[old]]
            renamed.update(
                zip(pieces, parts, strict=False)
            )  # if there are too few, the report lists the rest as missing
    converted = {name: table.convert(name, tensor) for name, tensor in renamed.items()}
    return converted, sum(new is None for new in names.values())


def names_here(names: Iterable[str], model: nn.Module) -> dict[str, str | None]:
    """The model's names for a file's tensors.

    Every part has a table of names for each publisher; the publisher whose tables explain most names is chosen.

    Args:
        names: names in the file.
        model: the model that will receive the tensors.

    Returns:
        The model's name by the file's name, in the same order: unchanged if it is in no table, and None for tensors
        that are known to have no use here.
    """
    return _best_table(names, model)[1]


def _best_table(names: Iterable[str], model: nn.Module) -> tuple[_Table, dict[str, str | None]]:
    """The table that explains most names of a file, and its translations, see `names_here`."""
    own = set(model.state_dict())
    plain = {name: _unwrap(name) for name in names}

    def translate(table: _Table) -> dict[str, str | None]:
        new = {name: table.own_name(stripped, own) for name, stripped in plain.items()}
        return {k: None if v not in own and table.is_unused(plain[k]) else v for k, v in new.items()}

    def num_explained(candidate: tuple[_Table, dict[str, str | None]]) -> int:
        return sum(not own.isdisjoint(_expand(name)) for name in set(candidate[1].values()) if name is not None)

    return max(((table, translate(table)) for table in _tables(model).values()), key=num_explained)


def _expand(name: str) -> list[str]:
    """Expands ``a.{q,k}.b`` to ``a.q.b`` and ``a.k.b``."""
    before, brace, rest = name.partition("{")
    if not brace:
        return [name]
    choices, _, after = rest.partition("}")
    return [before + choice + after for choice in choices.split(",")]


@dataclass
class _Table:
    """One publisher's names of the parts of a model."""

    rules: list[tuple[re.Pattern[str], str]] = field(default_factory=list)
    unused: list[re.Pattern[str]] = field(default_factory=list)
    conversions: list[tuple[re.Pattern[str], Callable[[Tensor], Tensor]]] = field(default_factory=list)

    def own_name(self, name: str, own: Collection[str]) -> str:
        """The model's name for a published one; the same name if no rule matches."""
        if name in own:
            return name
        for pattern, replacement in self.rules:
            if pattern.match(name):
                return pattern.sub(replacement, name, count=1)
        return name

    def is_unused(self, name: str) -> bool:
        """Whether the tensor is known to have no use here."""
        return any(pattern.fullmatch(name) for pattern in self.unused)

    def convert(self, own_name: str, tensor: Tensor) -> Tensor:
        """The model's value of a published tensor."""
        for pattern, convert in self.conversions:
            if pattern.fullmatch(own_name):
                return convert(tensor)
        return tensor


def _tables(model: nn.Module) -> dict[str, _Table]:
    """Tables of all parts by publisher; first an empty one for the model's own names."""
    tables: dict[str, _Table] = {OWN_NAMES: _Table()}
    for place, part in model.named_modules():
        if not isinstance(part, Part):
            continue
        for names in part.published:
            table = tables.setdefault(names.publisher, _Table())
            table.rules += [(re.compile("^" + old), f"{place}.{new}") for old, new in names.rules]
            table.unused += [re.compile(pattern) for pattern in names.unused]
            table.conversions += [(re.compile(re.escape(place + ".") + own), f) for own, f in names.conversions]
    return tables


def _unwrap(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
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
                _require_real(state[name], own[name], name, source)
                own[name].copy_(state[name])
                loaded.append(name)
    for name, tensor in own.items():
        if name.endswith(_COUNTER) and name in state and tensor.shape == state[name].shape:
            tensor.copy_(state[name])
    unexpected = [name for name in state if name not in own]
    return LoadReport(source, tuple(loaded), tuple(missing), tuple(mismatched), tuple(unexpected), unused)


def _require_real(tensor: Tensor, target: Tensor, name: str, source: str) -> None:
    """Refuses integers in place of weights: quantised values are useless without their scale.

    Raises:
        UserError: the tensor holds integers.
    """
    if target.is_floating_point() and not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{source}: {name!r} has values of type {kind}; expected real numbers, such as float32")


def _tensor_names(model: nn.Module) -> list[str]:
    return [name for name in model.state_dict() if not name.endswith(_COUNTER)]


def _part(name: str) -> str:
    """The unit that a file has whole or not at all: the backbone, or a module of another part."""
    return "backbone" if name.startswith("backbone.") else ".".join(name.split(".")[:2])


def _block(name: str) -> str:
    return ".".join(name.split(":")[0].split(".")[: 2 if name.startswith("backbone.") else 1])
