"""The one predictor: whole images or windows, several scales, flipped views.

Nothing is ever held for all classes at the size of the image: the network's maps stay at their own size (stride 4), and
the image is finished in bands of a few rows, from top to bottom. Windows are run when the first band needs them.

Shapes: ``K`` classes, ``C`` channels, ``n`` rows of a band. Bands lie rows first, ``(n, C, W)``, like what they are
resized from. Sizes are ``(H, W)`` in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.data.info import LONG_SIDE, EvaluationRule
from ovenet.data.transforms import IMAGENET, box_size, normalize_images, resize_image, scaled_size
from ovenet.geometry import pixel_grid, probabilities, resize_rows, seed_position, source_rows
from ovenet.models.displacement import recorded
from ovenet.structures import Normalization, OVeNetOutput, ScoreKind
from ovenet.utils.coarse import coarse_threads
from ovenet.utils.environment import tf32

_BAND_ELEMENTS = 2**19  # scores of one prediction in a band: 2 MB, which stay in the processor's cache
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_T = TypeVar("_T")
_GROUPED_BANDS = 32  # bands finished before windows are checked again
_VECTOR = "vector: "  # begins the names of maps that are no scores
_SEED = f"{_VECTOR}seed"  # offset (x, y) and confidence
_FIELD = f"{_VECTOR}field: "  # other displacements (x, y), by title


@dataclass(frozen=True)
class InferenceSettings:
    """How an image is run through the model.

    Attributes:
        base_size: long (or short, see `rule`) side of the image at scale 1, in pixels; None is the image's own.
        window_size: ``(H, W)``; a scaled image that fits is run whole, else in windows of this size.
        scales: scores are averaged over them.
        flip: average with the flipped image.
        score: ``softmax`` averages probabilities; ``exp`` sums the exponentials of the scores over scales, as the
            public implementation did.
        output_index: which score map, -1 the final one.
        align_corners: convention of the score upsampling.
        batch_size: windows per forward pass, a flipped view counting as one more.
        precision: of convolutions and matrix products; everything after the network is float32.
        rule: the dataset's way of resizing and padding.
        flip_pairs: pairs of train ids that change places when an image is flipped.
        normalization: of the pixels, the model's.
        base_box: long and short side, in pixels, that the image fits into at scale 1, where it is run whole, in place
            of `base_size` and `rule`; None for those.
        tf32: CUDA: float32 convolutions and matrix products of the network read 10 bits of mantissa.
        stride: ``(rows, columns)`` from window to window, up to the window's size: whatever the rule, a scaled image
            is run in windows of `window_size`, whose logits are averaged where they overlap, as mmsegmentation does;
            None for windows side by side, where one is needed, whose scores are averaged.
    """

    base_size: int | None
    window_size: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    score: Literal["softmax", "exp"] = "softmax"
    output_index: int = -1
    align_corners: bool = True
    batch_size: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    rule: EvaluationRule = LONG_SIDE
    flip_pairs: tuple[tuple[int, int], ...] = ()
    normalization: Normalization = IMAGENET
    base_box: tuple[int, int] | None = None
    tf32: bool = False
    stride: tuple[int, int] | None = None

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Size ``(H, W)`` that an image of `size` is resized to, before padding."""
        if self.base_box is not None:
            return box_size(size, self.base_box, scale)
        if self.rule.resize == "stretch":
            return tuple(max(1, round(n * scale)) for n in self.window_size)
        is_short = self.rule.resize == "short_side"
        base_size = self.base_size or (min(size) if is_short else max(size))
        side = max(1, round(base_size * scale))
        if is_short:
            side = max(1, round(side * max(size) / min(size)))
        return scaled_size(size, side)


@dataclass(frozen=True)
class Prediction:
    """Prediction for every pixel of an image, at the image's own size.

    Attributes:
        labels: train ids ``(H, W)`` by prediction name (see `OVeNetOutput.predictions`); uint8 for up to 256 classes,
            else int16.
        offset: ``(2, H, W)``, or as `seed_stride` thins it out, from pixel to seed in ``(x, y)``, normalised so that
            the image spans ``[-1, 1]``; as the network gave it for the unflipped view at the scale nearest to 1 and,
            where windows overlap, in the last one. None where it was not asked for, and for a baseline.
        confidence: ``(1, H, W)`` in ``[0, 1]``, of the same view; None likewise.
        scores: ``(K, H', W')`` by prediction name, see `score_side` of `SlidingWindowInferencer.predict`.
        fields: ``(2, H', W')`` by title, of other displacements in the network (see `ovenet.models.displacement`), in
            the units of `offset`; with the scores.
    """

    labels: dict[str, Tensor]
    offset: Tensor | None = None
    confidence: Tensor | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)
    fields: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _FinishedBand:
    """Results of a band: classes ``(n, W)``, and subsampled seed vectors and scores ``(C, n', W')``."""

    labels: dict[str, Tensor]
    vectors: Tensor | None
    scores: dict[str, Tensor]


