"""The rows that are measured on a card, in the order of their value: the first minutes say the most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from yacs.config import CfgNode

from benchmarks import plain
from benchmarks.card import PLAIN, Way, Work, agreement
from benchmarks.cases import loss_case
from benchmarks.inputs import Options
from benchmarks.measure import Case
from benchmarks.networks import EXPERIMENTS, RANDOM, SCALES, Steps, same_loss
from ovenet import build_model, builders, load_config
from ovenet.builders.inference import inference_model
from ovenet.engine.step import StepResult
from ovenet.models.cost import count_multiply_adds
from ovenet.synthetic.scenes import draw_scene
from ovenet.utils.environment import allow_tf32

FLAGSHIP = "cityscapes/ovenet_w48_ocr.yaml"
STEPS = {  # experiment of each row
    "step OVeNet W48+OCR, Cityscapes": FLAGSHIP,
    "step OVeNet W48, Cityscapes": "cityscapes/ovenet_w48.yaml",
    "step W48+OCR without seed, Cityscapes": "cityscapes/hrnet_w48_ocr.yaml",
    "step OVeNet W48+OCR, ADE20K": "ade20k/ovenet_w48_ocr.yaml",
    "step OVeNet W48, ADE20K": "ade20k/ovenet_w48.yaml",
}
STEP, FORWARD, IMAGE, TEST = next(iter(STEPS)), "forward 1024x2048", "image 1024x2048", "test 1024x2048, 6 scales"
LOSSES = {  # classes, crop (H, W), crops of each row; each without OHEM and with it
    "loss cityscapes": (19, (512, 1024), 2),
    "loss ade20k": (150, (520, 520), 2),
    "loss cityscapes batch 4": (19, (512, 1024), 4),
    "loss ade20k batch 4": (150, (520, 520), 4),
}
OHEM = (0.9, 100_000)
BATCH = 4
TELLING = 3  # first ways of a row: the plain one, and those that are expected to be best
LAUNCHES = {  # how a training step is launched
    "eager": ("TRAIN.CUDA_GRAPH", "off"),
    "graph": ("TRAIN.CUDA_GRAPH", "auto"),
    "blocks": ("TRAIN.CUDA_GRAPH", "off", "TRAIN.COMPILE", "blocks"),
    "graph and blocks": ("TRAIN.CUDA_GRAPH", "auto", "TRAIN.COMPILE", "blocks"),
}
TRAINING = {
    "TF32": ("TRAIN.TF32", "True"),
    "bf16": ("TRAIN.PRECISION", "bf16"),
    "fp32": ("TRAIN.TF32", "False"),
}
TESTING = {  # defaults, and what is faster or slower
    "TF32": ("TEST.TF32", "True"),
    "bf16": ("TEST.PRECISION", "bf16"),
    "bf16, 4 views at once": ("TEST.PRECISION", "bf16", "TEST.BATCH_SIZE_PER_GPU", "4"),
    "bf16, eager": ("TEST.PRECISION", "bf16", "TEST.CUDA_GRAPH", "off"),
    "TF32, eager": ("TEST.TF32", "True", "TEST.CUDA_GRAPH", "off"),
    "fp32": ("TEST.TF32", "False"),
}
QUICK = ("MODEL.BACKBONE.NAME", "hrnet_w18_small_v1", "TEST.BASE_SIZE", "256", "TEST.IMAGE_SIZE", "[256, 128]")


@dataclass(frozen=True)
class Published:
    """What the public OVeNet code took for the same work: measured once beside this project's on one NVIDIA H200.

    Attributes:
        way: how it ran.
        seconds: of the work.
        num_images: of the work.
        memory_gib: peak; None where it was not noted.
    """

    way: str
    seconds: float
    num_images: int
    memory_gib: float | None = None


PUBLISHED_SOURCE = "the public OVeNet code, measured once beside it on one NVIDIA H200, torch 2.11, 2026-11-27"
PUBLISHED = {
    STEP: (Published("TF32", 0.220, 4, 78.7), Published("fp32", 0.418, 4)),
    FORWARD: (Published("TF32", 0.074, 1),),
    IMAGE: (Published("TF32, the forward pass alone", 0.074, 1),),
}


def loss_way(options: Options, name: str, side: str, *, ohem: bool) -> Work:
    """Forward and backward pass of the whole criterion, the plain way or ours."""
    num_classes, size, batch = LOSSES[name]
    case: Case = loss_case(options, name, num_classes, size, batch=batch, ohem=OHEM if ohem else None)
    once = case.plain if side == PLAIN else case.ours
    return Work(once, once, case.same, repeats=10, flops=case.flops, num_bytes=case.num_bytes)


def plain_step(options: Options, config: str, precision: str) -> Work:
    """The public code's way to train: eager, channels first, cuDNN's algorithms timed."""
    set_up_plain(tf32=precision == "TF32")
    steps = Steps.of(options, config, small(options), BATCH)
    _, once = steps.plain()
    return _step_work(steps, options, config, once, once, precision)


def our_step(options: Options, config: str, precision: str, overrides: Sequence[str]) -> Work:
    """Training as `ovenet train` does it; results are read one step behind."""
    steps = Steps.of(options, config, (*small(options), *overrides), BATCH)
    builders.set_up_cuda(steps.cfg)
    step, batches = steps.ours(), steps.batches

    waiting: list[StepResult] = []

    def loss_of(result: StepResult) -> float:
        if (loss := result.loss) is None:
            raise ArithmeticError("the step was skipped: its loss or its gradient is not finite")
        return loss.total.item()

    def once() -> None:
        waiting.append(step(batches))
        if len(waiting) > 1:
            loss_of(waiting.pop(0))

    return _step_work(steps, options, config, once, lambda: loss_of(step(batches)), precision)


def _step_work(
    steps: Steps, options: Options, config: str, run: Callable[[], object], first: Callable[[], float], precision: str
) -> Work:
    width, height = steps.cfg.TRAIN.IMAGE_SIZE
    flops = 3.0 * BATCH * _forward_flops(config, small(options), options.size(height, width))
    return Work(run, first, same_loss, flops=flops, num_images=BATCH, precision=precision.lower(), is_model=True)


def image_way(
    options: Options, config: str, settings: Sequence[str] | None, scales: Sequence[float], flip: bool
) -> Work:
    """An image of 1024x2048 from bytes to class ids; `settings` of ``TEST``, or None for the plain way."""
    given = (*small(options), "TEST.SCALE_LIST", str(list(scales)), "TEST.FLIP_TEST", str(flip))
    cfg, size = load_config(EXPERIMENTS / config, [*given, *(settings or ())]), options.size(1024, 2048)
    if settings is None:
        set_up_plain(tf32=True)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image = draw_scene(size, np.random.default_rng(0))[0]
    once: Callable[[], np.ndarray]
    if settings is None:
        once = partial(
            plain.predict, model.to(options.device), image, base_size=size[1], window=size, scales=scales,
            device=options.device, flip=flip,
        )  # fmt: skip
    else:
        network = inference_model(model, cfg, options.device)
        predictor = builders.build_predictor(network, cfg, options.device)

        def once() -> np.ndarray:
            return predictor.predict(image, names=("fused",)).labels["fused"].cpu().numpy()

    views = (2 if flip else 1) * sum(s * s if s <= 1 else 4 for s in scales)  # larger scales are cut into four windows
    flops = views * _forward_flops(config, small(options), size)
    return _image_work(once, once, flops, cfg, settings)


def forward_way(options: Options, config: str, precision: str | None, *, in_graph: bool = False) -> Work:
    """A forward pass over an image of 1024x2048 that is on the card; `precision` of ours, or None for the plain way."""
    settings = None if precision is None else TESTING[precision]
    cfg, size = load_config(EXPERIMENTS / config, [*small(options), *(settings or ())]), options.size(1024, 2048)
    is_half = cfg.TEST.PRECISION == "bf16"
    if precision is None:
        set_up_plain(tf32=True)
    else:
        torch.backends.cudnn.benchmark = False  # as a test has it
        allow_tf32(cfg.TEST.TF32)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    network = model.to(options.device) if precision is None else inference_model(model, cfg, options.device)
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(options.device)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        # casts of weights are not kept: a graph would read them after they are gone
        with torch.autocast(options.device.type, torch.bfloat16, enabled=is_half, cache_enabled=not in_graph):
            return network(pixels).fused[-1]

    once = _captured(forward) if in_graph and options.device.type == "cuda" else forward

    def first() -> np.ndarray:
        return once().argmax(dim=1).cpu().numpy()

    flops = _forward_flops(config, small(options), size)
    return _image_work(once, first, flops, cfg, settings)


def small(options: Options) -> tuple[str, ...]:
    """Settings of every row: random weights, and a small network if it is only to run."""
    return (*RANDOM, *(QUICK if options.quick else ()))


def _captured(function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A function without arguments as a CUDA graph; its result is overwritten by the next call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is made once must not be made in the graph
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def replay(_inputs: object = function) -> torch.Tensor:  # the graph reads weights and pixels as long as it lives
        graph.replay()
        return result

    return replay


def _image_work(
    run: Callable[[], object],
    first: Callable[[], np.ndarray],
    flops: float,
    cfg: CfgNode,
    settings: Sequence[str] | None,
) -> Work:
    precision = cfg.TEST.PRECISION
    if settings is None or precision == "fp32":
        precision = "tf32" if settings is None or cfg.TEST.TF32 else "fp32"
    return Work(run, first, agreement, flops=flops, num_images=1, precision=precision, is_model=True)


def set_up_plain(*, tf32: bool) -> None:
    """What public code sets: cuDNN times its algorithms, and torch alone allows TF32 for convolutions only."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = False


