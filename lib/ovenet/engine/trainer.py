"""The training loop."""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from ovenet.engine.checkpoint import BEST, BEST_EMA, FINAL, FINAL_EMA
from ovenet.engine.checkpointer import Checkpointer
from ovenet.engine.epoch_log import CrowdingWarning, EpochLog, SeedGain
from ovenet.engine.faults import Faults
from ovenet.engine.interruption import Interruption
from ovenet.engine.phases import Phase, Timeline
from ovenet.engine.run_log import RunLog
from ovenet.engine.settings import CheckpointSettings, RunSettings
from ovenet.engine.step import StepResult, TrainStep
from ovenet.engine.train_state import TrainState
from ovenet.errors import one_line
from ovenet.structures import Batch, EvalResult
from ovenet.utils import distributed
from ovenet.utils.environment import release_unused
from ovenet.utils.logging import get_logger

_NUM_SETTLING = 16  # iterations of a process after which algorithms are chosen and graphs captured

Evaluate = Callable[[nn.Module, Callable[[], bool]], Mapping[str, EvalResult]]
DrawPicture = Callable[[], Tensor]
Hook = Callable[[TrainState], object]  # called after a validation; True ends the training


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the training loop.

    Attributes:
        run_dir: folder of checkpoints and logs.
        log_dir: folder of TensorBoard files.
        metadata: saved with all weights: the config, class names and so on.
        metadata_without_seed: the same for the network without its seed, which ``TRAIN.BEST any`` may save; None where
            nothing else is saved.
        run, checkpoints: see their classes.
        peak_images_per_second: training speed of all cards together if the network's arithmetic ran at their dense
            bfloat16 peak; None if unknown.
    """

    run_dir: Path
    log_dir: Path
    metadata: Mapping[str, Any]
    run: RunSettings
    checkpoints: CheckpointSettings
    peak_images_per_second: float | None = None
    metadata_without_seed: Mapping[str, Any] | None = None


class _Candidate(NamedTuple):
    """Weights that may become `BEST`: a prediction of the trained or of the averaged model, and its mean IoU."""

    mean_iou: float
    model: nn.Module
    prediction: str
    name: str


class _Started(NamedTuple):
    """An iteration whose result may not be read yet."""

    iteration: int
    batches: Sequence[Batch]
    result: StepResult


@contextmanager
def _collecting_new_garbage_alone() -> Iterator[None]:
    """Leaves all objects of now out of Python's garbage collections, which would halt a step for 0.2 s each."""
    if torch.cuda.is_initialized():  # what another training has left behind would stay on the card
        gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Trainer:
    """Fits a model; every rank has one.

    Log, checkpoints and faults are plain objects, called where they are needed: their order matters, because results
    must be read before a checkpoint, and all ranks must reach each collective together.

    Args:
        step: does one iteration.
        timeline: length of the training.
        evaluate: scores a model on the validation split; called on every rank. Its second argument returns whether this
            rank was asked to stop: the remaining samples may then be skipped, and the scores are not used.
        draw_picture: returns a picture ``(3, H, W)`` uint8 for TensorBoard; called on rank 0 after every epoch.
        settings: settings of the loop.
        hooks: called on every rank with the counters and scores after each validation, in their order; the training
            ends with the epoch, as if it were the last, once one of them returns True.
    """

    def __init__(
        self,
        step: TrainStep,
        timeline: Timeline,
        evaluate: Evaluate,
        draw_picture: DrawPicture,
        settings: TrainSettings,
        hooks: Sequence[Hook] = (),
    ):
        self.step = step
        self.model = step.model
        self.evaluate = evaluate
        self.draw_picture = draw_picture
        self.settings = settings
        self.hooks = hooks
        self._is_enough = False  # for a hook
        self.state = TrainState(timeline, timeline.begin_epoch)
        saved = settings.run_dir, settings.metadata
        self.checkpoints = Checkpointer(step, self.state, *saved, settings.checkpoints)
        self._faults = Faults(self.state, self.model, *saved, step.settings.max_skipped)
        self._crowding = CrowdingWarning()
        self._seed_gain = SeedGain()
        self._num_run = 0  # iterations of this process

    @property
    def phase(self) -> Phase:
        """The phase of the current epoch."""
        return self.state.timeline.phase(self.state.epoch)

    def fit(self, interruption: Interruption | None = None) -> float:
        """Trains to the last epoch. A request to stop on any rank ends all of them after a checkpoint.

        Every epoch is saved before its validation, so that a resumed run can repeat an interrupted one.

        Args:
            interruption: receives requests to stop; None creates one.

        Returns:
            The best mean IoU of the final prediction on the validation split.

        Raises:
            UserError: too many iterations in a row were skipped.
            OSError: a checkpoint cannot be written; the one before is whole.
            SystemExit: after a request to stop.
        """
        state = self.state
        with (
            _collecting_new_garbage_alone(),
            self._open_log() as log,
            Interruption() if interruption is None else nullcontext(interruption) as interruption,
            self.checkpoints,
        ):
            interruption.at_once = False
            while not (state.is_finished or self._is_enough):
                if not state.is_validation_due:
                    self._train_epoch(log, interruption)
                if state.is_validation_due:
                    self._validate(log, interruption)
                if distributed.is_main():
                    self._draw(log)
        if distributed.is_main():
            self.checkpoints.save_weights(self.model, FINAL)
            if self.step.ema is not None:
                self.checkpoints.save_weights(self.step.ema.module, FINAL_EMA)
            self._seed_gain.conclude()
        return state.best_mean_iou

    def _train_epoch(self, log: RunLog, interruption: Interruption) -> None:
        """Trains to the end of the current epoch and saves; if a rank is asked to stop, saves at once and exits."""
        in_flight: deque[_Started] = deque()
        self.step.parallel.train()
        with EpochLog(log, self.state, self.settings.run.print_freq, self.settings.peak_images_per_second) as epoch_log:
            for batches in epoch_log.timed(self._batches()):
                started = self._start_step(batches, interruption)
                in_flight.append(started)
                # A log line waits for the device; without one, it stays busy while older results are read.
                stop, save = self._collect(in_flight, 0 if epoch_log.is_due else self.step.latency, epoch_log)
                epoch_log.advance(started.result.lr)
                if stop or ((save or self.checkpoints.is_due_by_count) and not self.state.is_epoch_trained):
                    self.checkpoints.save(settle=lambda: self._collect(in_flight, 0, epoch_log))
                if stop:
                    self._exit(interruption)
        epoch_log.finish(self.step.device)
        self._crowding.look(epoch_log.title, self.phase.loader.num_workers)
        self.state.finish_epoch(self.settings.checkpoints.eval_interval)
        self.checkpoints.save()

    def _batches(self) -> Iterator[list[Batch]]:
        """Micro-batches of each remaining iteration of the current epoch."""
        state, phase = self.state, self.phase
        phase.sampler.epoch, phase.sampler.start = state.epoch, state.samples_done
        random_state = torch.get_rng_state()
        batches = iter(phase.loader)  # draws a seed for its workers; dropout must not depend on how often that is done
        torch.set_rng_state(random_state)
        for _ in range(state.epoch_length - state.iterations_in_epoch):
            yield list(islice(batches, state.timeline.accumulate))

    def _start_step(self, batches: list[Batch], interruption: Interruption) -> _Started:
        """Counts and launches an iteration, without waiting for the device."""
        self.state.begin_iteration()
        iteration = self.state.iteration
        with distributed.activity(f"iteration {iteration}"):
            result = self.step(
                batches,
                rest=self.state.epoch < self.step.settings.freeze_epochs,
                stop=interruption.received is not None,
                save=self.checkpoints.is_due_by_clock,
            )
        self._faults.count_broken(batches)
        self._num_run += 1
        if self._num_run == _NUM_SETTLING:
            release_unused(self.step.device)
        return _Started(iteration, batches, result)

    def _collect(self, in_flight: deque[_Started], max_in_flight: int, epoch_log: EpochLog) -> tuple[bool, bool]:
        """Reads results until at most `max_in_flight` remain; returns (stop, save), agreed by all ranks."""
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

    def _validate(self, log: RunLog, interruption: Interruption) -> None:
        """Scores the model and the averaged one. Exits if a rank is asked to stop; a resumed run starts over here."""
        scores, candidates = self._score(self.model, BEST, "", log, interruption)
        if self.step.ema is not None:
            averaged, more = self._score(self.step.ema.module, BEST_EMA, "_ema", log, interruption)
            scores, candidates = scores | averaged, candidates + more
        self.state.history.append({"epoch": self.state.epoch, **scores})
        if self.settings.checkpoints.best == "any" and candidates:
            self._keep_best(max(candidates, key=lambda one: one.mean_iou))  # among equals the first, without a seed
        self.state.is_validation_due = False
        self._call_hooks()
        self.checkpoints.save(replaces_newest=True)

    def _call_hooks(self) -> None:
        """Calls the hooks; those of one rank may end the training of all. What they draw does not change it."""
        if not self.hooks:
            return
        with torch.random.fork_rng(devices=[]):
            wishes = [hook(self.state) is True for hook in self.hooks]
        self._is_enough = bool(distributed.all_reduce_sum(torch.tensor(int(any(wishes)), device=self.step.device)))
        if self._is_enough:
            get_logger().info("epoch %d is the last, as a hook asked", self.state.epoch)

    def _score(
        self, model: nn.Module, file: str, suffix: str, log: RunLog, interruption: Interruption
    ) -> tuple[dict[str, float], list[_Candidate]]:
        """Scores a model, and saves its weights to `file` if their fused prediction is the best so far.

        ``TRAIN.BEST any`` leaves `BEST` to `_keep_best`. Exits without scores if a rank is asked to stop.

        Args:
            model: the trained or the averaged one.
            file: of its best weights.
            suffix: ends its scores' names.
            log: receives the scores.
            interruption: of the run.

        Returns:
            Mean IoU by name, the same on every rank; and what may become `BEST`, nothing without a labelled pixel.
        """
        state = self.state
        with distributed.activity(f"the validation after epoch {state.epoch}"):
            results = self.evaluate(model, lambda: interruption.received is not None)
            requests = torch.tensor(int(interruption.received is not None), device=self.step.device)
            if bool(distributed.all_reduce_sum(requests)):
                self._exit(interruption)
        mean_iou = results["fused"].mean_iou
        is_best = mean_iou > state.best[file] and not (file == BEST and self.settings.checkpoints.best == "any")
        if is_best:
            state.best[file] = mean_iou
        means = {name: result.mean_iou for name, result in results.items()}
        named = {f"{name}{suffix}": mean for name, mean in means.items()}
        if not results["fused"].num_pixels:
            if distributed.is_main():
                get_logger().warning("epoch %d: no labelled pixel in the validation list, so no score", state.epoch)
            return named, []
        candidates = [
            _Candidate(means[name], model, name, f"{name}{suffix}") for name in ("initial", "fused") if name in means
        ]
        if not distributed.is_main():
            return named, candidates
        scores = ", ".join(f"{name} {100 * mean:.2f} %" for name, mean in named.items())
        best = f"fused{suffix} {100 * state.best[file]:.2f} %"
        if file == BEST and self.settings.checkpoints.best == "any":
            best = f"of all {100 * max(state.best[BEST], *means.values()):.2f} %"
        get_logger().info("epoch %d: mIoU %s (best %s)", state.epoch, scores, best)
        values = {f"mean_iou_{name}": mean for name, mean in named.items()}
        log.scalars("val", values, iteration=state.iteration, epoch=state.epoch - 1)
        if not suffix:
            self._seed_gain.look(state.epoch, means)
        if is_best:
            self.checkpoints.save_weights(model, file)
        return named, candidates

    def _keep_best(self, candidate: _Candidate) -> None:
        """Saves the candidate to `BEST` if it is the best so far."""
        if candidate.mean_iou <= self.state.best[BEST]:
            return
        self.state.best[BEST] = candidate.mean_iou
        if not distributed.is_main():
            return
        get_logger().info("epoch %d: %s is %s", self.state.epoch, BEST, candidate.name)
        without_seed = self.settings.metadata_without_seed if candidate.prediction == "initial" else None
        self.checkpoints.save_weights(candidate.model, BEST, without_seed=without_seed)

    def _draw(self, log: RunLog) -> None:
        try:
            log.picture("val/picture", self.draw_picture(), iteration=self.state.iteration)
        except Exception as error:  # a picture that cannot be drawn must not end the run
            get_logger().warning("no picture of epoch %d: %s", self.state.epoch, one_line(error))

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
        """Ends this process when the last checkpoint is on the disk: a launcher ends the others with the first one."""
        with distributed.activity("saving the last checkpoint"):
            self.checkpoints.wait()
            distributed.barrier()
        get_logger().info("stopped at iteration %d; set TRAIN.RESUME True to continue", self.state.iteration)
        sys.exit(interruption.exit_code)