class SlidingWindowInferencer:
    """Predicts class scores at the image's own size.

    Args:
        model: a segmentor; put into evaluation mode at each call.
        settings: how images are run through it.
        device: where the model lies.
    """

    def __init__(self, model: nn.Module, settings: InferenceSettings, device: torch.device):
        self.model = model
        self.settings = settings
        self.device = device

    @torch.inference_mode()
    def predict(
        self,
        image: np.ndarray,
        *,
        scaled: Sequence[np.ndarray] | None = None,
        names: Sequence[str] | None = None,
        seeds: bool = False,
        seed_stride: int = 1,
        score_side: int = 0,
    ) -> Prediction:
        """The best class of every pixel, and what else is asked for.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            scaled: what `scaled_images` gives for it, if that is at hand.
            names: the predictions of the model to give; None for all.
            seeds: give offset and confidence too.
            seed_stride: give them for every n-th row and column only.
            score_side: give the scores too, thinned out until no side has more pixels (see `thinning`); 0 gives none.
        """
        score_stride = thinning(image.shape[:2], score_side) if score_side else 0
        size = image.shape[:2]
        labels: dict[str, Tensor] = {}
        scores: dict[str, list[Tensor]] = {}
        vectors = None

        def finish(rows: range, maps: dict[str, Tensor]) -> _FinishedBand:
            seed = maps.pop(_SEED, None)
            return _FinishedBand(
                labels={n: best_class(b).to(_label_type(b.shape[1])) for n, b in maps.items() if _is_score(n)},
                vectors=None if seed is None else _every(seed, seed_stride, rows).permute(1, 0, 2).clone(),
                scores={n: _every(b, score_stride, rows).permute(1, 0, 2).clone() for n, b in maps.items()}
                if score_stride
                else {},
            )

        for rows, band in self._bands(image, finish, scaled, names=names, seeds=seeds, fields=bool(score_side)):
            if band.vectors is not None:
                if vectors is None:
                    vectors = band.vectors.new_empty((3, *(-(-n // seed_stride) for n in size)))
                first = -(-rows.start // seed_stride)
                vectors[:, first : first + band.vectors.shape[1]] = band.vectors
            for name, classes in band.labels.items():
                if name not in labels:
                    labels[name] = torch.empty(size, dtype=classes.dtype, device=classes.device)
                labels[name][rows.start : rows.stop] = classes
            for name, thin in band.scores.items():
                scores.setdefault(name, []).append(thin)
        thinned = {name: torch.cat(bands, dim=1) for name, bands in scores.items()}
        return Prediction(
            labels=labels,
            offset=None if vectors is None else vectors[:2],
            confidence=None if vectors is None else vectors[2:],
            scores={name: x for name, x in thinned.items() if not _is_vector(name)},
            fields={name.removeprefix(_FIELD): x for name, x in thinned.items() if _is_vector(name)},
        )

    def scaled_images(self, image: np.ndarray) -> list[np.ndarray]:
        """An image ``(H, W, 3)`` uint8 at every scale; may be called ahead of `predict`, in another thread."""
        size = image.shape[:2]
        return [resize_image(image, self.settings.scaled_size(size, scale)) for scale in self.settings.scales]

    @torch.inference_mode()
    def predict_scores(self, image: np.ndarray) -> dict[str, Tensor]:
        """Scores of every prediction of the model, all at once: see `predict` for what needs less memory.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.

        Returns:
            ``(K, H, W)`` float32 per name (see `OVeNetOutput.predictions`), averaged (``softmax``) or summed
            (``exp``) over the scales.
        """
        bands = [maps for _, maps in self._bands(image, lambda rows, maps: maps)]
        return {name: torch.cat([maps[name] for maps in bands]).permute(1, 0, 2) for name in bands[0]}

    @torch.inference_mode()
    def predict_output(self, image: np.ndarray) -> OVeNetOutput:
        """The model's own output, offsets and confidence included, of the whole image at scale 1.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
        """
        self.model.eval()
        size = self.settings.scaled_size(image.shape[:2], 1.0)
        with tf32(self.settings.tf32):
            return self.model(_to_pixels(resize_image(image, size), self.device, self.settings.normalization))

    def _bands(
        self,
        image: np.ndarray,
        finish: Callable[[range, dict[str, Tensor]], _T],
        scaled: Sequence[np.ndarray] | None = None,
        *,
        names: Sequence[str] | None = None,
        seeds: bool = False,
        fields: bool = False,
    ) -> Iterator[tuple[range, _T]]:
        """Rows of the image from top to bottom, and what `finish` makes of what is predicted there, each ``(n, C, W)``.

        On the CPU some bands are finished at the same time.
        """
        self.model.eval()
        size = height, width = image.shape[:2]
        scales = self.settings.scales
        nearest = scales.index(min(scales, key=lambda scale: abs(scale - 1)))  # whose vectors are given
        scaled = self.scaled_images(image) if scaled is None else scaled
        views = [
            ScaledView(self, part, names, seeds=seeds and index == nearest, fields=fields and index == nearest)
            for index, part in enumerate(scaled)
        ]
        num_rows = max(1, _BAND_ELEMENTS // (views[0].num_classes * width))
        bands = [range(first, min(height, first + num_rows)) for first in range(0, height, num_rows)]

        @torch.inference_mode()
        def finished(rows: range) -> _T:
            total: dict[str, Tensor] = {}
            for view in views:
                for name, band in view.resized_rows(size, rows).items():
                    total[name] = total[name].add_(band) if name in total else band
            if self.settings.score == "softmax" and len(scales) > 1:
                for name in filter(_is_score, total):
                    total[name] /= len(scales)
            return finish(rows, total)

        def is_ready(rows: range) -> bool:
            return all(view.has_run_down_to(size, rows.stop) for view in views)

        max_bands = _GROUPED_BANDS if self.device.type == "cpu" else 1
        while bands:
            for view in views:
                view.run_down_to(size, bands[0].stop)
            group = [bands[0], *takewhile(is_ready, bands[1:max_bands])]
            del bands[: len(group)]
            with coarse_threads() if len(group) > 1 else nullcontext() as pool:
                results = list((pool.map if pool else map)(finished, group))
            yield from zip(group, results, strict=True)
            for view in views:
                view.forget_above(size, group[-1].stop)


class ScaledView:
    """One scale of an image: the network's maps, window by window, as rows of it are asked for from top to bottom.

    Args:
        predictor: the model and its settings.
        image: ``(H, W, 3)`` uint8 RGB at this scale.
        names: see `SlidingWindowInferencer.predict`.
        seeds: keep offsets and confidence too.
        fields: keep other displacements too.
    """

    def __init__(
        self,
        predictor: SlidingWindowInferencer,
        image: np.ndarray,
        names: Sequence[str] | None,
        *,
        seeds: bool = False,
        fields: bool = False,
    ):
        self._model, self._settings, self._device = predictor.model, predictor.settings, predictor.device
        self._image, self._names, self._seeds, self._fields = image, names, seeds, fields
        self._size = image.shape[:2]
        stride = self._settings.stride
        multiple = 1 if stride or self._settings.base_box is not None else self._settings.rule.multiple_of
        self._padded = tuple(n + -n % multiple for n in self._size)
        is_cut = stride or (self._settings.rule.resize == "long_side" and self._settings.base_box is None)
        limits = self._settings.window_size if is_cut else self._padded
        self._window = tuple(min(n, limit) for n, limit in zip(self._padded, limits, strict=True))
        steps = stride or self._window
        starts = [window_starts(n, w, s) for n, w, s in zip(self._padded, self._window, steps, strict=True)]
        self._waiting = [(top, left) for top in starts[0] for left in starts[1]]
        self._done: dict[tuple[int, int], dict[str, Tensor]] = {}
        self._kind: ScoreKind = "logits"
        self._num_classes = 0

    @property
    def num_classes(self) -> int:
        """``K``; runs the first windows to learn it."""
        if not self._num_classes:
            self._run_next()
        return self._num_classes

    def has_run_down_to(self, size: tuple[int, int], row: int) -> bool:
        """Whether the windows have been run that the rows above `row` of an image ``(H, W)`` need."""
        rows = range(row - 1, row)
        _, last = source_rows(self._size[0], size[0], rows, align_corners=self._settings.align_corners)
        return not (self._waiting and self._waiting[0][0] <= last)

    def run_down_to(self, size: tuple[int, int], row: int) -> None:
        """Runs those windows."""
        while not self.has_run_down_to(size, row):
            self._run_next()

    def forget_above(self, size: tuple[int, int], row: int) -> None:
        """Drops the windows that no row from `row` of an image ``(H, W)`` on needs."""
        if row < size[0]:
            rows = range(row, row + 1)
            first, _ = source_rows(self._size[0], size[0], rows, align_corners=self._settings.align_corners)
            for corner in [c for c in self._done if c[0] + self._window[0] <= first]:
                del self._done[corner]

    def resized_rows(self, size: tuple[int, int], rows: range) -> dict[str, Tensor]:
        """Scores at the size of the image, windows averaged where they overlap.

        Args:
            size: ``(H, W)`` of the image.
            rows: of the image, whose windows have been run.

        Returns:
            ``(n, C, W)`` by name; not of an earlier call's memory.
        """
        align_corners = self._settings.align_corners
        first, last = source_rows(self._size[0], size[0], rows, align_corners=align_corners)
        own = self._rows(range(first, last + 1))
        if self._size == size:
            return own
        return {
            name: resize_rows(band, size, rows, align_corners=align_corners, in_height=self._size[0], first_row=first)
            for name, band in own.items()
        }

    def _rows(self, rows: range) -> dict[str, Tensor]:
        """``(n, C, W)`` by name, at this scale."""
        if self._window == self._padded:
            (maps,) = self._done.values()
            return {
                name: self._finished(name, band)[..., : self._size[1]]
                for name, band in self._window_rows(maps, rows).items()
            }
        averages_logits = self._settings.stride is not None
        total: dict[str, Tensor] = {}
        counts = torch.zeros((len(rows), 1, self._padded[1]), device=self._device)
        for (top, left), maps in self._done.items():
            here = range(max(rows.start, top), min(rows.stop, top + self._window[0]))
            if not here:
                continue
            box = np.s_[here.start - rows.start : here.stop - rows.start, :, left : left + self._window[1]]
            for name, part in self._window_rows(maps, range(here.start - top, here.stop - top)).items():
                if name not in total:
                    total[name] = part.new_zeros((len(rows), part.shape[1], self._padded[1]))
                if _is_vector(name):
                    total[name][box] = part
                else:
                    total[name][box] += part if averages_logits else self._finished(name, part)
            counts[box] += 1
        weights = counts.reciprocal_()
        for name in filter(_is_score, total):
            total[name] *= weights
        if averages_logits:
            total = {name: self._finished(name, band) for name, band in total.items()}
        return {name: band[..., : self._size[1]] for name, band in total.items()}

    def _window_rows(self, maps: dict[str, Tensor], rows: range) -> dict[str, Tensor]:
        """``(n, C, w)`` of one window, as the network gives them, at the window's size."""
        align_corners = self._settings.align_corners
        return {name: resize_rows(x, self._window, rows, align_corners=align_corners) for name, x in maps.items()}

    def _run_next(self) -> None:
        """Runs the next windows through the model."""
        num_views = 2 if self._settings.flip else 1
        corners = self._waiting[: max(1, self._settings.batch_size // num_views)]
        del self._waiting[: len(corners)]
        height, width = self._window
        parts = [
            _to_pixels(self._image[top : top + height, x : x + width], self._device, self._settings.normalization)
            for top, x in corners
        ]
        # At a padded border windows hold less of the image. Zero is the mean colour.
        padded = [F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2])) for part in parts]
        maps = self._run_views(torch.cat(padded))
        for index, corner in enumerate(corners):
            self._done[corner] = {name: values[index].permute(1, 0, 2).contiguous() for name, values in maps.items()}

    def _run_views(self, pixels: Tensor) -> dict[str, Tensor]:
        """The network's maps ``(B, C, h, w)`` of normalised images ``(B, 3, H, W)``, flipped views included."""
        settings, num_images = self._settings, len(pixels)
        together = settings.flip and settings.batch_size >= 2
        with recorded(self._model) if self._fields else nullcontext([]) as fields:
            output = self._run_model(torch.cat((pixels, pixels.flip(3))) if together else pixels)
        maps = _chosen(output.predictions(settings.output_index), self._names)
        if settings.flip:
            if together:
                flipped = {name: scores[num_images:] for name, scores in maps.items()}
            else:
                flipped = self._run_model(pixels.flip(3)).predictions(settings.output_index)
            maps = {name: (s[:num_images] + self._unflip(flipped[name])) / 2 for name, s in maps.items()}
        maps = {name: scores.float() for name, scores in maps.items()}
        self._kind, self._num_classes = output.score_kind, next(iter(maps.values())).shape[1]
        if self._seeds and output.has_seed:
            maps[_SEED] = self._seed_vectors(output)[:num_images]
        for title, displacement in fields:
            stride = round(pixels.shape[3] / displacement.shape[3])
            maps[f"{_FIELD}{title}, stride {stride}"] = self._in_image(displacement.float())[:num_images]
        return maps

    def _run_model(self, pixels: Tensor) -> OVeNetOutput:
        dtype = _AUTOCAST.get(self._settings.precision)
        with tf32(self._settings.tf32), torch.autocast(self._device.type, dtype=dtype) if dtype else nullcontext():
            return self._model(pixels)

    def _seed_vectors(self, output: OVeNetOutput) -> Tensor:
        """Offset and confidence ``(B, 3, h, w)``: from pixel to seed in units of the image instead of the window."""
        offset = output.offset.float()
        offset = seed_position(offset) - pixel_grid(offset.shape[-2:], device=offset.device)
        return torch.cat((self._in_image(offset), output.confidence.float()), dim=1)

    def _in_image(self, offset: Tensor) -> Tensor:
        """Offsets ``(B, 2, h, w)`` in units of the window, in those of the image."""
        spans = [(w - 1) / max(1, n - 1) for w, n in zip(self._window, self._size, strict=True)]
        return offset * torch.tensor(spans[::-1], device=offset.device).view(2, 1, 1)

    def _unflip(self, scores: Tensor) -> Tensor:
        """Scores ``(B, K, h, w)`` of flipped images, as they are for the images themselves."""
        order = list(range(scores.shape[1]))
        for left, right in self._settings.flip_pairs:
            order[left], order[right] = right, left
        return scores[:, order].flip(3) if self._settings.flip_pairs else scores.flip(3)

    def _finished(self, name: str, scores: Tensor) -> Tensor:
        """``(n, K, w)`` as they are averaged; seeds as they are."""
        if _is_vector(name):
            return scores
        if self._settings.score == "exp":
            return scores.exp()
        if self._kind == "logits":
            return _softmax(scores)
        return (
            probabilities(scores, self._kind) if self._kind == "unnormalized" else scores.clone()
        )  # sums are in place


def _is_vector(name: str) -> bool:
    return name.startswith(_VECTOR)


def _is_score(name: str) -> bool:
    return not _is_vector(name)


def best_class(scores: Tensor) -> Tensor:
    """The first class with the highest score: five times as fast as argmax on the CPU, which is not vectorised.

    Args:
        scores: ``(n, K, w)``.

    Returns:
        ``(n, w)`` train ids, uint8 for up to 255 classes, else int16; any class where a score is NaN.
    """
    num_classes = scores.shape[1]
    dtype = torch.uint8 if num_classes < 256 else torch.int16
    codes = torch.arange(num_classes, 0, -1, dtype=dtype, device=scores.device).view(-1, 1)
    is_best = scores == scores.amax(dim=1, keepdim=True)
    return (num_classes - (is_best * codes).amax(dim=1)).clamp_(max=num_classes - 1)


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over dimension 1 of ``(n, K, w)``, twice as fast as torch's on the CPU for this layout."""
    exponentials = (logits - logits.amax(dim=1, keepdim=True)).mul_(math.log2(math.e)).exp2_()
    return exponentials.div_(exponentials.sum(dim=1, keepdim=True))


def _to_pixels(image: np.ndarray, device: torch.device, normalization: Normalization) -> Tensor:
    """Normalised ``(1, 3, H, W)`` of an image ``(H, W, 3)`` uint8."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return normalize_images(pixels.unsqueeze(0).to(device), normalization)


def _chosen(maps: dict[str, Tensor], names: Sequence[str] | None) -> dict[str, Tensor]:
    return maps if names is None else {name: maps[name] for name in names}


def _label_type(num_classes: int) -> torch.dtype:
    return torch.uint8 if num_classes <= 256 else torch.int16


def _every(band: Tensor, stride: int, rows: range) -> Tensor:
    """Every `stride`-th row and column of an image, as far as they lie in its rows ``(n, C, W)``."""
    return band[-rows.start % stride :: stride, :, ::stride]


def thinning(size: tuple[int, int], side: int) -> int:
    """The smallest n so that every n-th row and column of an image ``(H, W)`` make at most `side` of each."""
    return max(1, -(-max(size) // side))


def window_starts(length: int, window: int, stride: int) -> Sequence[int]:
    """Where windows begin along one axis; the last one is shifted inward.

    Args:
        length: of the axis, in pixels.
        window: in pixels, at most `length`.
        stride: from one window to the next; that of windows side by side is `window`.
    """
    starts = list(range(0, length - window + 1, stride))
    if starts[-1] + window < length:
        starts.append(length - window)
    return starts
