"""The training loop."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ovenet.data.samplers import TrainSampler
from ovenet.engine.checkpoint import (
    CHECKPOINT,
    CheckpointStore,
    require_fields,
    save_atomically,
    save_repro,
    with_present_names,
)
from ovenet.engine.interruption import Interruption
from ovenet.engine.run_log import Meter, Progress, RunLog, WaitingClock
from ovenet.engine.settings import CheckpointSettings, RunSettings, ScheduleSettings, StepSettings
from ovenet.engine.step import StepResult, TrainStep
from ovenet.errors import UserError
from ovenet.models.weight_files import weights_of
from ovenet.structures import Batch, EvalResult, LossTerms
from ovenet.utils import distributed
from ovenet.utils.environment import crowding, device_memory_used, release_unused
from ovenet.utils.logging import get_logger

BEST = "best.pth"
BEST_EMA = "best_ema.pth"
FINAL = "final_state.pth"
FINAL_EMA = "final_ema.pth"
_NUM_SETTLING = 16  # steps of a process after which algorithms are chosen and graphs captured

Evaluate = Callable[[nn.Module, Callable[[], bool]], Mapping[str, EvalResult]]
DrawPicture = Callable[[], Tensor]


@dataclass(frozen=True)
class TrainSettings:
    """Settings of the training loop.

    Attributes:
        run_dir: where checkpoints go.
        log_dir: where TensorBoard files go.
        metadata: saved with every file of weights: the config, class names and so on.
        run, schedule, step, checkpoints: see there.
        peak_images_per_second: what all cards could train if they did nothing but the network's arithmetic at their
            dense bfloat16 peak; None if not known.
    """

    run_dir: Path
    log_dir: Path
    metadata: Mapping[str, Any]
    run: RunSettings
    schedule: ScheduleSettings
    step: StepSettings
    checkpoints: CheckpointSettings
    peak_images_per_second: float | None = None


@dataclass(frozen=True)
class Phase:
    """A part of the training on one list.

    Attributes:
        loader: micro-batches of one epoch, in the order of `sampler`.
        sampler: told the epoch, and where in it to begin.
        end_epoch: number after its last epoch.
        num_iterations: length in iterations, in place of `end_epoch`; 0 for none. Possible for the only phase.
    """

    loader: DataLoader[Batch]
    sampler: TrainSampler
    end_epoch: int
    num_iterations: int = 0


def phase_lengths(phases: Sequence[Phase], begin_epoch: int, accumulate: int) -> list[tuple[int, int]]:
    """Iterations of an epoch and of the whole, for each phase.

    Args:
        phases: one after the other.
        begin_epoch: number of the first epoch.
        accumulate: micro-batches per iteration.
    """
    lengths = []
    for phase in phases:
        per_epoch = len(phase.loader) // accumulate
        lengths.append((per_epoch, phase.num_iterations or per_epoch * (phase.end_epoch - begin_epoch)))
        begin_epoch = phase.end_epoch
    return lengths


class Trainer:
    """Fits a model; one per process.

    Args:
        step: what an iteration does, with its model.
        phases: one after the other.
        evaluate: scores a model on the validation split; reached by every process. Its second argument says whether
            this process was asked to stop: then what is left may be skipped, and the scores are not used.
        draw_picture: a picture ``(3, H, W)`` uint8 for TensorBoard; called on process 0 after every epoch.
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
        self.phases = tuple(phases)
        self.evaluate = evaluate
        self.draw_picture = draw_picture
        self.settings = settings
        self.store = CheckpointStore(settings.run_dir, settings.checkpoints.keep_checkpoints)
        self.epoch = settings.schedule.begin_epoch
        self.iteration = 0
        self._num_run = 0  # steps of this process
        self.steps_in_epoch = 0
        self.position = 0
        self.best = {BEST: -1.0, BEST_EMA: -1.0}
        self.num_skipped = 0
        self.num_skipped_in_row = 0
        self.num_broken_samples = 0
        self.is_validation_due = False
        self._saved_at = time.monotonic()
        self._is_crowded = False  # as the log has said

    @property
    def best_mean_iou(self) -> float:
        """The best score of the final prediction so far; -1 before the first validation."""
        return self.best[BEST]

    @property
    def num_iterations(self) -> int:
        """Of the whole schedule; `position` of them are done. With other numbers of processes they are others."""
        lengths = phase_lengths(self.phases, self.settings.schedule.begin_epoch, self.settings.step.accumulate)
        return sum(length for _, length in lengths)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        return self.position >= self.num_iterations

    @property
    def end_epoch(self) -> int:
        """Number after the last epoch, which may be cut short where the length is given in iterations."""
        if not self.phases[-1].num_iterations:
            return self.phases[-1].end_epoch
        left = self.num_iterations - self.position + self.steps_in_epoch
        return self.epoch + max(-(-left // self.iterations_per_epoch), 1 if self.steps_in_epoch else 0)

    @property
    def phase(self) -> Phase:
        """The one that the epoch at hand belongs to."""
        return next((p for p in self.phases if self.epoch < p.end_epoch or p.num_iterations), self.phases[-1])

    @property
    def iterations_per_epoch(self) -> int:
        """Of this process, the same on every one, in the phase at hand."""
        return len(self.phase.loader) // self.settings.step.accumulate

    def fit(self, interruption: Interruption | None = None) -> float:
        """Trains to the last epoch. A request to stop ends the process after a checkpoint.

        Every epoch's checkpoint is written before its validation, which a resumed run makes up for.

        Args:
            interruption: notes requests to stop; None does so from here on.

        Returns:
            The best mean IoU of the final prediction on the validation split.

        Raises:
            UserError: too many iterations in a row were skipped.
            OSError: a checkpoint cannot be written; the one before is whole.
            SystemExit: after a request to stop.
        """
        settings = self.settings
        log = RunLog(
            settings.run_dir,
            settings.log_dir,
            iteration=self.iteration,
            is_validation_due=self.is_validation_due,
            wandb_project=settings.run.wandb,
            mlflow_experiment=settings.run.mlflow,
            config=settings.metadata["config"],
        )
        with log, Interruption() if interruption is None else nullcontext(interruption) as interruption:
            interruption.at_once = False
            while not self.is_done or self.is_validation_due:
                if not self.is_validation_due:
                    if self._train_epoch(log, interruption):
                        self._save_checkpoint()
                        self._leave(interruption)
                    self.epoch += 1
                    self.steps_in_epoch = 0
                    self.is_validation_due = self._is_epoch_validated()
                    self._save_checkpoint()
                if self.is_validation_due:
                    if self._validate(log, interruption):
                        self._leave(interruption)
                    self.is_validation_due = False
                    self._save_checkpoint(replaces_newest=True)
                if distributed.is_main():
                    self._draw(log)
        if distributed.is_main():
            save_atomically(self._weights(self.model), settings.run_dir / FINAL)
            if self.step.ema is not None:
                save_atomically(self._weights(self.step.ema.module), settings.run_dir / FINAL_EMA)
        return self.best_mean_iou

    def _leave(self, interruption: Interruption) -> NoReturn:
        get_logger().info("stopped at iteration %d; TRAIN.RESUME True goes on", self.iteration)
        sys.exit(interruption.exit_code)

    def _draw(self, log: RunLog) -> None:
        try:
            log.picture("val/picture", self.draw_picture(), iteration=self.iteration)
        except Exception as error:  # a picture that cannot be drawn must not end the run
            get_logger().warning("no picture of epoch %d: %s", self.epoch, " ".join(str(error).split())[:200])

    def _train_epoch(self, log: RunLog, interruption: Interruption) -> bool:
        """Trains to the end of the epoch at hand.

        Returns:
            Whether some process was asked to stop before that.
        """
        self.step.parallel.train()
        loader, sampler = self.phase.loader, self.phase.sampler
        sampler.epoch, sampler.start = self.epoch, self._samples_done()
        left = self.num_iterations - self.position
        meter, total = Meter(), min(self.iterations_per_epoch, self.steps_in_epoch + left)
        title = f"epoch {self.epoch + 1}/{self.end_epoch}"
        remaining = left - (total - self.steps_in_epoch)
        freeze = self.epoch < self.settings.step.freeze_epochs
        clock = WaitingClock()
        groups = clock.watch(_groups(loader, self.settings.step.accumulate, total - self.steps_in_epoch))
        in_flight: deque[tuple[int, StepResult, Sequence[Batch]]] = deque()  # steps whose results are still to be read

        def drain(max_in_flight: int) -> tuple[bool, bool]:
            """Reads results of steps; whether to stop, and whether to save, as all processes are told."""
            results = [self._count(*in_flight.popleft(), meter) for _ in range(len(in_flight) - max_in_flight)]
            return any(result.stop for result in results), any(result.save for result in results)

        with Progress(title, total, done=self.steps_in_epoch, enabled=distributed.is_main()) as progress:
            for batches in groups:
                self.iteration += 1
                with distributed.activity(f"iteration {self.iteration}"):
                    stop = interruption.received is not None
                    result = self.step(batches, freeze=freeze, stop=stop, save=self._minutes_are_over())
                in_flight.append((self.iteration, result, batches))
                self.steps_in_epoch += 1
                self.position += 1
                self._count_broken(batches)
                self._num_run += 1
                if self._num_run == _NUM_SETTLING:
                    release_unused(self.step.device)
                is_last = self.steps_in_epoch == total
                is_reported = self.steps_in_epoch % self.settings.run.print_freq == 0 or is_last
                stop, save = drain(0 if is_reported else self.step.latency)  # a summary waits for the device anyway
                if is_reported and len(meter):
                    self._report(progress, log, meter.summary(), result.lr, remaining)
                    meter = Meter()
                progress.advance(remaining)
                if stop:
                    drain(0)
                    return True
                every = self.settings.checkpoints.checkpoint_every
                if not is_last and (save or (every and self.iteration % every == 0)):
                    drain(0)
                    self._save_checkpoint()
        get_logger().info("%s: %s", title, ", ".join(filter(None, (str(clock), device_memory_used(self.step.device)))))
        crowded = crowding(loader.num_workers)
        if crowded and not self._is_crowded:
            get_logger().warning("%s: %s", title, crowded)
        self._is_crowded = bool(crowded)
        return False

    def _count(self, iteration: int, result: StepResult, batches: Sequence[Batch], meter: Meter) -> StepResult:
        """Counts a step."""
        if not result.is_rescaled:
            self._count_skipped(iteration, result.loss, batches)
        if result.loss is not None:
            meter.add(result.loss, sum(len(b.names) for b in batches) * distributed.world_size())
        return result

    def _samples_done(self) -> int:
        """Samples of this epoch that all processes together have used."""
        return (
            self.steps_in_epoch
            * self.settings.step.accumulate
            * self.phase.loader.batch_size
            * distributed.world_size()
        )

    def _report(self, progress: Progress, log: RunLog, summary: Mapping[str, float], lr: float, remaining: int) -> None:
        if self.settings.peak_images_per_second:
            summary = {**summary, "mfu": summary["images_per_second"] / self.settings.peak_images_per_second}
        progress.report(self.steps_in_epoch, summary, lr, remaining)
        values = {**summary, "lr": lr, "skipped": self.num_skipped}
        log.scalars("train", values, iteration=self.iteration, epoch=self.epoch)

    def _count_broken(self, batches: Sequence[Batch]) -> None:
        for problem in (problem for batch in batches for problem in batch.problems):
            self.num_broken_samples += 1
            get_logger().warning("sample %d that is left out: %s", self.num_broken_samples, problem)

    def _count_skipped(self, iteration: int, loss: LossTerms | None, batches: Sequence[Batch]) -> None:
        if loss is not None:
            self.num_skipped_in_row = 0
            return
        self.num_skipped += 1
        self.num_skipped_in_row += 1
        names = ", ".join(name for batch in batches for name in batch.names)
        get_logger().warning(
            "iteration %d: loss or gradient is not finite, no weight was changed (images here: %s)",
            iteration,
            names,
        )
        if self.num_skipped == 1:
            self._save_repro(iteration, batches)
        if self.num_skipped_in_row >= self.settings.step.max_skipped:
            raise UserError(
                f"loss or gradient was not finite in {self.num_skipped_in_row} iterations in a row "
                "(TRAIN.MAX_SKIPPED); lower TRAIN.LR or look at the images named above; "
                f"{self.settings.run_dir / CHECKPOINT} is untouched"
            )

    def _save_repro(self, iteration: int, batches: Sequence[Batch]) -> None:
        try:
            path = save_repro(self.settings.run_dir, iteration, self.model, batches, self.settings.metadata)
            get_logger().warning("saved %s; look at it with: python tools/replay.py %s", path, path)
        except OSError as error:  # no reason to end the run
            get_logger().warning("the batch cannot be kept: %s", error)

    def _is_epoch_validated(self) -> bool:
        done = self.epoch - self.settings.schedule.begin_epoch
        return done % self.settings.checkpoints.eval_interval == 0 or self.is_done

    def _validate(self, log: RunLog, interruption: Interruption) -> bool:
        """Scores the model, and the averaged one; whether some process was asked to stop before that was done."""
        if self._validate_model(self.model, BEST, "", log, interruption):
            return True
        return self.step.ema is not None and self._validate_model(
            self.step.ema.module, BEST_EMA, "_ema", log, interruption
        )

    def _validate_model(
        self, model: nn.Module, file: str, suffix: str, log: RunLog, interruption: Interruption
    ) -> bool:
        with distributed.activity(f"the validation after epoch {self.epoch}"):
            results = self.evaluate(model, lambda: interruption.received is not None)
            asked = torch.tensor(int(interruption.received is not None), device=self.step.device)
            if bool(distributed.all_reduce_sum(asked)):
                return True
        mean_iou = results["fused"].mean_iou
        is_best = mean_iou > self.best[file]
        if is_best:
            self.best[file] = mean_iou
        if not distributed.is_main():
            return False
        if not results["fused"].num_pixels:
            get_logger().warning("epoch %d: no labelled pixel in the validation list, so no score", self.epoch)
            return False
        scores = ", ".join(f"{name}{suffix} {100 * result.mean_iou:.2f} %" for name, result in results.items())
        best = 100 * self.best[file]
        get_logger().info("epoch %d: mIoU %s (best fused%s %.2f %%)", self.epoch, scores, suffix, best)
        values = {f"mean_iou_{name}{suffix}": result.mean_iou for name, result in results.items()}
        log.scalars("val", values, iteration=self.iteration, epoch=self.epoch - 1)
        if is_best:
            save_atomically(self._weights(model), self.settings.run_dir / file)
        return False

    def _weights(self, model: nn.Module) -> dict[str, Any]:
        return {
            "model": model.state_dict(),
            "epoch": self.epoch,
            "best_mean_iou": self.best_mean_iou,
            **self.settings.metadata,
        }

    def _minutes_are_over(self) -> bool:
        """By the clock of this process; the processes tell each other with the step's flags."""
        minutes = self.settings.checkpoints.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self._saved_at > 60 * minutes

    def _save_checkpoint(self, *, replaces_newest: bool = False) -> None:
        with distributed.activity("saving a checkpoint"):
            self._write_checkpoint(replaces_newest=replaces_newest)
        self._saved_at = time.monotonic()

    def _write_checkpoint(self, *, replaces_newest: bool) -> None:
        random_states = distributed.gather_objects(_random_state())
        if distributed.is_main():
            self.store.save(
                {
                    **self._weights(self.model),
                    **self.step.state(),
                    "iteration": self.iteration,
                    "steps_in_epoch": self.steps_in_epoch,
                    "progress": self.position / self.num_iterations,
                    "samples_done": self._samples_done(),
                    "world_size": distributed.world_size(),
                    "best": dict(self.best),
                    "num_skipped": self.num_skipped,
                    "num_broken_samples": self.num_broken_samples,
                    "random_states": random_states,
                    "is_validation_due": self.is_validation_due,
                },
                replaces_newest=replaces_newest,
            )
        distributed.barrier()

    def resume(self) -> str:
        """Resumes from the newest intact checkpoint; settings that differ take their present values.

        Returns:
            The configuration that the checkpoint was saved with, as YAML.

        Raises:
            UserError: all checkpoints are damaged, or are of another model.
        """
        state, path = self.store.load()
        try:
            require_fields(state, best_files=self.best)
            state = with_present_names({**state, "model": weights_of(state, path)}, self.model)
            self.model.load_state_dict(state["model"])
            self.epoch, self.iteration = state["epoch"], state["iteration"]
            self.best = dict(state["best"])
            self.num_skipped, self.num_broken_samples = state["num_skipped"], state["num_broken_samples"]
            self._resume_inside_epoch(state["samples_done"], state.get("progress"))
            self.step.restore(state, self.position)
            _set_random_state(state["random_states"])
            self.is_validation_due = state.get("is_validation_due", False)
            saved_config = state["config"]
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: cannot be resumed with this config ({reason}); set TRAIN.RESUME False and another OUTPUT_DIR"
            ) from error
        get_logger().info(
            "resumed from %s: epoch %d, iteration %d, %s",
            path,
            self.epoch + 1,
            self.iteration,
            "no mIoU yet" if self.best_mean_iou < 0 else f"best mIoU {100 * self.best_mean_iou:.2f} %",
        )
        if state["world_size"] != distributed.world_size():
            get_logger().warning(
                "the run began on %d process(es), now there are %d: the new number holds; the samples of this epoch "
                "that were used are not used again, random numbers of dropout differ",
                state["world_size"],
                distributed.world_size(),
            )
        return saved_config

    def _resume_inside_epoch(self, samples_done: int, progress: float | None) -> None:
        """Finds the step at which an epoch goes on, and the place in the schedule.

        With another batch size or number of processes there are other iterations: the step is the one that repeats
        fewer samples, and the place in the schedule is the same share of it.
        """
        per_step = self.settings.step.accumulate * self.phase.loader.batch_size * distributed.world_size()
        self.steps_in_epoch = min(-(-samples_done // per_step), self.iterations_per_epoch)
        if self.phases[-1].num_iterations and progress is not None:
            self.position = round(progress * self.num_iterations)
            return
        self.position, begin = self.steps_in_epoch, self.settings.schedule.begin_epoch
        lengths = phase_lengths(self.phases, begin, self.settings.step.accumulate)
        for phase, (per_epoch, _) in zip(self.phases, lengths, strict=True):
            self.position += per_epoch * (min(self.epoch, phase.end_epoch) - begin)
            begin = min(self.epoch, phase.end_epoch)


def _groups(loader: DataLoader[Batch], size: int, num_groups: int) -> Iterator[list[Batch]]:
    """The first `num_groups` groups of `size` batches."""
    state = torch.get_rng_state()
    batches = iter(loader)  # draws a seed for its processes; dropout must not depend on how often an epoch was begun
    torch.set_rng_state(state)
    for _ in range(num_groups):
        yield list(islice(batches, size))


def _random_state() -> dict[str, Tensor]:
    """States of the random generators used in training (dropout): the CPU's and this process's GPU's."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(states: Sequence[Mapping[str, Tensor]]) -> None:
    if len(states) != distributed.world_size():
        return  # saved by another number of processes
    own = states[distributed.rank()]
    torch.set_rng_state(own["cpu"])
    if "cuda" in own and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])
