"""Images in memory, as a network's pixels: arrays, tensors, Pillow images and the bytes of files."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ovenet.data.files import read_image, to_rgb
from ovenet.data.foreign import name_content
from ovenet.errors import UserError, one_line

ImageLike = np.ndarray | Image.Image | Tensor | bytes | bytearray | memoryview | str | Path
RGB = 3  # channels
_EXPECTED = "expected a path, bytes of a file, a Pillow image, an array or a tensor"


def as_image(image: ImageLike, num_channels: int = RGB) -> np.ndarray:
    """Any image as ``(H, W, C)`` uint8, by default RGB.

    Args:
        image: a path, the bytes of a file, a Pillow image, an array ``(H, W, C)`` or a tensor ``(C, H, W)``; see
            `ovenet.predictor.predictor.Predictor.__call__`.
        num_channels: ``C``, which the network takes; for another number than 3, arrays and tensors alone.

    Raises:
        UserError: it is no image, cannot be read, or has another number of channels.
    """
    is_pixels = isinstance(image, (np.ndarray, Tensor))
    if num_channels != RGB and not is_pixels:
        raise UserError(
            f"this model takes images with {num_channels} channels, and files are read in RGB; give it arrays "
            f"(H, W, {num_channels})"
        )
    if isinstance(image, (str, Path)):
        if "://" in str(image):
            raise UserError(f"{image}: addresses are not fetched; download the image, and name its file")
        return read_image(Path(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decoded(bytes(image))
    if isinstance(image, Image.Image):
        return to_rgb(image, "the image")
    if isinstance(image, Tensor):
        image = _tensor_as_array(image, num_channels)
    if not isinstance(image, np.ndarray):
        raise UserError(f"{type(image).__name__} is no image; {_EXPECTED}")
    return _pixels(image, num_channels)


def as_viewed(image: np.ndarray) -> np.ndarray:
    """``(H, W, C)`` uint8 as RGB for the eye: the first three channels, or the first one as grey."""
    if image.shape[2] == RGB:
        return image
    return image[..., :RGB] if image.shape[2] > RGB else np.repeat(image[..., :1], RGB, axis=2)


def _pixels(image: np.ndarray, num_channels: int) -> np.ndarray:
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    accepted = (1, RGB, 4) if num_channels == RGB else (num_channels,)
    is_grey = image.ndim == 2 and 1 in accepted
    if image.dtype != np.uint8 or not (is_grey or (image.ndim == 3 and image.shape[2] in accepted)):
        forms = ", ".join(["(H, W)", "(H, W, 3)"] if 1 in accepted and num_channels == RGB else [])
        forms = f"{forms} or (H, W, 4)" if forms else f"(H, W, {num_channels})"
        raise UserError(f"an array of shape {image.shape} and type {image.dtype}; expected {forms}, uint8 or uint16")
    if not image.size:
        raise UserError(f"an array of shape {image.shape}; expected at least one pixel")
    if image.ndim == 2:
        image = image[..., None]
    if num_channels == RGB and image.shape[2] == 1:
        return np.repeat(image, RGB, axis=2)
    return np.ascontiguousarray(image[..., :num_channels])


def _decoded(content: bytes) -> np.ndarray:
    """The pixels of a file's bytes, upright."""
    name = f"{len(content)} bytes"
    try:
        with Image.open(BytesIO(content)) as image:
            return to_rgb(image, name)
    except (MemoryError, UserError):
        raise
    except UnidentifiedImageError:
        what = name_content(content) or "no image, or a damaged one"
        raise UserError(f"{name}: {what}; expected the bytes of an image file") from None
    except Exception as error:  # damaged content can fail anywhere in Pillow's decoders
        raise UserError(f"{name}: the image cannot be read ({one_line(error)}); replace it") from error


def _tensor_as_array(image: Tensor, num_channels: int) -> np.ndarray:
    accepted = (1, RGB) if num_channels == RGB else (num_channels,)
    if image.ndim != 3 or image.shape[0] not in accepted:
        forms = " or ".join(f"({n}, H, W)" for n in reversed(accepted))
        raise UserError(f"a tensor of shape {tuple(image.shape)}; expected {forms}")
    if image.is_floating_point():
        low, high = (float(x) for x in image.aminmax()) if image.numel() else (0.0, 1.0)
        if not (low >= 0 and high <= 1):
            raise UserError(f"a tensor of real numbers from {low:g} to {high:g}; expected 0 to 1, not normalised")
        image = image.float().mul(255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise UserError(f"a tensor of type {image.dtype}; expected uint8, or real numbers from 0 to 1")
    return np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy())
