"""PointRend: predicts the scores of uncertain points anew, from fine features (Kirillov et al., CVPR 2020).

Defaults are those of the authors' configuration for Cityscapes (detectron2, ``projects/PointRend``); mmsegmentation's
differ in `subdivision_num_points` (8196).

Shapes: ``B`` batch, ``K`` classes, ``P`` points, ``H W`` image size, ``h w`` score map size. Positions are ``(x, y)``
in ``[-1, 1]``, between the centres (``align_corners``) or the outer edges of the corner pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import at_least_float32, pixel_grid, resize_bilinear, sample_bilinear
from ovenet.models.heads.fcn import reset_predictor
from ovenet.models.interfaces import Part, SegOutput, initialize_convolutions
from ovenet.models.registry import SEEDS
from ovenet.models.seeds.refiner import Refiner, require_settings
from ovenet.models.segmentor import crop_padding
from ovenet.structures import OVeNetOutput, PointOutput

_PREDICTOR_WEIGHT_STD = 0.001


class PointHead(Part):
    """The same small network at every point; each of its layers reads the coarse scores too.

    Args:
        in_channels: channels of the fine features.
        num_classes: ``K``.
        num_channels: channels of each layer.
        num_layers: number of layers before the one that predicts the logits.
    """

    def __init__(self, in_channels: int, num_classes: int, *, num_channels: int, num_layers: int):
        super().__init__()
        widths = [in_channels] + [num_channels] * num_layers
        self.layers = nn.ModuleList(nn.Conv2d(width + num_classes, num_channels, 1) for width in widths[:-1])
        self.predictor = nn.Conv2d(widths[-1] + num_classes, num_classes, 1)
        initialize_convolutions(self)
        reset_predictor(self.predictor, _PREDICTOR_WEIGHT_STD)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Logits ``(B, K, P, 1)`` from fine features ``(B, in_channels, P, 1)`` and coarse scores ``(B, K, P, 1)``."""
        for layer in self.layers:
            fine = F.relu(layer(torch.cat((fine, coarse), dim=1)))
        return at_least_float32(self.predictor(torch.cat((fine, coarse), dim=1)))


