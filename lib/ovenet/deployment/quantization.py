"""Eight-bit networks by calibration on a few images."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ovenet.deployment.formats import INPUT, require
from ovenet.deployment.onnx_graph import nodes_behind, position_nodes


def quantize_onnx(path: Path, images: Iterable[np.ndarray]) -> None:
    """Quantises the convolutions of an ONNX file to 8 bits, in place.

    The last convolutions, which compute scores and offsets, the operations after them, and what computes positions to
    sample at stay in float32.

    Args:
        path: ONNX file of a network with a fixed size.
        images: inputs ``(1, 3, H, W)`` float32 to calibrate the ranges of values with.

    Raises:
        UserError: a package is missing.
    """
    require("onnxruntime", why="int8")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """The images one by one; None at the end."""

        def __init__(self) -> None:
            self._images: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._images, None)
            return None if image is None else {INPUT: image}

    prepared = path.with_name("prepared.onnx")
    with _quiet():
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu", "Add", "Concat", "Clip", "MaxPool", "Mul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # weights of 7 bits: without VNNI, sums of two larger products do not fit in 16 bits
            nodes_to_exclude=_last_layers(prepared),
        )
    prepared.unlink()


def _last_layers(path: Path) -> list[str]:
    """Names of the nodes from the outputs, and from positions, back to the first convolutions, those included."""
    graph = require("onnx", why="int8").load(path).graph
    last = nodes_behind(graph, (output.name for output in graph.output))
    return sorted({*last, *position_nodes(graph)})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the advice that the packages log."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
