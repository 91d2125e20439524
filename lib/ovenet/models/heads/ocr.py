"""Object-contextual representations (Yuan et al., "Object-Contextual Representations for Semantic Segmentation", 2020).

Shapes: ``N = h * w`` pixels, ``K`` classes, one object region per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import at_least_float32
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.heads.fcn import CLASSIFIER_WEIGHT_STD, FCNHead, last_conv, reset_predictor
from ovenet.models.interfaces import Head, PublishedNames, SegOutput, initialize_convolutions
from ovenet.models.norm import BatchNorm2d
from ovenet.models.registry import HEADS


def _conv_bn_relu(in_channels: int, out_channels: int, num_layers: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(num_layers):
        layers += conv_bn(in_channels if i == 0 else out_channels, out_channels, kernel=1)
    return nn.Sequential(*layers)


def gather_regions(features: Tensor, region_logits: Tensor) -> Tensor:
    """Features of each region: the mean of the pixel features, weighted by the softmax of its logits over the pixels.

    Args:
        features: ``(B, C, h, w)``.
        region_logits: ``(B, K, h, w)``.

    Returns:
        ``(B, C, K)``; the weights are computed in at least float32.
    """
    weights = at_least_float32(region_logits.flatten(2)).softmax(dim=2).to(features.dtype)
    weights = weights.contiguous()  # with K contiguous, 19 classes, the product below is slow on tensor cores
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
        """Pixel features ``(B, C, h, w)`` and region features ``(B, C, K)`` to context ``(B, C, h, w)``."""
        query = self.query(features).flatten(2)  # (B, C', N)
        regions = regions.unsqueeze(-1)  # (B, C, K, 1)
        key, value = self.key(regions).flatten(2), self.value(regions).flatten(2)  # (B, C', K)
        weights = torch.einsum("bck,bcn->bkn", key * self.scale, query).softmax(
            dim=1
        )  # scales the keys, of which there are few
        context = torch.einsum("bkn,bck->bnc", weights.to(value.dtype), value).transpose(1, 2)
        return self.up(context.unflatten(2, features.shape[-2:]))


class RegionHead(Head):
    """The auxiliary head of mmsegmentation's OCRNet: convolution without bias, BatchNorm, ReLU, 1x1 convolution.

    Args:
        in_channels: channels of the map.
        num_classes: ``K``.
        channels: hidden channels.
        kernel: kernel size of the first convolution.
        dropout: probability of dropping a channel before the last convolution.
    """

    def __init__(self, in_channels: int, num_classes: int, *, channels: int, kernel: Literal[1, 3], dropout: float):
        super().__init__()
        self.layers = nn.Sequential(
            *conv_bn(in_channels, channels, kernel=kernel), nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1)
        )
        initialize_convolutions(self)
        reset_predictor(last_conv(self.layers), CLASSIFIER_WEIGHT_STD)

    def forward(self, features: list[Tensor]) -> SegOutput:
        """See `Head.forward`."""
        hidden = self.layers[:3](features[-1])
        return SegOutput((self.layers[3:](hidden),), hidden)


@HEADS.register("ocr")
class OCRHead(Head):
    """Auxiliary scores define the object regions; final scores come from pixel features and their object context.

    Reads the last map. The auxiliary scores are predicted from the map before it if there is one, as with
    mmsegmentation's ResNets.

    Args:
        in_channels: channels of each map.
        in_strides: stride of each map.
        num_classes: ``K``.
        flavour: ``hrnet`` for the network of the authors and of OVeNet, ``mmseg`` for mmsegmentation's; they differ in
            the auxiliary head, and in the bias of the convolution before the attention.
        mid_channels: channels of pixel and region features.
        key_channels: channels of queries and keys.
        dropout: probability of dropping a channel before the classifier; None is 0.05 for ``hrnet``, 0 for ``mmseg``.
        final_kernel: kernel size of the auxiliary head's last convolution (``hrnet`` only).
        aux_channels: hidden channels of the auxiliary head; None for those of its input (``mmseg`` only).
        aux_kernel: kernel size of the auxiliary head's first convolution (``mmseg`` only).

    Raises:
        UserError: a setting of the other flavour is set, a width is below 1, or the last two maps differ in stride.
    """

    num_outputs: ClassVar[int] = 2
    first_read: ClassVar[int] = -2
    published = (
        PublishedNames(
            "hrnet",
            (
                (r"aux_head\.", "auxiliary.layers."),
                (r"conv3x3_ocr\.", "pixels."),
                *(
                    (rf"ocr_distri_head\.object_context_block\.f_{old}\.{i}\.", f"attention.{new}.{j}.")
                    for old, new, pairs in (
                        ("pixel", "query", ((r"0", 0), (r"1\.0", 1), (r"2", 3), (r"3\.0", 4))),
                        ("object", "key", ((r"0", 0), (r"1\.0", 1), (r"2", 3), (r"3\.0", 4))),
                        ("down", "value", ((r"0", 0), (r"1\.0", 1))),
                        ("up", "up", ((r"0", 0), (r"1\.0", 1))),
                    )
                    for i, j in pairs
                ),
                (r"ocr_distri_head\.conv_bn_dropout\.0\.", "join.0."),
                (r"ocr_distri_head\.conv_bn_dropout\.1\.0\.", "join.1."),
                (r"cls_head\.", "classifier."),
            ),
        ),
        PublishedNames(
            "mmseg",
            (
                (r"decode_head\.0\.convs\.0\.conv\.", "auxiliary.layers.0."),
                (r"decode_head\.0\.convs\.0\.bn\.", "auxiliary.layers.1."),
                (r"decode_head\.0\.conv_seg\.", "auxiliary.layers.4."),
                (r"decode_head\.1\.bottleneck\.conv\.", "pixels.0."),
                (r"decode_head\.1\.bottleneck\.bn\.", "pixels.1."),
                *(
                    (rf"decode_head\.1\.object_context_block\.{old}\.{layer}", f"{new}.{index}.")
                    for old, new in (
                        (r"query_project\.0", "attention.query"),
                        (r"key_project\.0", "attention.key"),
                        (r"value_project", "attention.value"),
                        (r"out_project", "attention.up"),
                        (r"bottleneck", "join"),
                    )
                    for layer, index in ((r"conv\.", 0), (r"bn\.", 1))
                ),
                *(
                    (rf"decode_head\.1\.object_context_block\.{name}_project\.1\.{layer}", f"attention.{name}.{index}.")
                    for name in ("query", "key")
                    for layer, index in ((r"conv\.", 3), (r"bn\.", 4))
                ),
                (r"decode_head\.1\.conv_seg\.", "classifier."),
            ),
        ),
    )

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        num_classes: int,
        *,
        flavour: Literal["hrnet", "mmseg"] = "hrnet",
        mid_channels: int = 512,
        key_channels: int = 256,
        dropout: float | None = None,
        final_kernel: Literal[1, 3] = 1,
        aux_channels: int | None = None,
        aux_kernel: Literal[1, 3] = 1,
    ):
        super().__init__()
        if flavour == "hrnet" and (aux_channels is not None or aux_kernel != 1):
            raise UserError(
                f"MODEL.HEAD.AUX_CHANNELS is {aux_channels}, AUX_KERNEL {aux_kernel}; the ocr head of FLAVOUR hrnet "
                "has neither, leave them away"
            )
        if flavour == "mmseg" and final_kernel != 1:
            raise UserError(
                f"MODEL.HEAD.FINAL_KERNEL is {final_kernel}; the ocr head of FLAVOUR mmseg has none, leave it away"
            )
        if min(mid_channels, key_channels) < 1:
            raise UserError(
                f"MODEL.HEAD.MID_CHANNELS is {mid_channels}, KEY_CHANNELS {key_channels}; expected at least 1"
            )
        if len(set(in_strides[-2:])) > 1:
            raise UserError(
                f"the ocr head reads the last two maps, but their strides are {in_strides[-2]} and {in_strides[-1]}; "
                "set MODEL.NECK.NAME concat"
            )
        self.feature_channels, self.stride = mid_channels, in_strides[-1]
        is_mmseg = flavour == "mmseg"
        dropout = (0.0 if is_mmseg else 0.05) if dropout is None else dropout
        source = in_channels[-2:][0]  # the map before the last, or the only one
        self.auxiliary: Head = (
            RegionHead(source, num_classes, channels=aux_channels or source, kernel=aux_kernel, dropout=dropout)
            if is_mmseg
            else FCNHead([source], in_strides, num_classes, final_kernel=final_kernel)
        )
        self.pixels = nn.Sequential(
            nn.Conv2d(in_channels[-1], mid_channels, 3, padding=1, bias=not is_mmseg),
            BatchNorm2d(mid_channels),
            nn.ReLU(inplace=True),
        )
        self.attention = RegionAttention(mid_channels, key_channels)
        self.join = _conv_bn_relu(2 * mid_channels, mid_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(mid_channels, num_classes, 1)
        for part in (self.pixels, self.attention, self.join):
            initialize_convolutions(part)
        reset_predictor(self.classifier, CLASSIFIER_WEIGHT_STD)

    def forward(self, features: list[Tensor]) -> SegOutput:
        """See `Head.forward`: the auxiliary and the final logits, each ``(B, K, h, w)``."""
        (auxiliary,) = self.auxiliary(features[-2:][:1]).scores
        pixels = self.pixels(features[-1])
        context = self.attention(pixels, gather_regions(pixels, auxiliary))
        joined = self.join(torch.cat((context, pixels), dim=1))
        return SegOutput((auxiliary, self.classifier(self.dropout(joined))), joined)
