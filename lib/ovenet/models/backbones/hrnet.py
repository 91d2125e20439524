"""HRNetV2 (Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", 2019), whose later stages may
exist twice: the second copy, the offset branch, feeds the offset head of OVeNet.

Shapes: image ``(B, 3, H, W)``; branch ``r`` of a stage has ``(B, C_r, H/4/2^r, W/4/2^r)``, sizes rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ovenet.geometry import resize_bilinear
from ovenet.models.backbones.blocks import BLOCKS, block_chain, conv_bn
from ovenet.models.recompute import recomputed

STEM_CHANNELS = 64
NUM_STAGES = 4


@dataclass(frozen=True)
class StageSpec:
    """One stage: as many resolutions as there are entries in `num_blocks`.

    Attributes:
        num_modules: exchange units in a row.
        num_blocks: residual blocks per resolution in each unit.
        num_channels: width per resolution, before the block's expansion.
        block: ``BASIC`` or ``BOTTLENECK``.
    """

    num_modules: int
    num_blocks: tuple[int, ...]
    num_channels: tuple[int, ...]
    block: str = "BASIC"

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels that leave the stage, per resolution."""
        return tuple(c * BLOCKS[self.block].expansion for c in self.num_channels)


@dataclass(frozen=True)
class BackboneFeatures:
    """Feature maps from fine to coarse.

    Attributes:
        main: for the semantic head.
        offset: for the offset head; None where the backbone does not fork.
    """

    main: list[Tensor]
    offset: list[Tensor] | None


class HRNet(nn.Module):
    """HRNetV2 with an optional offset branch.

    Args:
        stages: the four stages; the first has one resolution.
        offset_stage: 2, 3 or 4: the first stage that exists twice; 0 for none.
        offset_stages: the second copies, by stage number, from `offset_stage` to 4.
        align_corners: convention of the upsampling inside the exchange units.
        recompute: keep the activations of no exchange unit while training, and compute them again when needed.

    Raises:
        ValueError: a stage has not as many resolutions as its number, or a copy is missing.
    """

    def __init__(
        self,
        stages: Sequence[StageSpec],
        *,
        offset_stage: int = 0,
        offset_stages: Mapping[int, StageSpec] | None = None,
        align_corners: bool = True,
        recompute: bool = False,
    ):
        super().__init__()
        self.recompute = recompute
        if offset_stage not in (0, 2, 3, 4):
            raise ValueError(f"offset_stage is {offset_stage}; expected 0 (none), 2, 3 or 4")
        specs = dict(enumerate(stages, start=1))
        copies = {s: (offset_stages or {})[s] for s in range(offset_stage, NUM_STAGES + 1)} if offset_stage else {}
        for number, spec in [*specs.items(), *copies.items()]:
            if not len(spec.num_blocks) == len(spec.num_channels) == number:
                raise ValueError(f"stage {number} needs {number} entries in num_blocks and num_channels, got {spec}")
        self.offset_stage = offset_stage
        self.out_channels = specs[NUM_STAGES].out_channels
        self.offset_channels = copies[NUM_STAGES].out_channels if copies else None

        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.conv2 = nn.Conv2d(STEM_CHANNELS, STEM_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = block_chain(specs[1].block, STEM_CHANNELS, specs[1].num_channels[0], specs[1].num_blocks[0])
        for number in range(2, NUM_STAGES + 1):
            before = specs[number - 1].out_channels
            self._add_stage(number, before, specs[number], "", align_corners)
            if number in copies:
                branch_before = before if number == offset_stage else copies[number - 1].out_channels
                self._add_stage(number, branch_before, copies[number], "_2", align_corners)

    def _add_stage(self, number: int, before: Sequence[int], spec: StageSpec, suffix: str, align_corners: bool) -> None:
        self.add_module(f"transition{number - 1}{suffix}", Transition(before, spec.out_channels))
        units = [ExchangeUnit(spec, align_corners=align_corners) for _ in range(spec.num_modules)]
        self.add_module(f"stage{number}{suffix}", nn.Sequential(*units))

    def forward(self, image: Tensor) -> BackboneFeatures:
        """Features at strides 4, 8, 16 and 32 of both branches.

        Args:
            image: ``(B, 3, H, W)`` normalised RGB, of any size.
        """
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.relu(self.bn2(self.conv2(x)))
        features = [self.layer1(x)]
        shared = features
        for number in range(2, NUM_STAGES + 1):
            if number == self.offset_stage:
                shared = features
            features = self._run_stage(number, features, "")
        if not self.offset_stage:
            return BackboneFeatures(features, None)
        branch = shared
        for number in range(self.offset_stage, NUM_STAGES + 1):
            branch = self._run_stage(number, branch, "_2")
        return BackboneFeatures(features, branch)

    def _run_stage(self, number: int, features: list[Tensor], suffix: str) -> list[Tensor]:
        features = getattr(self, f"transition{number - 1}{suffix}")(features)
        for unit in getattr(self, f"stage{number}{suffix}"):
            features = recomputed(unit, features) if self.recompute else unit(features)
        return features

    def offset_modules(self) -> list[str]:
        """Names of the direct children that belong to the offset branch."""
        return [name for name, _ in self.named_children() if name.endswith("_2")]


class Transition(nn.ModuleList):
    """Brings the outputs of one stage to the widths of the next and adds its new, coarser resolution."""

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


class ExchangeUnit(nn.Module):
    """Residual blocks on every resolution, then every output resolution sums what all of them send."""

    def __init__(self, spec: StageSpec, *, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        widths = spec.out_channels
        self.branches = nn.ModuleList(
            block_chain(spec.block, width_in, channels, blocks)
            for width_in, channels, blocks in zip(spec.out_channels, spec.num_channels, spec.num_blocks, strict=True)
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_exchange_layer(source, target, widths) for source in range(len(widths)))
            for target in range(len(widths))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps in, maps of the same shapes out."""
        features = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        return [self._fuse(target, features) for target in range(len(features))]

    def _fuse(self, target: int, features: list[Tensor]) -> Tensor:
        size = features[target].shape[-2:]
        total: Tensor | None = None
        for layer, x in zip(self.fuse_layers[target], features, strict=True):
            part = resize_bilinear(layer(x), size, align_corners=self.align_corners)
            total = part if total is None else total + part
        assert total is not None
        return self.relu(total)


def _exchange_layer(source: int, target: int, widths: Sequence[int]) -> nn.Module:
    if source == target:
        return nn.Identity()
    if source > target:  # coarser: upsampled after the projection
        return conv_bn(widths[source], widths[target], kernel=1, relu=False)
    steps = target - source  # finer: halved step by step
    layers = [conv_bn(widths[source], widths[source], stride=2) for _ in range(steps - 1)]
    layers.append(conv_bn(widths[source], widths[target], stride=2, relu=False))
    return nn.Sequential(*layers)
