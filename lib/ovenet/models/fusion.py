"""OVeNet on one screen: scores are fetched at seed pixels and fused with the pixel's own by the confidence.

Notation of the paper: initial scores ``S_i``, offsets ``o``, confidence ``F``; then the seed's scores are
``S_s = S_i(p + o)`` and the fused ones ``S_f = (1 - F) S_i + F S_s``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ovenet.geometry import probabilities, refine_offset, sample_bilinear, seed_position
from ovenet.structures import OVeNetOutput, ScoreKind


class SeedFusion(nn.Module):
    """Has no parameters; goes with any score maps of the offset's size.

    Args:
        num_refinements: times that each offset is prolonged by the offset at its seed.
        fuse_logits: True fuses the scores as they come, logits mostly; False fuses probabilities, and the output then
            holds probabilities.
    """

    def __init__(self, *, num_refinements: int = 0, fuse_logits: bool = True):
        super().__init__()
        self.num_refinements = num_refinements
        self.fuse_logits = fuse_logits

    def forward(
        self, scores: Sequence[Tensor], offset: Tensor, confidence: Tensor, *, kind: ScoreKind = "logits"
    ) -> OVeNetOutput:
        """Fuses every score map with the same offsets and confidence.

        Args:
            scores: each ``(B, K, h, w)``.
            offset: ``(B, 2, h, w)`` normalised ``(x, y)``, float32 or float64.
            confidence: ``(B, 1, h, w)`` in ``[0, 1]``.
            kind: what the scores are.
        """
        offset = refine_offset(offset, self.num_refinements)
        position = seed_position(offset)
        initial = [s.to(torch.promote_types(s.dtype, torch.float32)) for s in scores]
        if not self.fuse_logits:
            initial, kind = [probabilities(s, kind) for s in initial], "probabilities"
        seed = [self.fetch(s, position) for s in initial]
        fused = [torch.lerp(s_i, s_s, confidence) for s_i, s_s in zip(initial, seed, strict=True)]
        return OVeNetOutput(tuple(initial), tuple(seed), tuple(fused), offset, confidence, kind)

    def fetch(self, scores: Tensor, position: Tensor) -> Tensor:
        """Scores ``(B, K, h, w)`` at the positions of the seeds ``(B, 2, h, w)``, see `seed_position`."""
        return sample_bilinear(scores, position)