@SEEDS.register("point_rend")
class PointRend(Refiner):
    """Predicts points anew where the two best classes are close.

    In training, the scores stay as they are; the loss adds the cross-entropy of the point head at sampled points. In
    evaluation, the scores are upsampled step by step to ``2^subdivision_steps`` times their resolution, and the most
    uncertain pixels of each step get the scores of the point head.

    Args:
        in_channels: channels of each map of the backbone.
        in_strides: stride of each map.
        num_classes: ``K``.
        align_corners: convention of sampling and upsampling; published with False.
        in_index: indices of the backbone's maps that are the fine features. The published network has a feature pyramid
            and reads its finest map.
        num_channels: channels of each layer of the point head.
        num_layers: number of layers of the point head before the last one.
        num_points: number of points per image in training.
        oversample_ratio: number of random points in training that the most uncertain ones are chosen from, as a
            multiple of `num_points`.
        importance_sample_ratio: share of `num_points` that are uncertain ones; the others are anywhere.
        subdivision_steps: number of upsamplings in evaluation, each by 2.
        subdivision_num_points: number of pixels that are predicted anew in each of them; all of a smaller map.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        *,
        num_classes: int,
        align_corners: bool = True,
        in_index: Sequence[int] = (0,),
        num_channels: int = 256,
        num_layers: int = 3,
        num_points: int = 2048,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        subdivision_steps: int = 2,
        subdivision_num_points: int = 8192,
    ):
        super().__init__()
        last = len(in_channels) - 1
        require_settings(
            ("IN_INDEX", list(in_index), in_index and set(in_index) <= set(range(last + 1)), f"some of 0 to {last}"),
            ("NUM_CHANNELS", num_channels, num_channels >= 1, "at least 1"),
            ("NUM_LAYERS", num_layers, num_layers >= 1, "at least 1"),
            ("NUM_POINTS", num_points, num_points >= 1, "at least 1"),
            ("OVERSAMPLE_RATIO", oversample_ratio, oversample_ratio >= 1, "at least 1"),
            ("IMPORTANCE_SAMPLE_RATIO", importance_sample_ratio, 0 <= importance_sample_ratio <= 1, "0 to 1"),
            ("SUBDIVISION_STEPS", subdivision_steps, subdivision_steps >= 1, "at least 1"),
            ("SUBDIVISION_NUM_POINTS", subdivision_num_points, subdivision_num_points >= 1, "at least 1"),
        )
        self.in_index, self.align_corners = tuple(in_index), align_corners
        self.strides = tuple(in_strides[i] for i in in_index)
        self.num_points, self.num_candidates = num_points, int(oversample_ratio * num_points)
        self.num_uncertain = int(importance_sample_ratio * num_points)
        self.subdivision_steps, self.subdivision_num_points = subdivision_steps, subdivision_num_points
        self.point_head = PointHead(
            sum(in_channels[i] for i in in_index), num_classes, num_channels=num_channels, num_layers=num_layers
        )

    def features(self, maps: list[Tensor], decoded: SegOutput) -> list[Tensor]:
        """See `Refiner.features`."""
        return [maps[i] for i in self.in_index]

    def forward(self, features: list[Tensor], decoded: SegOutput, images: Tensor) -> OVeNetOutput:
        """See `Refiner.forward`.

        Raises:
            UserError: the scores are not logits.
        """
        if decoded.score_kind != "logits":
            raise UserError(f"MODEL.SEED.NAME point_rend refines logits, but this head gives {decoded.score_kind}")
        features = [crop_padding(x, images, stride) for x, stride in zip(features, self.strides, strict=True)]
        scores = at_least_float32(decoded.scores[-1])
        points, fused = None, decoded.scores
        if self.training:
            position = self.sample_positions(scores.detach())
            points = PointOutput(self.predict(features, scores, position), position)
        else:
            fused = (*decoded.scores[:-1], self.refine(features, scores))
        return OVeNetOutput(
            decoded.scores, (), fused, embedding=decoded.embedding, queries=decoded.queries, points=points
        )

    def sample_positions(self, scores: Tensor) -> Tensor:
        """Draws the points of a training step, ``(B, 2, P)``: uncertain ones first, then any.

        Args:
            scores: ``(B, K, h, w)``, without a gradient.
        """
        shape = (len(scores), 2, self.num_candidates)
        candidates = 2 * torch.rand(shape, device=scores.device, dtype=scores.dtype) - 1
        # Uncertainty is that of the sampled scores: between two sure pixels of different classes it is high.
        index = uncertainty(self.sample(scores, candidates)).squeeze(-1).topk(self.num_uncertain, dim=1).indices
        chosen = candidates.gather(2, index.unsqueeze(1).expand(-1, 2, -1))
        shape = (len(scores), 2, self.num_points - self.num_uncertain)
        others = 2 * torch.rand(shape, device=scores.device, dtype=scores.dtype) - 1
        return torch.cat((chosen, others), dim=2)

    def refine(self, features: list[Tensor], scores: Tensor) -> Tensor:
        """Scores ``(B, K, h, w)`` at ``2^subdivision_steps`` times their resolution, uncertain pixels anew."""
        refined = scores
        for _ in range(self.subdivision_steps):
            height, width = (2 * n for n in refined.shape[-2:])
            refined = resize_bilinear(refined, (height, width), align_corners=self.align_corners)
            num_points = _smaller(self.subdivision_num_points, height * width)
            index = uncertainty(refined).flatten(1).topk(num_points, dim=1).indices.unsqueeze(1)
            grid = pixel_grid(
                (height, width), device=scores.device, dtype=scores.dtype, align_corners=self.align_corners
            )
            position = grid.flatten(2).expand(index.shape[0], -1, -1).gather(2, index.expand(-1, 2, -1))
            logits = self.predict(features, scores, position)
            index = index.expand(-1, scores.shape[1], -1)
            refined = refined.flatten(2).scatter(2, index, logits).view(refined.shape)
        return refined

    def predict(self, features: list[Tensor], scores: Tensor, position: Tensor) -> Tensor:
        """Logits ``(B, K, P)`` of the point head at positions ``(B, 2, P)``."""
        fine = torch.cat([self.sample(x, position) for x in features], dim=1)
        return self.point_head(fine, self.sample(scores, position)).squeeze(-1)

    def sample(self, values: Tensor, position: Tensor) -> Tensor:
        """Bilinear samples ``(B, C, P, 1)`` of a map at positions ``(B, 2, P)``."""
        return sample_bilinear(values, position.unsqueeze(-1), align_corners=self.align_corners)


def uncertainty(scores: Tensor) -> Tensor:
    """The second best score minus the best one, ``(B, ...)``, from scores ``(B, K, ...)``; 0 is the most uncertain."""
    best, index = scores.max(dim=1, keepdim=True)
    second = scores.scatter(1, index, -torch.inf).amax(dim=1)  # on a CPU in less than half the time of topk
    return second - best.squeeze(1)


def _smaller(limit: int, number: int) -> int:
    """The smaller number; in a trace, a number that depends on the size of the input."""
    if not torch.jit.is_tracing():
        return min(limit, number)
    return torch.minimum(torch.as_tensor(limit), torch.as_tensor(number))  # type: ignore[return-value]
