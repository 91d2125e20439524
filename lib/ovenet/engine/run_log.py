"""Progress of a run on the terminal and in its log, and its numbers in TensorBoard files and JSON lines."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from tensorboardX import SummaryWriter
from torch import Tensor
from tqdm import tqdm

from ovenet.errors import UserError
from ovenet.structures import LossTerms
from ovenet.utils import distributed
from ovenet.utils.logging import FILE_ONLY, get_logger
from ovenet.utils.progress import SILENCE_S
from ovenet.utils.writing import write_text

JSON_LOG = "log.jsonl"
T = TypeVar("T")


class Meter:
    """Means over iterations, from its creation on."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._sums: dict[str, Tensor] = {}  # on the device: reading them every iteration would stall it
        self._num_images = 0
        self._started = time.perf_counter()

    def add(self, loss: LossTerms, num_images: int) -> None:
        """Counts one iteration of `num_images` images over all processes."""
        self.num_steps += 1
        self._num_images += num_images
        values = {"loss": loss.total.detach(), **{f"loss_{name}": value for name, value in loss.terms.items()}}
        self._sums = {name: value + self._sums.get(name, 0.0) for name, value in values.items()}

    def __len__(self) -> int:
        return self.num_steps

    def summary(self) -> dict[str, float]:
        """``loss`` and ``loss_<term>``, means over all ranks, and ``images_per_second``, with the wait for data.

        Every rank must call it.
        """
        kinds = {value.device.type for value in self._sums.values()}
        dtype = torch.float64 if kinds <= {"cpu", "cuda"} else torch.float32  # mps and some xpu have no float64
        sums = distributed.all_reduce_sum(torch.stack([value.to(dtype) for value in self._sums.values()]))
        values = (sums / (self.num_steps * distributed.world_size())).tolist()
        means = dict(zip(self._sums, values, strict=True))
        return {**means, "images_per_second": self._num_images / (time.perf_counter() - self._started)}


