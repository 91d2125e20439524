"""The one predictor: whole images or windows, several scales, flipped views.

Memory for scores at image size is bounded: the network's maps stay at their own size (stride 4), and the image is
finished in bands of rows, from top to bottom. Windows are run when the first band needs them, windows of one size
together, whatever their scale.

Shapes: ``K`` classes, ``C`` channels, ``n`` rows of a band. Bands are ``(n, C, W)``; sizes are ``(H, W)`` in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from threading import Lock
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ovenet.data.info import LONG_SIDE, EvaluationRule
from ovenet.data.transforms import IMAGENET, box_size, normalize_images, resize_image, scaled_size
from ovenet.geometry import normalised, probabilities, tempered
from ovenet.inference.backend import CpuBackend, CudaBackend
from ovenet.inference.forward import FIELD, SEED, Forward
from ovenet.inference.transfer import HostCopies, as_tensor, pinned_empty, to_device
from ovenet.inference.views import ScaledView, Tiling, due_windows, is_score, is_vector, padded_size
from ovenet.structures import Normalization, OVeNetOutput
from ovenet.utils.coarse import coarse_threads
from ovenet.utils.cuda_graph import CudaGraph

_T = TypeVar("_T")


@dataclass(frozen=True)
class InferenceSettings:
    """How an image is run through the model.

    Attributes:
        base_size: long (or short, see `rule`) side of the image at scale 1, in pixels; None is the image's own.
        window_size: ``(H, W)``; a scaled image that fits is run whole, else in windows of this size.
        scales: scores are averaged over them.
        flip: average with the flipped image.
        score: quantity averaged over scales: ``softmax``, probabilities of the flipped and the unflipped view's mean
            score; ``exp``, the exponentials of that score, summed, as HRNet and OVeNet do; ``mmseg``, probabilities of
            each view, from its scores at the image's own size, as mmsegmentation does.
        output_index: which score map, -1 the final one.
        align_corners: convention of the score upsampling.
        batch_size: windows per forward pass, a flipped view counting as one more; 0 is one on the CPU, and on CUDA as
            many as have 2^22 pixels together, at least a window and its flipped view.
        precision: precision of convolutions and matrix products; everything after the network is float32.
        rule: the dataset's way of resizing and padding.
        flip_pairs: pairs of train ids that change places when an image is flipped.
        normalization: normalisation of the model's input.
        base_box: long and short side, in pixels, that the image fits into at scale 1, where it is run whole; None for
            `base_size` and `rule`.
        tf32: CUDA: float32 convolutions and matrix products of the network read 10 bits of mantissa.
        cuda_graph: CUDA: batches of a repeated size are one launch each. Not for a model whose weight tensors are
            replaced between calls.
        stride: ``(rows, columns)`` from window to window, up to the window's size: whatever the rule, a scaled image
            is run in windows of `window_size`, whose logits are averaged where they overlap, as mmsegmentation does;
            None for windows side by side where the image does not fit, with their scores averaged.
        first_rule: rule that resizes and pads the image at scale 1 before `rule` scales the result; scores go the same
            way back. None scales the image itself.
        padded_windows: whatever the rule, a scaled image is run in windows of `window_size`, see
            `Tiling.padded_windows`, padded in black.
        temperatures: temperature above 0 of each prediction's probabilities, see `tempered`, by name; 1 for the
            others. It changes no label.
    """

    base_size: int | None
    window_size: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    score: Literal["softmax", "exp", "mmseg"] = "softmax"
    output_index: int = -1
    align_corners: bool = True
    batch_size: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    rule: EvaluationRule = LONG_SIDE
    flip_pairs: tuple[tuple[int, int], ...] = ()
    normalization: Normalization = IMAGENET
    base_box: tuple[int, int] | None = None
    tf32: bool = False
    cuda_graph: bool = False
    stride: tuple[int, int] | None = None
    first_rule: EvaluationRule | None = None
    padded_windows: bool = False
    temperatures: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_flipped_views(self) -> bool:
        """Whether flipped images are views of their own, not averaged with the unflipped ones as they are run."""
        return self.flip and self.score == "mmseg"

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Size ``(H, W)`` that an image of `size` is resized to, before padding."""
        if self.base_box is not None:
            return box_size(size, self.base_box, scale)
        if self.first_rule is not None:
            size = padded_size(self._size_by(self.first_rule, size, 1.0), self.first_rule.multiple_of)
        return self._size_by(self.rule, size, scale)

    def first_sizes(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Sizes after `first_rule`: padded, and the part of it whose scores are kept; None without that rule."""
        if self.first_rule is None:
            return None
        own = self._size_by(self.first_rule, size, 1.0)
        padded = padded_size(own, self.first_rule.multiple_of)
        return padded, padded if self.first_rule.keeps_padding else own

    def first_image(self, image: np.ndarray, color: tuple[int, ...]) -> np.ndarray:
        """An image ``(H, W, C)`` resized by `first_rule`, and padded in a colour."""
        if self.first_rule is None:
            return image
        resized = resize_image(image, self._size_by(self.first_rule, image.shape[:2], 1.0))
        out = np.full((*padded_size(resized.shape[:2], self.first_rule.multiple_of), image.shape[2]), color, np.uint8)
        out[: resized.shape[0], : resized.shape[1]] = resized
        return out

    def _size_by(self, rule: EvaluationRule, size: tuple[int, int], scale: float) -> tuple[int, int]:
        if rule.resize == "stretch":
            height, width = (max(1, round(n * scale)) for n in self.window_size)
            return height, width
        is_short = rule.resize == "short_side"
        base_size = self.base_size or (min(size) if is_short else max(size))
        side = max(1, round(base_size * scale))
        if is_short:
            side = max(1, round(side * max(size) / min(size)))
        return scaled_size(size, side)

    def tiling(self, size: tuple[int, int]) -> Tiling:
        """Windows of an image that was resized to `size`."""
        if self.padded_windows:
            return Tiling.padded_windows(size, self.window_size)
        whole = self.base_box is not None
        multiple = 1 if self.stride or whole else self.rule.multiple_of
        is_cut = self.stride or (self.rule.resize == "long_side" and not whole)
        return Tiling.of(size, self.window_size if is_cut else None, self.stride, multiple)


@dataclass(frozen=True)
class Prediction:
    """Prediction for every pixel of an image, at the image's own size.

    Attributes:
        labels: train ids ``(H, W)`` by prediction name (see `OVeNetOutput.predictions`); uint8 for up to 256 classes,
            else int16.
        offset: ``(2, H, W)``, or as `seed_stride` thins it out, from pixel to seed in ``(x, y)``, normalised so that
            the image spans ``[-1, 1]``; as the network gave it for the unflipped view at the scale nearest to 1 and,
            where windows overlap, in the last one. None where not requested, and for a baseline.
        confidence: ``(1, H, W)`` in ``[0, 1]``, of the same view; None where `offset` is.
        scores: ``(K, H', W')`` by prediction name, see `score_side` of `SlidingWindowInferencer.predict`.
        probability: ``(H, W)`` float32 by prediction name, of the predicted class: averaged over the views,
            normalised, at the temperature of the settings; empty where not requested.
        fields: ``(2, H', W')`` by title, of other displacements in the network (see `ovenet.models.displacement`), in
            the units of `offset`; with the scores.
    """

    labels: dict[str, Tensor]
    offset: Tensor | None = None
    confidence: Tensor | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)
    fields: dict[str, Tensor] = field(default_factory=dict)
    probability: dict[str, Tensor] = field(default_factory=dict)

    def start_copy(self) -> Callable[[], Prediction]:
        """Starts a copy to the host; returns a function that waits for it."""
        vectors = [x for x in (self.offset, self.confidence) if x is not None]
        by_name = self.labels, self.scores, self.fields, self.probability
        copies = HostCopies((*vectors, *(tensor for tensors in by_name for tensor in tensors.values())))

        def wait() -> Prediction:
            left = iter(copies.wait())
            return Prediction(
                offset=None if self.offset is None else next(left),
                confidence=None if self.confidence is None else next(left),
                labels={name: next(left) for name in self.labels},
                scores={name: next(left) for name in self.scores},
                fields={name: next(left) for name in self.fields},
                probability={name: next(left) for name in self.probability},
            )

        return wait


@dataclass(frozen=True)
class ClassBand:
    """The classes in some rows of an image, by prediction name.

    Attributes:
        rows: rows of the image.
        probabilities: ``(n, K, W)`` float32 of all classes, normalised, at the temperature of the settings; not to be
            changed.
        labels: ``(n, W)`` predicted train ids.
        probability: ``(n, W)`` of the predicted class.
    """

    rows: range
    probabilities: dict[str, Tensor]
    labels: dict[str, Tensor]
    probability: dict[str, Tensor]


OnBand = Callable[[ClassBand], None]


@dataclass(frozen=True)
class _Wanted:
    """What to return of a band: see the arguments of `SlidingWindowInferencer.predict`; a stride of 0 is no scores."""

    seed_stride: int
    score_stride: int
    probability: bool
    on_band: OnBand | None


@dataclass(frozen=True)
class _FinishedBand:
    """Results of a band: classes and their probability ``(n, W)``; thinned vectors and scores ``(C, n', W')``."""

    labels: dict[str, Tensor]
    probability: dict[str, Tensor]
    vectors: Tensor | None
    scores: dict[str, Tensor]


class SlidingWindowInferencer:
    """Predicts class scores at the image's own size.

    Args:
        model: a segmentor; put into evaluation mode at each call.
        settings: how images are run through it.
        device: device of the model.
        backend: computes classes from maps; None for the fastest one of the device.
    """

    def __init__(
        self, model: nn.Module, settings: InferenceSettings, device: torch.device, backend: CpuBackend | None = None
    ):
        self.model = model
        self.settings = settings
        self.device = device
        self._lock = Lock()
        self._flips_windows = settings.flip and not settings.has_flipped_views
        self.backend = backend or (CpuBackend() if device.type == "cpu" else CudaBackend())
        self.forward = Forward(
            model,
            device,
            flip=self._flips_windows,
            flip_pairs=settings.flip_pairs,
            output_index=settings.output_index,
            precision=settings.precision,
            allow_tf32=settings.tf32,
            new_graph=CudaGraph if settings.cuda_graph and device.type == "cuda" else None,
        )

    @torch.inference_mode()
    def predict(
        self,
        image: np.ndarray,
        *,
        scaled: Sequence[Tensor] | None = None,
        names: Sequence[str] | None = None,
        seeds: bool = False,
        seed_stride: int = 1,
        score_side: int = 0,
        probability: bool = False,
        on_band: OnBand | None = None,
    ) -> Prediction:
        """The best class of every pixel, and the other outputs requested; on the device, without waiting for it.

        Args:
            image: ``(H, W, 3)`` uint8 RGB.
            scaled: result of `scaled_images` for this image, if already computed.
            names: predictions of the model to return; None for all.
            seeds: return offset and confidence too.
            seed_stride: return them for every n-th row and column only.
            score_side: return scores too, subsampled until no side has more pixels (see `thinning`); 0 for none.
            probability: return the probability of the predicted class too.
            on_band: called with each band of rows and the probabilities of all classes there. Bands come in any order,
                on the CPU some at a time in several threads; on a card, in the current stream.
        """
        size = image.shape[:2]
        wanted = _Wanted(seed_stride, thinning(size, score_side) if score_side else 0, probability, on_band)
        finish = partial(self._finish, wanted)
        labels: dict[str, Tensor] = {}
        of_labels: dict[str, Tensor] = {}
        scores: dict[str, list[Tensor]] = {}
        vectors = None
        for rows, band in self._bands(image, finish, scaled, names=names, seeds=seeds, fields=bool(score_side)):
            if band.vectors is not None:
                if vectors is None:
                    vectors = band.vectors.new_empty((3, *(-(-n // seed_stride) for n in size)))
                first = -(-rows.start // seed_stride)
                vectors[:, first : first + band.vectors.shape[1]] = band.vectors
            _put_rows(labels, size, rows, band.labels)
            _put_rows(of_labels, size, rows, band.probability)
            for name, thin in band.scores.items():
                scores.setdefault(name, []).append(thin)
        thinned = {name: torch.cat(bands, dim=1) for name, bands in scores.items()}
        return Prediction(
            labels=labels,
            offset=None if vectors is None else vectors[:2],
            confidence=None if vectors is None else vectors[2:],
            scores={name: x for name, x in thinned.items() if not is_vector(name)},
            fields={name.removeprefix(FIELD): x for name, x in thinned.items() if is_vector(name)},
            probability=of_labels,
        )

    def scaled_images(self, image: np.ndarray) -> list[Tensor]:
        """An image ``(H, W, 3)`` uint8 at every scale, then flipped where flips are separate views.

        The tensors are on the CPU, in page-locked memory for a card. May be called ahead of `predict`, in another
        thread.
        """
        sizes = [self.settings.scaled_size(image.shape[:2], scale) for scale in self.settings.scales]
        image = self.settings.first_image(image, self.settings.normalization.pad_color)
        resized = [resize_image(image, size) for size in sizes]
        if self.settings.has_flipped_views:
            resized += [np.ascontiguousarray(part[:, ::-1]) for part in resized]
        return [self._on_host(part) for part in resized]

    def _on_host(self, image: np.ndarray) -> Tensor:
        pixels = as_tensor(image)
        return pinned_empty(pixels.shape, torch.uint8).copy_(pixels) if self.device.type == "cuda" else pixels

    @torch.inference_mode()
    def predict_scores(self, image: np.ndarray) -> dict[str, Tensor]:
        """Scores of every prediction of the model, all at once; `predict` needs less memory.

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
        image = resize_image(image, self.settings.scaled_size(image.shape[:2], 1.0))
        pixels = to_device(image, self.device).permute(2, 0, 1).unsqueeze(0)
        return self.forward.output(normalize_images(pixels, self.settings.normalization))

    def _bands(
        self,
        image: np.ndarray,
        finish: Callable[[range, dict[str, Tensor]], _T],
        scaled: Sequence[Tensor] | None = None,
        *,
        names: Sequence[str] | None = None,
        seeds: bool = False,
        fields: bool = False,
    ) -> Iterator[tuple[range, _T]]:
        """Rows of the image from top to bottom, with the result of `finish` for the maps ``(n, C, W)`` predicted there.

        On the CPU several bands are finished at the same time.
        """
        size = height, width = image.shape[:2]
        scales = self.settings.scales
        nearest = scales.index(min(scales, key=lambda scale: abs(scale - 1)))  # its vectors are returned
        scaled = self.scaled_images(image) if scaled is None else scaled
        views = [
            self._view(part, size, seeds=seeds and index == nearest, fields=fields and index == nearest)
            for index, part in enumerate(scaled)
        ]
        num_classes = self._run_windows(views, size, 1, names)
        num_rows = max(1, self.backend.band_elements // (num_classes * width))
        bands = [range(first, min(height, first + num_rows)) for first in range(0, height, num_rows)]

        @torch.inference_mode()
        def finished(rows: range) -> _T:
            total: dict[str, Tensor] = {}
            for index, view in enumerate(views):
                for name, band in self._summands(view, size, rows, is_flipped=index >= len(scales)).items():
                    total[name] = total[name].add_(band) if name in total else band
            if self.settings.score != "exp" and len(views) > 1:
                for name in filter(is_score, total):
                    total[name] /= len(views)
            return finish(rows, total)

        def is_ready(rows: range) -> bool:
            return not any(view.num_due(size, rows.stop) for view in views)

        while bands:
            self._run_windows(views, size, bands[0].stop, names)
            group = [bands[0], *takewhile(is_ready, bands[1 : self.backend.bands_at_once])]
            del bands[: len(group)]
            with coarse_threads() if len(group) > 1 else nullcontext() as pool:
                results = list((pool.map if pool else map)(finished, group))
            yield from zip(group, results, strict=True)
            for view in views:
                view.forget_above(size, group[-1].stop)

    def _summands(self, view: ScaledView, size: tuple[int, int], rows: range, *, is_flipped: bool) -> dict[str, Tensor]:
        """The maps ``(n, C, W)`` that a view adds to rows of an image ``(H, W)``, by name."""
        bands = view.resized_rows(size, rows)
        if self.settings.score == "mmseg":
            for name in filter(is_score, bands):
                bands[name] = self._as_averaged(bands[name])
        return {n: self.forward.unflip(b.unsqueeze(2)).squeeze(2) for n, b in bands.items()} if is_flipped else bands

    def _view(self, image: Tensor, size: tuple[int, int], *, seeds: bool = False, fields: bool = False) -> ScaledView:
        is_late = self.settings.score == "mmseg"  # logits come to the image's size
        return ScaledView(
            image,
            self.settings.tiling((image.shape[0], image.shape[1])),
            self.backend,
            self.device,
            align_corners=self.settings.align_corners,
            averages_logits=is_late or self.settings.stride is not None,
            as_averaged=(lambda scores: scores) if is_late else self._as_averaged,
            pads_black=self.settings.padded_windows,
            first_sizes=self.settings.first_sizes(size),
            seeds=seeds,
            fields=fields,
        )

    def _run_windows(
        self, views: Sequence[ScaledView], size: tuple[int, int], row: int, names: Sequence[str] | None
    ) -> int:
        """Runs the windows that the rows above `row` of an image ``(H, W)`` need; returns the number of classes."""
        num_views, num_classes = 2 if self._flips_windows else 1, 0

        def limit(view: ScaledView) -> int:
            return max(1, self._batch_size(view) // num_views)

        while batch := due_windows(views, size, row, limit):
            pixels = [view.pixels(corner, self.settings.normalization) for view, corner in batch]
            with self._lock:  # the next run may have the memory of this one's maps
                maps = self.forward(
                    torch.cat(pixels) if len(pixels) > 1 else pixels[0],
                    names,
                    together=self._batch_size(batch[0][0]) >= num_views,
                    seeds=any(view.seeds for view, _ in batch),
                    fields=any(view.fields for view, _ in batch),
                )
                kept = {name: self.backend.keep(values) for name, values in maps.items()}
            num_classes = next(iter(maps.values())).shape[1]
            for index, (view, corner) in enumerate(batch):
                view.store(corner, {name: kept[name][index] for name in kept if _is_of(name, view)})
        return num_classes

    def _batch_size(self, view: ScaledView) -> int:
        return self.backend.batch_size(self.settings.batch_size, view.window, flip=self._flips_windows)

    def _as_averaged(self, scores: Tensor) -> Tensor:
        """The network's scores ``(n, K, w)`` as they are averaged over scales."""
        kind = self.forward.kind
        if self.settings.score == "exp":
            return scores.exp()
        if kind == "logits":
            return self.backend.softmax(scores)
        return probabilities(scores, kind) if kind == "unnormalized" else scores.clone()  # sums are in place

    def _finish(self, wanted: _Wanted, rows: range, maps: dict[str, Tensor]) -> _FinishedBand:
        """The results of rows of an image, from the maps ``(n, C, W)`` there."""
        seed = maps.pop(SEED, None)
        scores = {name: band for name, band in maps.items() if is_score(name)}
        shares: dict[str, Tensor] = {}
        best: dict[str, Tensor] = {}
        if wanted.probability or wanted.on_band is not None or (wanted.score_stride and self.settings.temperatures):
            shares = {name: self._class_probabilities(name, band) for name, band in scores.items()}
        if wanted.probability or wanted.on_band is not None:
            best = {name: band.amax(dim=1) for name, band in shares.items()}
        labels = {  # the largest of the scores is known where these are the probabilities
            name: self.backend.best_class(band, best.get(name) if shares.get(name) is band else None)
            for name, band in scores.items()
        }
        if wanted.on_band is not None:
            wanted.on_band(ClassBand(rows, shares, labels, best))
        shown = maps | shares if self.settings.temperatures else maps
        return _FinishedBand(
            labels=labels,
            probability=best if wanted.probability else {},
            vectors=None if seed is None else _every(seed, wanted.seed_stride, rows).permute(1, 0, 2).clone(),
            scores={n: _every(b, wanted.score_stride, rows).permute(1, 0, 2).clone() for n, b in shown.items()}
            if wanted.score_stride
            else {},
        )

    def _class_probabilities(self, name: str, scores: Tensor) -> Tensor:
        """Probabilities ``(n, K, W)`` from the averaged scores of a prediction; the scores may be returned."""
        if self.settings.score == "exp":  # sums of exponentials, which may have overflowed
            scores = normalised(scores.clamp_max(torch.finfo(scores.dtype).max / (2 * scores.shape[1])))
        elif self.forward.kind != "logits":  # a softmax is normalised already
            scores = normalised(scores)
        temperature = self.settings.temperatures.get(name, 1.0)
        return scores if temperature == 1 else tempered(scores, temperature)


def _put_rows(whole: dict[str, Tensor], size: tuple[int, int], rows: range, parts: Mapping[str, Tensor]) -> None:
    """Copies rows ``(n, W)`` into maps of the whole image ``(H, W)``, by name."""
    for name, part in parts.items():
        if name not in whole:
            whole[name] = torch.empty(size, dtype=part.dtype, device=part.device)
        whole[name][rows.start : rows.stop] = part


def _is_of(name: str, view: ScaledView) -> bool:
    """Whether a map of a batch belongs to a view: vectors are of one scale only."""
    return is_score(name) or (view.seeds if name == SEED else view.fields)


def _every(band: Tensor, stride: int, rows: range) -> Tensor:
    """Every `stride`-th row and column of an image, those within its rows ``(n, C, W)``."""
    return band[-rows.start % stride :: stride, :, ::stride]


def thinning(size: tuple[int, int], side: int) -> int:
    """The smallest stride that subsamples an image ``(H, W)`` to at most `side` rows and columns."""
    return max(1, -(-max(size) // side))
