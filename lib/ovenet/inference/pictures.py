"""Predictions, offsets and confidence as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ovenet.data.info import DatasetInfo
from ovenet.data.sheets import colorize, hatch
from ovenet.data.transforms import scaled_size
from ovenet.geometry import resize_bilinear
from ovenet.inference.inferencer import SlidingWindowInferencer
from ovenet.structures import SYMBOLS, OVeNetOutput, Sample
from ovenet.utils.writing import write_file

_MAX_TILE_PX = 512
_GAP_PX, _CAPTION_PX, _LEGEND_ROW = 4, 18, 18
OUTCOMES = {  # outcomes of a pixel and their colours in error maps, here and in the report
    "right in S_i and S_f": (214, 214, 214),
    "corrected by the seeds": (0, 114, 178),
    "broken by the seeds": (213, 94, 0),
    "wrong in both": (240, 228, 66),
    "no label": (0, 0, 0),
}


def save_prediction(labels: Tensor, name: str, folder: Path, info: DatasetInfo) -> None:
    """Writes ``ids/<name>.png``, in the ids of the dataset's label files, and ``color/<name>.png``.

    Args:
        labels: ``(H, W)`` predicted train ids.
        name: the image's path relative to its dataset; its folders are kept.
        folder: folder of both files.
        info: ids and colours.
    """
    train_ids = labels.cpu().numpy()
    save_png(info.label_id_table()[train_ids], prediction_path(folder, name))
    save_color_png(train_ids, (folder / "color" / name).with_suffix(".png"), info)


def prediction_path(folder: Path, name: str) -> Path:
    """Path of the ids that `save_prediction` writes for an image."""
    return (folder / "ids" / name).with_suffix(".png")


def colorize_labels(labels: Tensor, info: DatasetInfo) -> Tensor:
    """Train ids ``(H, W)`` to ``(3, H, W)`` uint8 in the dataset's colours; ids without a class are black."""
    return torch.from_numpy(colorize(labels.cpu().numpy(), info)).permute(2, 0, 1)


def colorize_offset(offset: Tensor, max_offset: float) -> Tensor:
    """Offsets on a colour wheel: hue is the direction, saturation the length.

    Args:
        offset: ``(2, h, w)`` normalised ``(x, y)``.
        max_offset: length drawn at full saturation, so that pictures of a run compare.

    Returns:
        ``(3, h, w)`` uint8, white where the offset is zero.
    """
    from torchvision.utils import flow_to_image  # importing torchvision takes longer than all else together

    offset = offset.cpu().float()
    length = offset.norm(dim=0, keepdim=True)
    offset = offset * (max_offset / length.clamp_min(max_offset))
    # flow_to_image scales by the longest vector: an extra column holds one of full length.
    reference = torch.zeros(2, offset.shape[1], 1)
    reference[0] = max_offset
    return flow_to_image(torch.cat((offset, reference), dim=2))[:, :, :-1]


def picture_row(
    sample: Sample, output: OVeNetOutput, info: DatasetInfo, *, max_offset: float | None, align_corners: bool
) -> Tensor:
    """Image, label, every prediction, errors, offsets and confidence, side by side under captions.

    Ignored pixels of the label are hatched. The errors are those of S_f: grey where it is right, blue where the seeds
    corrected S_i, orange where they broke it, yellow where both are wrong, black where there is no label.

    Args:
        sample: the image and, where there is one, its label.
        output: the model's prediction for this one image, ``B = 1``.
        info: colours.
        max_offset: see `colorize_offset`; None for a baseline.
        align_corners: convention of the score upsampling.

    Returns:
        ``(3, H, W)`` uint8, each of the tiles at most 512 pixels on its long side.
    """
    size = scaled_size(sample.image.shape[:2], min(max(sample.image.shape[:2]), _MAX_TILE_PX))
    tiles = {"image": torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))}
    predicted = {}
    for name, scores in output.predictions().items():
        scores = resize_bilinear(scores, size, align_corners=align_corners)
        predicted[name] = scores[0].argmax(dim=0).cpu()
    if sample.labels is not None:
        labels = torch.from_numpy(sample.labels)
        labels = F.interpolate(labels[None, None].float(), size, mode="nearest")[0, 0].long()
        ignored = (labels < 0) | (labels >= info.num_classes)
        hatched = hatch(colorize(labels.numpy(), info), ignored.numpy())
        tiles["label"] = torch.from_numpy(hatched).permute(2, 0, 1)
    tiles |= {SYMBOLS[name]: colorize_labels(classes, info) for name, classes in predicted.items()}
    if sample.labels is not None:
        tiles["errors"] = error_map(labels, predicted, info.num_classes)
    if output.offset is not None and output.confidence is not None and max_offset is not None:
        tiles["offsets"] = colorize_offset(output.offset[0], max_offset)
        grey = output.confidence[0].mul(255).round().clamp(0, 255).to(torch.uint8).cpu()
        tiles["confidence"] = grey.expand(3, -1, -1)
    return side_by_side({title: F.interpolate(t[None], size, mode="nearest")[0] for title, t in tiles.items()})