class WaitingClock:
    """Measures the share of time spent waiting for items."""

    BOUND = 0.2  # share of waiting above which more loader workers pay off

    def __init__(self) -> None:
        self.waited_s = 0.0
        self._started = time.perf_counter()

    @property
    def total_s(self) -> float:
        """Seconds since its creation, or since the first item."""
        return time.perf_counter() - self._started

    @property
    def waiting_share(self) -> float:
        """Share of the time so far, in ``[0, 1]``."""
        return self.waited_s / self.total_s

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Yields items and counts the time until each one arrives; not the first, which starts the workers."""
        iterator, is_first = iter(items), True
        while True:
            asked = time.perf_counter()
            item = next(iterator, None)
            if item is None:
                return
            if is_first:
                self._started, is_first = time.perf_counter(), False
            else:
                self.waited_s += time.perf_counter() - asked
            yield item

    @classmethod
    def verdict(cls, waiting_share: float) -> str:
        """The bottleneck, and the remedy."""
        return "data-bound: raise WORKERS, or set DATASET.CACHE" if waiting_share > cls.BOUND else "compute-bound"

    def __str__(self) -> str:
        return (
            f"{self.total_s:.1f} s, {self.waiting_share:.0%} of it waiting for data, {self.verdict(self.waiting_share)}"
        )


class Progress:
    """Progress of one epoch on rank 0; a context manager.

    Args:
        title: of the epoch.
        num_steps: iterations of the epoch.
        done: iterations done before.
        enabled: False shows nothing.
        best: best mean IoU of the validations so far, for the bar; below 0 for none.
    """

    def __init__(self, title: str, num_steps: int, *, done: int = 0, enabled: bool, best: float = -1.0):
        self.title = title
        self.num_steps = num_steps
        self.enabled = enabled
        self._score = f" best mIoU {100 * best:.1f} %" if best >= 0 else ""
        self._started = time.perf_counter()
        self._has_bar = enabled and sys.stderr.isatty()
        self._done, self._done_before = done, done
        self._told = self._started
        self._bar = tqdm(
            total=num_steps, initial=done, desc=title, disable=not self._has_bar, dynamic_ncols=True, leave=False
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, later_steps: int = 0) -> None:
        """Counts one iteration; writes a line if none was written for a minute.

        Args:
            later_steps: iterations of later epochs.
        """
        self._done += 1
        self._bar.update()
        if self.enabled and time.perf_counter() - self._told > SILENCE_S:
            seconds, eta = self._pace(self._done, later_steps)
            get_logger().info(
                "%s, iteration %d/%d: %.1f s each, ETA %s", self.title, self._done, self.num_steps, seconds, eta,
                extra={FILE_ONLY: self._has_bar},
            )  # fmt: skip
            self._told = time.perf_counter()

    def _pace(self, step: int, later_steps: int) -> tuple[float, timedelta]:
        """Seconds per step, and the time to the end of the run."""
        seconds = (time.perf_counter() - self._started) / (step - self._done_before)
        return seconds, timedelta(seconds=round(seconds * (self.num_steps - step + later_steps)))

    def report(self, step: int, summary: Mapping[str, float], lr: float, later_steps: int) -> None:
        """Shows the loss, the learning rate and the time to the end of the run.

        Args:
            step: iterations of this epoch so far.
            summary: from `Meter.summary`, and ``mfu``, the share of the cards' peak, if known.
            lr: learning rate of the last iteration.
            later_steps: iterations of later epochs.
        """
        if not self.enabled:
            return
        _, eta = self._pace(step, later_steps)
        self._told = time.perf_counter()
        if self._has_bar:
            self._bar.set_postfix_str(f"loss {summary['loss']:.4f} lr {lr:.4g} ETA {eta}{self._score}")
        terms = " ".join(f"{name[5:]} {value:.4f}" for name, value in summary.items() if name.startswith("loss_"))
        get_logger().info(
            "%s, iteration %d/%d: loss %.4f (%s) lr %.4g, %.1f images/s%s, ETA %s",
            self.title,
            step,
            self.num_steps,
            summary["loss"],
            terms,
            lr,
            summary["images_per_second"],
            f", {summary['mfu']:.1%} of the peak" if "mfu" in summary else "",
            eta,
            extra={FILE_ONLY: self._has_bar},
        )


class RunLog:
    """Writes the numbers of a run on rank 0, does nothing on other ranks; a context manager.

    Args:
        run_dir: folder of ``log.jsonl``.
        tensorboard_dir: folder of TensorBoard files.
        iteration: last iteration of the checkpoint; points that an interrupted run wrote after it are dropped.
        is_validation_due: whether the run goes on with the validation after that iteration; points of that validation
            are dropped too.
        wandb_project: Weights & Biases project that receives the numbers too, mIoU in percent; "" for none.
        mlflow_experiment: MLflow experiment that receives them too; "" for none.
        config: the run's settings as YAML, for both.

    Raises:
        UserError: wandb or mlflow is asked for, but not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        tensorboard_dir: Path,
        *,
        iteration: int,
        is_validation_due: bool = False,
        wandb_project: str = "",
        mlflow_experiment: str = "",
        config: str = "",
    ):
        self._writer: SummaryWriter | None = None
        self._wandb: Any = None
        self._mlflow: Any = None
        if distributed.is_main():
            if wandb_project:
                self._wandb = _start_wandb(run_dir, wandb_project, config)
            if mlflow_experiment:
                self._mlflow = _start_mlflow(run_dir, mlflow_experiment, config)
            self._path = run_dir / JSON_LOG
            _cut(self._path, iteration, is_validation_due=is_validation_due)
            self._writer = SummaryWriter(str(tensorboard_dir), purge_step=iteration + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes; an error here, on a full disk, must not hide the one that ended the run."""
        if self._writer is None:
            return
        if self._wandb is not None:
            self._wandb.finish()
        if self._mlflow is not None:
            self._mlflow.end_run()
        try:
            self._writer.close()
        except OSError as error:
            get_logger().warning("the last TensorBoard points are lost: %s", error)

    def scalars(self, kind: str, values: Mapping[str, float], *, iteration: int, epoch: int) -> None:
        """Writes numbers under ``<kind>/<name>``.

        Args:
            kind: ``train`` or ``val``.
            values: by name; NaN becomes null in the JSON line.
            iteration: number of iterations done.
            epoch: index of the epoch.
        """
        if self._writer is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, iteration)
        if self._wandb is not None:
            shown = {f"{kind}/{name}": value * (100 if "mean_iou" in name else 1) for name, value in values.items()}
            self._wandb.log(shown, step=iteration)
        if self._mlflow is not None:
            finite = {f"{kind}/{name}": float(value) for name, value in values.items() if math.isfinite(value)}
            self._mlflow.log_metrics(finite, step=iteration)
        plain = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        line = {"kind": kind, "iteration": iteration, "epoch": epoch, "time": round(time.time(), 3), **plain}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def picture(self, name: str, picture: Tensor, *, iteration: int) -> None:
        """Writes ``(3, H, W)`` uint8 to TensorBoard, and to Weights & Biases."""
        if self._writer is not None:
            self._writer.add_image(name, picture.numpy(), iteration)
        if self._wandb is not None:
            image = _wandb_module().Image(picture.permute(1, 2, 0).numpy())
            self._wandb.log({name: image}, step=iteration)


def _start_wandb(run_dir: Path, project: str, config: str) -> Any:
    """A run that a resumed training continues: its id comes from the folder."""
    wandb = _wandb_module()
    identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    return wandb.init(
        project=project, dir=run_dir, name=run_dir.name, id=identity, resume="allow", config=yaml.safe_load(config)
    )


def _wandb_module() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("WANDB names a project, but wandb is not installed: pip install wandb, or WANDB ''") from error
    return wandb


def _start_mlflow(run_dir: Path, experiment: str, config: str) -> Any:
    """A run that a resumed training continues: its id is kept in the folder.

    Without MLFLOW_TRACKING_URI in the environment everything goes to the run's folder, the numbers to a database.
    """
    try:
        import mlflow
    except ImportError as error:
        raise UserError(
            "MLFLOW names an experiment, but mlflow is not installed: pip install mlflow, or MLFLOW ''"
        ) from error
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{(run_dir / 'mlflow.db').resolve()}")
        if mlflow.get_experiment_by_name(experiment) is None:  # by default files would go to the working directory
            mlflow.create_experiment(experiment, artifact_location=(run_dir / "mlflow").resolve().as_uri())
    mlflow.set_experiment(experiment)
    remembered = run_dir / "mlflow_run_id"
    run_id = remembered.read_text(encoding="utf-8").strip() if remembered.exists() else None
    run = mlflow.start_run(run_id=run_id, run_name=None if run_id else run_dir.name)
    if run_id is None:
        write_text(remembered, run.info.run_id + "\n")
        mlflow.log_text(config, "config.yaml")
    return mlflow


def _cut(path: Path, iteration: int, *, is_validation_due: bool) -> None:
    """Keeps the lines up to an iteration, see `RunLog`; drops an incomplete last line too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            point = json.loads(line)
            is_repeated = is_validation_due and point["kind"] == "val" and point["iteration"] == iteration
            if point["iteration"] <= iteration and not is_repeated:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))
