"""Seed fusion: samples scores at the seed pixels and blends them with each pixel's own.

In the paper's notation, with pixel position ``p``, initial scores ``S_i``, offset ``o`` and confidence ``F``, the
seed's scores are ``S_s = S_i(p + o)`` and the fused scores ``S_f = (1 - F) S_i + F S_s``.

Shapes: ``B`` batch, ``K`` classes, ``N`` seeds per pixel (1 in the paper), ``h w`` score map size. Offsets are
``(x, y)`` in normalised units: the image spans ``[-1, 1]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import at_least_float32, probabilities, refine_offset, sample_bilinear, seed_position
from ovenet.structures import OVeNetOutput, ScoreKind

_AGREEMENT_SCALE = 10.0  # of the cosines before the softmax over the seeds


class SeedFusion(nn.Module):
    """Samples score maps at seed pixels and fuses them; has no parameters.

    Args:
        num_refinements: number of refinement steps ``o ← o + o(p + o)`` of the offsets.
        fuse_logits: fuse the scores as they are, usually logits (True), or convert them to probabilities first (False).
        num_passes: number of times that the scores are sampled and fused, with the same seeds and confidence; a further
            pass samples the fused scores of the pass before, ``S_f ← (1 - F) S_i + F S_f(p + o)``.
        correct_first: add the correction to the scores before they are sampled and fused, rather than to the sampled
            scores.
    """

    def __init__(
        self,
        *,
        num_refinements: int = 0,
        fuse_logits: bool = True,
        num_passes: int = 1,
        correct_first: bool = False,
    ):
        super().__init__()
        self.num_refinements = num_refinements
        self.fuse_logits = fuse_logits
        self.num_passes = num_passes
        self.correct_first = correct_first

    def forward(
        self,
        scores: Sequence[Tensor],
        offset: Tensor,
        confidence: Tensor,
        weights: Tensor | None = None,
        correction: Tensor | None = None,
        embedding: Tensor | None = None,
        *,
        kind: ScoreKind = "logits",
    ) -> OVeNetOutput:
        """Fuses every score map with the same offsets and confidence.

        Args:
            scores: score maps ``(B, K, h, w)``, auxiliary first, final last.
            offset: ``(B, 2 N, h, w)`` float32 or float64, from each pixel to its seeds.
            confidence: ``(B, 1, h, w)`` in ``[0, 1]``, the weight of the seed's scores.
            weights: ``(B, N, h, w)`` weights of the seeds; None for a single seed, or with an embedding.
            correction: ``(B, K, h, w)``, added to the scores as `correct_first` says; None for none.
            embedding: ``(B, D, h, w)``, gives the weights of the seeds, see `agreement`; None for none.
            kind: kind of the scores.

        Returns:
            The prediction; with several seeds, its `offset` is that of the seed with the largest weight. `initial` is
            without the correction, and `seed` what the last pass sampled.

        Raises:
            UserError: there is a correction, and the fused scores are not logits.
        """
        offsets = [refine_offset(one, self.num_refinements) for one in offset.split(2, dim=1)]
        positions = [seed_position(one) for one in offsets]
        if embedding is not None:
            weights = agreement(embedding, positions)
        initial = [at_least_float32(s) for s in scores]
        if not self.fuse_logits:
            initial, kind = [probabilities(s, kind) for s in initial], "probabilities"
        if correction is not None and kind != "logits":
            raise UserError(f"MODEL.SEED corrects logits, but fuses {kind}; use a seed without a correction")
        own, correction_of_seed = initial, correction
        if correction is not None and self.correct_first:
            own, correction_of_seed = [s + correction for s in initial], None
        fused = own
        for _ in range(self.num_passes):
            seed = [self._weighted_fetch(s, positions, weights) for s in fused]
            if correction_of_seed is not None:
                seed = [s + correction_of_seed for s in seed]
            fused = [torch.lerp(s_i, s_s, confidence) for s_i, s_s in zip(own, seed, strict=True)]
        return OVeNetOutput(
            tuple(initial), tuple(seed), tuple(fused), _dominant_offset(offsets, weights), confidence, kind
        )

    def fetch(self, scores: Tensor, position: Tensor) -> Tensor:
        """Scores ``(B, K, h, w)`` at the seed positions ``(B, 2, h, w)``, see `seed_position`."""
        return sample_bilinear(scores, position)

    def _weighted_fetch(self, scores: Tensor, positions: Sequence[Tensor], weights: Tensor | None) -> Tensor:
        fetched = [self.fetch(scores, position) for position in positions]
        if weights is None:
            return fetched[0]
        return sum(w * s for w, s in zip(weights.split(1, dim=1), fetched, strict=True))


def agreement(embedding: Tensor, positions: Sequence[Tensor]) -> Tensor:
    """Weights of seeds by the cosines between the embeddings of a pixel and of its seeds.

    Args:
        embedding: ``(B, D, h, w)``.
        positions: ``(B, 2, h, w)`` of each of ``N`` seeds, see `seed_position`.

    Returns:
        ``(B, N, h, w)``, of sum 1 over the seeds: the softmax of ten times the cosines.
    """
    own = F.normalize(embedding, dim=1)
    seeds = [F.normalize(sample_bilinear(embedding, position), dim=1) for position in positions]
    cosines = torch.stack([(own * seed).sum(dim=1) for seed in seeds], dim=1)
    return (_AGREEMENT_SCALE * cosines).softmax(dim=1)


def _dominant_offset(offsets: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """The offset with the largest weight at each pixel, ``(B, 2, h, w)``."""
    if weights is None:
        return offsets[0]
    index = weights.argmax(dim=1, keepdim=True).unsqueeze(2).expand(-1, -1, 2, -1, -1)
    return torch.stack(tuple(offsets), dim=1).gather(1, index).squeeze(1)
