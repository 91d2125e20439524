"""Counters of a training run, and which of them a checkpoint holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ovenet.engine.checkpoint import BEST, BEST_EMA
from ovenet.engine.phases import Timeline
from ovenet.utils import distributed


@dataclass
class TrainState:
    """Counters of a run, the same on every rank except `num_broken_samples`.

    Attributes:
        timeline: how long training lasts.
        epoch: index of the current epoch.
        iteration: iterations of the run so far, of any batch size.
        iterations_in_epoch: iterations of the current epoch that are behind, so that those ahead fill the epoch.
        samples_shift: what `samples_done` has more than these iterations take, 0 unless the batch size or the number of
            ranks changed within the epoch.
        schedule_iteration: iterations of the schedule so far; differs from `iteration` after the batch size or the
            number of ranks changed.
        best: best mean IoU of the final prediction by file of weights; -1 before the first validation.
        num_skipped: iterations skipped because loss or gradient was not finite.
        num_skipped_in_row: how many of the latest iterations were skipped one after the other; not saved.
        num_broken_samples: samples that could not be read, on this rank.
        is_validation_due: whether the epoch before `epoch` still has to be validated.
        history: a row for every validation so far: ``epoch``, counted from 1, and mean IoU by prediction, those of
            averaged weights with ``_ema`` after their name.
    """

    timeline: Timeline
    epoch: int = 0
    iteration: int = 0
    iterations_in_epoch: int = 0
    samples_shift: int = 0
    schedule_iteration: int = 0
    best: dict[str, float] = field(default_factory=lambda: {BEST: -1.0, BEST_EMA: -1.0})
    num_skipped: int = 0
    num_skipped_in_row: int = 0
    num_broken_samples: int = 0
    is_validation_due: bool = False
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def num_left(self) -> int:
        """Iterations of the schedule still to be done."""
        return self.timeline.num_iterations - self.schedule_iteration

    @property
    def is_trained(self) -> bool:
        """Whether no iteration is left."""
        return self.num_left <= 0

    @property
    def is_finished(self) -> bool:
        """Whether no iteration and no validation is left."""
        is_epoch_open = self.iterations_in_epoch > 0 and self.num_left == 0  # below 0 if the training was made shorter
        return self.is_trained and not is_epoch_open and not self.is_validation_due

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations of a whole epoch in the current phase."""
        return self.timeline.iterations_per_epoch(self.epoch)

    @property
    def epoch_length(self) -> int:
        """Iterations of the current epoch, which the end of the training may cut short."""
        return min(self.iterations_per_epoch, self.iterations_in_epoch + self.num_left)

    @property
    def is_epoch_trained(self) -> bool:
        """Whether no iteration of the current epoch is left."""
        return self.iterations_in_epoch >= self.epoch_length

    @property
    def num_later(self) -> int:
        """Iterations of the epochs after the current one."""
        return self.num_left - (self.epoch_length - self.iterations_in_epoch)

    @property
    def end_epoch(self) -> int:
        """Index of the last epoch plus 1."""
        if not self.timeline.is_in_iterations:
            return self.timeline.phases[-1].end_epoch
        left = self.iterations_in_epoch + self.num_left
        return self.epoch + max(-(-left // self.iterations_per_epoch), 1 if self.iterations_in_epoch else 0)

    @property
    def samples_done(self) -> int:
        """Samples of the current epoch that all ranks together have used."""
        return self.iterations_in_epoch * self.timeline.samples_per_iteration(self.epoch) + self.samples_shift

    @property
    def best_mean_iou(self) -> float:
        """Best score of the final prediction so far; -1 before the first validation."""
        return self.best[BEST]

    def begin_iteration(self) -> None:
        """Counts the iteration that begins."""
        self.iteration += 1
        self.iterations_in_epoch += 1
        self.schedule_iteration += 1

    def finish_epoch(self, eval_interval: int) -> None:
        """Counts the current epoch as done; a validation is due after every `eval_interval`-th epoch and the last."""
        self.epoch += 1
        self.iterations_in_epoch = self.samples_shift = 0
        done = self.epoch - self.timeline.begin_epoch
        self.is_validation_due = done % eval_interval == 0 or self.is_trained

    def state_dict(self) -> dict[str, Any]:
        """Entries of a checkpoint: shares and samples, which are valid for any batch size and number of ranks."""
        return {
            "epoch": self.epoch,
            "best_mean_iou": self.best_mean_iou,
            "iteration": self.iteration,
            "progress": self.schedule_iteration / self.timeline.num_iterations,
            "samples_done": self.samples_done,
            "world_size": distributed.world_size(),
            "best": dict(self.best),
            "num_skipped": self.num_skipped,
            "num_broken_samples": self.num_broken_samples,
            "is_validation_due": self.is_validation_due,
            "history": [dict(row) for row in self.history],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restores the entries of a checkpoint, also of version 1, of any batch size and number of ranks.

        The current epoch continues at its first unused sample, with as many iterations as the rest has whole ones. The
        schedule continues at the first of these or, if its length is given in iterations, at the same share of it.

        Raises:
            KeyError, TypeError: an entry is missing or has another type; the state is unchanged.
        """
        epoch, iteration, samples_done, num_skipped, num_broken = (
            _count(saved, name) for name in ("epoch", "iteration", "samples_done", "num_skipped", "num_broken_samples")
        )
        _count(saved, "world_size")
        progress = saved.get("progress")  # since version 2, like is_validation_due
        if not isinstance(progress, float | int | None):
            raise TypeError(f"progress is {progress!r}; expected a number")
        self.best = _best(saved, self.best.keys())
        self.epoch, self.iteration = epoch, iteration
        self.num_skipped, self.num_broken_samples = num_skipped, num_broken
        self.is_validation_due = saved.get("is_validation_due", False)
        self.history = [dict(row) for row in saved.get("history", [])]
        per_iteration = self.timeline.samples_per_iteration(epoch)
        num_unused = max(len(self.timeline.phase(epoch).crops) - samples_done, 0)
        self.iterations_in_epoch = self.iterations_per_epoch - num_unused // per_iteration
        self.samples_shift = samples_done - self.iterations_in_epoch * per_iteration
        if self.timeline.is_in_iterations and progress is not None:
            self.schedule_iteration = round(progress * self.timeline.num_iterations)
        else:
            self.schedule_iteration = self.timeline.iterations_before(epoch) + self.iterations_in_epoch


def _count(saved: Mapping[str, Any], name: str) -> int:
    value = saved[name]
    if type(value) is not int or value < 0:
        raise TypeError(f"{name} is {value!r}; expected an integer of at least 0")
    return value


def _best(saved: Mapping[str, Any], files: Collection[str]) -> dict[str, float]:
    best = saved["best"]
    if not isinstance(best, Mapping) or not set(files) <= best.keys():
        raise TypeError(f"best is {best!r}; expected a score for {' and '.join(files)}")
    if not all(isinstance(value, float | int) for value in best.values()):
        raise TypeError(f"best is {best!r}; expected numbers")
    return dict(best)
