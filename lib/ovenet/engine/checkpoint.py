"""Checkpoints: files of weights and of training state, those of a run, and of a batch that broke a step."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.models.weights import names_here
from ovenet.structures import Batch
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger
from ovenet.utils.writing import write_bytes

CHECKPOINT = "checkpoint.pth"  # the newest of a run
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
        if "DataLoader worker" in str(error):  # a dead worker raises from a signal handler, at any point of the program
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


class CheckpointStore:
    """``checkpoint.pth``, and the ones before it as ``checkpoint.1.pth``, ``checkpoint.2.pth`` and so on.

    Args:
        run_dir: where they lie.
        num_kept: how many in all, >= 1.
    """

    def __init__(self, run_dir: Path, num_kept: int):
        self.run_dir = run_dir
        self.num_kept = num_kept
        self._written: tuple[int, int, int] | None = None  # what the newest one was when it was written here

    def exists(self) -> bool:
        """Whether there is any."""
        return any(path.exists() for path in self._paths())

    def save(self, state: Mapping[str, Any], *, replaces_newest: bool = False) -> None:
        """Writes a new newest one. A kill at any moment leaves a whole ``checkpoint.pth``.

        Args:
            state: what it holds.
            replaces_newest: the older ones stay as they are.

        Raises:
            OSError: the file system refuses; the older ones are untouched.
        """
        shift = None if replaces_newest else self._shift
        save_atomically(state, self._paths()[0], before_replacing=shift)
        self._written = _identity(self._paths()[0])

    def load(self) -> tuple[dict[str, Any], Path]:
        """The newest one that is whole, and its path; damaged ones are named in a warning.

        Raises:
            UserError: all are damaged, or there is none.
        """
        errors = []
        for path in self._paths():
            if not path.exists():
                continue
            try:
                state = read_checkpoint(path)
            except UserError as error:
                errors.append(str(error))
                continue
            if errors:
                get_logger().warning("%s; going on from %s instead", "; ".join(errors), path)
            return state, path
        raise UserError(
            "; ".join(errors) + "; no older one is whole: remove them to start anew"
            if errors
            else f"{self.run_dir}: there is no checkpoint"
        )

    def _paths(self) -> list[Path]:
        """The newest first."""
        older = [self.run_dir / f"checkpoint.{age}.pth" for age in range(1, self.num_kept)]
        return [self.run_dir / CHECKPOINT, *older]

    def _shift(self) -> None:
        """Gives every file the name of the next older one; the newest keeps its own too until it is replaced.

        A newest one that is damaged is not kept: the older ones, which are all that the run has, stay where they are.
        """
        paths = self._paths()
        if paths[0].exists() and _identity(paths[0]) != self._written and not is_whole(paths[0]):
            get_logger().warning("%s is damaged and is replaced; the one before it is kept", paths[0])
            return
        for newer, older in reversed(list(pairwise(paths[1:]))):
            if newer.exists():
                os.replace(newer, older)
        if len(paths) > 1 and paths[0].exists():
            _link(paths[0], paths[1])


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def with_present_names(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """A checkpoint whose parameters have the names of the model at hand; version 1 called some of them otherwise.

    Args:
        state: from `CheckpointStore.load`.
        model: that goes on from it.

    Raises:
        UserError: version 1 kept no names, and which parameters a group has cannot be told.
    """
    names = names_here(state["model"], model)
    state = {**state, "model": {names[old]: tensor for old, tensor in state["model"].items()}}
    if state.get("ema"):
        state["ema"] = {_renamed_in_ema(name, names): value for name, value in state["ema"].items()}
    if "parameter_names" not in state:
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        in_order = [name for name in names.values() if name in trained]
        groups = state["optimizer"]["param_groups"]
        if len(groups) > 1 or len(groups[0]["params"]) != len(in_order):
            raise UserError("it is of version 1, which does not say which momenta belong to which parameters")
        state["parameter_names"] = in_order
    return state


def _renamed_in_ema(name: str, names: Mapping[str, str | None]) -> str:
    """torch keeps averaged weights below ``module``, beside a counter."""
    return f"module.{names[name.removeprefix('module.')]}" if name.startswith("module.") else name


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or the file under the new name alone where the file system knows no links."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # replacing one name of a file by another of its names leaves both
    except OSError:
        os.replace(source, target)


def save_repro(
    run_dir: Path, iteration: int, model: nn.Module, batches: Sequence[Batch], metadata: Mapping[str, Any]
) -> Path:
    """Writes ``repro_<iteration>_rank<n>.pth``: this process's micro-batches, the weights and the config."""
    path = run_dir / f"repro_{iteration:07d}_rank{distributed.rank()}.pth"
    content = {
        **metadata,
        "model": model.state_dict(),
        "iteration": iteration,
        "batches": [
            {"images": b.images, "labels": b.labels, "changes": b.changes, "names": list(b.names)} for b in batches
        ],
    }
    save_atomically(content, path)
    return path


def read_repro(path: Path) -> tuple[dict[str, Any], list[Batch]]:
    """What `save_repro` wrote.

    Raises:
        UserError: the file is damaged, or something else.
    """
    content = read_checkpoint(path)
    if "batches" not in content:
        raise UserError(f"{path}: holds no batches; expected a repro_*.pth that training has saved")
    batches = content["batches"]
    return content, [Batch(b["images"], b["labels"], tuple(b["names"]), changes=b.get("changes")) for b in batches]
