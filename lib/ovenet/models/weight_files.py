"""Files of weights, and their tensors: reading runs no code from a file, writing is whole or not at all."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ovenet.errors import UserError, one_line
from ovenet.models.pretrained import weights_path
from ovenet.models.segmentor import Segmentor
from ovenet.models.weights import LoadReport, load_weights
from ovenet.utils.seals import seal_is_broken
from ovenet.utils.writing import write_bytes

SAFETENSORS = ".safetensors"
WITHOUT_SEED = (
    "without_seed"  # key in the metadata of a network that training saved without the seed it was trained with
)
_METADATA_KEY = "ovenet"
_WEIGHTS_KEYS = ("model", "state_dict")
# The public code saves its best score as a NumPy number; these reconstruct one and can do nothing else.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_SAFE_NUMPY: list[Any] = [
    *((_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))),
]


class _Ignored:
    """Stands in for what a file carries beside its weights; takes anything and keeps nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


# mmengine saves the history of its log: buffers with NumPy arrays, and methods, which are looked up by getattr.
_SAFE_HISTORY: list[Any] = [
    *((_Ignored, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_Ignored, name) for name in ("numpy.ndarray", "mmengine.logging.history_buffer.HistoryBuffer")),
    *((_Ignored, f"{module}.getattr") for module in ("__builtin__", "builtins")),
    *(type(np.dtype(kind)) for kind in (np.int64, np.int32, np.bool_)),
]


def load_checkpoint(model: Segmentor, path: str | Path, *, allow_partial: bool = False) -> LoadReport:
    """Loads all weights of a trained model, a published one or one trained here.

    Args:
        model: changed in place.
        path: the file, or a name of ``ovenet.list_models(pretrained=True)``.
        allow_partial: accept a file that lacks some of them.

    Raises:
        UserError: the file cannot be read safely, or does not hold every tensor of the model.
    """
    report = load_weights(model, read_weights(weights_path(path)), str(path), whole=True)
    report.require(1.0, allow_partial=allow_partial)
    return report


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, see `read_checkpoint` and `weights_of`."""
    return weights_of(read_checkpoint(path), path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a file without running any code in it.

    Args:
        path: a file written by ``torch.save``, or by `write_safetensors` (``*.safetensors``).

    Returns:
        Its dictionary.

    Raises:
        UserError: the file is missing, a directory, damaged, no dictionary, or needs code to be read.
    """
    path = Path(path)
    require_file(path)
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    if seal_is_broken(path):
        raise UserError(f"{path}: damaged, its checksum differs from what was saved")
    try:
        with torch.serialization.safe_globals([*_SAFE_NUMPY, *_SAFE_HISTORY]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # bytes that are no pickle can fail anywhere in the parser
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise UserError(
                f"{path}: refused, because reading it would run code from outside ({foreign[1]}); save its tensors "
                "alone with torch.save(model.state_dict(), …)"
            ) from error
        raise UserError(f"{path}: not a checkpoint, or a damaged one") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds a {type(content).__name__}; expected tensors by name")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dictionary
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a safetensors file, or a damaged one ({one_line(error)})") from error
    if not isinstance(about, dict):
        raise UserError(f"{path}: its metadata is damaged; save the weights again")
    return {**about, "model": tensors}


def write_safetensors(path: Path, weights: Mapping[str, Tensor], about: Mapping[str, Any], *, half: bool) -> None:
    """Writes weights in a form that other programs read too, whole or not at all.

    Args:
        path: ``*.safetensors``.
        weights: tensors by name.
        about: what else a checkpoint carries (configuration, classes, normalization), as plain values.
        half: write real numbers in float16.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous()
        for name, value in weights.items()
    }
    write_bytes(path, save(tensors, metadata={_METADATA_KEY: json.dumps(about)}))


def require_file(path: Path) -> None:
    """Refuses a path that is missing or a directory.

    Raises:
        UserError: it is missing, or a directory.
    """
    if path.is_dir():
        raise UserError(f"{path}: a directory; expected a checkpoint file")
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint file")


def weights_of(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint: under ``model`` or ``state_dict``, or the checkpoint itself.

    Args:
        content: from `read_checkpoint`.
        path: the file, for the message.

    Raises:
        UserError: there are no tensors, or one cannot be a weight: it is NaN or infinite somewhere, or no plain tensor.
    """
    for key in _WEIGHTS_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: no weights found; expected tensors by name, or those under {_WEIGHTS_KEYS}")
    for name, tensor in tensors.items():
        if problem := _problem(name, tensor):
            raise UserError(f"{path}: {name!r} {problem}; save the state_dict() of a model that works")
    return tensors


def _problem(name: Any, tensor: Tensor) -> str:
    """Why a tensor cannot be a weight; "" if it can."""
    if not isinstance(name, str):
        return f"is the name of a tensor, and of type {type(name).__name__}; expected a string"
    kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
    if tensor.is_meta or kind != "strided":
        return f"is a {'meta' if tensor.is_meta else kind} tensor; expected numbers one by one"
    if tensor.dtype == torch.bool or tensor.is_complex():
        return f"has values of type {str(tensor.dtype).removeprefix('torch.')}; expected real numbers"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return "has values that are NaN or infinite, so that every prediction would be"
    return ""
