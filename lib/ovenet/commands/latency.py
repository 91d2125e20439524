"""Times one image in several networks and runtimes of this machine, in turn, and lists the cost of each network."""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ovenet.builders.loading import load_model
from ovenet.builders.models import build_model
from ovenet.commands.export import parse_size
from ovenet.config import load_config, load_config_text
from ovenet.deployment import ExportableNetwork
from ovenet.deployment.about import SUFFIXES, TENSORS, is_exported
from ovenet.deployment.formats import read_about, write_onnx
from ovenet.deployment.quantization import quantize_onnx
from ovenet.deployment.runtimes import open_session
from ovenet.errors import UserError
from ovenet.evaluation.curves import short_names
from ovenet.models import Segmentor
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.models.cost import count_multiply_adds, count_parameters
from ovenet.predictor.sources import find_weights
from ovenet.utils.environment import crowding

EAGER, FUSED = "torch eager", "torch"
SESSIONS = {  # runtime, precision, is quantised
    "onnxruntime": ("onnxruntime", "fp32", False),
    "openvino": ("openvino", "fp32", False),
    "openvino bf16": ("openvino", "bf16", False),
    "onnxruntime int8": ("onnxruntime", "fp32", True),
    "openvino int8": ("openvino", "fp32", True),
}
WAYS = (EAGER, FUSED, *SESSIONS)
FILE_WAYS = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",), "pt2": (FUSED,)}  # by format
_UNSTEADY = 3.0  # longest over shortest time
_NUM_CALIBRATION = 2  # images of noise: the speed does not depend on them


@dataclass(frozen=True)
class Network:
    """One network: its cost, and a function for each way that runs the image once."""

    name: str
    num_parameters: int
    gmac: float
    ways: dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Times:
    """Times of each run, in seconds.

    Attributes:
        elapsed_s: wall-clock time, the latency.
        processor_s: CPU time of all threads, which other programs affect less.
    """

    elapsed_s: list[float]
    processor_s: list[float]


