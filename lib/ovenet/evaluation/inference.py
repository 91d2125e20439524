"""The one predictor: whole images or windows, several scales, mirrored views.

Shapes: ``K`` classes; sizes are ``(H, W)`` in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.data.info import LONG_SIDE, EvaluationRule
from ovenet.data.transforms import normalize_images, resize_image, scaled_size
from ovenet.geometry import resize_bilinear
from ovenet.structures import OVeNetOutput, ScoreKind


@dataclass(frozen=True)
class InferenceSettings:
    """How an image is run through the model.

    Attributes:
        base_size: long (or short, see `rule`) side of the image at scale 1, in pixels.
        window_size: ``(H, W)``; a scaled image that fits is run whole, else in windows of this size.
        scales: scores are averaged over them.
        flip: average with the mirrored image.
        score: ``softmax`` averages probabilities; ``exp`` sums the exponentials of the scores over scales, as the
            public implementation did.
        output_index: which score map, -1 the final one.
        align_corners: convention of the score upsampling.
        batch_size: windows per forward pass, a mirrored view counting as one more.
        rule: the dataset's way of resizing and padding.
        mirrored_classes: pairs of train ids that change places when an image is mirrored.
    """

    base_size: int
    window_size: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    score: Literal["softmax", "exp"] = "softmax"
    output_index: int = -1
    align_corners: bool = True
    batch_size: int = 1
    rule: EvaluationRule = LONG_SIDE
    mirrored_classes: tuple[tuple[int, int], ...] = ()

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Size ``(H, W)`` that an image of `size` is resized to, before padding."""
        side = max(1, round(self.base_size * scale))
        if self.rule.resize == "stretch":
            return tuple(max(1, round(n * scale)) for n in self.window_size)
        if self.rule.resize == "short_side":
            side = max(1, round(side * max(size) / min(size)))
        return scaled_size(size, side)


class Predictor:
    """Predicts class scores at the image's own size.

    Args:
        model: a segmentor; put into evaluation mode at each call.
        settings: see there.
        device: where the model lies.
    """

    def __init__(self, model: nn.Module, settings: InferenceSettings, device: torch.device):
        self.model = model
        self.settings = settings
        self.device = device

    @torch.inference_mode()
    def predict_scores(self, image: np.ndarray) -> dict[str, Tensor]:
        """Scores of every prediction of the model.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.

        Returns:
            ``(K, H, W)`` float32 per name (see `OVeNetOutput.predictions`), averaged (``softmax``) or summed
            (``exp``) over the scales.
        """
        self.model.eval()
        size = image.shape[:2]
        total: dict[str, Tensor] = {}
        for scale in self.settings.scales:
            for name, scores in self._run_scale(resize_image(image, self.settings.scaled_size(size, scale))).items():
                scores = resize_bilinear(scores[None], size, align_corners=self.settings.align_corners)[0]
                total[name] = total[name].add_(scores) if name in total else scores
        if self.settings.score == "softmax":
            total = {name: scores / len(self.settings.scales) for name, scores in total.items()}
        return total

    def predict_labels(self, image: np.ndarray) -> dict[str, Tensor]:
        """The best class of every pixel: train ids ``(H, W)`` int64 per name."""
        return {name: scores.argmax(dim=0) for name, scores in self.predict_scores(image).items()}

    @torch.inference_mode()
    def predict_output(self, image: np.ndarray) -> OVeNetOutput:
        """The model's own output, offsets and confidence included, of the whole image at scale 1.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
        """
        self.model.eval()
        return self.model(self._to_pixels(resize_image(image, self.settings.scaled_size(image.shape[:2], 1.0))))

    def _to_pixels(self, image: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return normalize_images(pixels.unsqueeze(0).to(self.device))

    def _run_scale(self, image: np.ndarray) -> dict[str, Tensor]:
        """Scores ``(K, h, w)`` at the scaled image's size, windows averaged where they overlap."""
        pixels = self._to_pixels(image)
        height, width = image.shape[:2]
        bottom, right = (-n % self.settings.rule.multiple_of for n in (height, width))
        padded = self._run_windows(F.pad(pixels, (0, right, 0, bottom)))  # normalised: zero is the mean colour
        return {name: scores[:, :height, :width] for name, scores in padded.items()}

    def _run_windows(self, pixels: Tensor) -> dict[str, Tensor]:
        """Scores ``(K, H, W)`` of one normalised image ``(1, 3, H, W)``."""
        size = pixels.shape[-2:]
        limits = self.settings.window_size if self.settings.rule.resize == "long_side" else size
        window = tuple(min(n, limit) for n, limit in zip(size, limits, strict=True))
        corners = [
            (top, left) for top in window_starts(size[0], window[0]) for left in window_starts(size[1], window[1])
        ]
        if len(corners) == 1:
            return {name: scores[0] for name, scores in self._run_views(pixels).items()}
        total: dict[str, Tensor] = {}
        counts = torch.zeros(size, device=self.device)
        for first in range(0, len(corners), self.settings.batch_size):
            batch = corners[first : first + self.settings.batch_size]
            boxes = [np.s_[..., top : top + window[0], left : left + window[1]] for top, left in batch]
            views = torch.cat([pixels[box] for box in boxes])
            for name, scores in self._run_views(views).items():
                canvas = total.setdefault(name, scores.new_zeros((scores.shape[1], *size)))
                for box, part in zip(boxes, scores, strict=True):
                    canvas[box] += part
            for box in boxes:
                counts[box] += 1
        return {name: scores / counts for name, scores in total.items()}

    def _run_views(self, pixels: Tensor) -> dict[str, Tensor]:
        """Scores ``(B, K, H, W)`` of normalised images ``(B, 3, H, W)``, mirrored views included."""
        index = self.settings.output_index
        output: OVeNetOutput = self.model(pixels)
        maps = output.predictions(index)
        if self.settings.flip:
            mirrored = self.model(pixels.flip(3)).predictions(index)
            maps = {name: (scores + self._unmirror(mirrored[name])) / 2 for name, scores in maps.items()}
        size = pixels.shape[-2:]
        resized = (resize_bilinear(s.float(), size, align_corners=self.settings.align_corners) for s in maps.values())
        return {name: self._to_score(s, output.score_kind) for name, s in zip(maps, resized, strict=True)}

    def _unmirror(self, scores: Tensor) -> Tensor:
        """Scores ``(B, K, h, w)`` of mirrored images, as they are for the images themselves."""
        order = list(range(scores.shape[1]))
        for left, right in self.settings.mirrored_classes:
            order[left], order[right] = right, left
        return scores[:, order].flip(3) if self.settings.mirrored_classes else scores.flip(3)

    def _to_score(self, scores: Tensor, kind: ScoreKind) -> Tensor:
        if self.settings.score == "exp":
            return scores.exp()
        return scores.softmax(dim=1) if kind == "logits" else scores


def window_starts(length: int, window: int) -> Sequence[int]:
    """Where windows begin along one axis: side by side, the last one shifted inward.

    Args:
        length: of the axis, in pixels.
        window: in pixels, at most `length`.
    """
    starts = list(range(0, length - window + 1, window))
    if starts[-1] + window < length:
        starts.append(length - window)
    return starts
