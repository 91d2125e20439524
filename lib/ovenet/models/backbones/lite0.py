"""EfficientNet-Lite0 with ImageNet weights from a Python package."""

from __future__ import annotations

from typing import Literal

from ovenet.models.interfaces import Backbone
from ovenet.models.registry import BACKBONES


@BACKBONES.register("efficientnet_lite0_imagenet")
def efficientnet_lite0_imagenet(
    *, output_stride: Literal[8, 16, 32] = 32, drop_path_rate: float | None = None, in_channels: int = 3
) -> Backbone:
    """See `ovenet.models.backbones.timm.EfficientNetLite0`."""
    from ovenet.models.backbones.timm import EfficientNetLite0  # timm takes a second to import

    return EfficientNetLite0(output_stride=output_stride, drop_path_rate=drop_path_rate, in_channels=in_channels)
