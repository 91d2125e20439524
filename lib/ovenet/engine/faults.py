"""Samples that cannot be read, and steps whose loss or gradient is not finite: counted, logged, kept for a replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ovenet.engine.checkpoint import CHECKPOINT, save_repro
from ovenet.engine.train_state import TrainState
from ovenet.errors import UserError
from ovenet.structures import Batch
from ovenet.utils.logging import get_logger


class Faults:
    """Counts the faults of a run in its state.

    Args:
        state: counters of the run.
        model: saved with the first bad batch.
        run_dir: folder of that file.
        metadata: saved with it.
        max_skipped: skipped iterations in a row that end the run.
    """

    def __init__(
        self, state: TrainState, model: nn.Module, run_dir: Path, metadata: Mapping[str, Any], max_skipped: int
    ):
        self.state = state
        self.model = model
        self.run_dir = run_dir
        self.metadata = metadata
        self.max_skipped = max_skipped

    def count_broken(self, batches: Sequence[Batch]) -> None:
        """Counts the samples of an iteration that could not be read."""
        for problem in (problem for batch in batches for problem in batch.problems):
            self.state.num_broken_samples += 1
            get_logger().warning("sample %d that is left out: %s", self.state.num_broken_samples, problem)

    def count_step(self, iteration: int, batches: Sequence[Batch], *, is_skipped: bool) -> None:
        """Counts an iteration, and saves the batches of the first skipped one.

        Raises:
            UserError: too many iterations in a row were skipped.
        """
        if not is_skipped:
            self.state.num_skipped_in_row = 0
            return
        self.state.num_skipped += 1
        self.state.num_skipped_in_row += 1
        names = ", ".join(name for batch in batches for name in batch.names)
        get_logger().warning(
            "iteration %d: loss or gradient is not finite, no weight was changed (images here: %s)", iteration, names
        )
        if self.state.num_skipped == 1:
            self._save_repro(iteration, batches)
        if self.state.num_skipped_in_row >= self.max_skipped:
            raise UserError(
                f"loss or gradient was not finite in {self.state.num_skipped_in_row} iterations in a row "
                "(TRAIN.MAX_SKIPPED); lower TRAIN.LR or look at the images named above; "
                f"{self.run_dir / CHECKPOINT} is untouched"
            )

    def _save_repro(self, iteration: int, batches: Sequence[Batch]) -> None:
        try:
            path = save_repro(self.run_dir, iteration, self.model, batches, self.metadata)
            get_logger().warning("saved %s; look at it with: python tools/replay.py %s", path, path)
        except OSError as error:  # no reason to end the run
            get_logger().warning("the batch cannot be kept: %s", error)
