"""HRNetV2 (Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", 2019). The offset branch of
OVeNet is a second copy of its last stages, `HRNetTail`.

Shapes: image ``(B, 3, H, W)``; resolution ``r`` of a stage is ``(B, C_r, H/4/2^r, W/4/2^r)``, sizes rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import resize_features, spatial_size
from ovenet.models.activation_checkpointing import run_checkpointed
from ovenet.models.backbones.blocks import block_chain, conv_bn
from ovenet.models.hrnet_stages import NUM_STAGES, VARIANTS, StageSpec, usual_copy
from ovenet.models.interfaces import ForkableBackbone, PublishedNames, Tail, initialize_convolutions
from ovenet.models.norm import BatchNorm2d
from ovenet.models.registry import BACKBONES

STEM_CHANNELS = 64
STRIDES = (4, 8, 16, 32)

Flavour = Literal["hrnet", "mmseg"]


class HRNet(ForkableBackbone):
    """HRNetV2.

    Args:
        stages: the four stages, as `StageSpec` or as settings by name; stage ``n`` has ``n`` resolutions.
        flavour: ``mmseg`` upsamples inside the HR modules by the nominal factor first and then to the actual size, as
            mmsegmentation does; ``hrnet`` upsamples once. They agree if height and width are multiples of 32.
        align_corners: convention of this upsampling.
        checkpoint_activations: recompute the activations of the HR modules in the backward pass.
        timm_name: see `Backbone`.
        in_channels: channels of the images.

    Raises:
        UserError: there are not four stages, or the settings of a stage are invalid.
    """

    published = (
        PublishedNames(
            "hrnet",
            ((r"(conv1|bn1|conv2|bn2|layer1|transition\d|stage\d)\.", r"\1."),),
            unused=(r"(incre_modules|downsamp_modules|final_layer|classifier)\..*", r"coords", r"loss\..*"),
        ),
        PublishedNames("mmseg", ((r"backbone\.(conv1|bn1|conv2|bn2|layer1|transition\d|stage\d)\.", r"\1."),)),
        PublishedNames("timm", ((r"(conv1|bn1|conv2|bn2|layer1|transition\d|stage\d)\.", r"\1."),)),
    )
    layer_groups: ClassVar = {  # HR modules, as in timm
        "stem": r"(?:conv|bn)[12]\.",
        "blocks": [
            (r"layer(\d)\.(\d+)\.", None),
            (r"stage(\d)\.(\d+)\.", None),
            (r"transition(\d)\.", (99999,)),
        ],
    }

    def __init__(
        self,
        stages: Sequence[StageSpec | Mapping[str, Any]],
        *,
        flavour: Flavour = "hrnet",
        align_corners: bool = True,
        checkpoint_activations: bool = False,
        timm_name: str | None = None,
        in_channels: int = 3,
    ):
        super().__init__()
        if len(stages) != NUM_STAGES:
            raise UserError(f"HRNet has {NUM_STAGES} stages, got settings of {len(stages)}")
        self.stages = {number: StageSpec.of(stage, number) for number, stage in enumerate(stages, start=1)}
        self.flavour: Flavour = flavour
        self.align_corners = align_corners
        self.checkpoint_activations = checkpoint_activations
        self.timm_name = timm_name
        self.channels = self.stages[NUM_STAGES].out_channels
        self.strides = STRIDES
        self.in_channels = in_channels

        first = self.stages[1]
        self.conv1 = nn.Conv2d(in_channels, STEM_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm2d(STEM_CHANNELS)
        self.conv2 = nn.Conv2d(STEM_CHANNELS, STEM_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.bn2 = BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = block_chain(first.block, STEM_CHANNELS, first.num_channels[0], first.num_blocks[0])
        later = {number: self.stages[number] for number in range(2, NUM_STAGES + 1)}
        _add_stages(self, first.out_channels, later, flavour, align_corners)
        initialize_convolutions(self)

    def run(self, features: list[Tensor], start: int, stop: int) -> list[Tensor]:
        """See `ForkableBackbone.run`; each stage returns one more map than the stage before."""
        for number in range(start + 1, stop + 1):
            if number == 1:
                (images,) = features
                x = self.relu(self.bn1(self.conv1(images)))
                features = [self.layer1(self.relu(self.bn2(self.conv2(x))))]
            else:
                features = _run_stage(self, number, features, checkpoint_activations=self.checkpoint_activations)
        return features

    def make_tail(self, stage: int, stages: Sequence[Mapping[str, Any]] | None = None) -> HRNetTail:
        """See `ForkableBackbone.make_tail`; by default with at most as many HR modules as in OVeNet."""
        if not 2 <= stage <= NUM_STAGES:
            raise UserError(f"MODEL.SEED.STAGE is {stage}; an HRNet can be forked at stage 2, 3 or 4")
        numbers = range(stage, NUM_STAGES + 1)
        if stages is None:
            specs = {number: usual_copy(self.stages[number], number) for number in numbers}
        elif len(stages) != len(numbers):
            raise UserError(
                f"MODEL.SEED.STAGES has {len(stages)} entries; a fork at stage {stage} needs {len(numbers)}"
            )
        else:
            specs = {n: StageSpec.of(s, n) for n, s in zip(numbers, stages, strict=True)}
        return HRNetTail(
            self.stages[stage - 1].out_channels,
            specs,
            flavour=self.flavour,
            align_corners=self.align_corners,
            checkpoint_activations=self.checkpoint_activations,
        )


class HRNetTail(Tail):
    """The last stages of an HRNet.

    Args:
        before: channels of the input maps.
        specs: settings of the stages by number.
        flavour, align_corners, checkpoint_activations: as in `HRNet`.
    """

    published = (
        PublishedNames("hrnet", ((r"(transition\d|stage\d)_2\.", r"\1."),)),
        PublishedNames("ovenet", ((r"backbone\.(transition\d|stage\d)_2\.", r"\1."),)),  # version 1
    )

    def __init__(
        self,
        before: Sequence[int],
        specs: Mapping[int, StageSpec],
        *,
        flavour: Flavour,
        align_corners: bool,
        checkpoint_activations: bool,
    ):
        super().__init__()
        self.numbers = tuple(specs)
        self.checkpoint_activations = checkpoint_activations
        self.channels = specs[NUM_STAGES].out_channels
        self.strides = STRIDES
        _add_stages(self, before, specs, flavour, align_corners)
        initialize_convolutions(self)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """See `Tail.forward`."""
        for number in self.numbers:
            features = _run_stage(self, number, features, checkpoint_activations=self.checkpoint_activations)
        return features


def _add_stages(
    module: nn.Module, before: Sequence[int], specs: Mapping[int, StageSpec], flavour: Flavour, align_corners: bool
) -> None:
    for number, spec in specs.items():
        module.add_module(f"transition{number - 1}", Transition(before, spec.out_channels))
        modules = [HRModule(spec, flavour=flavour, align_corners=align_corners) for _ in range(spec.num_modules)]
        module.add_module(f"stage{number}", nn.Sequential(*modules))
        before = spec.out_channels


def _run_stage(module: nn.Module, number: int, features: list[Tensor], *, checkpoint_activations: bool) -> list[Tensor]:
    features = getattr(module, f"transition{number - 1}")(features)
    for hr_module in getattr(module, f"stage{number}"):
        features = run_checkpointed(hr_module, features) if checkpoint_activations else hr_module(features)
    return features


class Transition(nn.ModuleList):
    """Converts the maps of one stage to the channels of the next, and adds the next stage's coarser resolutions."""

    def __init__(self, before: Sequence[int], after: Sequence[int]):
        layers: list[nn.Module] = []
        for r, channels in enumerate(after):
            if r >= len(before):
                steps = r + 1 - len(before)
                widths = [before[-1]] * steps + [channels]
                layers.append(nn.Sequential(*(conv_bn(widths[s], widths[s + 1], stride=2) for s in range(steps))))
            elif before[r] != channels:
                layers.append(conv_bn(before[r], channels))
            else:
                layers.append(nn.Identity())
        super().__init__(layers)
        self.num_before = len(before)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One map per resolution of the next stage."""
        return [layer(features[min(r, self.num_before - 1)]) for r, layer in enumerate(self)]


class HRModule(nn.Module):
    """Residual blocks at every resolution; each output map is then the sum of all maps, resized."""

    def __init__(self, spec: StageSpec, *, flavour: Flavour = "hrnet", align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.upsamples_twice = flavour == "mmseg"
        widths = spec.out_channels
        self.branches = nn.ModuleList(
            block_chain(spec.block, width_in, channels, blocks)
            for width_in, channels, blocks in zip(spec.out_channels, spec.num_channels, spec.num_blocks, strict=True)
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_layer(source, target, widths) for source in range(len(widths)))
            for target in range(len(widths))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """One map per resolution to maps of the same shapes."""
        features = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        return [self._fuse(target, features) for target in range(len(features))]

    def _fuse(self, target: int, features: list[Tensor]) -> Tensor:
        size = spatial_size(features[target])
        layers = self.fuse_layers[target]
        assert isinstance(layers, nn.ModuleList)
        total: Tensor | None = None
        for source, (layer, x) in enumerate(zip(layers, features, strict=True)):
            part = layer(x)
            if self.upsamples_twice and source > target:
                factor = 2 ** (source - target)
                nominal = (part.shape[-2] * factor, part.shape[-1] * factor)
                part = resize_features(part, nominal, align_corners=self.align_corners)
            part = resize_features(part, size, align_corners=self.align_corners)
            total = part if total is None else total + part
        assert total is not None
        return self.relu(total)


def _fuse_layer(source: int, target: int, widths: Sequence[int]) -> nn.Module:
    if source == target:
        return nn.Identity()
    if source > target:  # coarser: upsampled after the projection
        return conv_bn(widths[source], widths[target], kernel=1, relu=False)
    steps = target - source  # finer: halved step by step
    layers = [conv_bn(widths[source], widths[source], stride=2) for _ in range(steps - 1)]
    layers.append(conv_bn(widths[source], widths[target], stride=2, relu=False))
    return nn.Sequential(*layers)


def _hrnet_variant(
    variant: str,
    *,
    flavour: Flavour = "hrnet",
    align_corners: bool = True,
    checkpoint_activations: bool = False,
    in_channels: int = 3,
) -> HRNet:
    """A published HRNet; arguments as in `HRNet`."""
    timm_name = variant.removesuffix("_v1")  # other repositories call small-v1 "small"
    return HRNet(
        VARIANTS[variant],
        flavour=flavour,
        align_corners=align_corners,
        checkpoint_activations=checkpoint_activations,
        timm_name=timm_name,
        in_channels=in_channels,
    )


for _name in VARIANTS:
    BACKBONES.register(_name)(partial(_hrnet_variant, _name))


@BACKBONES.register("hrnet")
def hrnet(
    stages: Sequence[Mapping[str, Any]],
    *,
    flavour: Flavour = "hrnet",
    align_corners: bool = True,
    checkpoint_activations: bool = False,
    in_channels: int = 3,
) -> HRNet:
    """An HRNet of any width and depth; arguments as in `HRNet`."""
    return HRNet(
        stages,
        flavour=flavour,
        align_corners=align_corners,
        checkpoint_activations=checkpoint_activations,
        in_channels=in_channels,
    )
