"""A batch that broke a step, saved with everything that is needed to look at it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ovenet.engine.checkpoint import read_checkpoint, save_atomically
from ovenet.errors import UserError
from ovenet.structures import Batch
from ovenet.utils import distributed


def save_repro(
    run_dir: Path, iteration: int, model: nn.Module, batches: Sequence[Batch], metadata: Mapping[str, Any]
) -> Path:
    """Writes ``repro_<iteration>_rank<n>.pth``: this process's micro-batches, the weights and the config."""
    path = run_dir / f"repro_{iteration:07d}_rank{distributed.rank()}.pth"
    content = {
        **metadata,
        "model": model.state_dict(),
        "iteration": iteration,
        "batches": [{"images": b.images, "labels": b.labels, "names": list(b.names)} for b in batches],
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
    return content, [Batch(b["images"], b["labels"], tuple(b["names"])) for b in content["batches"]]
