"""Mask2Former (Cheng et al., 2022): each query predicts a mask and its class. Pixel decoder and transformer decoder
come from the library transformers; the optional offset learning is OffSeg's.

Shapes: ``Q`` queries, ``K`` classes, ``C`` channels, ``h w`` size of the finest map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.geometry import at_least_float32
from ovenet.models.extras import transformers_module
from ovenet.models.heads.offset_learning import NUM_GROUPS, Offsets
from ovenet.models.interfaces import Head, PublishedNames, SegOutput
from ovenet.models.precision import without_autocast
from ovenet.models.registry import HEADS
from ovenet.structures import QueryOutput, Size

NUM_MAPS = 4
NUM_LEVELS = 3  # maps that the transformer decoder attends to
NUM_ATTENTION_HEADS = 8


def semantic_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Class scores of each pixel: the sum of all masks, weighted by their class probabilities.

    Args:
        classes: logits ``(B, Q, K + 1)``; the last class is "no object".
        masks: logits ``(B, Q, h, w)``.

    Returns:
        ``(B, K, h, w)``, at least 0; the sum over the classes is not 1.
    """
    masks = at_least_float32(masks)
    class_probabilities = classes.to(masks.dtype).softmax(dim=2)[..., :-1]
    with without_autocast(masks.device):
        return torch.einsum("bqk,bqhw->bkhw", class_probabilities, masks.sigmoid())


@HEADS.register("mask2former")
class Mask2FormerHead(Head):
    """Mask2Former's pixel decoder and transformer decoder; published with the backbone ``swin_t``.

    Args:
        in_channels: channels of each map, four maps; masks have the size of the first map.
        in_strides: stride of each map.
        num_classes: ``K``.
        num_queries: ``Q``.
        channels: ``C``, a multiple of 32.
        offset_learning: use `Offsets` between queries and pixels.
        num_layers: layers of the transformer decoder.
        num_pixel_layers: deformable attention layers of the pixel decoder.

    Raises:
        UserError: there are not four maps, a number is too small, or transformers is not installed.
    """

    default_neck = "none"
    first_read = 0
    has_queries = True
    published = (
        PublishedNames(
            "mmseg",
            (
                (r"decode_head\.pixel_decoder\.input_convs\.(\d)\.conv\.", r"pixel_decoder.input_projections.\1.0."),
                (r"decode_head\.pixel_decoder\.input_convs\.(\d)\.gn\.", r"pixel_decoder.input_projections.\1.1."),
                (r"decode_head\.pixel_decoder\.level_encoding\.weight", "pixel_decoder.level_embed"),
                (r"decode_head\.pixel_decoder\.lateral_convs\.0\.conv\.", "pixel_decoder.adapter_1.0."),
                (r"decode_head\.pixel_decoder\.lateral_convs\.0\.gn\.", "pixel_decoder.adapter_1.1."),
                (r"decode_head\.pixel_decoder\.output_convs\.0\.conv\.", "pixel_decoder.layer_1.0."),
                (r"decode_head\.pixel_decoder\.output_convs\.0\.gn\.", "pixel_decoder.layer_1.1."),
                (r"decode_head\.pixel_decoder\.mask_feature\.", "pixel_decoder.mask_projection."),
                (
                    r"decode_head\.pixel_decoder\.(encoder\.layers\.\d+)\.ffn\.layers\.0\.0\.",
                    r"pixel_decoder.\1.fc1.",
                ),
                (r"decode_head\.pixel_decoder\.(encoder\.layers\.\d+)\.ffn\.layers\.1\.", r"pixel_decoder.\1.fc2."),
                (
                    r"decode_head\.pixel_decoder\.(encoder\.layers\.\d+)\.norms\.0\.",
                    r"pixel_decoder.\1.self_attn_layer_norm.",
                ),
                (
                    r"decode_head\.pixel_decoder\.(encoder\.layers\.\d+)\.norms\.1\.",
                    r"pixel_decoder.\1.final_layer_norm.",
                ),
                (r"decode_head\.pixel_decoder\.", "pixel_decoder."),
                (
                    r"decode_head\.transformer_decoder\.(layers\.\d+)\.self_attn\.attn\.in_proj_",
                    r"transformer.decoder.\1.self_attn.{q,k,v}_proj.",
                ),
                (
                    r"decode_head\.transformer_decoder\.(layers\.\d+)\.(self_attn|cross_attn)\.attn\.",
                    r"transformer.decoder.\1.\2.",
                ),
                (
                    r"decode_head\.transformer_decoder\.(layers\.\d+)\.ffn\.layers\.0\.0\.",
                    r"transformer.decoder.\1.fc1.",
                ),
                (r"decode_head\.transformer_decoder\.(layers\.\d+)\.ffn\.layers\.1\.", r"transformer.decoder.\1.fc2."),
                (
                    r"decode_head\.transformer_decoder\.(layers\.\d+)\.norms\.0\.",
                    r"transformer.decoder.\1.cross_attn_layer_norm.",
                ),
                (
                    r"decode_head\.transformer_decoder\.(layers\.\d+)\.norms\.1\.",
                    r"transformer.decoder.\1.self_attn_layer_norm.",
                ),
                (
                    r"decode_head\.transformer_decoder\.(layers\.\d+)\.norms\.2\.",
                    r"transformer.decoder.\1.final_layer_norm.",
                ),
                (r"decode_head\.transformer_decoder\.post_norm\.", "transformer.decoder.layernorm."),
                (r"decode_head\.query_embed\.", "transformer.queries_embedder."),
                (r"decode_head\.query_feat\.", "transformer.queries_features."),
                (r"decode_head\.level_embed\.", "transformer.level_embed."),
                (r"decode_head\.cls_embed\.", "classifier."),
                (r"decode_head\.mask_embed\.", "transformer.decoder.mask_predictor.embed."),
            ),
        ),
    )
    undecayed = (r"transformer\.(queries_embedder|queries_features|level_embed)\.weight",)  # as published

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        num_classes: int,
        *,
        num_queries: int = 100,
        channels: int = 256,
        offset_learning: bool = True,
        num_layers: int = 9,
        num_pixel_layers: int = 6,
    ):
        super().__init__()
        if len(in_channels) != NUM_MAPS:
            raise UserError(
                f"the mask2former head reads {NUM_MAPS} maps, got {len(in_channels)}; set MODEL.NECK.NAME none, and a "
                f"backbone with {NUM_MAPS} maps (swin_t, convnext_tiny, …)"
            )
        if channels < NUM_GROUPS or channels % NUM_GROUPS:
            raise UserError(f"MODEL.HEAD.CHANNELS is {channels}; expected a multiple of {NUM_GROUPS}")
        for name, number in (
            ("NUM_QUERIES", num_queries), ("NUM_LAYERS", num_layers), ("NUM_PIXEL_LAYERS", num_pixel_layers)
        ):  # fmt: skip
            if number < 1:
                raise UserError(f"MODEL.HEAD.{name} is {number}; expected at least 1")
        self.feature_channels, self.stride = channels, in_strides[0]
        parts = _built_by_transformers(
            tuple(in_channels),
            num_classes=num_classes,
            num_queries=num_queries,
            feature_size=channels,
            mask_feature_size=channels,
            hidden_dim=channels,
            decoder_layers=num_layers + 1,  # transformers counts the prediction from the initial queries too
            encoder_layers=num_pixel_layers,
            num_attention_heads=NUM_ATTENTION_HEADS,
        )
        self.pixel_decoder, self.transformer, self.classifier = parts
        decoder = self.transformer.get_submodule("decoder")
        decoder.mask_predictor = MaskPredictor(channels, offset_learning=offset_learning)

    def forward(self, features: list[Tensor]) -> SegOutput:
        """See `Head.forward`."""
        pixels = self.pixel_decoder(features)
        decoded = self.transformer(pixels.multi_scale_features, pixels.mask_features)
        masks = decoded.masks_queries_logits
        states = decoded.intermediate_hidden_states  # (Q, B, C) each
        chosen = range(len(states)) if self.is_learning else [len(states) - 1]
        classes = {i: self.classifier(states[i].transpose(0, 1)) for i in chosen}
        queries = QueryOutput(tuple(classes.values()), tuple(masks)) if self.is_learning else None
        scores = semantic_scores(classes[len(states) - 1], masks[-1])
        return SegOutput((scores,), pixels.mask_features, score_kind="unnormalized", queries=queries)


