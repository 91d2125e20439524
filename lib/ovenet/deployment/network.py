"""A segmentor as a function of one tensor, for export."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ovenet.deployment.about import LABELS
from ovenet.geometry import GatherSampling, resize_bilinear
from ovenet.models import Segmentor
from ovenet.structures import Normalization


class ExportableNetwork(nn.Module):
    """Pixels to a tuple of tensors.

    Args:
        model: segmentor in evaluation mode.
        tensors: names of the outputs: ``initial``, ``seed``, ``fused``, ``offset``, ``confidence``; or ``labels``
            alone, the classes ``(B, H, W)`` uint8 of the fused scores at the image's size.
        align_corners: convention of the score upsampling.
        output_index: which score map, -1 the final one.
        normalization: applied here to RGB from 0 to 255; None for input that is already normalised.
        gathers: whether bilinear samples are four gathers and a blend instead of torch's `grid_sample`, which
            becomes ONNX's ``GridSample``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Segmentor,
        tensors: Sequence[str],
        *,
        align_corners: bool,
        output_index: int = -1,
        normalization: Normalization | None = None,
        gathers: bool = False,
    ):
        super().__init__()
        self.model = model
        self.tensors = tuple(tensors)
        self.align_corners, self.output_index = align_corners, output_index
        self.is_bgr = normalization is not None and normalization.channel_order == "BGR"
        self.normalizes, self.gathers = normalization is not None, gathers
        if normalization is not None:  # a buffer of None trips the exporter of torch 2.6
            for name in ("mean", "std"):
                values = 255 * torch.tensor(getattr(normalization, name)).view(3, 1, 1)
                self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` float32."""
        if self.normalizes:
            images = ((images.flip(1) if self.is_bgr else images) - self.mean) / self.std
        with GatherSampling() if self.gathers else nullcontext():
            output = self.model(images)
        scores = output.predictions(self.output_index)
        if self.tensors == (LABELS,):
            height, width = images.shape[-2:]
            resized = resize_bilinear(scores["fused"], (height, width), align_corners=self.align_corners)
            return (resized.argmax(dim=1).to(torch.uint8 if resized.shape[1] <= 256 else torch.int16),)
        maps = {**scores, "offset": output.offset, "confidence": output.confidence}
        return tuple(maps[name] for name in self.tensors)
