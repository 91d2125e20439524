"""Object-contextual representations (Yuan et al., "Object-Contextual Representations for Semantic Segmentation", 2020).

Shapes: ``N = h * w`` pixels, ``K`` classes, one object region per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.backbones.blocks import conv_bn
from ovenet.models.heads.fcn import CLASSIFIER_WEIGHT_STD, FCNHead, reset_predictor
from ovenet.models.interfaces import Head, PublishedNames, SegOutput, initialize_convolutions
from ovenet.models.norm import BatchNorm2d
from ovenet.models.registry import HEADS


def _conv_bn_relu(in_channels: int, out_channels: int, num_layers: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(num_layers):
        layers += conv_bn(in_channels if i == 0 else out_channels, out_channels, kernel=1)
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
    weights = weights.contiguous()  # rows of 19 classes are slow on a GPU's matrix units, rows of pixels are not
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
        weights = torch.einsum("bck,bcn->bkn", key * self.scale, query).softmax(dim=1)  # keys are few
        context = torch.einsum("bkn,bck->bnc", weights.to(value.dtype), value).transpose(1, 2)
        return self.up(context.unflatten(2, features.shape[-2:]))


class RegionHead(Head):
    """The auxiliary head of mmsegmentation's OCRNet: convolution without bias, BatchNorm, ReLU, 1x1 convolution.

    Args:
        in_channels: channels of the map.
        num_classes: ``K``.
        channels: between the convolutions.
        kernel: size of the first convolution.
        dropout: of whole channels before the last convolution.
    """

    def __init__(self, in_channels: int, num_classes: int, *, channels: int, kernel: Literal[1, 3], dropout: float):
        super().__init__()
        self.layers = nn.Sequential(
            *conv_bn(in_channels, channels, kernel=kernel), nn.Dropout2d(dropout), nn.Conv2d(channels, num_classes, 1)
        )
        initialize_convolutions(self)
        reset_predictor(self.layers[-1], CLASSIFIER_WEIGHT_STD)

    def forward(self, features: list[Tensor]) -> SegOutput:
        """See `Head.forward`."""
        hidden = self.layers[:3](features[-1])
        return SegOutput((self.layers[3:](hidden),), hidden)


@HEADS.register("ocr")
class OCRHead(Head):
    """Auxiliary scores for the regions, and a final prediction from pixel features joined with their object context.

    The last map is read; the auxiliary scores come from the one before it, where there is one (as mmsegmentation's
    ResNets have it).

    Args:
        in_channels: channels per map.
        in_strides: strides per map.
        num_classes: ``K``.
        flavour: whose network it is: ``hrnet``, the authors' and OVeNet's, whose convolutions before the attention
            have biases, or ``mmseg``, mmsegmentation's, whose have none.
        mid_channels: width of pixel and region features.
        key_channels: width of queries and keys.
        dropout: of whole channels, before the classifier; None is 0.05 for ``hrnet`` and 0 for ``mmseg``.
        final_kernel: size of the auxiliary head's last convolution (``hrnet`` only).
        aux_channels: width of the auxiliary head; None is that of its input (``mmseg`` only).
        aux_kernel: size of the auxiliary head's first convolution (``mmseg`` only).
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
            raise UserError("aux_channels and aux_kernel belong to the flavour mmseg of the ocr head, not to hrnet")
        if flavour == "mmseg" and final_kernel != 1:
            raise UserError("final_kernel belongs to the flavour hrnet of the ocr head, not to mmseg")
        if min(mid_channels, key_channels) < 1:
            raise UserError(
                f"mid_channels {mid_channels}, key_channels {key_channels} of the ocr head; expected at least 1"
            )
        if len(set(in_strides[-2:])) > 1:
            raise UserError(
                f"the ocr head reads the last two maps, and their strides are {in_strides[-2]} and {in_strides[-1]}; "
                "use the neck concat"
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
