"""The training loop."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ovenet.engine.checkpointer import Checkpointer
from ovenet.engine.epoch_log import CrowdingWarning, EpochLog
from ovenet.engine.faults import Faults
from ovenet.engine.interruption import Interruption
from ovenet.engine.phases import Phase, Timeline
from ovenet.engine.run_log import RunLog
from ovenet.engine.settings import CheckpointSettings, RunSettings, ScheduleSettings
from ovenet.engine.step import StepResult, TrainStep
from ovenet.engine.train_state import BEST, BEST_EMA, TrainState
from ovenet.engine.validation import Evaluate, Validation
from ovenet.structures import Batch
from ovenet.utils import distributed
from ovenet.utils.environment import release_unused
from ovenet.utils.logging import get_logger

FINAL = "final_state.pth"
FINAL_EMA = "final_ema.pth"
_NUM_SETTLING = 16  # iterations of a process after which algorithms are chosen and graphs captured

DrawPicture = Callable[[], Tensor]


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the training loop.

    Attributes:
        run_dir: folder of checkpoints and logs.
        log_dir: folder of TensorBoard files.
        metadata: saved with all weights: the config, class names and so on.
        run, schedule, checkpoints: see their classes.
        peak_images_per_second: training speed of all cards together if the network's arithmetic ran at their dense
            bfloat16 peak; None if unknown.
    """

    run_dir: Path
    log_dir: Path
    metadata: Mapping[str, Any]
    run: RunSettings
    schedule: ScheduleSettings
    checkpoints: CheckpointSettings
    peak_images_per_second: float | None = None


class _Started(NamedTuple):
    """An iteration whose result may not be read yet."""

    iteration: int
    batches: Sequence[Batch]
    result: StepResult


