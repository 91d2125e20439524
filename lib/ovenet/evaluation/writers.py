"""Results as a table, as JSON, and as pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import flow_to_image

from ovenet.data.catalog import DatasetInfo
from ovenet.data.transforms import scaled_size
from ovenet.structures import EvalResult, OVeNetOutput

# The paper's symbols for what a model predicts.
SYMBOLS = {"initial": "S_i", "seed": "S_s", "fused": "S_f"}
_IGNORED_COLOR = (0, 0, 0)
_MAX_TILE_PX = 512


def format_table(results: Mapping[str, EvalResult]) -> str:
    """Per-class IoU of all predictions side by side, and the means below, in percent.

    Args:
        results: scores by prediction name, all of the same classes.
    """
    first = next(iter(results.values()))
    width = max(len(name) for name in (*first.class_names, "mean accuracy"))
    header = f"{'IoU in %':<{width}}" + "".join(f"{SYMBOLS[name]:>9}" for name in results)
    rows = [
        (name, [result.iou[k] for result in results.values()])
        for k, name in enumerate(first.class_names)
        if name not in first.absent
    ]
    summary = [
        ("mIoU", [r.mean_iou for r in results.values()]),
        ("pixel accuracy", [r.pixel_accuracy for r in results.values()]),
        ("mean accuracy", [r.mean_accuracy for r in results.values()]),
    ]
    line = "-" * len(header)
    lines = [header, line, *(_row(*row, width) for row in rows), line, *(_row(*row, width) for row in summary)]
    if first.absent:
        lines.append(f"not in the labels and left out of the means: {', '.join(first.absent)}")
    return "\n".join(lines)


def _row(name: str, values: Sequence[float], width: int) -> str:
    return f"{name:<{width}}" + "".join(f"{100 * value:9.2f}" for value in values)


def results_as_dict(results: Mapping[str, EvalResult]) -> dict[str, Any]:
    """Scores as plain numbers in ``[0, 1]``, None where a class has no labelled pixel."""
    return {
        name: {
            "mean_iou": _plain(r.mean_iou),
            "pixel_accuracy": _plain(r.pixel_accuracy),
            "mean_accuracy": _plain(r.mean_accuracy),
            "num_pixels": r.num_pixels,
            "absent": list(r.absent),
            "iou": {c: _plain(v) for c, v in zip(r.class_names, r.iou, strict=True)},
            "accuracy": {c: _plain(v) for c, v in zip(r.class_names, r.accuracy, strict=True)},
        }
        for name, r in results.items()
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes an indented JSON file, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_prediction(labels: Tensor, name: str, folder: Path, info: DatasetInfo) -> None:
    """Writes ``ids/<name>.png``, in the ids of the dataset's label files, and ``color/<name>.png``.

    Args:
        labels: ``(H, W)`` predicted train ids.
        name: the image's path relative to its dataset; its folders are kept.
        folder: where both go.
        info: ids and colours.
    """
    train_ids = labels.cpu().numpy()
    for kind, pixels in (
        ("ids", info.label_id_table()[train_ids]),
        ("color", np.array(info.palette, dtype=np.uint8)[train_ids]),
    ):
        path = (folder / kind / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def colorize_labels(labels: Tensor, info: DatasetInfo) -> Tensor:
    """Train ids ``(H, W)`` to ``(3, H, W)`` uint8 in the dataset's colours; ids that are no class are black."""
    palette = torch.tensor((*info.palette, _IGNORED_COLOR), dtype=torch.uint8)
    index = labels.cpu().long()
    index = torch.where((index >= 0) & (index < info.num_classes), index, info.num_classes)
    return palette[index].permute(2, 0, 1)


def colorize_offset(offset: Tensor, max_offset: float) -> Tensor:
    """Offsets on a colour wheel: hue is the direction, saturation the length.

    Args:
        offset: ``(2, h, w)`` normalised ``(x, y)``.
        max_offset: length drawn at full saturation, so that pictures of a run compare.

    Returns:
        ``(3, h, w)`` uint8, white where the offset is zero.
    """
    offset = offset.cpu().float()
    length = offset.norm(dim=0, keepdim=True)
    offset = offset * (max_offset / length.clamp_min(max_offset))
    # flow_to_image scales by the longest vector: an extra column holds one of the full length.
    reference = torch.zeros(2, offset.shape[1], 1)
    reference[0] = max_offset
    return flow_to_image(torch.cat((offset, reference), dim=2))[:, :, :-1]


def picture_row(
    image: np.ndarray, labels: np.ndarray | None, output: OVeNetOutput, info: DatasetInfo, *, max_offset: float
) -> Tensor:
    """Image, label, every prediction, offsets and confidence, side by side.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        labels: ``(H, W)`` train ids, or None.
        output: the model's prediction for this one image, ``B = 1``.
        info: colours.
        max_offset: see `colorize_offset`.

    Returns:
        ``(3, h, n * w)`` uint8, each tile at most 512 pixels on its long side.
    """
    tiles = [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))]
    if labels is not None:
        tiles.append(colorize_labels(torch.from_numpy(labels), info))
    tiles += [colorize_labels(s[0].argmax(dim=0), info) for s in output.predictions().values()]
    if output.has_seed:
        tiles.append(colorize_offset(output.offset[0], max_offset))
        grey = output.confidence[0].mul(255).round().clamp(0, 255).to(torch.uint8).cpu()
        tiles.append(grey.expand(3, -1, -1))
    size = scaled_size(image.shape[:2], min(max(image.shape[:2]), _MAX_TILE_PX))
    return torch.cat([torch.nn.functional.interpolate(t[None], size, mode="nearest")[0] for t in tiles], dim=2)
