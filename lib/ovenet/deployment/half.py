"""Networks in float16, with positions and scores in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ovenet.deployment.formats import require
from ovenet.deployment.onnx_graph import nodes_behind, position_nodes
from ovenet.errors import UserError


def halve_onnx(path: Path) -> None:
    """Converts an ONNX file to float16, in place, by ONNX Runtime's converter.

    Input and outputs stay in float32, and so do the last convolutions and all that follows them, and whatever computes
    positions to sample at: float16 has 11 bits, half a pixel at 1024 columns.

    Raises:
        UserError: a package is missing, or the converter fails.
    """
    onnx = require("onnx", why="fp16")
    require("onnxruntime", why="fp16")
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(path)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    weights = {one.name for one in model.graph.initializer}
    # The converter casts weights that it keeps in float32 if their type is described too.
    described = [one for one in model.graph.value_info if one.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(described)
    kept = {*nodes_behind(model.graph, (output.name for output in model.graph.output)), *position_nodes(model.graph)}
    try:
        model = convert_float_to_float16(
            model, keep_io_types=True, op_block_list=DEFAULT_OP_BLOCK_LIST, node_block_list=sorted(kept)
        )
    except Exception as error:  # the converter raises what onnx does
        raise UserError(f"fp16: the network cannot be converted ({type(error).__name__}: {error})") from error
    _skip_roundings(model.graph, onnx.TensorProto)
    onnx.save(model, path)


def _skip_roundings(graph: Any, types: Any) -> None:
    """Joins nodes of float32 that the converter put a cast to float16 and one back between."""
    casts = {
        node.output[0]: (node.input[0], attribute.i)
        for node in graph.node
        if node.op_type == "Cast"
        for attribute in node.attribute
        if attribute.name == "to"
    }
    inserted = {value for value, (_, to) in casts.items() if to == types.FLOAT16}
    for node in graph.node:
        is_back = node.op_type == "Cast" and casts[node.output[0]][1] == types.FLOAT
        if is_back and node.input[0] in inserted:
            node.op_type, node.input[0] = "Identity", casts[node.input[0]][0]
            del node.attribute[:]
    used = {value for node in graph.node for value in node.input} | {output.name for output in graph.output}
    left = [node for node in graph.node if used.intersection(node.output)]
    del graph.node[:]
    graph.node.extend(left)
