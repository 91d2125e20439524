"""Data of the report's gallery, small enough that hundreds of images fit into one file.

Maps of classes are shown at the size of the photograph; offsets, confidence and scores lie on a coarser grid. All are
lossless WebP images, with numbers in their channels:

    label, initial, seed, fused     train id, `IGNORE_ID` for none
    offset, fields                  x and y as 12-bit numbers: upper 8 bits of x, of y, then the lower 4 of both
    confidence                      0 to 255
    classes and shares              the three best classes of a prediction, and their shares of the score, 0 to 255
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovenet.data.transforms import resize_image, resize_labels, scaled_size
from ovenet.errors import UserError
from ovenet.inference.inferencer import Prediction, thinning
from ovenet.structures import Sample
from ovenet.utils.writing import write_text

IGNORE_ID = 255
OFFSET_SPAN = 2.0  # offsets are within ±2: the image spans 2
NUM_BEST = 3
MAX_IMAGES = 500
MAX_BYTES = 60_000_000  # of a page
_PHOTO_QUALITY = 75
_OFFSET_STEPS = 4095


def picture_sides(num_images: int) -> tuple[int, int]:
    """Longest sides of the photograph and of the coarse grid, in pixels: the fewer images, the larger."""
    return (384, 96) if num_images > 200 else (512, 128) if num_images > 80 else (768, 192)


def picture_data(
    sample: Sample, prediction: Prediction, num_classes: int, *, photo_side: int, grid_side: int
) -> dict[str, Any]:
    """Everything the gallery shows of one image.

    Args:
        sample: the image and its label, if it has one.
        prediction: with ``scores`` subsampled to `grid_side`; offset and confidence may be None.
        num_classes: ``K``, at most 255.
        photo_side: longest side of the photograph and the maps of classes, in pixels.
        grid_side: longest side of the coarse grid, in pixels.
    """
    height, width = sample.image.shape[:2]
    size = scaled_size((height, width), min(photo_side, max(height, width)))
    photo = cv2.resize(sample.image, size[::-1], interpolation=cv2.INTER_AREA) if size[0] < height else sample.image
    stride = thinning((height, width), grid_side)
    data: dict[str, Any] = {
        "size": [height, width],
        "stride": stride,
        "photo": encode_webp(resize_image(photo, size), lossless=False),
        "maps": {name: _class_map(labels.cpu().numpy(), size) for name, labels in prediction.labels.items()},
        "best": {name: _best_classes(scores) for name, scores in prediction.scores.items() if name != "seed"},
    }
    if sample.labels is None:
        data["shares"] = {name: _class_shares(labels) for name, labels in prediction.labels.items()}
    else:
        is_class = (sample.labels >= 0) & (sample.labels < num_classes)
        data["maps"]["label"] = _class_map(np.where(is_class, sample.labels, IGNORE_ID), size)
    if prediction.offset is not None and prediction.confidence is not None:
        data["offset"] = _offset_map(prediction.offset[:, ::stride, ::stride])
        confidence = prediction.confidence[0, ::stride, ::stride].mul(255).round().to(torch.uint8)
        data["confidence"] = encode_webp(confidence.cpu().numpy())
    for title, field in prediction.fields.items():
        longest = max(float(field.abs().max()), 1e-6)
        data.setdefault("fields", {})[title] = {"offset": _offset_map(field, longest), "longest": longest}
    return data


def _class_shares(labels: Tensor) -> list[tuple[int, float]]:
    """The classes that occur and their shares of the pixels, largest first."""
    counts = np.bincount(labels.cpu().numpy().ravel())
    return [(int(k), round(counts[k] / labels.numel(), 6)) for k in np.argsort(-counts, kind="stable") if counts[k]]


def _class_map(labels: np.ndarray, size: tuple[int, int]) -> str:
    return encode_webp(resize_labels(labels.astype(np.int16), size).astype(np.uint8))


def _offset_map(offset: Tensor, span: float = OFFSET_SPAN) -> str:
    """``(2, h, w)`` normalised ``(x, y)``, within ± `span`."""
    share = (offset.cpu().double().numpy() + span) / (2 * span)
    x, y = np.clip(np.rint(share * _OFFSET_STEPS), 0, _OFFSET_STEPS).astype(np.int32)
    return encode_webp(np.stack((x >> 4, y >> 4, (x & 15) << 4 | (y & 15)), axis=-1).astype(np.uint8))


def _best_classes(scores: Tensor) -> dict[str, str]:
    """Scores ``(K, h, w)`` to the best classes and their shares."""
    shares = scores / scores.sum(dim=0, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
    best = shares.topk(min(NUM_BEST, len(shares)), dim=0)
    classes, values = (t.permute(1, 2, 0).cpu() for t in (best.indices, best.values.mul(255).round()))
    missing = NUM_BEST - classes.shape[-1]
    padded = [np.pad(t.numpy().astype(np.uint8), ((0, 0), (0, 0), (0, missing))) for t in (classes, values)]
    return {"classes": encode_webp(padded[0]), "shares": encode_webp(padded[1])}


def encode_webp(pixels: np.ndarray, *, lossless: bool = True) -> str:
    """Base64 of ``(H, W)`` or ``(H, W, 3)`` uint8; grey values are repeated in all channels."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    image.save(buffer, "WEBP", lossless=lossless, quality=100 if lossless else _PHOTO_QUALITY, method=4, exact=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def picture_path(folder: Path, index: int) -> Path:
    """Path of the pictures of the image with this index in the list."""
    return folder / "gallery" / f"{index}.json"


