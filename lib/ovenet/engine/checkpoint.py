"""Checkpoints of a run, and the batch that broke a step."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ovenet.errors import UserError, one_line
from ovenet.models.weight_files import read_checkpoint
from ovenet.models.weights import names_here
from ovenet.structures import Batch
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger
from ovenet.utils.seals import is_sealed, seal, seal_is_broken

# Files in the folder of a run: the newest checkpoint, and weights alone.
CHECKPOINT = "checkpoint.pth"
BEST, BEST_EMA = "best.pth", "best_ema.pth"
FINAL, FINAL_EMA = "final_state.pth", "final_ema.pth"


def save_atomically(
    content: Mapping[str, Any], path: Path, *, before_replacing: Callable[[], None] | None = None
) -> None:
    """Writes a temporary file with a checksum, syncs it, and renames it: readers find either file whole.

    Args:
        content: argument of ``torch.save``.
        path: the target.
        before_replacing: called when the new file is complete and the old one still in place.

    Raises:
        OSError: the file cannot be written, for example on a full disk; the old file is untouched and no other is left.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(content), file)
            file.flush()
        seal(temporary)
        if before_replacing is not None:
            before_replacing()
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        if "DataLoader worker" in str(error):  # a dead worker raises from a signal handler, at any point of the program
            raise
        raise OSError(f"cannot save {path}: {_reason(error)}; the file before it is untouched") from error


def is_whole(path: Path) -> bool:
    """Whether a file is undamaged: by its checksum or, if it has none, by reading it."""
    if is_sealed(path):
        return not seal_is_broken(path)
    try:
        read_checkpoint(path)
    except UserError:
        return False
    return True


def _reason(error: BaseException) -> str:
    """The system's message: torch raises errors of its own while it handles those of the file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return one_line(error)


class CheckpointStore:
    """``checkpoint.pth``, and the ones before it as ``checkpoint.1.pth``, ``checkpoint.2.pth`` and so on.

    Args:
        run_dir: folder of the run.
        num_kept: number of checkpoints to keep, >= 1.
    """

    def __init__(self, run_dir: Path, num_kept: int):
        self.run_dir = run_dir
        self.num_kept = num_kept
        self._written: tuple[int, int, int] | None = None  # identity of the newest one as this process wrote it

    def exists(self) -> bool:
        """Whether the run has a checkpoint."""
        return any(path.exists() for path in self._paths())

    def save(self, state: Mapping[str, Any], *, replaces_newest: bool = False) -> None:
        """Writes a new checkpoint. A kill at any moment leaves a whole ``checkpoint.pth``.

        Args:
            state: content of the checkpoint.
            replaces_newest: overwrite the newest one instead of moving it to the older ones.

        Raises:
            OSError: the file cannot be written; the older ones are untouched.
        """
        shift = None if replaces_newest else self._shift
        save_atomically(state, self._paths()[0], before_replacing=shift)
        self._written = _identity(self._paths()[0])

    def load(self) -> tuple[dict[str, Any], Path]:
        """The newest undamaged checkpoint, and its path; damaged ones are named in a warning.

        Raises:
            UserError: all are damaged, or the run has none.
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
        """Paths of all checkpoints, the newest first."""
        older = [self.run_dir / f"checkpoint.{age}.pth" for age in range(1, self.num_kept)]
        return [self.run_dir / CHECKPOINT, *older]

    def _shift(self) -> None:
        """Renames every file to the next older one; the newest keeps its name as well until it is replaced.

        If the newest is damaged, nothing is renamed: it is overwritten, and the older ones are kept.
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
    """A checkpoint with the model's names of parameters; some had other names in version 1.

    Args:
        state: from `CheckpointStore.load`.
        model: the model that is resumed.

    Raises:
        UserError: version 1 saved no names, and the parameters of a group cannot be identified.
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
    """The model's name of an averaged weight: torch puts ``module.`` before it, and keeps a counter beside."""
    return f"module.{names[name.removeprefix('module.')]}" if name.startswith("module.") else name


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name or, on file systems without hard links, the new name alone."""
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
    """Writes ``repro_<iteration>_rank<n>.pth``: this rank's micro-batches, the weights and the configuration."""
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
    """Content and batches of a file written by `save_repro`.

    Raises:
        UserError: the file is damaged, or holds no batches.
    """
    content = read_checkpoint(path)
    if "batches" not in content:
        raise UserError(f"{path}: holds no batches; expected a repro_*.pth that training has saved")
    batches = content["batches"]
    return content, [Batch(b["images"], b["labels"], tuple(b["names"]), changes=b.get("changes")) for b in batches]
