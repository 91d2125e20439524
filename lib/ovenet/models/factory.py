"""Models built from names, in the manner of timm and segmentation_models.pytorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from ovenet.errors import UserError
from ovenet.models.interfaces import Backbone, Head, Neck
from ovenet.models.pretrained import weights_path
from ovenet.models.registry import BACKBONES, HEADS, NECKS, REGISTRIES, SEEDS
from ovenet.models.seeds.ovenet import OVeNet
from ovenet.models.segmentor import Segmentor
from ovenet.models.weight_files import read_weights
from ovenet.models.weights import MIN_MATCHED, LoadReport, load_weights
from ovenet.registry import Registry
from ovenet.structures import Normalization

Settings = Mapping[str, Any]
TIMM = "timm"


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
    normalization: Normalization | None = None,
) -> Segmentor:
    """Builds a model with random weights.

    Args:
        backbone: a name of `list_backbones`.
        num_classes: ``K``.
        head: a name of `list_heads`.
        neck: a name of `list_necks`; None is the head's default.
        seed: ``fork``, ``shared`` or ``neck`` (see `ovenet.models.seeds.ovenet`) for an OVeNet; None for the baseline.
        align_corners: convention of all resizing of maps. None is False for head ``fcn`` on an HRNet, as HRNet and
            OVeNet without OCR were published, and True for all else; networks of mmsegmentation need False.
        backbone_args, neck_args, head_args, seed_args: arguments of the parts' builders, see `describe`.
        checkpoint_activations: recompute the backbone's activations in the backward pass, which saves memory.
        normalization: of the images; None is the backbone's own, see `Normalization.for_channels`.

    Raises:
        UserError: a part does not exist, an argument is wrong, or parts do not go together.
    """
    if align_corners is None:
        align_corners = not (head == "fcn" and backbone.startswith("hrnet"))

    def build(registry: Registry[Any], name: str, settings: Settings | None, **known: Any) -> Any:
        chosen = registry.check(name, settings or {}, f"{registry.kind}_args")
        given = {k: v for k, v in {**known, "align_corners": align_corners}.items() if registry.takes(name, k)}
        return registry[name](**given, **chosen)

    if checkpoint_activations and not BACKBONES.takes(backbone, "checkpoint_activations"):
        raise UserError(
            f"the backbone {backbone} cannot compute its activations twice; leave checkpoint_activations away"
        )
    body: Backbone = build(BACKBONES, backbone, backbone_args, checkpoint_activations=checkpoint_activations)
    body.normalization = _normalization_of(body, normalization)
    maps = {"in_channels": body.channels, "in_strides": body.strides}
    reader = HEADS[head]
    form = {"joined": reader.default_neck != "none", "stacks": not reader.reads_stacks}
    joint: Neck = build(NECKS, neck or reader.default_neck, neck_args, **form, **maps)
    read = {"in_channels": joint.channels, "in_strides": joint.strides, "num_classes": num_classes}
    classifier: Head = build(HEADS, head, head_args, **read)
    if seed is None:
        model = Segmentor(body, joint, classifier)
    else:
        known = {
            "backbone": body,
            "image_channels": body.in_channels,
            "head": classifier,
            "num_classes": num_classes,
            **maps,
        }
        model = OVeNet(body, joint, classifier, build(SEEDS, seed, seed_args, **known))
    model.recipe = {
        "backbone": backbone,
        "num_classes": num_classes,
        "head": head,
        "neck": neck,
        "seed": seed,
        "align_corners": align_corners,
        "backbone_args": dict(backbone_args or {}),
        "neck_args": dict(neck_args or {}),
        "head_args": dict(head_args or {}),
        "seed_args": dict(seed_args or {}),
    }
    return model


def _normalization_of(backbone: Backbone, chosen: Normalization | None) -> Normalization:
    """The chosen normalisation, or the backbone's own for its number of channels.

    Raises:
        UserError: the chosen one has another number of channels.
    """
    num_channels = backbone.in_channels
    if chosen is None:
        return backbone.normalization.for_channels(num_channels)
    if not len(chosen.mean) == len(chosen.std) == num_channels:
        raise UserError(
            f"normalization has {len(chosen.mean)} means and {len(chosen.std)} deviations, and the images have "
            f"{num_channels} channels (in_channels); give one of each for every channel"
        )
    return chosen


def create_model(
    backbone: str,
    *,
    num_classes: int = 19,
    head: str = "fcn",
    neck: str | None = None,
    seed: str | None = None,
    pretrained: str | Path | bool | None = None,
    in_channels: int = 3,
    normalization: Normalization | None = None,
    align_corners: bool | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    neck_args: Mapping[str, Any] | None = None,
    head_args: Mapping[str, Any] | None = None,
    seed_args: Mapping[str, Any] | None = None,
) -> Segmentor:
    """A model from names, without a configuration.

        model = ovenet.create_model("convnext_tiny", head="ocr", seed="shared", num_classes=11)

    Args:
        backbone: a name of `ovenet.list_backbones`.
        num_classes: ``K``.
        head: a name of `ovenet.list_heads`.
        neck: a name of `ovenet.list_necks`; None is the head's own.
        seed: source of the offsets, a name of `ovenet.list_seeds`; None is the baseline.
        pretrained: a file of weights, a name of ``ovenet.list_models(pretrained=True)``, or ``timm`` for timm's; None
            loads the weights that come with the backbone, if any do, and False loads none.
        in_channels: channels of the images. Weights for three channels are adapted as timm does it: their mean for one
            channel, repeated for more.
        normalization: of the images; None is the backbone's own, or what becomes of it for other `in_channels`, see
            `ovenet.structures.Normalization.for_channels`.
        align_corners: convention of all resizing of maps. None is False for head ``fcn`` on an HRNet, as HRNet and
            OVeNet without OCR were published, and True for all else; networks of mmsegmentation need False.
        backbone_args: arguments of the backbone, see `ovenet.describe`.
        neck_args: arguments of the neck.
        head_args: arguments of the head.
        seed_args: arguments of the seed.

    Raises:
        UserError: a part does not exist, an argument or a file is wrong, or the parts do not go together.
    """
    if in_channels < 1:
        raise UserError(f"in_channels is {in_channels}; expected at least 1")
    model = build_segmentor(
        backbone,
        num_classes=num_classes,
        head=head,
        neck=neck,
        seed=seed,
        align_corners=align_corners,
        backbone_args={**(backbone_args or {}), **({} if in_channels == 3 else {"in_channels": in_channels})},
        neck_args=neck_args,
        head_args=head_args,
        seed_args=seed_args,
        normalization=normalization,
    )
    is_on_meta = next(model.parameters()).is_meta
    if pretrained is not False and not is_on_meta:
        source = TIMM if pretrained is True else str(pretrained or "")
        for report in initialize_backbone(model, source):
            report.require(MIN_MATCHED)
    return model


def initialize_backbone(model: Segmentor, source: str, key: str = "") -> list[LoadReport]:
    """Loads weights from a file or a named model, from timm or, without a source, from the package of the backbone."""
    if source == TIMM:
        from ovenet.models.backbones.timm import timm_weights  # timm takes a second to import

        name = model.backbone.timm_name
        if name is None:
            raise UserError(f"{key or 'pretrained '}is timm, but timm does not have this backbone; name a file")
        state: Mapping[str, Tensor] | None = timm_weights(name)
        source = f"{key}timm's {name}"
    elif source:
        state = read_weights(weights_path(source))
        source = key + source
    else:
        state = model.backbone.bundled_weights()
        source = "the weights that come with the backbone"
    if state is None:
        return []
    try:
        state = model.backbone.convert_weights(state)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return [load_weights(model, state, source, whole=False)]


def list_backbones(pattern: str = "*", *, timm: bool = True) -> list[str]:
    """Names of backbones.

    Args:
        pattern: of names, with ``*`` and ``?``.
        timm: include timm's, except those that are registered here under another name.
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
    """Names of seeds: the sources of the offsets."""
    return SEEDS.names()


def describe(kind: str, name: str) -> Callable[..., Any]:
    """The builder of a part, for ``help``: its arguments are the settings of ``MODEL.<KIND>``.

    Args:
        kind: ``backbone``, ``neck``, ``head`` or ``seed``.
        name: of the part.

    Raises:
        UserError: the kind or the part does not exist.
    """
    if kind not in REGISTRIES:
        raise UserError(f"there is no kind of part {kind!r}; the kinds are {', '.join(REGISTRIES)}")
    return REGISTRIES[kind][name]
