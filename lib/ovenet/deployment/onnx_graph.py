"""Questions about the graph of an ONNX file."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ovenet.deployment.formats import require

CONVOLUTIONS = ("Conv", "MatMul")


def nodes_behind(graph: Any, values: Iterable[str], *, end: Collection[str] = CONVOLUTIONS) -> list[str]:
    """Names of the nodes from the given values back to the first operators of `end`, those included."""
    makers: dict[str, Any] = {output: node for node in graph.node for output in node.output}
    found: dict[str, Any] = {}
    waiting = list(values)
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            if node.op_type not in end:
                waiting += node.input
    return list(found)


def position_nodes(graph: Any) -> list[str]:
    """Names of the nodes that compute positions, indices and the weights of a bilinear sample."""
    floors = {output for node in graph.node if node.op_type == "Floor" for output in node.output}
    values = [value for node in graph.node if floors.intersection(node.input) for value in node.output]
    values += [node.input[1] for node in graph.node if node.op_type in ("GridSample", "Gather")]
    return nodes_behind(graph, values, end=(*CONVOLUTIONS, "Shape"))


def operators(path: Path) -> list[str]:
    """Names of the operators in a file, in alphabetical order; those of subgraphs and functions too."""
    model = require("onnx", why=f"{path}").load(path, load_external_data=False)
    found: set[str] = set()
    waiting = [model.graph, *model.functions]
    own = {function.name for function in model.functions}
    while waiting:
        for node in waiting.pop().node:
            found.add(node.op_type)
            waiting += [one.g for one in node.attribute if one.HasField("g")]
    return sorted(found - own)