def predicted_row(predictor: SlidingWindowInferencer, sample: Sample, info: DatasetInfo) -> Tensor:
    """`picture_row` of a network's prediction at one scale."""
    max_offset: float | None = getattr(predictor.model, "max_offset", None)
    output, align_corners = predictor.predict_output(sample.image), predictor.settings.align_corners
    return picture_row(sample, output, info, max_offset=max_offset, align_corners=align_corners)


def error_map(labels: Tensor, predicted: Mapping[str, Tensor], num_classes: int) -> Tensor:
    """The errors of S_f and the changes by the seeds, if any, in the colours of `OUTCOMES`.

    Args:
        labels: ``(H, W)`` train ids; other ids count as unlabelled.
        predicted: ``(H, W)`` train ids by prediction name.
        num_classes: ``K``.

    Returns:
        ``(3, H, W)`` uint8.
    """
    after = predicted["fused"] == labels
    before = predicted.get("initial", predicted["fused"]) == labels
    outcome = torch.where(after, (~before).long(), 3 - before.long())
    outcome[(labels < 0) | (labels >= num_classes)] = 4
    return torch.tensor(list(OUTCOMES.values()), dtype=torch.uint8)[outcome].permute(2, 0, 1)


def side_by_side(tiles: dict[str, Tensor]) -> Tensor:
    """Tiles ``(3, h, w)`` of one size beside each other, each under its title."""
    height, width = next(iter(tiles.values())).shape[1:]
    canvas = Image.new("RGB", (len(tiles) * (width + _GAP_PX) - _GAP_PX, height + _CAPTION_PX), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for index, (title, tile) in enumerate(tiles.items()):
        left = index * (width + _GAP_PX)
        pen.text((left + 2, 1), title, fill="black", font=font)
        canvas.paste(Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy()), (left, _CAPTION_PX))
    return torch.from_numpy(np.asarray(canvas).copy()).permute(2, 0, 1)


def save_picture(picture: Tensor, path: Path) -> None:
    """Writes ``(3, H, W)`` uint8 as a PNG, creating its folder."""
    save_png(picture.permute(1, 2, 0).numpy(), path)


def save_color_png(train_ids: np.ndarray, path: Path, info: DatasetInfo) -> None:
    """Writes ``(H, W)`` train ids as a PNG with a palette: it shows the colours and holds the train ids."""
    image = _grey_image(train_ids.astype(np.uint8, copy=False))
    image.putpalette(np.array(info.palette, dtype=np.uint8).tobytes())
    write_file(path, image.save)


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Writes ``(H, W)`` or ``(H, W, 3)`` uint8, or ``(H, W)`` uint16, creating the folder."""
    is_grey = pixels.ndim == 2 and pixels.dtype == np.uint8
    write_file(path, (_grey_image(pixels) if is_grey else Image.fromarray(pixels)).save)


def _grey_image(pixels: np.ndarray) -> Image.Image:
    """``(H, W)`` uint8 without a copy: maps can be hundreds of megabytes."""
    pixels = np.ascontiguousarray(pixels)
    return Image.frombuffer("L", pixels.shape[::-1], pixels, "raw", "L", 0, 1)


def draw_legend(entries: Sequence[tuple[str, Sequence[int]]], width: int) -> Image.Image:
    """A patch of colour and a text for each entry, in as many columns as fit.

    Args:
        entries: texts and RGB colours.
        width: of the picture, which is wider where a text is.
    """
    font = ImageFont.load_default(13)
    column_width = max(int(font.getlength(text)) for text, _ in entries) + 2 * _LEGEND_ROW
    columns = max(1, width // column_width)
    rows = -(-len(entries) // columns)
    canvas = Image.new("RGB", (max(width, column_width), rows * _LEGEND_ROW + 6), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (text, color) in enumerate(entries):
        left, top = index % columns * column_width + 4, index // columns * _LEGEND_ROW + 4
        draw.rectangle((left, top, left + 12, top + 12), fill=tuple(color), outline="black")
        draw.text((left + _LEGEND_ROW, top - 2), text, fill="black", font=font)
    return canvas
