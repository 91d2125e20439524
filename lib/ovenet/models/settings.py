"""Settings of the network. Sections of parts also take the arguments of the part's builder, see `ovenet.describe`."""

from __future__ import annotations

from dataclasses import dataclass

from ovenet.fields import setting

PARTS = ("backbone", "neck", "head", "seed")  # child modules of a model, sections of MODEL
NO_SEED = "none"
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class BackboneSettings:
    """The backbone."""

    name: str = setting("hrnet_w48", "a name of ovenet.list_backbones(), timm's among them", in_test=True)
    pretrained: str = setting(
        "",
        'initial weights: a file, or a name of ovenet.list_models(pretrained=True); timm for timm\'s; "" is the '
        "backbone's own initialization",
        role="input",
    )


@dataclass(frozen=True)
class NeckSettings:
    """The neck."""

    name: str = setting("", 'a name of ovenet.list_necks(); "" is the default of the head', in_test=True)


@dataclass(frozen=True)
class HeadSettings:
    """The head."""

    name: str = setting("fcn", "a name of ovenet.list_heads()", in_test=True)


@dataclass(frozen=True)
class SeedSettings:
    """The seed branch of an OVeNet."""

    name: str = setting(
        NO_SEED, "source of the offsets: a name of ovenet.list_seeds(); none is the baseline", in_test=True
    )
    pretrained: str = setting(
        "", 'fork only: file or name of the initial weights of the copied stages; "" for random ones', role="input"
    )


@dataclass(frozen=True)
class ModelSettings:
    """The whole network."""

    align_corners: bool = setting(
        True,
        "in all resizing of maps: True for networks published with OCR, False for other published ones",
        in_test=True,
    )
    bn_momentum: float = setting(
        0.0,
        "momentum of BatchNorm's running statistics; 0 keeps that of each part (HRNet: 0.1)",
        at_least=0,
        at_most=1,
    )
    frozen: tuple[str, ...] = setting(
        (), "parts that are not trained: backbone, neck, head, seed, or modules in them (backbone.layer1)"
    )
    allow_partial: bool = setting(
        False, "accept files with missing tensors: over 5 % of the initial weights, any in a test"
    )
