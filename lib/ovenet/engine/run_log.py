"""What a run writes down while it trains: TensorBoard files, and one JSON line per point."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from tensorboardX import SummaryWriter
from torch import Tensor

from ovenet.errors import UserError
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger
from ovenet.utils.writing import write_text

JSON_LOG = "log.jsonl"


class RunLog:
    """Writes on process 0, does nothing on the others; a context manager.

    Args:
        run_dir: where ``log.jsonl`` goes.
        tensorboard_dir: where TensorBoard's files go.
        iteration: where the run goes on; what was written beyond it, by a run that was cut off, is dropped.
        wandb_project: project of Weights & Biases that gets the numbers too; "" for none.
        mlflow_experiment: experiment of MLflow that gets them too; "" for none.
        config: the run's settings as YAML, for both.

    Raises:
        UserError: one of the two is asked for, but not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        tensorboard_dir: Path,
        *,
        iteration: int,
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
            _cut(self._path, iteration)
            self._writer = SummaryWriter(str(tensorboard_dir), purge_step=iteration + 1)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes without hiding the error that ended the run: a full disk fails here too."""
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
            iteration: that are done.
            epoch: the one at hand, from 0.
        """
        if self._writer is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, iteration)
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=iteration)
        if self._mlflow is not None:
            finite = {f"{kind}/{name}": float(value) for name, value in values.items() if math.isfinite(value)}
            self._mlflow.log_metrics(finite, step=iteration)
        plain = {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
        line = {"kind": kind, "iteration": iteration, "epoch": epoch, "time": round(time.time(), 3), **plain}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def picture(self, name: str, picture: Tensor, *, iteration: int) -> None:
        """Writes ``(3, H, W)`` uint8 to TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, picture.numpy(), iteration)


def _start_wandb(run_dir: Path, project: str, config: str) -> Any:
    """A run that goes on when the training does: its id is that of the folder."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("WANDB names a project, but wandb is not installed: pip install wandb, or WANDB ''") from error
    identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    return wandb.init(
        project=project, dir=run_dir, name=run_dir.name, id=identity, resume="allow", config=yaml.safe_load(config)
    )


def _start_mlflow(run_dir: Path, experiment: str, config: str) -> Any:
    """A run that goes on when the training does: the folder remembers its id.

    Without MLFLOW_TRACKING_URI in the environment the numbers go to a database in the run's folder.
    """
    try:
        import mlflow
    except ImportError as error:
        raise UserError(
            "MLFLOW names an experiment, but mlflow is not installed: pip install mlflow, or MLFLOW ''"
        ) from error
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{(run_dir / 'mlflow.db').resolve()}")
    mlflow.set_experiment(experiment)
    remembered = run_dir / "mlflow_run_id"
    run_id = remembered.read_text(encoding="utf-8").strip() if remembered.exists() else None
    run = mlflow.start_run(run_id=run_id, run_name=None if run_id else run_dir.name)
    if run_id is None:
        write_text(remembered, run.info.run_id + "\n")
        mlflow.log_text(config, "config.yaml")
    return mlflow


def _cut(path: Path, iteration: int) -> None:
    """Keeps the lines up to an iteration; a last line that was cut off is dropped too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["iteration"] <= iteration:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text("".join(kept), encoding="utf-8")
    unfinished.replace(path)
