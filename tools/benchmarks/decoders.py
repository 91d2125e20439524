"""Decoders of the related systems: what they cost beside plain ones, and their parts beside the plain way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inputs import Options
from benchmarks.measure import Case
from benchmarks.networks import EXPERIMENTS
from ovenet.builders import build_model
from ovenet.config import load_config
from ovenet.geometry import reassemble
from ovenet.models.heads.offset_learning import OffsetLearning

OFFSEG_T = "ade20k/offseg-t_ade20k_160k-512x512.yaml"
SRM_CRM = "cityscapes/srm_crm_mscan-s_160k_cityscapes-1024x1024.yaml"
WIDTH = 256  # channels that offset learning reads


def network_switch(options: Options, name: str, config: str, size: tuple[int, int], off: tuple[str, ...]) -> Case:
    """A forward pass of a network with random weights (on), and of the same one with other settings (off)."""
    images = torch.randn(1, 3, *options.size(*size), device=options.device)

    def forward(overrides: tuple[str, ...]) -> Callable[[], Any]:
        cfg = load_config(EXPERIMENTS / config, ["MODEL.BACKBONE.PRETRAINED", "", *overrides])
        torch.manual_seed(0)
        model = build_model(cfg).to(options.device).eval()
        return torch.no_grad()(lambda: model(images).fused[-1])

    on = forward(())
    with FlopCounterMode(display=False) as counter:
        on()
    return Case(
        name, plain=forward(off), ours=on, same=_nothing, flops=counter.get_total_flops(), device=options.device
    )


def _features(options: Options, size: tuple[int, int]) -> Tensor:
    size = options.size(*size)
    return torch.randn(1, WIDTH, *size, generator=torch.Generator().manual_seed(0)).to(options.device)


def _classifier(options: Options, num_classes: int) -> OffsetLearning:
    torch.manual_seed(0)
    return OffsetLearning(WIDTH, num_classes).to(options.device).eval()


def classifier_switch(options: Options, num_classes: int, size: tuple[int, int]) -> Case:
    """Offset learning (on) in place of a 1x1 convolution (off), of scores of a size ``(h, w)``."""
    features, learned = _features(options, size), _classifier(options, num_classes)
    convolution = torch.nn.Conv2d(WIDTH, num_classes, 1).to(options.device)
    name = f"offset learning for a 1x1 convolution, {num_classes} classes, {size[0]}x{size[1]} scores"
    on, off = (torch.no_grad()(lambda module=module: module(features)) for module in (learned, convolution))
    return Case(name, plain=off, ours=on, same=_nothing, device=options.device)


def offset_learning_case(options: Options, num_classes: int, size: tuple[int, int]) -> Case:
    """Offset learning by its formulas, with tables of classes by pixels, and ours."""
    features, learned = _features(options, size), _classifier(options, num_classes)

    @torch.no_grad()
    def plain() -> Tensor:
        classes, pixels = learned.classes, features.flatten(2).transpose(1, 2)
        likeness = classes @ pixels.transpose(1, 2)
        moved_classes = classes + learned.offsets.of_classes(likeness.softmax(dim=2) @ pixels)
        moved_pixels = pixels + learned.offsets.of_pixels(likeness.softmax(dim=1).transpose(1, 2) @ classes)
        scores = learned.norm(moved_pixels @ moved_classes.transpose(1, 2))
        return scores.transpose(1, 2).unflatten(2, features.shape[-2:])

    return Case(
        f"offset learning, {num_classes} classes, {size[0]}x{size[1]} scores",
        plain=plain,
        ours=torch.no_grad()(lambda: learned(features)),
        same=lambda a, b: torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4),
        device=options.device,
    )


def carafe_case(options: Options) -> Case:
    """FreqFusion's upsampling to stride 4 of a 512x512 image: by all patches at once, and ours."""
    size = options.size(64, 64)
    features = torch.randn(1, 224, *size, device=options.device)
    weights = torch.randn(1, 25, 2 * size[0], 2 * size[1], device=options.device).softmax(dim=1)

    def plain() -> Tensor:
        patches = F.unfold(features, 5, padding=2).unflatten(2, size).flatten(1, 1)
        patches = F.interpolate(patches, scale_factor=2).unflatten(1, (224, 25))
        return (patches * weights[:, None]).sum(dim=2)

    return Case(
        "content-aware upsampling of 224 channels to 128x128, 25 taps",
        plain=plain,
        ours=lambda: reassemble(features, weights, scale=2),
        same=lambda a, b: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4),
        device=options.device,
        min_ratio=4.0,
        max_memory=0.4,
    )


def _nothing(a: object, b: object) -> None:
    """No check: different networks give different results."""
