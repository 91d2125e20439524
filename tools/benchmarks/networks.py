"""Whole training steps and tests, the plain way and ours, and ours with a setting and without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from yacs.config import CfgNode

from benchmarks import plain
from benchmarks.inputs import Options, random_labels
from benchmarks.measure import Case
from ovenet import build_model, builders, load_config
from ovenet.builders.inference import inference_model
from ovenet.data.transforms import normalize_images
from ovenet.deployment import ConvertedNetwork
from ovenet.engine.step import TrainStep
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.structures import Batch, OVeNetOutput
from ovenet.synthetic.scenes import draw_scene

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
SMALL_OCR = "cityscapes/ovenet_w18s_ocr.yaml"
SMALL = "cityscapes/ovenet_w18s.yaml"
RANDOM = ("MODEL.BACKBONE.PRETRAINED", "", "MODEL.SEED.PRETRAINED", "")


@dataclass(frozen=True)
class Steps:
    """What training steps of an experiment need: its configuration, and one batch of random crops and labels."""

    cfg: CfgNode
    device: torch.device
    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, options: Options, config: str, overrides: tuple[str, ...], batch: int) -> Steps:
        cfg = load_config(EXPERIMENTS / config, list(overrides))
        width, height = cfg.TRAIN.IMAGE_SIZE
        size = options.size(height, width)
        images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = random_labels(batch, cfg.DATASET.NUM_CLASSES, size, torch.device("cpu")).to(torch.int16)
        if options.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return cls(cfg, options.device, images, labels)

    @property
    def batches(self) -> list[Batch]:
        """The batch, as loading gives it."""
        return [Batch(self.images, self.labels, tuple(str(n) for n in range(len(self.images))))]

    def ours(self) -> TrainStep:
        """Our step, of a model with its first weights."""
        torch.manual_seed(0)
        model = build_model(self.cfg).to(self.device, memory_format=torch.channels_last).train()
        return builders.build_train_step(model, self.cfg, self.device, [10**6])

    def plain(self) -> tuple[torch.nn.Module, Callable[[], float]]:
        """The same model, and a step of it the plain way."""
        torch.manual_seed(0)
        model = build_model(self.cfg).to(self.device).train()
        optimizer = torch.optim.SGD(
            model.parameters(), self.cfg.TRAIN.LR, momentum=0.9, weight_decay=self.cfg.TRAIN.WD, foreach=False,
            fused=False,
        )  # fmt: skip
        criterion = builders.build_criterion(self.cfg).to(self.device)
        mining = getattr(criterion.losses[0].loss, "mining", None)
        ohem = None if mining is None else (mining.threshold, mining.min_kept)
        loss = partial(
            plain.loss, weights=criterion.output_weights.tolist(), class_weights=criterion.class_weights, ohem=ohem
        )
        step = plain.train_step(model, optimizer, loss)
        pixels = normalize_images(self.images).contiguous()  # loading did that; it is no part of a step
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        return model, lambda: step(pixels.to(self.device), self.labels.to(self.device).long())


def same_loss(a: float, b: float) -> None:
    """Of two ways, at the first step."""
    assert abs(a - b) <= 0.05 * abs(a), (a, b)


def step_case(options: Options, config: str, name: str, overrides: tuple[str, ...] = (), *, batch: int = 2) -> Case:
    """A whole training step on random crops, from bytes to changed weights."""
    steps = Steps.of(options, config, overrides, batch)
    step, batches = steps.ours(), steps.batches
    plain_model, plain_step = steps.plain()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain_model(normalize_images(steps.images[:1]).to(steps.device))
    return Case(
        name,
        plain=plain_step,
        ours=lambda: step(batches).loss.total.item(),
        same=same_loss,
        flops=3.0 * counter.get_total_flops() * batch,
        num_images=batch,
        min_ratio=0.0,
        device=steps.device,
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
