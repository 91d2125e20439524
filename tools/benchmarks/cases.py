"""Parts of training and testing, both ways on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.inputs import Options, drawn_scenes, random_labels, random_output
from benchmarks.measure import Case
from ovenet.data.augmentation import apply_changes
from ovenet.data.cache import DecodedCache
from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import ListDataset
from ovenet.data.settings import CropSettings
from ovenet.data.transforms import TrainTransform, normalize_images
from ovenet.evaluation.metrics import confusion_counts
from ovenet.geometry import resize_rows
from ovenet.inference.backend import best_class
from ovenet.losses import SegmentationCriterion
from ovenet.losses.settings import LossSettings
from ovenet.utils.coarse import coarse_threads

WEIGHTS = (0.4, 1.0)  # of the auxiliary and the final output
FLOPS_PER_SCORE = 12  # upsampling and its transpose, exponential, sum, product


def loss_case(
    options: Options,
    name: str,
    num_classes: int,
    size: tuple[int, int],
    *,
    batch: int = 2,
    ohem: tuple[float, int] | None = None,
    min_ratio: float = 0.0,
    max_memory: float = 0.0,
) -> Case:
    """Forward and backward of the whole criterion, three predictions of two outputs each."""
    size = options.size(*size)
    output = random_output(batch, num_classes, tuple(-(-n // 4) for n in size), options.device)
    labels = random_labels(batch, num_classes, size, options.device)
    inputs = (*output.initial, *output.seed, *output.fused, output.confidence)
    settings = LossSettings() if ohem is None else LossSettings(use_ohem=True, ohemthres=ohem[0], ohemkeep=ohem[1])
    criterion = SegmentationCriterion(settings, ignore_label=plain.IGNORE, output_weights=WEIGHTS).to(options.device)

    def run(loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        value = loss()
        return value.detach(), *torch.autograd.grad(value, inputs)

    def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
        torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-5)
        if ohem is None:  # a pixel at the limit may fall on either side
            for x, y in zip(a[1:], b[1:], strict=True):
                torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4 * float(y.abs().max()))

    scores = 6 * batch * num_classes * size[0] * size[1]
    return Case(
        name,
        plain=lambda: run(lambda: plain.loss(output, labels, WEIGHTS, ohem=ohem)),
        ours=lambda: run(lambda: criterion(output, labels).total),
        same=same,
        flops=FLOPS_PER_SCORE * scores,
        num_bytes=2 * sum(x.numel() * 4 for x in inputs) + 8 * labels.numel(),
        min_ratio=min_ratio,
        max_memory=max_memory,
        device=options.device,
    )


@contextmanager
def sample_case(options: Options, *, cached: bool, count: int = 17) -> Iterator[Case]:
    """Crops of Cityscapes' size at random scales, the same on both sides, of files in the system's cache."""
    info, crop = CATALOG["cityscapes"], options.size(512, 1024)
    count = 3 if options.quick else count
    with drawn_scenes(count, options.size(1024, 2048)) as (root, pairs):
        base_size = options.size(1024, 2048)[1]
        dataset = ListDataset(root, root / "train.lst", info, ignore_label=plain.IGNORE)
        transform = TrainTransform(CropSettings(crop[::-1], base_size, ignore_label=plain.IGNORE))
        if cached:
            dataset.cache = DecodedCache(root / "cache", dataset.folder, info, plain.IGNORE)
            dataset.cache.build(dataset.pairs, dataset.read_files, range(count), num_threads=2)
        table = info.train_id_table(plain.IGNORE).astype(np.int16)
        threads = cv2.getNumThreads()

        def single(run: Callable[[int], Any]) -> list[Any]:
            cv2.setNumThreads(0)  # as in a loading process
            try:
                return [run(number) for number in range(count)]
            finally:
                cv2.setNumThreads(threads)

        def plain_sample(number: int) -> Any:
            image, labels = (dataset.folder / name for name in pairs[number])
            return plain.sample(image, labels, table, crop, np.random.default_rng(number))

        def same(a: list[Any], b: list[Any]) -> None:
            """The same crops: the random numbers are drawn in the same order."""
            for (pixels, labels), ours in zip(a, map(apply_changes, b), strict=True):
                np.testing.assert_array_equal(labels, ours.labels)
                normalized = normalize_images(torch.from_numpy(ours.image.transpose(2, 0, 1)[None].copy()))[0].numpy()
                assert np.abs(pixels - normalized)[:, ours.labels != plain.IGNORE].max() < 1.5 / 255 / 0.224

        yield Case(
            f"training sample, Cityscapes, {'cached' if cached else 'decoded'} ({count} samples)",
            plain=lambda: single(plain_sample),
            ours=lambda: single(lambda number: transform(dataset[number], np.random.default_rng(number))),
            same=same,
            num_bytes=count * 2 * crop[0] * crop[1] * (3 + 2),
            num_images=count,
            min_ratio=6.0 if cached else 1.1,
        )


def counts_case(options: Options, *, from_scores: bool) -> Case:
    """Confusion counts of one prediction of 1024x2048, of label maps or of the network's scores."""
    size, k = options.size(1024, 2048), 19
    labels = random_labels(1, k, size, torch.device("cpu"))[0].to(torch.int16)
    scores = torch.randn(1, k, size[0] // 4, size[1] // 4, generator=torch.Generator().manual_seed(0))
    predicted = plain.classes_of(scores, size)

    def ours_from_scores() -> Tensor:
        by_row = scores[0].permute(1, 0, 2).contiguous()
        band = max(1, 2**20 // (k * size[1]))
        bands = [range(first, min(first + band, size[0])) for first in range(0, size[0], band)]
        with coarse_threads() as pool:  # as `SlidingWindowInferencer` finishes its bands
            rows = list(pool.map(lambda rows: best_class(resize_rows(by_row, size, rows, align_corners=True)), bands))
        return confusion_counts(torch.cat(rows), labels, k, ignore_label=plain.IGNORE)

    def same(a: np.ndarray, b: Tensor) -> None:
        assert np.abs(a - b.numpy()).sum() <= 2e-4 * a.sum()  # where two classes are equally likely

    if from_scores:
        return Case(
            "confusion counts of a 1024x2048 image, from scores at stride 4",
            plain=lambda: plain.confusion(plain.classes_of(scores, size), labels.numpy(), k),
            ours=ours_from_scores,
            same=same,
            flops=4 * k * size[0] * size[1],
            num_bytes=scores.numel() * 4 + 3 * labels.numel(),
            min_ratio=3.0,
        )
    return Case(
        "confusion counts of a 1024x2048 image, from label maps",
        plain=lambda: plain.confusion(predicted, labels.numpy(), k),
        ours=lambda: confusion_counts(torch.from_numpy(predicted), labels, k, ignore_label=plain.IGNORE),
        same=same,
        num_bytes=3 * labels.numel(),
        min_ratio=1.5,
    )
