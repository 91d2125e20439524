"""Log lines and points of one epoch of training: losses, speed, and where time and memory went."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from ovenet.engine.run_log import Meter, Progress, RunLog, WaitingClock
from ovenet.engine.train_state import TrainState
from ovenet.structures import Batch, LossTerms
from ovenet.utils import distributed
from ovenet.utils.environment import crowding, device_memory_used
from ovenet.utils.logging import get_logger


class EpochLog:
    """Log lines and points of the current epoch; every rank has one, a context manager.

    Args:
        log: receives the points.
        state: counters of the run.
        print_freq: iterations between lines and points.
        peak_images_per_second: see `ovenet.engine.trainer.TrainSettings`.
    """

    def __init__(self, log: RunLog, state: TrainState, print_freq: int, peak_images_per_second: float | None):
        self.log = log
        self.state = state
        self.print_freq = print_freq
        self.peak_images_per_second = peak_images_per_second
        self.title = f"epoch {state.epoch + 1}/{state.end_epoch}"
        self._num_later = state.num_later
        self._clock = WaitingClock()
        self._meter = Meter()
        self._progress = Progress(
            self.title,
            state.epoch_length,
            done=state.iterations_in_epoch,
            enabled=distributed.is_main(),
            best=state.best_mean_iou,
        )

    def __enter__(self) -> EpochLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__()

    def timed(self, batches: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """Passes batches on and measures the time spent waiting for them."""
        return self._clock.watch(batches)

    @property
    def is_due(self) -> bool:
        """Whether a line is due after this iteration."""
        return self.state.iterations_in_epoch % self.print_freq == 0 or self.state.is_epoch_trained

    def add(self, loss: LossTerms, batches: Iterable[Batch]) -> None:
        """Counts an iteration that was not skipped."""
        self._meter.add(loss, sum(len(batch.names) for batch in batches) * distributed.world_size())

    def advance(self, lr: float) -> None:
        """Shows that an iteration is done; reports losses and speed where a line is due.

        Args:
            lr: learning rate of the iteration.
        """
        if self.is_due and len(self._meter):
            self._report(lr)
            self._meter = Meter()
        self._progress.advance(self._num_later)

    def _report(self, lr: float) -> None:
        summary = self._meter.summary()
        if self.peak_images_per_second:
            summary["mfu"] = summary["images_per_second"] / self.peak_images_per_second
        self._progress.report(self.state.iterations_in_epoch, summary, lr, self._num_later)
        values = {**summary, "lr": lr, "skipped": self.state.num_skipped}
        self.log.scalars("train", values, iteration=self.state.iteration, epoch=self.state.epoch)

    def finish(self, device: torch.device) -> None:
        """Logs where time and memory of the epoch went."""
        parts = filter(None, (str(self._clock), device_memory_used(device)))
        get_logger().info("%s: %s", self.title, ", ".join(parts))


class CrowdingWarning:
    """Warns where more threads want to run than there are cores; once, until that has changed."""

    def __init__(self) -> None:
        self._is_crowded = False

    def look(self, title: str, num_workers: int) -> None:
        """Looks at the machine's load.

        Args:
            title: begins the line.
            num_workers: loading processes of this process.
        """
        crowded = crowding(num_workers)
        if crowded and not self._is_crowded:
            get_logger().warning("%s: %s", title, crowded)
        self._is_crowded = bool(crowded)


class SeedGain:
    """Warns where the fused prediction stays worse than the initial one, so that the seed costs more than it gives."""

    _NOTICEABLE = 0.005  # of mean IoU; smaller differences may be chance

    def __init__(self) -> None:
        self._means: Mapping[str, float] = {}
        self._was_behind = self._has_warned = False

    def look(self, epoch: int, means: Mapping[str, float]) -> None:
        """Looks at the scores of a validation; warns once, at the second one in a row that is behind.

        Args:
            epoch: number of the last epoch.
            means: mean IoU by prediction.
        """
        self._means = means
        if self._is_behind and self._was_behind and not self._has_warned:
            get_logger().warning("epoch %d: %s", epoch, self._finding)
            self._has_warned = True
        self._was_behind = self._is_behind

    def conclude(self) -> None:
        """Warns at the end of a training whose last validation was behind."""
        if self._is_behind:
            get_logger().warning(
                "%s; without it, train with MODEL.SEED.NAME none, or keep the better of the two with TRAIN.BEST any; "
                "with it, train longer (TRAIN.END_EPOCH), with more crops a batch, or from a finished baseline "
                "(MODEL.BACKBONE.PRETRAINED)",
                self._finding,
            )

    @property
    def _is_behind(self) -> bool:
        return "initial" in self._means and self._means["initial"] - self._means["fused"] > self._NOTICEABLE

    @property
    def _finding(self) -> str:
        initial, fused = (100 * self._means[name] for name in ("initial", "fused"))
        return (
            f"S_f is {initial - fused:.1f} points of mIoU below S_i ({fused:.1f} and {initial:.1f} %): the seed costs"
        )