class Trainer:
    """Fits a model; every rank has one.

    What watches the loop (log, checkpoints, faults, validation) are plain objects, called where they are needed: their
    order matters, because results must be read before a checkpoint, and all ranks must reach each collective together.

    Args:
        step: does one iteration.
        phases: one after the other.
        evaluate: scores a model on the validation split; called on every rank. Its second argument says whether this
            rank was asked to stop: the remaining samples may then be skipped, and the scores are not used.
        draw_picture: returns a picture ``(3, H, W)`` uint8 for TensorBoard; called on rank 0 after every epoch.
        settings: of the run.
    """

    def __init__(
        self,
        step: TrainStep,
        phases: Sequence[Phase],
        evaluate: Evaluate,
        draw_picture: DrawPicture,
        settings: TrainSettings,
    ):
        self.step = step
        self.model = step.model
        self.evaluate = evaluate
        self.draw_picture = draw_picture
        self.settings = settings
        begin_epoch = settings.schedule.begin_epoch
        self.state = TrainState(Timeline(tuple(phases), begin_epoch, step.settings.accumulate), begin_epoch)
        saved = settings.run_dir, settings.metadata
        self.checkpoints = Checkpointer(step, self.state, *saved, settings.checkpoints)
        self._faults = Faults(self.state, self.model, *saved, step.settings.max_skipped)
        self._crowding = CrowdingWarning()
        self._num_run = 0  # iterations of this process

    @property
    def phase(self) -> Phase:
        """The phase of the current epoch."""
        return self.state.timeline.phase(self.state.epoch)

    def resume(self) -> str:
        """Resumes from the newest intact checkpoint, see `Checkpointer.resume`."""
        return self.checkpoints.resume()

    def fit(self, interruption: Interruption | None = None) -> float:
        """Trains to the last epoch. A request to stop on any rank ends all of them after a checkpoint.

        Every epoch is saved before its validation, which a resumed run makes up for.

        Args:
            interruption: notes requests to stop; None does so from here on.

        Returns:
            The best mean IoU of the final prediction on the validation split.

        Raises:
            UserError: too many iterations in a row were skipped.
            OSError: a checkpoint cannot be written; the one before is whole.
            SystemExit: after a request to stop.
        """
        state = self.state
        with (
            self._open_log() as log,
            Interruption() if interruption is None else nullcontext(interruption) as interruption,
        ):
            interruption.at_once = False
            validation = Validation(self.evaluate, state, self.checkpoints, log, interruption)
            while not state.is_finished:
                if not state.is_validation_due:
                    self._train_epoch(log, interruption)
                if state.is_validation_due:
                    self._validate(validation)
                if distributed.is_main():
                    self._draw(log)
        if distributed.is_main():
            self.checkpoints.save_weights(self.model, FINAL)
            if self.step.ema is not None:
                self.checkpoints.save_weights(self.step.ema.module, FINAL_EMA)
        return state.best_mean_iou

    def _train_epoch(self, log: RunLog, interruption: Interruption) -> None:
        """Trains to the end of the current epoch and saves it; saves and exits if a rank is asked to stop before."""
        in_flight: deque[_Started] = deque()
        self.step.parallel.train()
        with EpochLog(log, self.state, self.settings.run.print_freq, self.settings.peak_images_per_second) as epoch_log:
            for batches in epoch_log.timed(self._batches()):
                started = self._start_step(batches, interruption)
                in_flight.append(started)
                # A log line waits for the device anyway; otherwise it stays busy while older results are read.
                stop, save = self._collect(in_flight, 0 if epoch_log.is_due else self.step.latency, epoch_log)
                epoch_log.advance(started.result.lr)
                if stop:
                    self._collect(in_flight, 0, epoch_log)
                    self.checkpoints.save()
                    self._exit(interruption)
                if (save or self.checkpoints.is_due_by_count) and not self.state.is_epoch_trained:
                    self._collect(in_flight, 0, epoch_log)
                    self.checkpoints.save()
        epoch_log.finish(self.step.device)
        self._crowding.look(epoch_log.title, self.phase.loader.num_workers)
        self.state.begin_epoch(self.settings.checkpoints.eval_interval)
        self.checkpoints.save()

    def _batches(self) -> Iterator[list[Batch]]:
        """Micro-batches of each iteration that is left of the current epoch."""
        state, phase = self.state, self.phase
        phase.sampler.epoch, phase.sampler.start = state.epoch, state.samples_done
        num_left = state.epoch_length - state.steps_in_epoch
        random_state = torch.get_rng_state()
        batches = iter(phase.loader)  # draws a seed for its workers; dropout must not depend on how often that is done
        torch.set_rng_state(random_state)
        for _ in range(num_left):
            yield list(islice(batches, state.timeline.accumulate))

    def _start_step(self, batches: list[Batch], interruption: Interruption) -> _Started:
        """Counts and launches an iteration, without waiting for the device."""
        self.state.begin_iteration()
        iteration = self.state.iteration
        with distributed.activity(f"iteration {iteration}"):
            result = self.step(
                batches,
                freeze=self.state.epoch < self.step.settings.freeze_epochs,
                stop=interruption.received is not None,
                save=self.checkpoints.is_due_by_clock,
            )
        self._faults.count_broken(batches)
        self._num_run += 1
        if self._num_run == _NUM_SETTLING:
            release_unused(self.step.device)
        return _Started(iteration, batches, result)

    def _collect(self, in_flight: deque[_Started], max_in_flight: int, epoch_log: EpochLog) -> tuple[bool, bool]:
        """Reads results until at most `max_in_flight` are left; returns (stop, save), agreed by all ranks."""
        stop = save = False
        while len(in_flight) > max_in_flight:
            iteration, batches, result = in_flight.popleft()
            flags, loss = result.flags, result.loss
            if not flags.is_rescaled:
                self._faults.count_step(iteration, batches, is_skipped=loss is None)
            if loss is not None:
                epoch_log.add(loss, batches)
            stop, save = stop or flags.stop, save or flags.save
        return stop, save

    def _validate(self, validation: Validation) -> None:
        """Scores the model and the averaged one; exits if a rank is asked to stop before, and is resumed with it."""
        is_complete = validation(self.model, self.step.device, BEST)
        if is_complete and self.step.ema is not None:
            is_complete = validation(self.step.ema.module, self.step.device, BEST_EMA, "_ema")
        if not is_complete:
            self._exit(validation.interruption)
        self.state.is_validation_due = False
        self.checkpoints.save(replaces_newest=True)

    def _draw(self, log: RunLog) -> None:
        try:
            log.picture("val/picture", self.draw_picture(), iteration=self.state.iteration)
        except Exception as error:  # a picture that cannot be drawn must not end the run
            get_logger().warning("no picture of epoch %d: %s", self.state.epoch, " ".join(str(error).split())[:200])

    def _open_log(self) -> RunLog:
        settings = self.settings
        return RunLog(
            settings.run_dir,
            settings.log_dir,
            iteration=self.state.iteration,
            is_validation_due=self.state.is_validation_due,
            wandb_project=settings.run.wandb,
            mlflow_experiment=settings.run.mlflow,
            config=settings.metadata["config"],
        )

    def _exit(self, interruption: Interruption) -> NoReturn:
        get_logger().info("stopped at iteration %d; TRAIN.RESUME True goes on", self.state.iteration)
        sys.exit(interruption.exit_code)
