"""Swin (Liu et al., 2021) from transformers, with windows at the same positions as in mmsegmentation.

timm's Swin shifts a map before it pads it to whole windows, mmsegmentation and transformers after. The results differ
if a map's size is not a multiple of the window, as at 512x512.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.extras import transformers_module
from ovenet.models.interfaces import Backbone, PublishedNames
from ovenet.models.registry import BACKBONES

STRIDES = (4, 8, 16, 32)
HEAD_CHANNELS = 32  # channels per attention head


def unfolded_to_stacked(tensor: Tensor) -> Tensor:
    """Converts weights over 2x2 pixels from mmsegmentation's order to that of transformers.

    Args:
        tensor: ``(..., 4 C)``, ordered by channel, then by pixel, row by row.

    Returns:
        ``(..., 4 C)``, ordered by pixel, column by column, then by channel.
    """
    by_pixel = tensor.unflatten(-1, (-1, 2, 2))  # channel, row, column
    return by_pixel.movedim(-3, -1).transpose(-3, -2).flatten(-3)


class SwinBackbone(Backbone):
    """Swin for segmentation, with a LayerNorm on each of its four maps.

    Args:
        width: channels of the first map.
        depths: number of blocks of each stage.
        window: height and width of the attention windows in pixels of a map.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0.
        in_channels: channels of the images.

    Raises:
        UserError: `window` is below 1, `drop_path_rate` is not in [0, 1), or transformers is not installed.
    """

    published = (
        PublishedNames(
            "mmseg",
            (
                (r"(?:backbone\.)?patch_embed\.projection\.", "body.swin.embeddings.patch_embeddings.projection."),
                (r"(?:backbone\.)?patch_embed\.norm\.", "body.swin.embeddings.norm."),
                (
                    r"(?:backbone\.)?stages\.(\d)\.blocks\.(\d+)\.norm1\.",
                    r"body.swin.encoder.layers.\1.blocks.\2.layernorm_before.",
                ),
                (
                    r"(?:backbone\.)?stages\.(\d)\.blocks\.(\d+)\.norm2\.",
                    r"body.swin.encoder.layers.\1.blocks.\2.layernorm_after.",
                ),
                (
                    r"(?:backbone\.)?stages\.(\d)\.blocks\.(\d+)\.attn\.w_msa\.relative_position_bias_table",
                    r"body.swin.encoder.layers.\1.blocks.\2.attention.relative_position_bias.relative_position_bias_table",
                ),
                (
                    r"(?:backbone\.)?stages\.(\d)\.blocks\.(\d+)\.attn\.w_msa\.qkv\.",
                    r"body.swin.encoder.layers.\1.blocks.\2.attention.{q,k,v}_proj.",
                ),
                (
                    r"(?:backbone\.)?stages\.(\d)\.blocks\.(\d+)\.attn\.w_msa\.proj\.",
                    r"body.swin.encoder.layers.\1.blocks.\2.attention.o_proj.",
                ),
                (
                    r"(?:backbone\.)?stages\.(\d)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.",
                    r"body.swin.encoder.layers.\1.blocks.\2.mlp.fc1.",
                ),
                (
                    r"(?:backbone\.)?stages\.(\d)\.blocks\.(\d+)\.ffn\.layers\.1\.",
                    r"body.swin.encoder.layers.\1.blocks.\2.mlp.fc2.",
                ),
                (r"(?:backbone\.)?stages\.(\d)\.downsample\.", r"body.swin.encoder.layers.\1.downsample."),
                *(
                    (rf"(?:backbone\.)?norm{i}\.", f"body.hidden_states_norms.stage{i + 1}.")
                    for i in range(len(STRIDES))
                ),
            ),
            unused=(r"(?:backbone\.)?stages\.\d\.blocks\.\d+\.attn\.w_msa\.relative_position_index",),
            conversions=((r"body\.swin\.encoder\.layers\.\d\.downsample\..*", unfolded_to_stacked),),
        ),
    )
    undecayed = (r".*\.relative_position_bias_table",)
    layer_groups: ClassVar = {
        "stem": r"body\.swin\.embeddings\.",
        "blocks": [
            *(  # with the next stage's first block, as in timm
                (rf"body\.swin\.encoder\.layers\.{stage}\.downsample\.", (stage + 1, 0))
                for stage in range(len(STRIDES))
            ),
            (r"body\.swin\.encoder\.layers\.(\d)\.blocks\.(\d+)\.", None),
            *((rf"body\.hidden_states_norms\.stage{stage + 1}\.", (stage, 99999)) for stage in range(len(STRIDES))),
        ],
    }
    size_multiple = STRIDES[-1]

    def __init__(
        self,
        width: int,
        depths: tuple[int, ...],
        *,
        window: int = 7,
        drop_path_rate: float = 0.3,
        in_channels: int = 3,
    ):
        super().__init__()
        if window < 1:
            raise UserError(f"MODEL.BACKBONE.WINDOW is {window}; expected at least 1")
        if not 0 <= drop_path_rate < 1:
            raise UserError(f"MODEL.BACKBONE.DROP_PATH_RATE is {drop_path_rate}; expected at least 0 and below 1")
        swin = transformers_module("swin", "the swin backbones")
        self.channels = tuple(width * 2**i for i in range(len(depths)))
        self.strides = STRIDES
        self.in_channels = in_channels
        config = swin.SwinConfig(
            num_channels=in_channels,
            embed_dim=width,
            depths=list(depths),
            num_heads=[c // HEAD_CHANNELS for c in self.channels],
            window_size=window,
            drop_path_rate=drop_path_rate,
            out_features=[f"stage{i + 1}" for i in range(len(depths))],
        )
        self.body = swin.SwinBackbone(config)
        self.body.swin.layernorm = nn.Identity()  # only the classifier uses it
        for block in (block for stage in self.body.swin.encoder.layers for block in stage.blocks):
            block.mlp = _DroppedMLP(block.mlp, block.drop_path)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        return list(self.body(images).feature_maps)


class _DroppedMLP(nn.Module):
    """MLP of a block, with stochastic depth as in mmsegmentation; transformers applies it to the attention only."""

    def __init__(self, mlp: Any, drop_path: nn.Module):
        super().__init__()
        self.fc1, self.fc2, self.drop_path = mlp.fc1, mlp.fc2, drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop_path(self.fc2(F.gelu(self.fc1(tokens))))


VARIANTS = {  # width and depths
    "swin_t": (96, (2, 2, 6, 2)),
    "swin_s": (96, (2, 2, 18, 2)),
    "swin_b": (128, (2, 2, 18, 2)),
    "swin_l": (192, (2, 2, 18, 2)),
}


def _swin_variant(name: str, *, window: int = 7, drop_path_rate: float = 0.3, in_channels: int = 3) -> SwinBackbone:
    """Swin-T to Swin-L; arguments as in `SwinBackbone`."""
    return SwinBackbone(*VARIANTS[name], window=window, drop_path_rate=drop_path_rate, in_channels=in_channels)


for _name in VARIANTS:
    BACKBONES.register(_name)(partial(_swin_variant, _name))
