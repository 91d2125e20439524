"""A segmentation model put together from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.interfaces import Backbone, Head, Neck, SegOutput
from ovenet.structures import Normalization, OVeNetOutput

GROUPS = ("backbone", "neck", "head", "seed")  # the parts, by the names of a model's children


class Segmentor(nn.Module):
    """Backbone, neck and head, used as given; `ovenet.models.ovenet.OVeNet` adds a seed.

    Args:
        backbone: image to maps.
        neck: maps to the maps that the head reads.
        head: those to scores.
    """

    def __init__(self, backbone: Backbone, neck: Neck, head: Head):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.frozen_parts: tuple[str, ...] = ()  # that never learn again
        self.resting_parts: tuple[str, ...] = ()  # that do not learn for now

    @property
    def normalization(self) -> Normalization:
        """What `forward` expects of its pixels."""
        return self.backbone.normalization

    @property
    def max_offset(self) -> float | None:
        """τ of the seed, the longest offset per axis in normalised units; None for a baseline."""
        return None

    def forward(self, images: Tensor) -> OVeNetOutput:
        """Predicts at the head's stride.

        Args:
            images: ``(B, 3, H, W)``, normalised by `ovenet.data.transforms.normalize_images`; any size, unless the
                backbone is made for one.

        Raises:
            UserError: the backbone cannot take the size.
        """
        decoded = self.decode(self.backbone(self.padded(images)), images)
        return OVeNetOutput(
            initial=decoded.scores,
            seed=(),
            fused=decoded.scores,
            score_kind=decoded.score_kind,
            embedding=decoded.embedding,
            queries=decoded.queries,
        )

    def decode(self, features: list[Tensor], images: Tensor) -> SegOutput:
        """The head's prediction from the backbone's maps, without the padding of the images."""
        maps = self.neck(features)
        decoded = self.head(maps)
        unread = maps[: self.head.first_read]
        *others, final = (cropped(scores, images, self.head.stride) for scores in decoded.scores)
        embedding, queries = decoded.embedding, decoded.queries
        if embedding is not None:
            embedding = cropped(embedding, images, self.head.stride)
        if queries is not None:
            queries = replace(queries, masks=tuple(cropped(x, images, self.head.stride) for x in queries.masks))
        scores = (*others, _joined(final, unread) if unread else final)
        return replace(decoded, scores=scores, embedding=embedding, queries=queries)

    def padded(self, images: Tensor) -> Tensor:
        """Images with zeros (the mean colour) at the right and below, as far as the backbone needs them."""
        size = images.shape[-2:]
        if self.backbone.fixed_size is not None:
            wanted = self.backbone.fixed_size
            if any(n > limit for n, limit in zip(size, wanted, strict=True)):
                raise UserError(
                    f"the backbone takes images of {wanted[1]}x{wanted[0]} pixels alone, got {size[1]}x{size[0]}; set "
                    "MODEL.BACKBONE.IMG_SIZE [height, width] to the larger of TRAIN.IMAGE_SIZE and TEST.IMAGE_SIZE"
                )
        else:
            wanted = [n + -n % self.backbone.size_multiple for n in size]
        if tuple(wanted) == tuple(size):
            return images
        return F.pad(images, (0, wanted[1] - size[1], 0, wanted[0] - size[0]))

    def freeze(self, parts: Sequence[str]) -> None:
        """Ends the training of some parts: weights, BatchNorm statistics and dropout.

        Args:
            parts: names of `GROUPS`, or of modules in them, such as ``backbone.layer1``.

        Raises:
            UserError: the model has no such part, or nothing would be left to train.
        """
        for name in parts:
            self.part(name).requires_grad_(False)
        if parts and not any(p.requires_grad for p in self.parameters()):
            raise UserError(f"{', '.join(parts)} frozen: nothing of this model would be left to train")
        self.frozen_parts = (*self.frozen_parts, *parts)
        self.train(self.training)

    def rest(self, parts: Sequence[str]) -> None:
        """Lets some parts be as they are until the next call: BatchNorm statistics and dropout rest.

        Their gradients are still computed, since processes that average them expect all of them; whoever steps the
        optimizer leaves them out.

        Args:
            parts: names as for `freeze`; none for all to learn.
        """
        self.resting_parts = tuple(parts)
        self.train(self.training)

    def part(self, name: str) -> nn.Module:
        """A part by its name, see `freeze`.

        Raises:
            UserError: there is none.
        """
        try:
            return self.get_submodule(name)
        except AttributeError:
            own = [group for group in GROUPS if hasattr(self, group)]
            raise UserError(
                f"this model has no part {name!r}; it has {', '.join(own)}, and modules in them such as "
                f"backbone.{next((n for n, _ in self.backbone.named_children()), '…')}"
            ) from None

    def train(self, mode: bool = True) -> Segmentor:
        """Like `torch.nn.Module.train`, but frozen and resting parts stay in evaluation mode, with their statistics."""
        super().train(mode)
        for name in (*self.frozen_parts, *self.resting_parts):
            self.get_submodule(name).eval()
        return self


def synchronized(model: Segmentor) -> Segmentor:
    """The same model, whose BatchNorm counts the batches of all processes (CUDA only)."""
    from timm.layers import convert_sync_batchnorm  # torch's drops the activations inside timm's norms

    return convert_sync_batchnorm(model)


class _Joined(torch.autograd.Function):
    """See `_joined`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *unread: Tensor) -> Tensor:
        ctx.unread = [(x.shape, x.dtype) for x in unread]
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(gradient.new_zeros(shape, dtype=dtype) for shape, dtype in ctx.unread)


def _joined(values: Tensor, unread: Sequence[Tensor]) -> Tensor:
    """The values; maps that no head reads get a gradient of zero, since gradients are averaged over all parameters."""
    return _Joined.apply(values, *unread) if torch.is_grad_enabled() else values


def cropped(values: Tensor, images: Tensor, stride: int) -> Tensor:
    """A map ``(B, C, h, w)`` of padded images without what lies in the padding."""
    h, w = ((n + stride - 1) // stride for n in images.shape[-2:])  # traced, -(-n // stride) would round down
    return values[..., :h, :w]