def main() -> None:
    """Builds the networks, converts them, and prints a table."""
    args = build_parser().parse_args()
    if args.runs < 1 or (args.threads is not None and args.threads < 1):
        raise UserError("--runs and --threads are at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    height, width = size = parse_size(args.size, (512, 1024))
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    sources = list(dict.fromkeys(args.models))
    names = short_names([Path(source) for source in sources])
    networks = [
        read_network(source, name, pixels, args.ways, args.set) for source, name in zip(sources, names, strict=True)
    ]
    print(f"{height}x{width}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.runs} runs in turn")
    before = crowding(0)
    times = measure([run for network in networks for run in network.ways.values()], args.runs)
    print(table(networks, times))
    for warning in filter(None, (before, unsteady(times))):
        print(f"warning: {warning}; measure again when it is idle", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="experiment files, or weights as for `ovenet infer`")
    parser.add_argument("--size", metavar="HxW", help="size of the image; default: 512x1024")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument(
        "--runs", type=int, default=10, metavar="N", help="runs of each network and way, in turn (default: 10)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="settings")
    return parser


def read_network(source: str, name: str, pixels: Tensor, ways: list[str], overrides: list[str]) -> Network:
    """The network of an experiment, of weights or of an exported file, ready to run `pixels` in several ways.

    Args:
        source: what names it.
        name: its name in the table.
        pixels: ``(1, 3, H, W)``.
        ways: names of the ways; an exported file has those of its format alone.
        overrides: settings.

    Raises:
        UserError: the model does not exist, a package is missing, or the network cannot be converted, or takes images
            of another size.
    """
    if is_exported(source):
        return read_file(Path(source), name, pixels, ways)
    model = _model(source, overrides)
    gmac = count_multiply_adds(copy.deepcopy(model).to("meta"), *pixels.shape[-2:]) / 1e9
    return Network(name, count_parameters(model), gmac, make_ways(model, pixels, ways))


def read_file(path: Path, name: str, pixels: Tensor, ways: list[str]) -> Network:
    """An exported file, ready to run `pixels` ``(1, 3, H, W)``; its cost is that of the network that it was made from.

    Raises:
        UserError: the file is damaged, or takes images of another size, or no way runs it.
    """
    about, size = read_about(path), tuple(pixels.shape[-2:])
    if about.size not in (None, size):
        wanted = "x".join(map(str, about.size or ()))
        raise UserError(f"{path}: takes images of {wanted}, not {size[0]}x{size[1]}; add --size {wanted}")
    chosen = [way for way in FILE_WAYS[SUFFIXES[path.suffix]] if way in ways]
    if not chosen:
        raise UserError(f"{path}: --ways has none that runs it: {', '.join(FILE_WAYS[SUFFIXES[path.suffix]])}")
    model = build_model(load_config_text(about.config, str(path)))
    gmac = count_multiply_adds(copy.deepcopy(model).to("meta"), *size) / 1e9
    array = pixels.numpy()
    runs = {way: partial(open_session(path, way), array) for way in chosen}
    return Network(name, count_parameters(model), gmac, dict(runs))


def _model(source: str, overrides: list[str]) -> Segmentor:
    if Path(source).suffix in (".yaml", ".yml") or ("/" in source and not Path(source).exists()):
        return build_model(load_config(source, overrides)).eval()
    return load_model(find_weights(source), overrides=overrides).model


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
            ways[name] = partial(run, pixels.numpy())
    return ways


@torch.inference_mode()
def measure(runs: Sequence[Callable[[], object]], number: int) -> list[Times]:
    """Times of each call: all in turn, `number` times, after one round of warm-up."""
    times = [Times([], []) for _ in runs]
    for turn in range(number + 1):
        for run, taken in zip(runs, times, strict=True):
            started, worked = time.perf_counter(), time.process_time()
            run()
            if turn:
                taken.processor_s.append(time.process_time() - worked)
                taken.elapsed_s.append(time.perf_counter() - started)
    return times


def table(networks: Sequence[Network], times: Sequence[Times]) -> str:
    """Markdown: size, multiply-adds and times of each network and way, beside the first row's.

    Args:
        networks: in the order in which they were measured.
        times: of each network's ways in turn, see `measure`.

    Returns:
        Medians; the shortest and the longest beside elapsed time; quartiles beside the difference of processor time,
        which is taken within each turn, as the ratio of elapsed times is.
    """
    lines = [
        "| network | parameters | GMAC | way | ms (shortest to longest) | times as fast as the first "
        "| processor ms | more than the first (quartiles) |",
        "|---|--:|--:|---|--:|--:|--:|--:|",
    ]
    rows = [(network, way) for network in networks for way in network.ways]
    first = times[0]
    for (network, way), taken in zip(rows, times, strict=True):
        middle, low, high = (1e3 * pick(taken.elapsed_s) for pick in (statistics.median, min, max))
        more = [1e3 * (a - b) for a, b in zip(taken.processor_s, first.processor_s, strict=True)]
        ratios = [a / max(b, 1e-9) for a, b in zip(first.elapsed_s, taken.elapsed_s, strict=True)]
        quarter, half, most = np.percentile(more, (25, 50, 75))
        difference = "" if taken is first else f"{half:+.1f} ({quarter:+.1f} to {most:+.1f})"
        lines.append(
            f"| {network.name} | {network.num_parameters:,} | {network.gmac:.1f} | {way} | "
            f"{middle:.1f} ({low:.1f} to {high:.1f}) | {statistics.median(ratios):.2f} | "
            f"{1e3 * statistics.median(taken.processor_s):.1f} | {difference} |"
        )
    return "\n".join(lines)


def unsteady(times: Sequence[Times]) -> str:
    """A warning if the same run took very different times, as beside other programs; "" otherwise."""
    spread = max(max(taken.elapsed_s) / max(min(taken.elapsed_s), 1e-9) for taken in times)
    return f"a run took up to {spread:.1f} times as long as the same run before" if spread > _UNSTEADY else ""
