"""Object-contextual representations (Yuan et al., "Object-Contextual Representations for Semantic Segmentation", 2020).

Shapes: ``N = h * w`` pixels, ``K`` classes, one object region per class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ovenet.models.heads.plain import CLASSIFIER_WEIGHT_STD, PlainHead, reset_predictor


def _conv_bn_relu(in_channels: int, out_channels: int, num_layers: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(num_layers):
        first = nn.Conv2d(in_channels if i == 0 else out_channels, out_channels, 1, bias=False)
        layers += [first, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def gather_regions(features: Tensor, region_logits: Tensor) -> Tensor:
    """Each region's features: the pixels' features weighted by the softmax of the region's logits over all pixels.

    Args:
        features: ``(B, C, h, w)``.
        region_logits: ``(B, K, h, w)``.

    Returns:
        ``(B, C, K)``, the weights computed in float32 at least.
    """
    logits = region_logits.flatten(2)
    weights = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=2).to(features.dtype)
    return torch.einsum("bcn,bkn->bck", features.flatten(2), weights)


class RegionAttention(nn.Module):
    """Attention from pixels (queries) to object regions (keys and values)."""

    def __init__(self, channels: int, key_channels: int):
        super().__init__()
        self.scale = key_channels**-0.5
        self.query = _conv_bn_relu(channels, key_channels, num_layers=2)
        self.key = _conv_bn_relu(channels, key_channels, num_layers=2)
        self.value = _conv_bn_relu(channels, key_channels)
        self.up = _conv_bn_relu(key_channels, channels)

    def forward(self, features: Tensor, regions: Tensor) -> Tensor:
        """Pixel features ``(B, C, h, w)`` and region features ``(B, C, K)`` to the context ``(B, C, h, w)``."""
        query = self.query(features).flatten(2)  # (B, C', N)
        regions = regions.unsqueeze(-1)  # (B, C, K, 1)
        key, value = self.key(regions).flatten(2), self.value(regions).flatten(2)  # (B, C', K)
        weights = torch.einsum("bcn,bck->bnk", query, key).mul(self.scale).softmax(dim=2)
        context = torch.einsum("bnk,bck->bcn", weights.to(value.dtype), value)
        return self.up(context.unflatten(2, features.shape[-2:]))


class OCRHead(nn.Module):
    """A plain head for the regions, and a final prediction from pixel features joined with their object context.

    Args:
        in_channels: channels of the features.
        num_classes: ``K``.
        mid_channels: width of pixel and region features (``MODEL.OCR.MID_CHANNELS``).
        key_channels: width of queries and keys (``MODEL.OCR.KEY_CHANNELS``).
        dropout: of whole channels, before the classifier (``MODEL.OCR.DROPOUT``).
        final_kernel: size of the auxiliary head's last convolution.
    """

    num_outputs = 2

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        mid_channels: int = 512,
        key_channels: int = 256,
        dropout: float = 0.05,
        final_kernel: int = 1,
    ):
        super().__init__()
        self.auxiliary = PlainHead(in_channels, num_classes, final_kernel=final_kernel)
        self.pixels = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 3, padding=1), nn.BatchNorm2d(mid_channels), nn.ReLU(inplace=True)
        )
        self.attention = RegionAttention(mid_channels, key_channels)
        self.join = nn.Sequential(*_conv_bn_relu(2 * mid_channels, mid_channels), nn.Dropout2d(dropout))
        self.classifier = nn.Conv2d(mid_channels, num_classes, 1)

    def reset_prediction(self) -> None:
        """Initialises the final classifier; the auxiliary head does so itself."""
        reset_predictor(self.classifier, CLASSIFIER_WEIGHT_STD)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, h, w)`` to the auxiliary and the final logits, each ``(B, K, h, w)``."""
        (auxiliary,) = self.auxiliary(features)
        pixels = self.pixels(features)
        context = self.attention(pixels, gather_regions(pixels, auxiliary))
        return auxiliary, self.classifier(self.join(torch.cat((context, pixels), dim=1)))
