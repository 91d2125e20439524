"""Settings of the network. Each part takes the arguments of its builder besides these, see `ovenet.describe`."""

from __future__ import annotations

from dataclasses import dataclass

from ovenet.fields import setting

NO_SEED = "none"


@dataclass(frozen=True)
class BackboneSettings:
    """The backbone."""

    name: str = setting("hrnet_w48", "a name of ovenet.list_backbones(), timm's among them", in_test=True)
    pretrained: str = setting(
        "", "file to start from; timm for timm's weights; \"\" is the backbone's own way", role="input"
    )


@dataclass(frozen=True)
class NeckSettings:
    """The neck."""

    name: str = setting("", 'a name of ovenet.list_necks(); "" is the one that goes with the head', in_test=True)


@dataclass(frozen=True)
class HeadSettings:
    """The head."""

    name: str = setting("fcn", "a name of ovenet.list_heads()", in_test=True)


@dataclass(frozen=True)
class SeedSettings:
    """The seed branch of an OVeNet."""

    name: str = setting(
        NO_SEED, "where offsets come from: a name of ovenet.list_seeds(); none is the baseline", in_test=True
    )
    pretrained: str = setting(
        "", 'fork only: file whose stages initialise the copied ones; "" starts them at random', role="input"
    )


@dataclass(frozen=True)
class ModelSettings:
    """The whole network."""

    align_corners: bool = setting(
        True,
        "in all resizing of maps: True for networks published with OCR, False for others, mmseg too",
        in_test=True,
    )
    bn_momentum: float = setting(
        0.0,
        "share of the batch in BatchNorm's running statistics; 0 leaves the parts' own (HRNet: 0.1)",
        at_least=0,
        at_most=1,
    )
    frozen: tuple[str, ...] = setting(
        (), "parts that are not trained: backbone, neck, head, seed, or modules in them (backbone.layer1)"
    )
    allow_partial: bool = setting(
        False, "accept files that lack tensors: over 5 % of what training starts from, any in a test"
    )
