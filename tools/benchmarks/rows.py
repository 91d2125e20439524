"""The rows of the table: the plain way and ours, on the same inputs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from benchmarks.measure import Case
from ovenet import build_model, builders, load_config
from ovenet.builders.inference import inference_model
from ovenet.data.cache import DecodedCache
from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import AugmentedDataset, ListDataset
from ovenet.data.synthetic import draw_scene
from ovenet.data.transforms import TrainTransform, normalize_images
from ovenet.engine.trainer import Phase
from ovenet.evaluation.inference import InferenceSettings, ScorePredictor, best_class
from ovenet.evaluation.metrics import confusion_counts
from ovenet.geometry import resize_rows
from ovenet.losses import OhemSettings, SegmentationCriterion
from ovenet.structures import Batch, OVeNetOutput

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
WEIGHTS = (0.4, 1.0)  # of the auxiliary and the final output
FLOPS_PER_SCORE = 12  # upsampling and its transpose, exponential, sum, product


@dataclass(frozen=True)
class Options:
    """Attributes:
    device: where models and losses run.
    quick: sizes that say nothing, to see whether all works.
    """

    device: torch.device
    quick: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        return (height // 8, width // 8) if self.quick else (height, width)


def random_output(
    batch: int, num_classes: int, size: tuple[int, int], device: torch.device, num_maps: int = 2
) -> OVeNetOutput:
    """Scores as a network gives them, channels last, that want a gradient."""
    generator = torch.Generator().manual_seed(0)

    def maps(channels: int) -> Tensor:
        values = 3 * torch.randn(batch, channels, *size, generator=generator)
        return values.to(device, memory_format=torch.channels_last).requires_grad_()

    groups = [tuple(maps(num_classes) for _ in range(num_maps)) for _ in range(3)]
    offset = (torch.rand(batch, 2, *size, generator=generator) - 0.5).to(device)
    confidence = torch.rand(batch, 1, *size, generator=generator).to(device).requires_grad_()
    return OVeNetOutput(*groups, offset, confidence)


def random_labels(batch: int, num_classes: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Blocks of classes with ignored pixels among them."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, num_classes, (batch, -(-size[0] // 16), -(-size[1] // 16)))
    labels = small.repeat(16, axis=1).repeat(16, axis=2)[:, : size[0], : size[1]].copy()
    labels[rng.random(labels.shape) < 0.1] = plain.IGNORE
    return torch.from_numpy(labels).to(device)


def loss_case(
    options: Options,
    name: str,
    num_classes: int,
    size: tuple[int, int],
    *,
    batch: int = 2,
    ohem: tuple[float, int] | None = None,
    min_ratio: float = 0.0,
    max_memory: float = 0.0,
) -> Case:
    """Forward and backward of the whole criterion, three predictions of two outputs each."""
    size = options.size(*size)
    output = random_output(batch, num_classes, tuple(-(-n // 4) for n in size), options.device)
    labels = random_labels(batch, num_classes, size, options.device)
    inputs = (*output.initial, *output.seed, *output.fused, output.confidence)
    criterion = SegmentationCriterion(
        ignore_label=plain.IGNORE,
        output_weights=WEIGHTS,
        ohem=None if ohem is None else OhemSettings(*ohem),
    ).to(options.device)

    def run(loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        value = loss()
        return value.detach(), *torch.autograd.grad(value, inputs)

    def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
        torch.testing.assert_close(a[0], b[0], rtol=1e-5, atol=1e-5)
        if ohem is None:  # a pixel at the limit may fall on either side
            for x, y in zip(a[1:], b[1:], strict=True):
                torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4 * float(y.abs().max()))

    scores = 6 * batch * num_classes * size[0] * size[1]
    return Case(
        name,
        plain=lambda: run(lambda: plain.loss(output, labels, WEIGHTS, ohem=ohem)),
        ours=lambda: run(lambda: criterion(output, labels).total),
        same=same,
        flops=FLOPS_PER_SCORE * scores,
        num_bytes=2 * sum(x.numel() * 4 for x in inputs) + 8 * labels.numel(),
        min_ratio=min_ratio,
        max_memory=max_memory,
        device=options.device,
    )


@contextmanager
def drawn_scenes(count: int, size: tuple[int, int]) -> Iterator[tuple[Path, list[tuple[str, str]]]]:
    """A folder in Cityscapes' manner."""
    with tempfile.TemporaryDirectory() as name:
        root, pairs = Path(name), []
        for number in range(count):
            rng = np.random.default_rng(number)
            image, ids = draw_scene((size[0] // 2, size[1] // 2), rng)
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
            image = cv2.GaussianBlur(image, (0, 0), 1.5)  # 2.2 MB, like Cityscapes' files
            ids = cv2.resize(ids, size[::-1], interpolation=cv2.INTER_NEAREST)
            pair = (f"leftImg8bit/train/{number}.png", f"gtFine/train/{number}.png")
            for path, pixels in zip(pair, (image, ids), strict=True):
                (root / "cityscapes" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / "cityscapes" / path)
            pairs.append(pair)
        (root / "train.lst").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
        yield root, pairs


@contextmanager
def sample_case(options: Options, *, cached: bool, count: int = 17) -> Iterator[Case]:
    """Training samples of Cityscapes' size, each at another scale; opened files lie in the system's cache."""
    info, crop = CATALOG["cityscapes"], options.size(512, 1024)
    count = 3 if options.quick else count
    with drawn_scenes(count, options.size(1024, 2048)) as (root, pairs):
        base_size = options.size(1024, 2048)[1]
        dataset = ListDataset(root, root / "train.lst", info, ignore_label=plain.IGNORE)
        transform = TrainTransform(crop, base_size, 16, flip=True, brightness_shift=0, ignore_label=plain.IGNORE)
        if cached:
            dataset.cache = DecodedCache(root / "cache", dataset.folder, info, plain.IGNORE)
            dataset.cache.build(dataset.pairs, dataset.read_files, range(count), num_threads=2)
        augmented = AugmentedDataset(dataset, transform, seed=0)
        table = info.train_id_table(plain.IGNORE).astype(np.int16)
        threads = cv2.getNumThreads()

        def single(run: Callable[[int], Any]) -> list[Any]:
            cv2.setNumThreads(0)  # as in a loading process
            try:
                return [run(number) for number in range(count)]
            finally:
                cv2.setNumThreads(threads)

        def plain_sample(number: int) -> Any:
            image, labels = (dataset.folder / name for name in pairs[number])
            return plain.sample(image, labels, table, crop, np.random.default_rng(number))

        def same(a: list[Any], b: list[Any]) -> None:
            assert {x[0].shape[1:] for x in a} == {x.image.shape[:2] for x in b} == {crop}

        yield Case(
            f"training sample, Cityscapes, {'cached' if cached else 'decoded'} ({count} samples)",
            plain=lambda: single(plain_sample),
            ours=lambda: single(lambda number: augmented[0, number]),
            same=same,
            num_bytes=count * 2 * crop[0] * crop[1] * (3 + 2),
            num_images=count,
            min_ratio=6.0 if cached else 1.1,
        )


def counts_case(options: Options, *, from_scores: bool) -> Case:
    """Confusion counts of one prediction of 1024x2048, of label maps or of the network's scores."""
    size, k = options.size(1024, 2048), 19
    labels = random_labels(1, k, size, torch.device("cpu"))[0].to(torch.int16)
    scores = torch.randn(1, k, size[0] // 4, size[1] // 4, generator=torch.Generator().manual_seed(0))
    predicted = plain.classes_of(scores, size)

    def ours_from_scores() -> Tensor:
        by_row = scores[0].permute(1, 0, 2).contiguous()
        band, rows = max(1, 2**20 // (k * size[1])), []
        for first in range(0, size[0], band):
            here = range(first, min(first + band, size[0]))
            rows.append(best_class(resize_rows(by_row, size, here, align_corners=True)))
        return confusion_counts(torch.cat(rows), labels, k, ignore_label=plain.IGNORE)

    def same(a: np.ndarray, b: Tensor) -> None:
        assert np.abs(a - b.numpy()).sum() <= 2e-4 * a.sum()  # where two classes are equally likely

    if from_scores:
        return Case(
            "confusion counts of a 1024x2048 image, from scores at stride 4",
            plain=lambda: plain.confusion(plain.classes_of(scores, size), labels.numpy(), k),
            ours=ours_from_scores,
            same=same,
            flops=4 * k * size[0] * size[1],
            num_bytes=scores.numel() * 4 + 3 * labels.numel(),
            min_ratio=3.0,
        )
    return Case(
        "confusion counts of a 1024x2048 image, from label maps",
        plain=lambda: plain.confusion(predicted, labels.numpy(), k),
        ours=lambda: confusion_counts(torch.from_numpy(predicted), labels, k, ignore_label=plain.IGNORE),
        same=same,
        num_bytes=3 * labels.numel(),
        min_ratio=1.5,
    )


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
    ohem = None if criterion.ohem is None else (criterion.ohem.threshold, criterion.ohem.min_kept)
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
    """The whole test of one image, to class ids of the fused prediction, mirrored views included."""
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
    predictor = ScorePredictor(clock, settings, device)
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


SMALL = "cityscapes/ovenet_hrnet_w18_small_v2_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484.yaml"
W48 = "cityscapes/seg_hrnet_w48_train_ohem_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484_cityscapes_pretrained.yaml"
W48_OCR = "cityscapes/ovenet_hrnet_ocr_w48_train_ohem_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484.yaml"
ADE_W48 = "ade20k/ovenet_hrnet_w48_520x520_ohem_sgd_lr2e-2_wd1e-4_bs_16_epoch120.yaml"
ADE_W48_OCR = "ade20k/ovenet_hrnet_ocr_w48_520x520_ohem_sgd_lr2e-2_wd1e-4_bs_16_epoch120.yaml"
RANDOM = ("MODEL.PRETRAINED", "", "MODEL.OFFSET_PRETRAINED", "")
FAST = ("TRAIN.PRECISION", "bf16", "TRAIN.COMPILE", "default", "TEST.PRECISION", "bf16", "TEST.BATCH_SIZE_PER_GPU", "4")

Row = Case | AbstractContextManager[Case]
CITY, ADE = (19, (512, 1024)), (150, (520, 520))
OHEM = (0.9, 100_000)
FEW_HARD = (1e-6, 400_000)  # nearly no pixel is below the threshold: the second pass is needed
MANY = {"min_ratio": 3.2, "max_memory": 0.25}
ANY = {"min_ratio": 2.0, "max_memory": 0.34}
LOSSES: dict[str, Callable[[Options], Case]] = {
    "loss ade20k": lambda o: loss_case(o, "loss, ADE20K (150 classes, 520x520, batch 2)", *ADE, **MANY),
    "loss ade20k ohem": lambda o: loss_case(o, "loss with OHEM, ADE20K", *ADE, ohem=OHEM, **MANY),
    "loss cityscapes": lambda o: loss_case(o, "loss, Cityscapes (19 classes, 512x1024, batch 2)", *CITY, **ANY),
    "loss cityscapes ohem": lambda o: loss_case(o, "loss with OHEM, Cityscapes", *CITY, ohem=OHEM, **ANY),
    "loss cityscapes few hard": lambda o: loss_case(
        o, "loss with OHEM, Cityscapes, few hard pixels", *CITY, ohem=FEW_HARD, **ANY
    ),
}
ON_CPU: dict[str, Callable[[Options], Row]] = {
    **LOSSES,
    "sample": lambda o: sample_case(o, cached=False),
    "sample cached": lambda o: sample_case(o, cached=True),
    "counts": lambda o: counts_case(o, from_scores=False),
    "counts from scores": lambda o: counts_case(o, from_scores=True),
    "step": lambda o: step_case(o, SMALL, "training step, OVeNet on HRNet-W18-small-v2, 512x1024, batch 2", RANDOM),
    "test": lambda o: inference_case(
        o, SMALL, "test of a 512x1024 image, 6 scales, mirrored, HRNet-W18-small-v2", (512, 1024), RANDOM
    ),
}
ON_CUDA: dict[str, Callable[[Options], Row]] = {
    **LOSSES,
    **{
        f"step {name}": partial(
            lambda o, config, name: step_case(o, config, f"training step, {name}, batch 4", RANDOM + FAST, batch=4),
            config=config,
            name=name,
        )
        for name, config in {
            "OVeNet W48, Cityscapes": W48,
            "OVeNet W48+OCR, Cityscapes": W48_OCR,
            "OVeNet W48, ADE20K": ADE_W48,
            "OVeNet W48+OCR, ADE20K": ADE_W48_OCR,
        }.items()
    },
    "test": lambda o: inference_case(o, W48, "test of 1024x2048, 6 scales, mirrored, W48", (1024, 2048), RANDOM + FAST),
    "latency": lambda o: inference_case(
        o, W48, "one 1024x2048 image, one scale and its mirror, W48", (1024, 2048), RANDOM + FAST, scales=(1.0,)
    ),
}
GUARDED = (*LOSSES, "sample", "sample cached", "counts", "counts from scores")  # rows of --check
