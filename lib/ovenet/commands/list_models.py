"""Lists backbones with their size and cost, or trained models with their scores and licences."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import median

import torch

import ovenet
from ovenet.models import Segmentor, build_segmentor
from ovenet.models.cost import count_multiply_adds, count_parameters
from ovenet.models.pretrained import BY_HAND, PretrainedModel, bundled_models, pretrained_models
from ovenet.utils.meta import meta_device

NUM_CLASSES = 19
NUM_RUNS = 5


def main() -> None:
    """Prints a table, one line per backbone or trained model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "patterns", nargs="*", default=[], metavar="PATTERN", help="names, with * and ?; default: all of this project"
    )
    parser.add_argument("--head", default="fcn", help="ocr, segformer, …; see ovenet.list_heads()")
    parser.add_argument("--seed", help="fork, shared or neck for an OVeNet")
    parser.add_argument("--size", nargs=2, type=int, default=(512, 1024), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--latency", action="store_true", help="also time a forward pass on this machine's CPU")
    parser.add_argument("--pretrained", action="store_true", help="list trained models, which commands take by name")
    args = parser.parse_args()
    if args.pretrained:
        list_pretrained(args.patterns or ["*"])
        return
    names = [name for pattern in args.patterns for name in ovenet.list_backbones(pattern)]
    names = names if args.patterns else [name for name in ovenet.list_backbones(timm=False) if name != "hrnet"]
    if not names:
        raise ovenet.UserError(f"no backbone matches {' or '.join(args.patterns)}; see ovenet.list_backbones()")
    print("| backbone | channels | strides | million parameters: backbone, all | GMAC |" + " ms |" * args.latency)
    print("|---|---|---|---|---|" + "---|" * args.latency)
    for name in names:
        try:
            print(row(name, args), flush=True)
        except ovenet.UserError as error:
            if args.patterns:
                raise
            print(f"{name} is left out: {error}", file=sys.stderr)


def list_pretrained(patterns: Sequence[str]) -> None:
    """Prints a table of trained models: their data, scores and licences, and where they are."""
    names = [name for pattern in patterns for name in ovenet.list_models(pattern, pretrained=True)]
    if not names:
        raise ovenet.UserError(f"no trained model matches {' or '.join(patterns)}; see ovenet models --pretrained")
    print("| name | data | mIoU at one scale, at several (%) | licence | MB | where |")
    print("|---|---|---|---|---|---|")
    for name in names:
        print(pretrained_row(name))


def pretrained_row(name: str) -> str:
    """The line of one trained model."""
    model = bundled_models().get(name) or pretrained_models()[name]
    path = model.find()
    size = f"{path.stat().st_size / 1e6:.0f}" if path else "–"
    scores = ", ".join("–" if score is None else f"{score:g}" for score in model.mean_iou)
    if isinstance(model, PretrainedModel) and path is None:
        where = "downloaded when asked for" if model.address else f"{model.page}; put it at {BY_HAND / model.file}"
    else:
        where = str(path)
    return f"| {name} | {model.data} | {scores} | {model.licence} | {size} | {where} |"


def row(name: str, args: argparse.Namespace) -> str:
    """The line of one backbone, with the head and the seed."""
    size = tuple(args.size)
    with meta_device():
        model = build_segmentor(name, num_classes=NUM_CLASSES, head=args.head, seed=args.seed).eval()
    millions = [count_parameters(part) / 1e6 for part in (model.backbone, model)]
    cells = [
        name,
        ", ".join(map(str, model.backbone.channels)),
        ", ".join(map(str, model.backbone.strides)),
        f"{millions[0]:.2f}, {millions[1]:.2f}",
        f"{count_multiply_adds(model, *size) / 1e9:.1f}",
    ]
    if args.latency:
        cells.append(f"{latency_ms(name, args, size):.0f}")
    return "| " + " | ".join(cells) + " |"


def latency_ms(name: str, args: argparse.Namespace, size: tuple[int, int]) -> float:
    """Median time of one image, as `tools/test.py` runs it, BatchNorm fused."""
    from ovenet.models.conv_bn import fuse_conv_bn

    model: Segmentor = build_segmentor(name, num_classes=NUM_CLASSES, head=args.head, seed=args.seed)
    model = fuse_conv_bn(model).to(memory_format=torch.channels_last)
    images = torch.randn(1, 3, *size).to(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(NUM_RUNS + 1):
            started = time.perf_counter()
            model(images)
            times.append(time.perf_counter() - started)
    return 1000 * median(times[1:])
