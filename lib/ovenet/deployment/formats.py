"""Writing networks as files, and their metadata into them."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from ovenet.deployment.about import KEY, SUFFIXES, ExportedFile
from ovenet.errors import UserError

FORMATS = ("onnx", "pt2", "openvino")
INPUT = "images"
OPSET = 18
_AXES = {0: "batch", 2: "height", 3: "width"}


def require(module: str, *, why: str) -> Any:
    """Imports an optional package.

    Raises:
        UserError: it is not installed; says how to install it.
    """
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        raise UserError(f'{why} needs the package {module}; install it with: pip install -e ".[export]"') from error


def write_network(
    network: nn.Module,
    example: Tensor,
    path: Path,
    about: ExportedFile,
    *,
    opset: int = OPSET,
    prepare: Callable[[Path], None] = lambda onnx_file: None,
) -> None:
    """Writes a file in the format of its suffix; on failure nothing is left.

    Args:
        network: see `ExportableNetwork`; on the CPU.
        example: an input of the file's size, ``(1, 3, H, W)``.
        path: ``*.onnx``, ``*.pt2``, or ``*.xml``, which gets a ``*.bin`` beside it.
        about: metadata of the file.
        opset: ONNX opset.
        prepare: may change the ONNX file before it is converted further.

    Raises:
        UserError: a package is missing, or the network cannot be exported.
    """
    file_format = SUFFIXES[path.suffix]
    if file_format == "pt2":
        if about.size is None:
            raise UserError("pt2 files have a fixed size; name it: --size HxW, or write --format onnx")
        with _one_line_errors("torch.export"):
            program = torch.export.export(network, (example,), strict=False)
            torch.export.save(program, path, extra_files={KEY: about.as_text()})
        return
    with tempfile.TemporaryDirectory(prefix="ovenet-") as folder:
        onnx_file = Path(folder) / "network.onnx"
        write_onnx(network, example, onnx_file, about.tensors, is_dynamic=about.size is None, opset=opset)
        prepare(onnx_file)
        if file_format == "onnx":
            _describe_onnx(onnx_file, path, about)
        else:
            openvino = require("openvino", why="--format openvino")
            model = openvino.Core().read_model(onnx_file)  # `convert_model` sends statistics to the makers of OpenVINO
            model.set_rt_info(about.as_text(), KEY)
            openvino.save_model(model, path, compress_to_fp16=False)


def write_onnx(
    network: nn.Module, example: Tensor, path: Path, tensors: Sequence[str], *, is_dynamic: bool, opset: int = OPSET
) -> None:
    """Writes a plain ONNX file.

    A fixed size goes through ``torch.export``. For a dynamic size that takes minutes, and freezes the size of some
    grids; the tracing exporter takes seconds and keeps them dynamic.

    Args:
        network: see `ExportableNetwork`.
        example: ``(1, 3, H, W)``.
        path: output file.
        tensors: names of the outputs.
        is_dynamic: whether batch, height and width may change.
        opset: ONNX opset.

    Raises:
        UserError: a package is missing, or the network cannot be exported.
    """
    onnx = require("onnx", why="ONNX")
    require("onnxscript", why="ONNX")
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise UserError(f"ONNX opset {opset}: expected {OPSET} to {newest}")
    axes = {INPUT: _AXES, **dict.fromkeys(tensors, _AXES)} if is_dynamic else None
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": list(tensors), "opset_version": opset}
    with _one_line_errors(f"ONNX opset {opset}"), torch.no_grad():
        if is_dynamic:
            with _traceable(), redirect_stdout(StringIO()):  # on failure it prints the whole graph
                torch.onnx.export(network, (example,), str(path), dynamo=False, dynamic_axes=axes, **names)
        else:
            torch.onnx.export(network, (example,), str(path), dynamo=True, external_data=False, verbose=False, **names)


@contextmanager
def _traceable() -> Iterator[None]:
    """Replaces operations that the tracing exporter cannot export for dynamic sizes.

    After `torch.Tensor.unflatten` it records the example's sizes as constants; a reshape keeps them dynamic. It does
    not support the fused operation of `torch.nn.MultiheadAttention`.
    """
    is_fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with patch.object(torch.Tensor, "unflatten", _reshaped):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fused)


def _reshaped(values: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """`torch.Tensor.unflatten` as a reshape."""
    axis %= values.ndim
    return values.reshape(*values.shape[:axis], *sizes, *values.shape[axis + 1 :])


@contextmanager
def _one_line_errors(what: str) -> Iterator[None]:
    """Silences the exporter, and turns its errors into one line."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:  # the exporters run the network's code, and add errors of their own
        cause: BaseException = error
        while cause.__cause__ is not None:  # torch wraps the reason in advice
            cause = cause.__cause__
        reason = next(iter(str(cause).strip().splitlines()), "")
        raise UserError(f"{what}: the network cannot be written ({type(cause).__name__}: {reason[:300]})") from cause
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _describe_onnx(source: Path, target: Path, about: ExportedFile) -> None:
    onnx = require("onnx", why="ONNX")
    model = onnx.load(source)
    onnx.helper.set_model_props(model, {KEY: about.as_text()})
    onnx.save(model, target)


def read_about(path: Path) -> ExportedFile:
    """The metadata of a file.

    Raises:
        UserError: the file does not exist, cannot be read, or has no metadata.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    reader = {"onnx": _onnx_metadata, "pt2": _pt2_metadata, "openvino": _openvino_metadata}[SUFFIXES[path.suffix]]
    return ExportedFile.from_text(reader(path), path)


def _onnx_metadata(path: Path) -> str | None:
    onnx = require("onnx", why=f"{path}")
    with _readable(path):
        model = onnx.load(path, load_external_data=False)
    return {item.key: item.value for item in model.metadata_props}.get(KEY)


def _openvino_metadata(path: Path) -> str | None:
    openvino = require("openvino", why=f"{path}")
    with _readable(path):
        model = openvino.Core().read_model(path)
    return model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None


def _pt2_metadata(path: Path) -> str | None:
    extra = {KEY: ""}
    with _readable(path):
        torch.export.load(path, extra_files=extra)
    return extra[KEY]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # protobuf's derive from Exception alone, torch's unpickler raises anything
        raise UserError(f"{path}: not a file of this kind, or a damaged one ({type(error).__name__})") from error


def move_into_place(source: Path, target: Path) -> None:
    """Moves a written file, and the files of the same stem beside it, to the target's name."""
    for part in source.parent.glob(f"{source.stem}.*"):
        shutil.move(part, target.with_suffix(part.suffix))
