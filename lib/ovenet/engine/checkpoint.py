"""Files of weights and of training state: read safely, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ovenet.errors import UserError
from ovenet.utils.writing import write_bytes

SAFETENSORS = ".safetensors"
_METADATA_KEY = "ovenet"
_WEIGHTS_KEYS = ("model", "state_dict")
# A zip archive ends with the length of its comment in two bytes, and the comment. torch.save leaves it empty.
_COMMENT_LENGTH_BYTES = 2
_SEAL_MARK = b"sha256:"
_SEAL_LENGTH = len(_SEAL_MARK) + 64
_BLOCK = 1 << 20
# The public code saves its best score as a numpy number; these reconstruct one and can do nothing else.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_SAFE_NUMPY = [
    *((_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))),
]


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
    if _seal_is_broken(path):
        raise UserError(f"{path}: damaged, its checksum differs from what was saved")
    try:
        with torch.serialization.safe_globals(_SAFE_NUMPY):
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
        raise UserError(f"{path}: not a safetensors file, or a damaged one ({_one_line(error)})") from error
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
    """Refuses what is no file of weights at the first look.

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
        return f"is the name of a tensor, and a {type(name).__name__}; expected texts"
    kind = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
    if tensor.is_meta or kind != "strided":
        return f"is a {'meta' if tensor.is_meta else kind} tensor; expected numbers one by one"
    if tensor.dtype == torch.bool or tensor.is_complex():
        return f"has values of type {str(tensor.dtype).removeprefix('torch.')}; expected real numbers"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return "has values that are NaN or infinite, so that every prediction would be"
    return ""


def save_atomically(
    content: Mapping[str, Any], path: Path, *, before_replacing: Callable[[], None] | None = None
) -> None:
    """Writes beside the target, seals, syncs, and renames: whoever reads finds the old file or the new one, both whole.

    Args:
        content: what ``torch.save`` takes.
        path: the target.
        before_replacing: called when the new file is whole and the old one still in its place.

    Raises:
        OSError: the file system refuses, such as a full disk; the old file is untouched and nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
        _seal(temporary)
        if before_replacing is not None:
            before_replacing()
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        if "DataLoader worker" in str(error):  # its death is announced by a signal, wherever the program is
            raise
        raise OSError(f"cannot save {path}: {_reason(error)}; the file before it is untouched") from error


def _seal(path: Path) -> None:
    """Appends the file's checksum as the comment of the zip archive that ``torch.save`` writes, and syncs it."""
    with open(path, "rb+") as file:
        file.seek(-_COMMENT_LENGTH_BYTES, os.SEEK_END)
        end = file.tell()
        digest = _digest(file, end)
        file.seek(end)
        file.write(_SEAL_LENGTH.to_bytes(_COMMENT_LENGTH_BYTES, "little") + _SEAL_MARK + digest.encode())
        file.flush()
        os.fsync(file.fileno())


def is_whole(path: Path) -> bool:
    """Whether a file can be read: by its checksum, or by reading it where it has none."""
    if _seal_of(path) is not None:
        return not _seal_is_broken(path)
    try:
        read_checkpoint(path)
    except UserError:
        return False
    return True


def _seal_of(path: Path) -> str | None:
    """The checksum that a file carries; None if it carries none."""
    size = path.stat().st_size
    if size < _SEAL_LENGTH + _COMMENT_LENGTH_BYTES:
        return None
    with open(path, "rb") as file:
        file.seek(-_SEAL_LENGTH, os.SEEK_END)
        seal = file.read()
    return seal[len(_SEAL_MARK) :].decode("latin-1") if seal.startswith(_SEAL_MARK) else None


def _seal_is_broken(path: Path) -> bool:
    """Whether a file carries a checksum that is not its own; files without one, such as others' weights, pass."""
    seal = _seal_of(path)
    if seal is None:
        return False
    with open(path, "rb") as file:
        return _digest(file, path.stat().st_size - _SEAL_LENGTH - _COMMENT_LENGTH_BYTES) != seal


def _digest(file: BinaryIO, end: int) -> str:
    """SHA-256 of the first `end` bytes."""
    file.seek(0)
    digest = hashlib.sha256()
    while end > 0 and (block := file.read(min(end, _BLOCK))):
        digest.update(block)
        end -= len(block)
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    """What the system said: torch raises errors of its own while it handles those of the file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