def save_picture_data(data: Mapping[str, Any], path: Path) -> None:
    """Writes the pictures of one image atomically."""
    write_text(path, json.dumps(data, separators=(",", ":")))


def read_picture(path: Path) -> Any:
    """The pictures of one image.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); run tools/test.py again with TEST.REPORT True") from error


def choose_images(records: Sequence[Mapping[str, Any]], limit: int = MAX_IMAGES) -> list[Mapping[str, Any]]:
    """The images that the gallery shows, in the order of the list.

    If there are too many, a third has the lowest mIoU of S_f, a third was changed most by the seeds, a tenth gained and
    a tenth lost most mIoU by them, a twentieth has the lowest label quality, and the others are spread evenly over the
    list.
    """
    if len(records) <= limit:
        return list(records)
    by_iou = sorted(records, key=lambda record: _or(record["scores"]["fused"]["mean_iou"], 2.0))
    by_change = sorted(records, key=lambda record: -(_or(record.get("changed"), 0.0)))
    gains = [(gain, place) for place, record in enumerate(records) if (gain := _gain(record)) is not None]
    by_gain = [records[place] for _, place in sorted(gains)]
    by_quality = sorted(
        (record for record in records if record.get("label_quality")), key=lambda r: r["label_quality"]["score"]
    )
    firsts = (
        by_quality[: limit // 20],
        by_iou[: limit // 3],
        by_change[: limit // 3],
        by_gain[: limit // 10],
        by_gain[::-1][: limit // 10],
    )
    chosen = {record["index"] for ranked in firsts for record in ranked}
    rest = [record["index"] for record in records if record["index"] not in chosen]
    positions = np.linspace(0, len(rest) - 1, limit - len(chosen)).round().astype(int)
    chosen |= {rest[position] for position in positions}
    return [record for record in records if record["index"] in chosen]


def _gain(record: Mapping[str, Any]) -> float | None:
    """What the seeds added to the image's mIoU; None without seeds, or without a labelled pixel."""
    before, after = (record["scores"].get(name, {}).get("mean_iou") for name in ("initial", "fused"))
    return None if before is None or after is None else after - before


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of an ``images.jsonl``.

    Raises:
        UserError: a line is not in the form of `write_records`; names the line.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            index, name = record["index"], record["name"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not the record of an image; run tools/test.py again") from error
        if type(index) is not int or index < 0:  # it becomes part of file names
            raise UserError(f"{path}, line {number}: index is {index!r}; expected an integer of at least 0")
        if not isinstance(name, str):
            raise UserError(f"{path}, line {number}: name is {name!r}; expected a string")
        records.append(record)
    return records


def write_records(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes an ``images.jsonl``: one line per image, in the order of the list."""
    write_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