class MaskPredictor(nn.Module):
    """Predicts masks from queries, and the attention mask of the next layer of transformers' decoder.

    Args:
        channels: ``C``.
        offset_learning: see `Mask2FormerHead`.
    """

    def __init__(self, channels: int, *, offset_learning: bool):
        super().__init__()
        layers = [nn.Linear(channels, channels) for _ in range(3)]
        self.embed = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        self.offsets = Offsets(channels) if offset_learning else None

    def forward(self, states: Tensor, pixels: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Masks of one layer.

        Args:
            states: hidden states of the queries ``(Q, B, C)``.
            pixels: pixel features ``(B, C, h, w)``, without the offsets of earlier layers.
            size: ``(h', w')`` of the map that the next layer attends to.

        Returns:
            Mask logits ``(B, Q, h, w)``, and the attention mask ``(B * heads, Q, h' * w')``, True outside the query's
            mask.
        """
        queries = self.embed(states.transpose(0, 1))
        flat = pixels.flatten(2)
        if self.offsets is None:
            masks = queries @ flat
        else:
            masks = torch.cat(self.offsets.products(queries, flat.transpose(1, 2)), dim=1).transpose(1, 2)
        masks = masks.unflatten(2, pixels.shape[-2:])
        inside = F.interpolate(masks.detach(), size=size, mode="bilinear", align_corners=False)
        outside = (inside.sigmoid() < 0.5).flatten(2)
        return masks, outside.repeat_interleave(NUM_ATTENTION_HEADS, dim=0)


def _built_by_transformers(
    in_channels: tuple[int, ...], *, num_classes: int, **settings: Any
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Pixel decoder, transformer decoder and classifier, initialised by transformers."""
    modeling = transformers_module("mask2former", "the mask2former head")
    config = modeling.Mask2FormerConfig(dropout=0.0, **settings)

    base: Any = modeling.Mask2FormerPreTrainedModel

    class Parts(base):
        def __init__(self) -> None:
            super().__init__(config)
            self.pixel_decoder = modeling.Mask2FormerPixelDecoder(config, in_channels)
            # transformers builds it by torch.Tensor(), which ignores the default device.
            self.pixel_decoder.level_embed = nn.Parameter(torch.empty(NUM_LEVELS, config.feature_size))
            self.transformer = modeling.Mask2FormerTransformerModule(config.feature_size, config)
            self.classifier = nn.Linear(config.hidden_dim, num_classes + 1)
            self.post_init()

    parts = Parts()
    return parts.pixel_decoder, parts.transformer, parts.classifier