@lru_cache(maxsize=16)
def _forward_flops(config: str, overrides: tuple[str, ...], size: tuple[int, int]) -> float:
    """Floating-point operations of one image, counted on the meta device."""
    cfg = load_config(EXPERIMENTS / config, list(overrides))
    with torch.device("meta"):
        return 2.0 * count_multiply_adds(build_model(cfg).eval(), *size)


def card_ways() -> list[Way]:
    """All lines of the table, the most telling first; the plain way comes before the others of its row."""
    step = {name: _step_ways(name, config) for name, config in STEPS.items()}
    image = _image_ways(IMAGE, (1.0,), flip=False)
    test = _image_ways(TEST, SCALES, flip=True)
    forward = [Way(FORWARD, "plain, TF32", partial(forward_way, config=FLAGSHIP, precision=None))]
    for in_graph in (True, False):
        for precision in ("bf16", "TF32"):
            build = partial(forward_way, config=FLAGSHIP, precision=precision, in_graph=in_graph)
            forward.append(Way(FORWARD, f"{precision}, {'graph' if in_graph else 'eager'}", build))
    losses = [
        Way(f"{name} ohem" if ohem else name, side, partial(loss_way, name=name, side=side, ohem=ohem))
        for name in LOSSES
        for ohem in (False, True)
        for side in (PLAIN, "ours")
    ]
    rank = {way.title: 0 for way in step[STEP][:TELLING]}
    rank |= {way.title: 1 for way in losses[: len(losses) // 2]}
    rank |= {way.title: 2 for ways in (image, test, forward) for way in ways[:TELLING]}
    rank |= {way.title: 3 for way in step[STEP][TELLING:]}
    rank |= {way.title: 4 for name in STEPS if name != STEP for way in step[name][:TELLING]}
    ways = [*losses, *image, *test, *forward, *(way for ways in step.values() for way in ways)]
    return sorted(ways, key=lambda way: rank.get(way.title, 5))


def _step_ways(name: str, config: str) -> list[Way]:
    """The plain way, and the two that are expected to be best, first."""

    def ours(precision: str, launch: str) -> Way:
        overrides = (*TRAINING[precision], *LAUNCHES[launch])
        return Way(
            name,
            f"{precision}, {launch}",
            partial(our_step, config=config, precision=precision, overrides=overrides),
        )

    first = [ours("bf16", "graph"), ours("bf16", "graph and blocks")]
    rest = [ours("TF32", "graph"), ours("bf16", "eager"), ours("TF32", "eager"), ours("bf16", "blocks")]
    rest += [ours("TF32", "blocks"), ours("TF32", "graph and blocks")]
    plain_way = partial(plain_step, config=config)
    if config == FLAGSHIP:
        rest += [Way(name, "plain, fp32", partial(plain_way, precision="fp32")), ours("fp32", "graph")]
    return [Way(name, "plain, TF32", partial(plain_way, precision="TF32")), *first, *rest]


def _image_ways(name: str, scales: Sequence[float], *, flip: bool) -> list[Way]:
    build = partial(image_way, config=FLAGSHIP, scales=scales, flip=flip)
    ways = [Way(name, "plain, TF32", partial(build, settings=None))]
    many = {way: settings for way, settings in TESTING.items() if flip or "views" not in way}
    return ways + [Way(name, way, partial(build, settings=settings)) for way, settings in many.items()]
