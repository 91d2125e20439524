"""Exports a trained model for other runtimes, after checking that it predicts the same."""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path

from ovenet.builders.loading import load_model
from ovenet.deployment import FORMATS, Limits
from ovenet.deployment.about import LABELS, SAMPLINGS, SUFFIXES, TENSORS, Precision
from ovenet.deployment.formats import OPSET
from ovenet.deployment.parity import EXACT, QUANTIZED
from ovenet.errors import UserError
from ovenet.predictor.export import ExportOptions, export
from ovenet.predictor.sources import find_weights, name_of
from ovenet.utils.cli import require_free

DYNAMIC = "dynamic"
PRECISIONS: dict[str, Precision] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


def main() -> None:
    """Reads the weights, writes and compares the file, and prints the result."""
    args = build_parser().parse_intermixed_args()
    source = find_weights(args.weights)
    suffix = next(suffix for suffix, name in SUFFIXES.items() if name == args.format)
    path = args.file or Path(f"{name_of(source)}{'' if args.precision == 'fp32' else f'-{args.precision}'}{suffix}")
    if path.suffix != suffix:
        raise UserError(f"{path}: a file of --format {args.format} ends in {suffix}")
    for part in (path, *([path.with_suffix(".bin")] if args.format == "openvino" else [])):
        require_free(part, overwrite=args.overwrite)
    trained = load_model(source, args.cfg, args.set)
    usual = QUANTIZED if args.precision == "int8" else EXACT
    options = ExportOptions(
        size=None if args.size == DYNAMIC else parse_size(args.size, trained.settings.window_size),
        tensors=(LABELS,) if args.output == LABELS else tuple(args.tensors),
        normalize=args.normalize == "inside",
        precision=PRECISIONS[args.precision],
        seed_sampling=args.seed_sampling,
        opset=args.opset,
        limits=Limits(
            changed=usual.changed if args.max_changed is None else args.max_changed / 100,
            mean_iou=usual.mean_iou if args.max_loss is None else args.max_loss / 100,
        ),
        images=args.images,
        num_images=args.num_images,
    )
    parity = export(trained, path, options, tell=partial(print, flush=True))
    print(f"compared:    {parity}")
    if parity.mean_iou:
        print(f"             {note_on_mean_iou(parity.num_images, options.size)}")
    print(f"exported:    {path} ({path.stat().st_size / 1e6:.1f} MB)")


def note_on_mean_iou(num_images: int, size: tuple[int, int] | None) -> str:
    """Why the mIoU of the comparison is not the one of a test."""
    shown = f"resized to {size[0]}x{size[1]}" if size else "of sizes near the test's"
    return (
        f"(mIoU on {num_images} images and labels {shown}, one view each: it checks the file, and is not comparable "
        "with a test's; ovenet test scores the file)"
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", metavar="WEIGHTS", help="a run's folder, a file of weights, or a model's name")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="file to write; default: named like WEIGHTS")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    parser.add_argument("--size", metavar="HxW", help=f"size of the images, or {DYNAMIC}; default: TEST.IMAGE_SIZE")
    parser.add_argument("--output", choices=("scores", LABELS), default="scores", help="default: scores")
    parser.add_argument(
        "--tensors", nargs="+", choices=TENSORS, default=list(TENSORS), help="outputs of --output scores; default: all"
    )
    parser.add_argument(
        "--normalize",
        choices=("inside", "outside"),
        default="inside",
        help="input of the file: RGB from 0 to 255 (inside) or normalised pixels (outside); default: inside",
    )
    parser.add_argument(
        "--seed-sampling",
        choices=SAMPLINGS,
        help="bilinear samples as four gathers and a blend, or as ONNX's GridSample; default: gather, pt2 grid_sample",
    )
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="of weights and activations; int8 is calibrated on training images or --images; default: fp32",
    )
    parser.add_argument("--int8", dest="precision", action="store_const", const="int8", help="--precision int8")
    parser.add_argument("--opset", type=int, default=OPSET, metavar="N", help=f"ONNX opset; default: {OPSET}")
    parser.add_argument("--images", nargs="+", default=[], metavar="INPUT", help="compare on these instead of the list")
    parser.add_argument(
        "--num-images", type=_positive, default=8, metavar="N", help="number of images to compare; default: 8"
    )
    parser.add_argument(
        "--max-changed",
        type=_percent,
        metavar="PERCENT",
        help="accepted share of pixels that change class; default: 0.1, int8 5",
    )
    parser.add_argument(
        "--max-loss", type=_percent, metavar="POINTS", help="accepted loss of mIoU; default: 0.05, int8 0.5"
    )
    parser.add_argument("--cfg", metavar="FILE", help="experiment file, for weights that carry no configuration")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="settings, such as DATASET.ROOT data/",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    return parser


def parse_size(text: str | None, usual: tuple[int, int]) -> tuple[int, int]:
    """``HxW`` as ``(H, W)``; the usual size for None.

    Raises:
        UserError: it is no size.
    """
    if text is None:
        return usual
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None or min(int(n) for n in match.groups()) < 1:
        raise UserError(f"--size {text}: expected height x width in pixels, such as 512x1024")
    return int(match[1]), int(match[2])


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer of at least 1")
    return int(text)


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 to 100")
    return value
