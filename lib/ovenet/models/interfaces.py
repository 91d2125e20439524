"""Interfaces of the parts of a network: backbone → neck → head, and what a seed needs from them.

Shapes: ``B`` batch, ``K`` classes, ``H W`` image size. Feature maps are lists of ``(B, C, h, w)``, fine to coarse.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ovenet.models.layer_order import count_above, number_layers
from ovenet.structures import Normalization, QueryOutput, ScoreKind, Size

IMAGENET = Normalization()


@dataclass(frozen=True)
class PublishedNames:
    """Names that another project gives to the parameters of a part.

    Attributes:
        publisher: name of the other project.
        rules: pairs of a regular expression for the start of a published name and its replacement here; the first match
            is used. ``{q,k,v}_proj`` in a replacement splits the published tensor into three along its first dimension.
        unused: regular expressions for whole published names of tensors that are not needed here.
        conversions: pairs of a regular expression for a whole parameter name here and a function that converts the
            published tensor.
    """

    publisher: str
    rules: tuple[tuple[str, str], ...]
    unused: tuple[str, ...] = ()
    conversions: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = ()


class Part(nn.Module):
    """A part of a network. It initialises its parameters in its constructor; nothing may initialise them again.

    Attributes:
        published: names of the part's parameters in other projects.
        undecayed: regular expressions of the parameters, mostly embeddings, that ``TRAIN.NO_DECAY_ON_NORM`` excludes
            from weight decay too.
    """

    published: tuple[PublishedNames, ...] = ()
    undecayed: tuple[str, ...] = ()


class Backbone(Part):
    """Image to feature maps.

    Attributes:
        in_channels: channels of the images.
        channels: channels of each map.
        strides: nominal stride of each map; its size is the image's size over the stride, rounded up.
        size_multiple: height and width of an image must be multiples of it; `Segmentor` pads.
        fixed_size: the only accepted ``(H, W)``; None for any.
        normalization: normalisation of the images that the network was made for.
        timm_name: timm's name of the same network, whose weights fit; None if timm does not have it.
        layer_groups: order of the layers, see `ovenet.models.layer_order.number_layers`; empty if there is none.
    """

    in_channels: int = 3
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    size_multiple: int = 1
    fixed_size: Size | None = None
    normalization: Normalization = IMAGENET
    timm_name: str | None = None
    layer_groups: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images ``(B, in_channels, H, W)`` to maps ``(B, channels[i], H / strides[i], W / strides[i])``."""

    def convert_weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A file's tensors in the shapes that this backbone has, before their names are translated; here unchanged.

        Raises:
            UserError: they cannot be converted.
        """
        return state

    def bundled_weights(self) -> Mapping[str, Tensor] | None:
        """Pretrained weights from the backbone's own package, by the names here; None for random initialisation.

        Raises:
            UserError: the package is not installed.
        """
        return None

    def layers_above(self) -> Mapping[str, int]:
        """How many layers lie between each parameter and the scores, by the parameter's name: 1 for the last layer.

        Empty if the layers have no order.
        """
        return count_above(number_layers(self, dict(self.layer_groups))) if self.layer_groups else {}


class Tail(Part):
    """A second copy of a backbone's last stages; attributes as in `Backbone`."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Output of the stage before the copy, to maps."""


class ForkableBackbone(Backbone):
    """A backbone that runs stage by stage, so that its last stages can exist twice.

    Attributes:
        num_stages: number of stages; the stem belongs to stage 1.
    """

    num_stages: int = 4

    @abstractmethod
    def run(self, features: list[Tensor], start: int, stop: int) -> list[Tensor]:
        """Runs stages `start` + 1 to `stop`, counted from 1.

        Args:
            features: output of stage `start`; ``[images]`` for 0.
            start: number of stages that have run before.
            stop: number of stages that have run afterwards.
        """

    @abstractmethod
    def make_tail(self, stage: int, stages: Sequence[Mapping[str, object]] | None = None) -> Tail:
        """A second copy of the stages from `stage` on, initialised anew.

        Args:
            stage: number of the first copied stage, at least 2.
            stages: settings of the copied stages, for backbones that have any; None for the backbone's own.

        Raises:
            UserError: there is no such stage, or the settings are invalid.
        """

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        return self.run([images], 0, self.num_stages)


class Neck(Part):
    """Maps to maps; `channels` and `strides` describe its output, as in `Backbone`."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps, fine to coarse, to one or more maps."""


@dataclass(frozen=True)
class SegOutput:
    """Prediction of a head.

    Attributes:
        scores: score maps ``(B, K, h, w)``, auxiliary first, final last.
        features: ``(B, D, h, w)``, input of the final classifier; a shared seed reads it too.
        embedding: pixel embeddings for contrastive losses; None if the head has none.
        score_kind: kind of the scores.
        queries: masks and classes that the scores were computed from; None if the head has no queries.
    """

    scores: tuple[Tensor, ...]
    features: Tensor
    embedding: Tensor | None = None
    score_kind: ScoreKind = "logits"
    queries: QueryOutput | None = None


class Head(Part):
    """Maps to class scores. Single-map heads read the last map.

    Attributes:
        num_outputs: length of `SegOutput.scores`.
        first_read: index of the first map used.
        default_neck: name of the neck that is used if the config names none.
        has_queries: whether it predicts masks and their classes; the loss is then computed on these, not on the scores.
        reads_stacks: whether it accepts `ovenet.models.stacked.StackedMaps` from the neck ``concat``.
        feature_channels: ``D`` of `SegOutput.features`.
        stride: nominal stride of the scores.
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
        """Whether outputs that only the loss reads are needed; frozen heads are in evaluation mode in training too."""
        return self.training or torch.is_grad_enabled()

    @abstractmethod
    def forward(self, features: list[Tensor]) -> SegOutput:
        """Maps, fine to coarse, to scores."""


def initialize_convolutions(part: nn.Module) -> None:
    """He initialisation (fan-out, ReLU) of all convolutions of a part; biases are 0."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialize_transformer(part: nn.Module) -> None:
    """Initialisation of vision transformers: truncated normal linear layers, fan-out normal convolutions, biases 0."""
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
