"""Interfaces of the parts of a network: backbone → neck → head, and what a seed needs of them.

Shapes: ``B`` batch, ``K`` classes, ``H W`` image size; feature maps ``(B, C, h, w)`` come in lists, fine to coarse.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ovenet.structures import Normalization, QueryOutput, ScoreKind

IMAGENET = Normalization()


@dataclass(frozen=True)
class PublishedNames:
    """The names that another publisher gives to the parameters of a part.

    Attributes:
        publisher: whose names they are.
        rules: regular expression of a published name, from its beginning, and what takes its place in the part's own
            name; the first that fits is taken. ``{q,k,v}_proj`` stands for three tensors, into which the published one
            is split along its first dimension.
        unused: regular expressions of whole published names that the publisher saves and this project has no use for.
        conversions: regular expression of a part's own whole name, and what turns the published tensor into the one
            here.
    """

    publisher: str
    rules: tuple[tuple[str, str], ...]
    unused: tuple[str, ...] = ()
    conversions: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = ()


class Part(nn.Module):
    """A part initialises itself when it is built; whoever receives it must not initialise it again.

    Attributes:
        published: what the part's parameters are called elsewhere.
        undecayed: regular expressions of names of parameters, embeddings mostly, that ``TRAIN.NO_DECAY_ON_NORM``
            excludes from weight decay as well.
    """

    published: tuple[PublishedNames, ...] = ()
    undecayed: tuple[str, ...] = ()


class Backbone(Part):
    """Image to feature maps.

    Attributes:
        channels: per map.
        strides: per map, nominal: a map has the image's size over it, rounded up.
        size_multiple: sides of an image must be multiples of it; the segmentor pads.
        fixed_size: ``(H, W)``, the only size that it takes; None for any.
        normalization: of the pixels it was made for.
        timm_name: what timm calls the same network, whose weights then fit; None if it does not have it.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    size_multiple: int = 1
    fixed_size: tuple[int, int] | None = None
    normalization: Normalization = IMAGENET
    timm_name: str | None = None

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` normalised images to maps ``(B, channels[i], H / strides[i], W / strides[i])``."""

    def bundled_weights(self) -> Mapping[str, Tensor] | None:
        """Weights that come with the backbone's own package, by the names here; None for a random start.

        Raises:
            UserError: the package is not installed.
        """
        return None


class Tail(Part):
    """A second copy of a backbone's last stages; attributes as for `Backbone`."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """What the stages before it gave, to maps."""


class ForkableBackbone(Backbone):
    """A backbone that runs stage by stage, so that from some stage on there can be a second one.

    Attributes:
        num_stages: counted from 1, the stem belonging to the first.
    """

    num_stages: int = 4

    @abstractmethod
    def run(self, features: list[Tensor], start: int, stop: int) -> list[Tensor]:
        """Runs stages `start` + 1 to `stop`.

        Args:
            features: what the stages up to `start` gave; ``[images]`` for 0.
            start: stages that have run.
            stop: stages that have run afterwards.
        """

    @abstractmethod
    def make_tail(self, stage: int, stages: Sequence[Mapping[str, object]] | None = None) -> Tail:
        """A second, freshly initialised copy of the stages from `stage` on.

        Args:
            stage: the first one, from 2 on.
            stages: other settings for the copied stages, if the backbone has any; None for its own.

        Raises:
            UserError: there is no such stage, or the settings do not fit.
        """

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        return self.run([images], 0, self.num_stages)


class Neck(Part):
    """Maps to maps; attributes as for `Backbone`, of what comes out."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps, fine to coarse, to one map or several."""


@dataclass(frozen=True)
class SegOutput:
    """What a head predicts.

    Attributes:
        scores: ``(B, K, h, w)``, auxiliary maps first, the final one last.
        features: ``(B, D, h, w)``, the map that the final classifier reads; a shared seed reads it too.
        embedding: for losses that compare pixels; None where the head has none.
        score_kind: what the scores are.
        queries: what the scores were made from; None where the head has no queries.
    """

    scores: tuple[Tensor, ...]
    features: Tensor
    embedding: Tensor | None = None
    score_kind: ScoreKind = "logits"
    queries: QueryOutput | None = None


class Head(Part):
    """Maps to class scores. One that reads a single map takes the last that it is given.

    Attributes:
        num_outputs: length of `SegOutput.scores`.
        default_neck: used where nobody names one.
        has_queries: whether it predicts masks and their classes, which are supervised in place of the scores.
        reads_stacks: whether it takes `ovenet.models.stacked.StackedMaps` for the map that the neck ``concat`` gives.
        first_read: place of the first map that is read; those before it are not.
        feature_channels: ``D`` of `SegOutput.features`.
        stride: of the scores, nominal.
    """

    num_outputs: ClassVar[int] = 1
    first_read: ClassVar[int] = -1
    default_neck: ClassVar[str] = "concat"
    has_queries: ClassVar[bool] = False
    reads_stacks: ClassVar[bool] = False
    feature_channels: int
    stride: int

    @property
    def is_learning(self) -> bool:
        """Whether the loss is to be computed, which reads more than scores; a head that rests is in evaluation mode."""
        return self.training or torch.is_grad_enabled()

    @abstractmethod
    def forward(self, features: list[Tensor]) -> SegOutput:
        """Maps, fine to coarse, to scores."""


def initialize_convolutions(part: nn.Module) -> None:
    """He et al. (2015), counted by what goes out, for all convolutions; biases 0."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_transformer(part: nn.Module) -> None:
    """As transformers for vision are started: small truncated normal weights for products, fan-out for convolutions."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
