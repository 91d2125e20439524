"""Times one image through a network in each runtime of this machine, in turn."""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ovenet.builders.models import build_model
from ovenet.commands.export import parse_size
from ovenet.config import load_config
from ovenet.deployment import ExportableNetwork
from ovenet.deployment.about import TENSORS
from ovenet.deployment.formats import write_onnx
from ovenet.deployment.quantization import quantize_onnx
from ovenet.deployment.runtimes import open_session
from ovenet.errors import UserError
from ovenet.models import Segmentor
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.models.cost import count_multiply_adds, count_parameters
from ovenet.trained.model import find_weights, read_trained

EAGER, FUSED = "torch eager", "torch"
SESSIONS = {  # runtime, precision and whether quantised
    "onnxruntime": ("onnxruntime", "fp32", False),
    "openvino": ("openvino", "fp32", False),
    "openvino bf16": ("openvino", "bf16", False),
    "onnxruntime int8": ("onnxruntime", "fp32", True),
    "openvino int8": ("openvino", "fp32", True),
}
WAYS = (EAGER, FUSED, *SESSIONS)
_NUM_CALIBRATION = 2  # images of noise: the speed does not depend on them


def main() -> None:
    """Builds the network, converts it, and prints a table."""
    args = build_parser().parse_args()
    if args.runs < 1 or (args.threads is not None and args.threads < 1):
        raise UserError("--runs and --threads are at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    model = _model(args.model, args.set)
    size = parse_size(args.size, (512, 1024))
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    millions, gmac = count_parameters(model) / 1e6, count_multiply_adds(copy.deepcopy(model).to("meta"), *size) / 1e9
    print(
        f"{args.model}: {millions:.2f} million parameters, {gmac:.1f} GMAC at "
        f"{size[0]}x{size[1]}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    seconds = measure(make_ways(model, pixels, args.ways), args.runs)
    first = statistics.median(next(iter(seconds.values())))
    print(f"| way | ms | times as fast as {next(iter(seconds))} |\n|---|--:|--:|")
    for name, values in seconds.items():
        middle, low, high = (1e3 * pick(values) for pick in (statistics.median, min, max))
        print(f"| {name} | {middle:.1f} ({low:.1f} to {high:.1f}) | {1e3 * first / middle:.2f} |")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="an experiment file, or weights as `ovenet infer` takes them")
    parser.add_argument("--size", metavar="HxW", help="of the image; default: 512x1024")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="of each way, in turn (default: 10)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="settings")
    return parser


def _model(source: str, overrides: list[str]) -> Segmentor:
    if Path(source).suffix in (".yaml", ".yml") or ("/" in source and not Path(source).exists()):
        return build_model(load_config(source, overrides)).eval()
    return read_trained(find_weights(source), overrides=overrides).model


def make_ways(model: Segmentor, pixels: Tensor, names: list[str]) -> dict[str, Callable[[], object]]:
    """A function for each way that runs the image once.

    Raises:
        UserError: a package is missing, or the network cannot be converted.
    """
    fast = fuse_conv_bn(model)
    last = pixels.contiguous(memory_format=torch.channels_last)
    channels_last = fuse_conv_bn(model).to(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], object]] = {}
    tensors = TENSORS if model.max_offset is not None else ("fused",)
    with tempfile.TemporaryDirectory(prefix="ovenet-") as folder:
        plain, quantized = Path(folder) / "network.onnx", Path(folder) / "int8.onnx"
        for name in names:
            if name == EAGER:
                ways[name] = lambda: model(pixels)
                continue
            if name == FUSED:
                ways[name] = lambda: channels_last(last)
                continue
            runtime, precision, is_int8 = SESSIONS[name]
            if not plain.exists():
                network = ExportableNetwork(fast, tensors, align_corners=True).eval()
                write_onnx(network, pixels, plain, tensors, is_dynamic=False)
            if is_int8 and not quantized.exists():
                quantized.write_bytes(plain.read_bytes())
                quantize_onnx(quantized, [pixels.numpy()] * _NUM_CALIBRATION)
            run = open_session(quantized if is_int8 else plain, runtime, precision)
            ways[name] = lambda run=run: run(pixels.numpy())
    return ways


@torch.inference_mode()
def measure(ways: dict[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Seconds of each run, the ways in turn, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(runs + 1):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds
