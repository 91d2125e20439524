"""The neck of OffSeg: FreqFusion (Chen et al., "Frequency-Aware Feature Fusion for Dense Image Prediction", 2024).

Maps are merged from coarse to fine. The high frequencies of the fine map are amplified; the coarse map is upsampled
with predicted low-pass weights and resampled at predicted offsets.

Shapes: ``fine`` ``(B, C_h, 2h, 2w)``, ``coarse`` ``(B, C_l, h, w)``, both compressed to ``C`` channels for predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import FREQ_FUSION, at_least_float32, reassemble, warp
from ovenet.models.displacement import Displacement
from ovenet.models.interfaces import Neck, PublishedNames, initialize_convolutions
from ovenet.models.registry import NECKS

NUM_GROUPS = 4  # groups of channels, each with its own offsets
NORM_GROUPS = 32  # groups of the projections' GroupNorm
NORM_WIDTH = 8  # channels per group of the sampler's GroupNorm
LOW_PASS, HIGH_PASS = 5, 3  # sizes of the predicted kernels
FILTER_WEIGHT_STD = 0.001
NEIGHBOURS = tuple((dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2) if (dy, dx) != (0, 0))  # 3x3, every other pixel


def similarity(x: Tensor) -> Tensor:
    """Cosine similarity ``(B, 8, h, w)`` of each pixel of ``(B, C, h, w)`` to its `NEIGHBOURS`; 0 outside the map."""
    height, width = x.shape[-2:]
    unit = F.normalize(x, dim=1)
    padded = F.pad(unit, (2, 2, 2, 2))
    shifted = (padded[..., 2 + dy : 2 + dy + height, 2 + dx : 2 + dx + width] for dy, dx in NEIGHBOURS)
    return torch.stack([(unit * other).sum(dim=1) for other in shifted], dim=1)


class OffsetSampler(nn.Module):
    """Predicts the displacements at which the upsampled coarse map is sampled.

    Args:
        channels: ``C``, a multiple of 8.
    """

    def __init__(self, channels: int):
        super().__init__()
        fields = 2 * NUM_GROUPS
        self.norm_fine = nn.GroupNorm(channels // NORM_WIDTH, channels)
        self.norm_coarse = nn.GroupNorm(channels // NORM_WIDTH, channels)
        self.offset = nn.Conv2d(len(NEIGHBOURS), 4 * fields, 3, padding=1)
        self.gate = nn.Conv2d(channels, 4 * fields, 3, padding=1)
        self.fine_offset = nn.Conv2d(len(NEIGHBOURS), fields, 3, padding=1)
        self.fine_gate = nn.Conv2d(channels, fields, 3, padding=1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Displacements ``(B, 2 * NUM_GROUPS, 2h, 2w)``, ``(x, y)`` for each group in turn, in at least float32.

        They are in pixels of the coarse map, see `ovenet.geometry.FREQ_FUSION`.
        """
        fine, coarse = self.norm_fine(fine), self.norm_coarse(coarse)
        offset = F.pixel_shuffle(self.offset(similarity(coarse)), 2) + self.fine_offset(similarity(fine))
        gate = F.pixel_shuffle(self.gate(coarse), 2) + self.fine_gate(fine)
        field = at_least_float32(offset) * at_least_float32(gate).sigmoid()
        return field.unflatten(1, (2, NUM_GROUPS)).transpose(1, 2).flatten(1, 2)


