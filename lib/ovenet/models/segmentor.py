"""The segmentation model: backbone, neck and head.

Shapes: ``B`` batch, ``C`` channels of the images, ``K`` classes, ``H W`` image size; the stride of a head is the image
size over its score map size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.interfaces import Backbone, Head, Neck, SegOutput
from ovenet.models.settings import PARTS
from ovenet.structures import Normalization, OVeNetOutput


class Segmentor(nn.Module):
    """Backbone, neck and head, which keep their weights; `ovenet.models.seeds.ovenet.OVeNet` adds a seed.

    Args:
        backbone: image to feature maps.
        neck: the backbone's maps to the maps that the head reads.
        head: the neck's maps to score maps.
    """

    def __init__(self, backbone: Backbone, neck: Neck, head: Head):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.frozen_parts: tuple[str, ...] = ()  # not trained any more, see freeze
        self.resting_parts: tuple[str, ...] = ()  # not trained for now, see rest
        self.recipe: Mapping[str, Any] | None = None  # arguments of build_segmentor; None if composed otherwise
        self.metadata: Mapping[str, Any] = {}  # what the file that it came from carries beside the weights

    @property
    def normalization(self) -> Normalization:
        """Normalisation of the images that `forward` expects."""
        return self.backbone.normalization

    @property
    def max_offset(self) -> float | None:
        """τ of the seed, the largest offset along each axis in normalised units; None for a baseline."""
        return None

    def forward(self, images: Tensor) -> OVeNetOutput:
        """Predicts score maps at the head's stride.

        Args:
            images: ``(B, C, H, W)``, normalised by `ovenet.data.transforms.normalize_images`, of any size that the
                backbone accepts.

        Raises:
            UserError: the images are larger than the backbone's fixed size.
        """
        decoded = self.decode(self.backbone(self.pad(images)), images)
        return OVeNetOutput(
            initial=decoded.scores,
            seed=(),
            fused=decoded.scores,
            score_kind=decoded.score_kind,
            embedding=decoded.embedding,
            queries=decoded.queries,
        )

    def decode(self, features: list[Tensor], images: Tensor) -> SegOutput:
        """The head's prediction from the maps of padded images, cropped to the images' size except for `features`."""
        maps = self.neck(features)
        decoded = self.head(maps)
        unread = maps[: self.head.first_read]
        *others, final = (crop_padding(scores, images, self.head.stride) for scores in decoded.scores)
        embedding, queries = decoded.embedding, decoded.queries
        if embedding is not None:
            embedding = crop_padding(embedding, images, self.head.stride)
        if queries is not None:
            queries = replace(queries, masks=tuple(crop_padding(x, images, self.head.stride) for x in queries.masks))
        scores = (*others, _with_zero_gradients(final, unread) if unread else final)
        return replace(decoded, scores=scores, embedding=embedding, queries=queries)

    def pad(self, images: Tensor) -> Tensor:
        """Pads images at the right and the bottom with zeros, the mean colour, to a size that the backbone accepts."""
        height, width = images.shape[-2:]
        if self.backbone.fixed_size is not None:
            padded_height, padded_width = self.backbone.fixed_size
            if height > padded_height or width > padded_width:
                raise UserError(
                    f"the backbone accepts images of {padded_width}x{padded_height} pixels only, got {width}x{height}; "
                    "set MODEL.BACKBONE.IMG_SIZE [height, width] to the larger of TRAIN.IMAGE_SIZE and TEST.IMAGE_SIZE"
                )
        else:
            padded_height, padded_width = (n + -n % self.backbone.size_multiple for n in (height, width))
        if (padded_height, padded_width) == (height, width):
            return images
        return F.pad(images, (0, padded_width - width, 0, padded_height - height))

    def freeze(self, parts: Sequence[str]) -> None:
        """Freezes parts for good: their weights and BatchNorm statistics stay, and their dropout is off.

        Args:
            parts: names from `ovenet.models.settings.PARTS`, or names of modules in them such as ``backbone.layer1``.

        Raises:
            UserError: the model has no such part, or no trainable parameter would be left.
        """
        for name in parts:
            self.part(name).requires_grad_(False)
        if parts and not any(p.requires_grad for p in self.parameters()):
            raise UserError(f"with {', '.join(parts)} frozen, this model has no parameter left to train")
        self.frozen_parts = (*self.frozen_parts, *parts)
        self.train(self.training)

    def rest(self, parts: Sequence[str]) -> None:
        """Pauses the training of parts until the next call: BatchNorm statistics stay, and dropout is off.

        Gradients of resting parts are still computed, as data-parallel training averages all gradients; the caller has
        to leave them out of the optimizer's step.

        Args:
            parts: names as in `freeze`; an empty list trains all parts again.
        """
        self.resting_parts = tuple(parts)
        self.train(self.training)

    def part(self, name: str) -> nn.Module:
        """A part by name, see `freeze`.

        Raises:
            UserError: there is no such part.
        """
        try:
            return self.get_submodule(name)
        except AttributeError:
            own = [part for part in PARTS if hasattr(self, part)]
            raise UserError(
                f"this model has no part {name!r}; it has {', '.join(own)}, and modules in them such as "
                f"backbone.{next((n for n, _ in self.backbone.named_children()), '…')}"
            ) from None

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Writes a folder that `ovenet.from_pretrained` reads; options as in `ovenet.save_pretrained`."""
        import ovenet  # upwards: the method that users of Hugging Face's models look for

        ovenet.save_pretrained(self, folder, **options)

    def train(self, mode: bool = True) -> Segmentor:
        """As `torch.nn.Module.train`, but frozen and resting parts stay in evaluation mode."""
        super().train(mode)
        for name in (*self.frozen_parts, *self.resting_parts):
            self.get_submodule(name).eval()
        return self


def unwrapped(model: nn.Module) -> Segmentor:
    """The segmentor itself, out of the wrappers of data-parallel training and of torch.compile.

    Raises:
        UserError: it is another kind of module.
    """
    inner = model
    while not isinstance(inner, Segmentor):
        wrapped = getattr(inner, "module", None) or getattr(inner, "_orig_mod", None)
        if not isinstance(wrapped, nn.Module):
            raise UserError(f"a {type(model).__name__} is no model of ovenet; build one with ovenet.create_model")
        inner = wrapped
    return inner


def to_sync_batchnorm(model: Segmentor) -> Segmentor:
    """Replaces BatchNorm by synchronised BatchNorm: statistics over the batches of all ranks (CUDA only)."""
    from timm.layers import convert_sync_batchnorm  # torch's own drops the activations inside timm's norms

    return convert_sync_batchnorm(model)


class _WithZeroGradients(torch.autograd.Function):
    """See `_with_zero_gradients`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *unread: Tensor) -> Tensor:
        ctx.unread = [(x.shape, x.dtype) for x in unread]
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(gradient.new_zeros(shape, dtype=dtype) for shape, dtype in ctx.unread)


def _with_zero_gradients(values: Tensor, unread: Sequence[Tensor]) -> Tensor:
    """Returns the values unchanged, and gives maps that the head does not read a gradient of zeros instead of none.

    Data-parallel training averages the gradients of all parameters, and would wait for the missing ones.
    """
    return _WithZeroGradients.apply(values, *unread) if torch.is_grad_enabled() else values


def crop_padding(values: Tensor, images: Tensor, stride: int) -> Tensor:
    """Crops a map ``(B, C, h, w)`` of padded images to the part that belongs to the images before padding."""
    h, w = ((n + stride - 1) // stride for n in images.shape[-2:])  # in a trace, -(-n // stride) would round down
    return values[..., :h, :w]
