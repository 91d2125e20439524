"""Whole training steps and tests, the plain way and ours, and ours with a setting and without it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from benchmarks.inputs import Options, random_labels
from benchmarks.measure import Case
from ovenet import build_model, builders, load_config
from ovenet.builders.inference import inference_model
from ovenet.data.transforms import normalize_images
from ovenet.dataset_tools.synthetic import draw_scene
from ovenet.deployment import ConvertedNetwork
from ovenet.engine.trainer import Phase
from ovenet.evaluation.inference import InferenceSettings, SlidingWindowInferencer
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.structures import Batch, OVeNetOutput

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
SMALL_OCR = "cityscapes/ovenet_w18s_ocr.yaml"
SMALL = "cityscapes/ovenet_w18s.yaml"
RANDOM = ("MODEL.BACKBONE.PRETRAINED", "", "MODEL.SEED.PRETRAINED", "")


def step_case(options: Options, config: str, name: str, overrides: tuple[str, ...] = (), *, batch: int = 2) -> Case:
    """A whole training step on random crops, from bytes to changed weights."""
    cfg = load_config(EXPERIMENTS / config, list(overrides))
    width, height = cfg.TRAIN.IMAGE_SIZE
    height, width = options.size(height, width)
    num_classes, device = cfg.DATASET.NUM_CLASSES, options.device
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = random_labels(batch, num_classes, (height, width), torch.device("cpu")).to(torch.int16)
    if device.type == "cuda":
        images, labels = images.pin_memory(), labels.pin_memory()
    torch.manual_seed(0)
    model = build_model(cfg).to(device, memory_format=torch.channels_last).train()
    step = builders.build_train_step(model, cfg, device, [Phase(range(10**6), None, 1)])
    batches = [Batch(images, labels, tuple("ab" * batch)[:batch])]

    torch.manual_seed(0)
    plain_model = build_model(cfg).to(device).train()
    optimizer = torch.optim.SGD(
        plain_model.parameters(), cfg.TRAIN.LR, momentum=0.9, weight_decay=cfg.TRAIN.WD, foreach=False, fused=False
    )
    criterion = step.criterion
    mining = getattr(criterion.losses[0].loss, "mining", None)
    ohem = None if mining is None else (mining.threshold, mining.min_kept)
    loss = partial(plain.loss, weights=criterion.output_weights, class_weights=criterion.class_weights, ohem=ohem)
    plain_step = plain.train_step(plain_model, optimizer, loss)
    pixels = normalize_images(images).contiguous()  # loading did that; it is no part of this row

    def same(a: float, b: float) -> None:
        assert abs(a - b) <= 0.05 * abs(a), (a, b)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain_model(pixels[:1].to(device))
    return Case(
        name,
        plain=lambda: plain_step(pixels.to(device), labels.to(device).long()),
        ours=lambda: step(batches).loss.total.item(),
        same=same,
        flops=3.0 * counter.get_total_flops() * batch,
        num_images=batch,
        min_ratio=0.0,
        device=device,
    )


class _Clock(torch.nn.Module):
    """A model that notes how long it works."""

    def __init__(self, model: torch.nn.Module, device: torch.device):
        super().__init__()
        self.model, self.device, self.seconds = model, device, 0.0

    def forward(self, images: Tensor) -> OVeNetOutput:
        self._wait()
        started = time.perf_counter()
        output = self.model(images)
        self._wait()
        self.seconds += time.perf_counter() - started
        return output

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def inference_case(
    options: Options,
    config: str,
    name: str,
    size: tuple[int, int],
    overrides: tuple[str, ...] = (),
    scales: tuple[float, ...] = SCALES,
) -> Case:
    """The whole test of one image, to class ids of the fused prediction, flipped views included."""
    cfg = load_config(EXPERIMENTS / config, list(overrides))
    device, size = options.device, options.size(*size)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image = draw_scene(size, np.random.default_rng(0))[0]
    clock = _Clock(inference_model(model, cfg, device), device)
    settings = InferenceSettings(
        base_size=size[1],
        window_size=size,
        scales=scales,
        flip=True,
        batch_size=cfg.TEST.BATCH_SIZE_PER_GPU,
        precision=cfg.TEST.PRECISION,
    )
    predictor = SlidingWindowInferencer(clock, settings, device)
    split: dict[str, float] = {}

    def ours() -> np.ndarray:
        clock.seconds = 0.0
        started = time.perf_counter()
        classes = predictor.predict(image, names=("fused",)).labels["fused"].cpu().numpy()
        split["forward passes"] = clock.seconds
        split["around them"] = time.perf_counter() - started - clock.seconds
        return classes

    def same(a: np.ndarray, b: np.ndarray) -> None:
        assert (a == b).mean() > (0.99 if cfg.TEST.PRECISION == "fp32" else 0.9)

    plain_model = model.to(device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain_model(torch.zeros(1, 3, *size, device=device))
    pixels = sum(s * s if s <= 1 else 4 for s in scales)  # larger scales are cut into four windows
    return Case(
        name,
        plain=lambda: plain.predict(plain_model, image, base_size=size[1], window=size, scales=scales, device=device),
        ours=ours,
        same=same,
        flops=2.0 * counter.get_total_flops() * pixels,
        num_images=1,
        split=split,
        device=device,
    )


def step_switch(options: Options, name: str, on: tuple[str, ...], off: tuple[str, ...] = ()) -> Case:
    """Our training step with a setting and without it."""
    cases = [step_case(options, SMALL, name, RANDOM + overrides) for overrides in (off, on)]
    return _switch(name, cases)


def runtime_case(options: Options, config: str, runtime: str, *, precision: str = "fp32") -> Case:
    """One image through the network: eager torch, and another runtime as ``TEST.RUNTIME`` has it."""
    cfg = load_config(EXPERIMENTS / config, list(RANDOM))
    size = options.size(512, 1024)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    network = ConvertedNetwork(fuse_conv_bn(model), runtime, precision=precision)
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))

    def run(which: torch.nn.Module) -> Tensor:
        with torch.inference_mode():
            return which(pixels).fused[-1]

    def same(a: Tensor, b: Tensor) -> None:
        assert (a - b).abs().max() <= (1e-3 if precision == "fp32" else 0.1) * a.abs().max()

    with FlopCounterMode(display=False) as counter:
        run(model)
    name = f"{Path(config).stem.split('_512x1024')[0]}, 512x1024: {runtime} in {precision}"
    flops = counter.get_total_flops()
    return Case(name, plain=lambda: run(model), ours=lambda: run(network), same=same, flops=flops, num_images=1)


def inference_switch(options: Options, name: str, on: tuple[str, ...], off: tuple[str, ...] = ()) -> Case:
    """Our test of one image at one scale and flipped, with a setting and without it."""
    cases = [
        inference_case(options, SMALL, name, (512, 1024), RANDOM + overrides, scales=(1.0,)) for overrides in (off, on)
    ]
    return _switch(name, cases)


def _switch(name: str, cases: Sequence[Case]) -> Case:
    off, on = cases
    return Case(name, plain=off.ours, ours=on.ours, same=lambda a, b: None, flops=on.flops, device=on.device)
