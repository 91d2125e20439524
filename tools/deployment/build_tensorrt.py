#!/usr/bin/env python3
"""Builds a TensorRT engine and compares it.

    python tools/deployment/build_tensorrt.py model.onnx model.plan --images FOLDER

Needs an NVIDIA GPU and the package tensorrt. The engine gets its name only if at most 0.1 % of the pixels change class.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))

import numpy as np
import torch
from torch import Tensor

from ovenet.config import load_config_text
from ovenet.data.files import read_image
from ovenet.data.transforms import resize_image
from ovenet.deployment import ExportedFile, Limits, Parity, compare
from ovenet.deployment.formats import INPUT, read_about
from ovenet.deployment.runtimes import Run, open_session
from ovenet.errors import UserError
from ovenet.geometry import resize_bilinear
from ovenet.inference.inputs import find_inputs
from ovenet.utils.cli import require_free, run_main
from ovenet.utils.writing import write_bytes


def main() -> None:
    """Builds the engine, compares it, and writes it."""
    args = build_parser().parse_args()
    require_free(args.engine, overwrite=args.overwrite)
    about = read_about(args.file)
    if args.file.suffix != ".onnx" or about.size is None or about.is_normalized or "fused" not in about.tensors:
        raise UserError(f"{args.file}: expected an ONNX file of one size, with scores: ovenet export RUN --size HxW")
    inputs = [one.source for one in find_inputs(args.images) if isinstance(one.source, Path) and one.kind == "image"]
    if not inputs:
        raise UserError("--images: there is no image among them")
    engine = build_engine(args.file)
    images = (resize_image(read_image(path), about.size) for path in inputs[: args.num_images])
    parity = compare_runs(about, open_session(args.file, "onnxruntime"), engine_run(engine, about.tensors), images)
    print(f"compared:    {parity}")
    if problem := parity.problem(Limits(changed=args.max_changed / 100, mean_iou=1.0)):
        raise UserError(f"{args.engine} is not written: {problem} (--max-changed)")
    write_bytes(args.engine, engine)
    print(f"built:       {args.engine} ({args.engine.stat().st_size / 1e6:.1f} MB), for this GPU and this TensorRT")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.onnx", help="exported file of a fixed size; fp16 if it is")
    parser.add_argument("engine", type=Path, metavar="FILE.plan", help="engine to write")
    parser.add_argument("--images", nargs="+", required=True, metavar="INPUT", help="images to compare on")
    parser.add_argument("--num-images", type=int, default=8, metavar="N", help="at most so many (default: 8)")
    parser.add_argument(
        "--max-changed", type=float, default=0.1, metavar="PERCENT", help="of the pixels (default: 0.1)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the engine")
    return parser


def compare_runs(about: ExportedFile, expected: Run, given: Run, images: Iterable[np.ndarray]) -> Parity:
    """Compares two functions that run a file, on images ``(H, W, 3)`` of its size."""
    align_corners = load_config_text(about.config, about.source).MODEL.ALIGN_CORNERS

    def tensors(run: Run, image: np.ndarray) -> dict[str, Tensor]:
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None].astype(np.float32))
        return dict(zip(about.tensors, map(torch.from_numpy, run(pixels)), strict=True))

    return compare(
        lambda image: tensors(expected, image),
        lambda image: tensors(given, image),
        lambda maps, size: resize_bilinear(maps["fused"], size, align_corners=align_corners)[0].argmax(dim=0),
        ((image, None) for image in images),
        about.class_names,
        ignore_label=255,
    )


def build_engine(path: Path) -> bytes:
    """The serialised engine of an ONNX file, in the file's own precisions, without TF32.

    Raises:
        UserError: there is no TensorRT or no GPU, or it cannot build the engine.
    """
    trt = _tensorrt()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise UserError(f"{path}: TensorRT {trt.__version__} cannot read it: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"{path}: TensorRT {trt.__version__} builds no engine of it; its log above says why")
    return bytes(engine)


def engine_run(engine: bytes, outputs: Sequence[str]) -> Run:
    """A function that runs an engine on the GPU and gives its outputs in this order."""
    trt = _tensorrt()
    loaded = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(engine)
    context = loaded.create_execution_context()
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        maps = {name: torch.empty(tuple(loaded.get_tensor_shape(name)), device="cuda") for name in names}
        maps[INPUT].copy_(torch.from_numpy(pixels))
        for name, values in maps.items():
            context.set_tensor_address(name, values.data_ptr())
        stream = torch.cuda.current_stream()
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return [maps[name].cpu().numpy() for name in outputs]

    return run


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise UserError("tensorrt is not installed; where an NVIDIA GPU is: pip install tensorrt") from error
    if not torch.cuda.is_available():
        raise UserError("TensorRT needs an NVIDIA GPU, and torch sees none here")
    return tensorrt


if __name__ == "__main__":
    run_main(main)
