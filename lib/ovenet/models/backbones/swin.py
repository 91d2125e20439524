"""Swin (Liu et al., 2021) of transformers, whose windows lie as those of mmsegmentation do.

timm's Swin shifts a map before it pads it to whole windows, mmsegmentation and transformers after; the two differ
wherever a map is no multiple of the window, as at 512x512.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.extras import transformers_module
from ovenet.models.interfaces import Backbone, PublishedNames
from ovenet.models.registry import BACKBONES

STRIDES = (4, 8, 16, 32)
HEAD_CHANNELS = 32  # channels per attention head


def unfolded_to_stacked(tensor: Tensor) -> Tensor:
    """What reads four neighbouring pixels, in the order of transformers instead of that of mmsegmentation.

    Args:
        tensor: ``(..., 4 C)``, the four pixels of a channel side by side, row by row.

    Returns:
        The same shape: all channels of a pixel side by side, the pixels column by column.
    """
    by_pixel = tensor.unflatten(-1, (-1, 2, 2))  # channel, row, column
    return by_pixel.movedim(-3, -1).transpose(-3, -2).flatten(-3)


class SwinBackbone(Backbone):
    """Swin with a LayerNorm on each of its four maps, as it is used for segmentation.

    Args:
        width: channels of the first map.
        depths: blocks per stage.
        window: side of the attention's windows in pixels of a map.
        drop_path_rate: probability that the last block is skipped for a sample while training; rises linearly to it.

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
    size_multiple = STRIDES[-1]

    def __init__(
        self,
        width: int,
        depths: tuple[int, ...],
        *,
        window: int = 7,
        drop_path_rate: float = 0.3,
    ):
        super().__init__()
        if window < 1:
            raise UserError(f"WINDOW of the swin backbone is {window}; expected at least 1")
        if not 0 <= drop_path_rate < 1:
            raise UserError(f"DROP_PATH_RATE of the swin backbone is {drop_path_rate}; expected at least 0 and below 1")
        swin = transformers_module("swin", "the swin backbones")
        self.channels = tuple(width * 2**i for i in range(len(depths)))
        self.strides = STRIDES
        config = swin.SwinConfig(
            embed_dim=width,
            depths=list(depths),
            num_heads=[c // HEAD_CHANNELS for c in self.channels],
            window_size=window,
            drop_path_rate=drop_path_rate,
            out_features=[f"stage{i + 1}" for i in range(len(depths))],
        )
        self.body = swin.SwinBackbone(config)
        self.body.swin.layernorm = nn.Identity()  # of the classifier: no map goes through it
        for block in (block for stage in self.body.swin.encoder.layers for block in stage.blocks):
            block.mlp = _DroppedMLP(block.mlp, block.drop_path)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        return list(self.body(images).feature_maps)


class _DroppedMLP(nn.Module):
    """The second half of a block, which is skipped at random as the first one is; in transformers it never is."""

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


def _swin_variant(name: str, *, window: int = 7, drop_path_rate: float = 0.3) -> SwinBackbone:
    """Swin-T to -L; arguments as for `SwinBackbone`."""
    return SwinBackbone(*VARIANTS[name], window=window, drop_path_rate=drop_path_rate)


for _name in VARIANTS:
    BACKBONES.register(_name)(partial(_swin_variant, _name))
