"""The plain way: what public training code does, written anew with torch, OpenCV and numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.structures import OVeNetOutput

IGNORE = 255
_MEAN, _STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def loss(
    output: OVeNetOutput,
    labels: Tensor,
    weights: Sequence[float],
    *,
    class_weights: Tensor | None = None,
    ohem: tuple[float, int] | None = None,
) -> Tensor:
    """The whole criterion, every score map at label size; hard pixels are found by sorting all."""
    total = torch.zeros(())
    size = labels.shape[-2:]
    for maps, factor in ((output.initial, 0.5), (output.seed, 0.5), (output.fused, 1.0)):
        for index, (scores, weight) in enumerate(zip(maps, weights, strict=True)):
            scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=True)
            if ohem is None or index < len(maps) - 1:
                value = F.cross_entropy(scores, labels, weight=class_weights, ignore_index=IGNORE)
            else:
                value = _ohem(scores, labels, class_weights, *ohem)
            total = total + factor * weight * value
    if output.offset is None:
        return total
    return total + _confidence_loss(output, labels)


def _ohem(scores: Tensor, labels: Tensor, class_weights: Tensor | None, threshold: float, min_kept: int) -> Tensor:
    losses = F.cross_entropy(scores, labels, weight=class_weights, ignore_index=IGNORE, reduction="none").flatten()
    probabilities = F.softmax(scores, dim=1)
    valid = labels.flatten() != IGNORE
    known = labels.masked_fill(labels == IGNORE, 0)
    own = probabilities.gather(1, known.unsqueeze(1)).flatten()[valid]
    ordered, _ = own.contiguous().sort()
    limit = max(ordered[min(min_kept, own.numel() - 1)], threshold)
    return losses[valid][own < limit].mean()


def _confidence_loss(output: OVeNetOutput, labels: Tensor) -> Tensor:
    size = height, width = labels.shape[-2:]
    offset = F.interpolate(output.offset, size=size, mode="bilinear", align_corners=True).detach()
    confidence = F.interpolate(output.confidence, size=size, mode="bilinear", align_corners=True)[:, 0]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    grid = (torch.stack((x, y), dim=-1).to(offset.device) + offset.permute(0, 2, 3, 1)).clamp(-1, 1)
    seed = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=True)[:, 0].long()
    valid = (labels != IGNORE) & (seed != IGNORE)
    losses = F.binary_cross_entropy(confidence, (seed == labels).float(), reduction="none")
    return losses[valid].mean()


def sample(
    image_path: Path, label_path: Path, table: np.ndarray, crop: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One training sample: all is read, all is resized, and a crop is cut out and normalised."""
    image = cv2.imread(str(image_path), cv2.IMREAD_COLOR)
    labels = table[cv2.imread(str(label_path), cv2.IMREAD_GRAYSCALE)]
    height, width = image.shape[:2]
    scale = 0.5 + int(rng.integers(17)) / 10
    long_side = round(width * scale)
    size = (long_side, max(1, round(height * long_side / width)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
    bottom, right = (max(n - m, 0) for n, m in zip(crop, labels.shape, strict=True))
    if bottom or right:
        image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(104, 116, 124))
        labels = cv2.copyMakeBorder(labels, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=IGNORE)
    top, left = (int(rng.integers(n - m + 1)) for n, m in zip(labels.shape, crop, strict=True))
    image = image[top : top + crop[0], left : left + crop[1]]
    labels = labels[top : top + crop[0], left : left + crop[1]]
    pixels = image.astype(np.float32)[:, :, ::-1] / 255.0
    pixels -= _MEAN
    pixels /= _STD
    if rng.random() < 0.5:
        pixels, labels = pixels[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), np.ascontiguousarray(labels)


def confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts that a loop over all pairs of classes puts into a table."""
    valid = labels != IGNORE
    index = (labels[valid].astype(np.int32) * num_classes + predicted[valid]).astype(np.int32)
    counts = np.bincount(index)
    table = np.zeros((num_classes, num_classes))
    for row in range(num_classes):
        for column in range(num_classes):
            place = row * num_classes + column
            if place < len(counts):
                table[row, column] = counts[place]
    return table


def classes_of(scores: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Best classes ``(H, W)`` of scores ``(1, K, h, w)``, upsampled as a whole."""
    scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=True)
    return np.asarray(np.argmax(scores.cpu().numpy().transpose(0, 2, 3, 1), axis=3), dtype=np.uint8)[0]


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, criterion: Callable[[OVeNetOutput, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], float]:
    """A step in float32, without compilation or fusion, that reads its loss."""

    def step(images: Tensor, labels: Tensor) -> float:
        optimizer.zero_grad()
        value = criterion(model(images), labels)
        value.backward()
        optimizer.step()
        return value.item()

    return step


@torch.no_grad()
def predict(
    model: nn.Module,
    image: np.ndarray,
    *,
    base_size: int,
    window: tuple[int, int],
    scales: Sequence[float],
    device: torch.device,
    flip: bool = True,
) -> np.ndarray:
    """Several scales, flipped views if asked for, one window at a time; all scores are kept at full size."""
    size = height, width = image.shape[:2]
    total = None
    for scale in scales:
        long_side = round(base_size * scale)
        scaled_size = (max(1, round(height * long_side / width)), long_side)
        scaled = cv2.resize(image, scaled_size[::-1], interpolation=cv2.INTER_LINEAR)
        pixels = (scaled.astype(np.float32) / 255.0 - _MEAN) / _STD
        whole = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        scores = _windows(model, whole, window, device, flip=flip)
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=True)
        total = scores if total is None else total + scores
    return np.asarray(np.argmax(total.numpy()[0], axis=0), dtype=np.uint8)


def _windows(model: nn.Module, whole: Tensor, window: tuple[int, int], device: torch.device, *, flip: bool) -> Tensor:
    height, width = whole.shape[-2:]
    h, w = min(height, window[0]), min(width, window[1])
    total, counts = None, torch.zeros(1, 1, height, width)
    for top in _starts(height, h):
        for left in _starts(width, w):
            box = np.s_[:, :, top : top + h, left : left + w]
            part = whole[box].to(device)
            scores = model(part).fused[-1]
            if flip:
                scores = (scores + model(part.flip(3)).fused[-1].flip(3)) / 2
            scores = F.interpolate(scores, size=(h, w), mode="bilinear", align_corners=True).softmax(dim=1).cpu()
            total = torch.zeros(1, scores.shape[1], height, width) if total is None else total
            total[box] += scores
            counts[box] += 1
    return total / counts


def _starts(length: int, window: int) -> list[int]:
    starts = list(range(0, length - window + 1, window))
    return starts if starts[-1] + window == length else [*starts, length - window]
