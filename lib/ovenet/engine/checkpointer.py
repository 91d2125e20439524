"""Saving a run as checkpoints, and resuming it from one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ovenet.engine.checkpoint import CheckpointStore, save_atomically, with_present_names
from ovenet.engine.settings import CheckpointSettings
from ovenet.engine.staging import HostCopy
from ovenet.engine.step import TrainStep
from ovenet.engine.train_state import TrainState
from ovenet.errors import UserError, one_line
from ovenet.models.weight_files import WITHOUT_SEED, weights_of
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger
from ovenet.utils.seeding import random_states, set_random_states


class Checkpointer:
    """Saves a run and resumes it. Every rank calls `save`; rank 0 copies the state, and a thread writes the copy.

    As a context manager it waits for the last checkpoint, also after an error. One is written at a time: the next waits
    for it.

    Args:
        step: model, optimizer and averaged weights.
        state: counters of the run.
        run_dir: folder of the files.
        metadata: saved with all weights: the config, class names and so on.
        settings: when to save, and how many checkpoints to keep.
    """

    def __init__(
        self,
        step: TrainStep,
        state: TrainState,
        run_dir: Path,
        metadata: Mapping[str, Any],
        settings: CheckpointSettings,
    ):
        self.step = step
        self.state = state
        self.run_dir = run_dir
        self.metadata = metadata
        self.settings = settings
        self.store = CheckpointStore(run_dir, settings.keep_checkpoints)
        self._saved_at = time.monotonic()
        self._copy = HostCopy(step.device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except OSError as error:
            if kind is None:
                raise
            get_logger().warning("%s", error)  # the first error is the one to end with

    @property
    def is_due_by_clock(self) -> bool:
        """Whether the minutes between checkpoints have passed on this rank's clock; ranks agree by `StepFlags`."""
        minutes = self.settings.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self._saved_at > 60 * minutes

    @property
    def is_due_by_count(self) -> bool:
        """Whether an iteration to save after is reached."""
        every = self.settings.checkpoint_every
        return bool(every) and self.state.iteration % every == 0

    def save(self, *, replaces_newest: bool = False, settle: Callable[[], object] = lambda: None) -> None:
        """Begins to write a checkpoint, of the state as it is now.

        Args:
            replaces_newest: overwrite the newest one instead of keeping it as an older one.
            settle: completes the counters of the state, by the results of steps that the device may still be taking:
                the tensors are on their way before anything waits for it.

        Raises:
            OSError: the one before cannot be written; the one before that is whole.
        """
        self.wait()
        if distributed.is_main():
            copied = self._copy.take({"model": self.step.model.state_dict(), **self.step.state()})
        settle()
        with distributed.activity("saving a checkpoint"):
            states = distributed.gather_objects(random_states(self.step.device))
        if distributed.is_main():
            content = {**self.metadata, **copied, **self.state.state_dict(), "random_states": states}
            self._writing = self._thread.submit(self._write, content, replaces_newest=replaces_newest)
        self._saved_at = time.monotonic()

    def wait(self) -> None:
        """Waits until the checkpoint is on the disk that `save` has begun to write.

        Raises:
            OSError: it cannot be written; the one before is whole.
        """
        if self._writing is None:
            return
        try:
            self._writing.result()
        finally:
            if self._writing.done():  # else an interruption has ended this wait, and the next goes on with it
                self._writing = None

    def _write(self, state: Mapping[str, Any], *, replaces_newest: bool) -> None:
        self._copy.wait()
        self.store.save(state, replaces_newest=replaces_newest)

    def save_weights(self, model: nn.Module, file: str, *, without_seed: Mapping[str, Any] | None = None) -> None:
        """Writes the weights of a model alone, with the metadata; called on rank 0.

        Args:
            model: the trained or the averaged one.
            file: its name.
            without_seed: metadata of the network without its seed, to write that one; None writes the whole model.
        """
        about = {"epoch": self.state.epoch, "best_mean_iou": self.state.best_mean_iou, **self.metadata}
        weights = model.state_dict()
        if without_seed is not None:
            about |= {**without_seed, WITHOUT_SEED: True}
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith("seed.")}
        save_atomically({"model": weights, **about}, self.run_dir / file)

    def resume(self) -> str:
        """Resumes from the newest intact checkpoint; settings that differ keep their present values.

        Returns:
            The configuration that the checkpoint was saved with, as YAML.

        Raises:
            UserError: all checkpoints are damaged, or of another model.
        """
        saved, path = self.store.load()
        try:
            self._restore(saved, path)
        except torch.OutOfMemoryError:  # a RuntimeError too
            raise
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:  # any damage, any other model
            reason = one_line(error)
            raise UserError(
                f"{path}: cannot be resumed with this config ({reason}); set TRAIN.RESUME False and another OUTPUT_DIR"
            ) from error
        best = self.state.best_mean_iou
        get_logger().info(
            "resumed from %s: epoch %d, iteration %d, %s",
            path,
            self.state.epoch + 1,
            self.state.iteration,
            "no mIoU yet" if best < 0 else f"best mIoU {100 * best:.2f} %",
        )
        if saved["world_size"] != distributed.world_size():
            get_logger().warning(
                "the run began on %d process(es), now there are %d: the new number holds; the samples of this epoch "
                "that were used are not used again, random numbers of dropout differ",
                saved["world_size"],
                distributed.world_size(),
            )
        return saved["config"]

    def _restore(self, saved: dict[str, Any], path: Path) -> None:
        if not isinstance(saved["config"], str):
            raise TypeError(f"config is a {type(saved['config']).__name__}; expected a string")
        saved = with_present_names({**saved, "model": weights_of(saved, path)}, self.step.model)
        self.state.load_state_dict(saved)
        self.step.model.load_state_dict(saved["model"])
        self.step.restore(saved, self.state.schedule_iteration)
        states = saved["random_states"]
        if len(states) == distributed.world_size():  # saved by as many ranks
            set_random_states(states[distributed.rank()], self.step.device)