class FreqFusion(nn.Module):
    """Upsamples a coarse map to the size of a fine one, and sharpens the fine one.

    Args:
        fine_channels: ``C_h``.
        coarse_channels: ``C_l``, a multiple of 4.
        channels: ``C``, a multiple of 8.
    """

    def __init__(self, fine_channels: int, coarse_channels: int, channels: int):
        super().__init__()
        self.compress_fine = nn.Conv2d(fine_channels, channels, 1)
        self.compress_coarse = nn.Conv2d(coarse_channels, channels, 1)
        self.low_pass = nn.Conv2d(channels, LOW_PASS**2, 3, padding=1)
        self.high_pass = nn.Conv2d(channels, HIGH_PASS**2, 3, padding=1)
        self.sampler = OffsetSampler(channels)
        self.displacement = Displacement("FreqFusion", FREQ_FUSION)

    def forward(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps at the fine one's size, ``(B, C_h, 2h, 2w)`` and ``(B, C_l, 2h, 2w)``."""
        low_pass, high_pass, offset = self.predict(fine, coarse)
        upsampled = reassemble(coarse, low_pass, scale=2)
        moved = warp(upsampled, self.displacement(offset), FREQ_FUSION, num_groups=NUM_GROUPS)
        return 2 * fine - reassemble(fine, high_pass), moved

    def predict(self, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low-pass weights ``(B, 25, 2h, 2w)``, high-pass weights ``(B, 9, 2h, 2w)``, and displacements."""
        fine, coarse = self.compress_fine(fine), self.compress_coarse(coarse)
        high = self.high_pass(fine)  # from the unsharpened map, here and below
        sharp = 2 * fine - reassemble(fine, high.softmax(dim=1))
        low = self.low_pass(sharp)
        low_pass = (low + reassemble(self.low_pass(coarse), low.softmax(dim=1), scale=2)).softmax(dim=1)
        high_pass = (high + reassemble(self.high_pass(coarse), low_pass, scale=2)).softmax(dim=1)
        return low_pass, high_pass, self.sampler(sharp, coarse)


def initialize_fusions(fusions: Sequence[FreqFusion]) -> None:
    """The published initialisation: Xavier uniform, small weights for the kernels, zero biases."""
    for fusion in fusions:
        for module in fusion.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    for fusion in fusions:
        for predictor in (fusion.low_pass, fusion.high_pass):
            nn.init.normal_(predictor.weight, std=FILTER_WEIGHT_STD)


@NECKS.register("freqfusion")
class FreqFusionNeck(Neck):
    """Projects every map, and merges them from coarse to fine.

    Args:
        in_channels: channels of each map.
        in_strides: stride of each map, twice that of the map before.
        projections: channels that each map is projected to first, multiples of 32.
        zero_offset_init: initialise with zero offsets, not as published.

    Raises:
        UserError: the strides or `projections` are invalid.
    """

    published = (
        PublishedNames(
            "mmseg",
            (
                (r"decode_head\.pre\.(\d)\.conv\.", r"projections.\1.0."),
                (r"decode_head\.pre\.(\d)\.gn\.", r"projections.\1.1."),
                *(
                    (rf"decode_head\.freqfusions\.(\d)\.{old}\.", rf"fusions.\1.{new}.")
                    for old, new in (
                        ("hr_channel_compressor", "compress_fine"),
                        ("lr_channel_compressor", "compress_coarse"),
                        ("content_encoder", "low_pass"),
                        ("content_encoder2", "high_pass"),
                        (r"dysampler\.norm_hr", "sampler.norm_fine"),
                        (r"dysampler\.norm_lr", "sampler.norm_coarse"),
                        (r"dysampler\.offset", "sampler.offset"),
                        (r"dysampler\.direct_scale", "sampler.gate"),
                        (r"dysampler\.hr_offset", "sampler.fine_offset"),
                        (r"dysampler\.hr_direct_scale", "sampler.fine_gate"),
                    )
                ),
            ),
            unused=(r"decode_head\.freqfusions\.\d\.(hamming_(low|high)pass|dysampler\.init_pos)",),
        ),
    )

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        projections: Sequence[int] = (32, 64, 128, 256),
        zero_offset_init: bool = False,
    ):
        super().__init__()
        if any(coarse != 2 * fine for fine, coarse in pairwise(in_strides)):
            raise UserError(
                f"the neck freqfusion needs maps whose strides double, but the backbone's strides are "
                f"{', '.join(map(str, in_strides))}; use another neck, or MODEL.BACKBONE.OUTPUT_STRIDE 32 "
                "where the backbone has it"
            )
        if len(projections) != len(in_channels) or any(n < 1 or n % NORM_GROUPS for n in projections):
            raise UserError(
                f"MODEL.NECK.PROJECTIONS is {list(projections)}; expected {len(in_channels)} multiples of "
                f"{NORM_GROUPS}, one for each map of the backbone"
            )
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, p, 1, bias=False), nn.GroupNorm(NORM_GROUPS, p), nn.ReLU(inplace=True))
            for c, p in zip(in_channels, projections, strict=True)
        )
        fusions: list[FreqFusion] = []  # from coarse to fine
        channels = projections[-1]
        for fine in reversed(projections[:-1]):
            fusions.append(FreqFusion(fine, channels, (fine + channels) // 4))
            channels += fine
        self.fusions = nn.ModuleList(fusions)
        self.channels, self.strides = (channels,), (in_strides[0],)
        initialize_convolutions(self.projections)
        initialize_fusions(fusions)
        if zero_offset_init:
            for fusion in fusions:
                for predictor in (fusion.sampler.offset, fusion.sampler.fine_offset):
                    nn.init.zeros_(predictor.weight)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps ``(B, C_r, h_r, w_r)``, fine to coarse, to one ``(B, sum(projections), h_0, w_0)``."""
        maps = [projection(x) for projection, x in zip(self.projections, features, strict=True)]
        joined = maps[-1]
        for fine, fusion in zip(reversed(maps[:-1]), self.fusions, strict=True):
            sharp, raised = _fuse(fusion, fine, joined)
            pairs = zip(sharp.chunk(NUM_GROUPS, dim=1), raised.chunk(NUM_GROUPS, dim=1), strict=True)
            joined = torch.cat([group for pair in pairs for group in pair], dim=1)
        return [joined]


def _fuse(fusion: nn.Module, fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Fuses maps of which the fine one may be a row or column short of twice the coarse one's size."""
    size = fine.shape[-2:]
    missing = [2 * coarse.shape[axis] - size[axis] for axis in (-2, -1)]
    if any(missing):
        fine = F.pad(fine, (0, missing[1], 0, missing[0]), mode="replicate")
    sharp, raised = (x[..., : size[0], : size[1]] for x in fusion(fine, coarse))
    return sharp, raised
