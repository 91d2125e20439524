"""OVeNet on one screen: scores are fetched at seed pixels and fused with the pixel's own by the confidence.

Notation of the paper: initial scores ``S_i``, offsets ``o``, confidence ``F``; then the seed's scores are
``S_s = S_i(p + o)`` and the fused ones ``S_f = (1 - F) S_i + F S_s``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import probabilities, refine_offset, sample_bilinear, seed_position
from ovenet.models.interfaces import initialize_convolutions
from ovenet.structures import OVeNetOutput, ScoreKind

_GATE_WIDTH = 32
_SMALLEST = 1e-6  # of a confidence and its complement, before the logit


class ConfidenceGate(nn.Module):
    """Corrects the confidence by what the pixel and its seed predict; changes nothing until it is trained.

    Args:
        num_classes: ``K``.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2 * num_classes + 1, _GATE_WIDTH, 1), nn.ReLU(inplace=True), nn.Conv2d(_GATE_WIDTH, 1, 1)
        )
        initialize_convolutions(self)
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, initial: Tensor, seed: Tensor, confidence: Tensor, kind: ScoreKind) -> Tensor:
        """The corrected confidence ``(B, 1, h, w)``.

        Args:
            initial: scores ``(B, K, h, w)``, to which no gradient flows back.
            seed: scores likewise.
            confidence: ``(B, 1, h, w)`` in ``[0, 1]``.
            kind: what the scores are.
        """
        own, other = (probabilities(scores.detach(), kind) for scores in (initial, seed))
        agreement = (own * other).sum(dim=1, keepdim=True)
        return torch.sigmoid(confidence.logit(eps=_SMALLEST) + self.layers(torch.cat((own, other, agreement), dim=1)))


class SeedFusion(nn.Module):
    """Goes with any score maps of the offset's size. Has no parameters but those of a gate.

    Args:
        num_refinements: times that each offset is prolonged by the offset at its seed.
        fuse_logits: True fuses the scores as they come, logits mostly; False fuses probabilities, and the output then
            holds probabilities.
        gate: corrects the confidence; None leaves it as it is predicted.
    """

    def __init__(self, *, num_refinements: int = 0, fuse_logits: bool = True, gate: ConfidenceGate | None = None):
        super().__init__()
        self.num_refinements = num_refinements
        self.fuse_logits = fuse_logits
        self.gate = gate

    def forward(
        self,
        scores: Sequence[Tensor],
        offset: Tensor,
        confidence: Tensor,
        weights: Tensor | None = None,
        correction: Tensor | None = None,
        *,
        kind: ScoreKind = "logits",
    ) -> OVeNetOutput:
        """Fuses every score map with the same offsets and confidence.

        Args:
            scores: each ``(B, K, h, w)``.
            offset: ``(B, 2 N, h, w)`` normalised ``(x, y)``, float32 or float64, ``N`` seeds per pixel.
            confidence: ``(B, 1, h, w)`` in ``[0, 1]``.
            weights: ``(B, N, h, w)`` of the seeds; None for a single seed.
            correction: ``(B, K, h, w)``, added to the scores at the seeds; None for none.
            kind: what the scores are.

        Returns:
            The prediction; of several seeds its `offset` is that of the heaviest.

        Raises:
            UserError: there is a correction, and what is fused are not logits.
        """
        offsets = [refine_offset(one, self.num_refinements) for one in offset.split(2, dim=1)]
        positions = [seed_position(one) for one in offsets]
        initial = [s.to(torch.promote_types(s.dtype, torch.float32)) for s in scores]
        if not self.fuse_logits:
            initial, kind = [probabilities(s, kind) for s in initial], "probabilities"
        seed = [self._fetch_all(s, positions, weights) for s in initial]
        if correction is not None:
            if kind != "logits":
                raise UserError(f"a correction goes with logits; the seed fuses {kind}")
            seed = [s + correction for s in seed]
        if self.gate is not None:
            confidence = self.gate(initial[-1], seed[-1], confidence, kind)
        fused = [torch.lerp(s_i, s_s, confidence) for s_i, s_s in zip(initial, seed, strict=True)]
        return OVeNetOutput(tuple(initial), tuple(seed), tuple(fused), _heaviest(offsets, weights), confidence, kind)

    def _fetch_all(self, scores: Tensor, positions: Sequence[Tensor], weights: Tensor | None) -> Tensor:
        if weights is None:
            (position,) = positions
            return self.fetch(scores, position)
        fetched = [self.fetch(scores, position) for position in positions]
        return sum(w * s for w, s in zip(weights.split(1, dim=1), fetched, strict=True))

    def fetch(self, scores: Tensor, position: Tensor) -> Tensor:
        """Scores ``(B, K, h, w)`` at the positions of the seeds ``(B, 2, h, w)``, see `seed_position`."""
        return sample_bilinear(scores, position)


def _heaviest(offsets: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """Each pixel's offset of largest weight, ``(B, 2, h, w)``."""
    if weights is None:
        (offset,) = offsets
        return offset
    index = weights.argmax(dim=1, keepdim=True).unsqueeze(2).expand(-1, -1, 2, -1, -1)
    return torch.stack(tuple(offsets), dim=1).gather(1, index).squeeze(1)
