"""Models from names, as users of timm and segmentation_models.pytorch expect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ovenet.errors import UserError
from ovenet.models.interfaces import Backbone, Head, Neck
from ovenet.models.ovenet import OVeNet
from ovenet.models.registry import BACKBONES, HEADS, NECKS, SEEDS, Registry
from ovenet.models.segmentor import Segmentor

Settings = Mapping[str, Any]

_MAPS = ("in_channels", "in_strides", "align_corners")
PROVIDED: dict[str, tuple[str, ...]] = {  # arguments that nobody sets, since the model knows them
    "backbone": ("align_corners", "checkpoint_activations", "timm_name"),
    "neck": (*_MAPS, "stacks"),
    "head": (*_MAPS, "num_classes"),
    "seed": (*_MAPS, "num_classes", "backbone", "head"),
}


def build_segmentor(
    backbone: str,
    *,
    num_classes: int,
    head: str = "fcn",
    neck: str | None = None,
    seed: str | None = None,
    align_corners: bool | None = None,
    backbone_args: Settings | None = None,
    neck_args: Settings | None = None,
    head_args: Settings | None = None,
    seed_args: Settings | None = None,
    checkpoint_activations: bool = False,
) -> Segmentor:
    """A model at its random start.

    Args:
        backbone: a name of `list_backbones`.
        num_classes: ``K``.
        head: a name of `list_heads`.
        neck: a name of `list_necks`; None is the head's own.
        seed: ``fork``, ``shared`` or ``neck`` (see `ovenet.models.ovenet`) for an OVeNet; None for the baseline.
        align_corners: convention of all resizing of maps. None is False for head ``fcn`` on an HRNet, as HRNet and
            OVeNet without OCR were published, and True for all else; networks of mmsegmentation need False.
        backbone_args, neck_args, head_args, seed_args: settings of the parts, by the arguments of their builders.
        checkpoint_activations: keep few activations of the backbone while training, and compute them again when needed.

    Raises:
        UserError: there is no such part, a setting is wrong, or parts do not go together.
    """
    if align_corners is None:
        align_corners = not (head == "fcn" and backbone.startswith("hrnet"))

    def build(registry: Registry, name: str, settings: Settings | None, **known: Any) -> Any:
        part = registry.kind
        chosen = registry.check(name, settings or {}, PROVIDED[part], f"{part}_args")
        given = {k: v for k, v in {**known, "align_corners": align_corners}.items() if registry.takes(name, k)}
        return registry[name](**given, **chosen)

    if checkpoint_activations and not BACKBONES.takes(backbone, "checkpoint_activations"):
        raise UserError(
            f"the backbone {backbone} cannot compute its activations twice; leave checkpoint_activations away"
        )
    body: Backbone = build(BACKBONES, backbone, backbone_args, checkpoint_activations=checkpoint_activations)
    maps = {"in_channels": body.channels, "in_strides": body.strides}
    reader = HEADS[head]
    joint: Neck = build(NECKS, neck or reader.default_neck, neck_args, stacks=not reader.reads_stacks, **maps)
    read = {"in_channels": joint.channels, "in_strides": joint.strides, "num_classes": num_classes}
    classifier: Head = build(HEADS, head, head_args, **read)
    if seed is None:
        return Segmentor(body, joint, classifier)
    known = {"backbone": body, "head": classifier, "num_classes": num_classes, **maps}
    return OVeNet(body, joint, classifier, build(SEEDS, seed, seed_args, **known))


def list_backbones(pattern: str = "*", *, timm: bool = True) -> list[str]:
    """Names of backbones.

    Args:
        pattern: with ``*`` and ``?``.
        timm: timm's too, except those that are registered here under another name.
    """
    own = [name for name in BACKBONES.names() if fnmatchcase(name, pattern)]
    if not timm:
        return own
    from ovenet.models.backbones.timm import list_timm_backbones  # timm takes a second to import

    return own + sorted(set(list_timm_backbones(pattern)) - set(own))


def list_necks() -> list[str]:
    """Names of necks."""
    return NECKS.names()


def list_heads() -> list[str]:
    """Names of heads."""
    return HEADS.names()


def list_seeds() -> list[str]:
    """Names of the sources of a seed's offsets."""
    return SEEDS.names()


def describe(kind: str, name: str) -> Callable[..., Any]:
    """The builder of a part, whose arguments are the settings of ``MODEL.<KIND>``: look at it with ``help``.

    Args:
        kind: ``backbone``, ``neck``, ``head`` or ``seed``.
        name: of the part.

    Raises:
        UserError: there is no such kind or part.
    """
    registries = {registry.kind: registry for registry in (BACKBONES, NECKS, HEADS, SEEDS)}
    if kind not in registries:
        raise UserError(f"there is no kind of part {kind!r}; the kinds are {', '.join(registries)}")
    return registries[kind][name]
