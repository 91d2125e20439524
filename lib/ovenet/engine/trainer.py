"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ovenet.data.samplers import TrainSampler
from ovenet.data.transforms import normalize_images
from ovenet.engine.checkpoint import read_checkpoint, save_atomically
from ovenet.engine.optim import restore_optimizer
from ovenet.engine.progress import Meter, Progress
from ovenet.losses import SegmentationCriterion
from ovenet.structures import Batch, EvalResult, LossTerms
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger

CHECKPOINT = "checkpoint.pth"
BEST = "best.pth"
FINAL = "final_state.pth"

Evaluate = Callable[[], Mapping[str, EvalResult]]
DrawPicture = Callable[[], Tensor]


@dataclass(frozen=True)
class TrainSettings:
    """What the loop itself needs to know.

    Attributes:
        run_dir: where checkpoints go.
        log_dir: where TensorBoard files go.
        begin_epoch: number of the first epoch of a fresh run.
        end_epoch: number after the last one.
        eval_interval: epochs between validations.
        print_freq: iterations between log lines.
        max_skipped: so many iterations in a row without a finite loss end the run.
        metadata: saved with every file of weights: the config, class names and so on.
    """

    run_dir: Path
    log_dir: Path
    begin_epoch: int
    end_epoch: int
    eval_interval: int
    print_freq: int
    max_skipped: int
    metadata: Mapping[str, Any]


class Trainer:
    """Fits a model; one per process.

    Args:
        model: a segmentor on `device`; wrapped for several processes here.
        criterion: its loss, on the same device.
        optimizer: of the model's parameters.
        schedule: stepped once per iteration.
        loader: batches of one epoch, in the order of `sampler`.
        sampler: told the epoch.
        evaluate: scores the model on the validation split; reached by every process.
        draw_picture: a picture ``(3, H, W)`` uint8 for TensorBoard; called on process 0 after every epoch.
        device: of this process.
        settings: see there.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: SegmentationCriterion,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        loader: DataLoader[Batch],
        sampler: TrainSampler,
        evaluate: Evaluate,
        draw_picture: DrawPicture,
        device: torch.device,
        settings: TrainSettings,
    ):
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.loader = loader
        self.sampler = sampler
        self.evaluate = evaluate
        self.draw_picture = draw_picture
        self.device = device
        self.settings = settings
        self.epoch = settings.begin_epoch
        self.iteration = 0
        self.best_mean_iou = -1.0
        self.num_skipped_in_row = 0
        self.parallel: nn.Module = model
        if distributed.world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.parallel = DistributedDataParallel(model, device_ids=ids)

    @property
    def iterations_per_epoch(self) -> int:
        """Of this process, the same on every one."""
        return len(self.loader)

    def fit(self) -> float:
        """Trains to the last epoch.

        Returns:
            The best mean IoU of the final prediction on the validation split.

        Raises:
            ValueError: too many iterations in a row had no finite loss.
            OSError: a checkpoint cannot be written; the one before is whole.
        """
        writer = SummaryWriter(str(self.settings.log_dir), purge_step=self.iteration) if distributed.is_main() else None
        try:
            while self.epoch < self.settings.end_epoch:
                self._train_epoch(writer)
                self.epoch += 1
                if self._validation_is_due():
                    self._validate(writer)
                if writer is not None:
                    writer.add_image("val/picture", self.draw_picture().numpy(), self.iteration)
                self._save_checkpoint()
            if distributed.is_main():
                save_atomically(self._weights(), self.settings.run_dir / FINAL)
        finally:
            if writer is not None:
                _close(writer)
        return self.best_mean_iou

    def train_step(self, batch: Batch) -> LossTerms | None:
        """One iteration.

        Args:
            batch: this process's share.

        Returns:
            The loss, or None if it was not finite on some process: then no process has changed its model.
        """
        statistics = [buffer.clone() for buffer in self.model.buffers()]
        labels = batch.labels.to(self.device, non_blocking=True)
        images = normalize_images(batch.images.to(self.device, non_blocking=True))
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.criterion(self.parallel(images), labels)
        num_bad = distributed.all_sum((~torch.isfinite(loss.total.detach())).float())
        is_finite = num_bad.item() == 0
        if is_finite:
            loss.total.backward()
            self.optimizer.step()
        else:  # the forward pass has updated BatchNorm already
            for buffer, before in zip(self.model.buffers(), statistics, strict=True):
                buffer.copy_(before)
        self.schedule.step()
        self.iteration += 1
        return loss if is_finite else None

    def _train_epoch(self, writer: SummaryWriter | None) -> None:
        self.parallel.train()
        self.sampler.epoch = self.epoch
        meter = Meter()
        total = self.iterations_per_epoch
        progress = Progress(f"epoch {self.epoch + 1}/{self.settings.end_epoch}", total, enabled=distributed.is_main())
        remaining_epochs = self.settings.end_epoch - self.epoch - 1
        with progress:
            for step, batch in enumerate(self.loader, start=1):
                loss = self.train_step(batch)
                self._count_skipped(loss, batch)
                if loss is not None:
                    meter.add(loss, batch.images.shape[0] * distributed.world_size())
                is_due = step % self.settings.print_freq == 0 or step == total
                if is_due and meter.num_steps:
                    lr = self.optimizer.param_groups[0]["lr"]
                    summary = meter.summary()
                    progress.report(step, summary, lr, remaining_epochs * total)
                    if writer is not None:
                        _write_scalars(writer, summary, lr, self.iteration)
                    meter = Meter()
                progress.advance()

    def _count_skipped(self, loss: LossTerms | None, batch: Batch) -> None:
        if loss is not None:
            self.num_skipped_in_row = 0
            return
        self.num_skipped_in_row += 1
        get_logger().warning(
            "iteration %d: the loss is not finite, no weight was changed (images here: %s)",
            self.iteration,
            ", ".join(batch.names),
        )
        if self.num_skipped_in_row >= self.settings.max_skipped:
            raise ValueError(
                f"the loss was not finite in {self.num_skipped_in_row} iterations in a row (TRAIN.MAX_SKIPPED); lower "
                f"TRAIN.LR or look at the images named above; {self.settings.run_dir / CHECKPOINT} is untouched"
            )

    def _validation_is_due(self) -> bool:
        done = self.epoch - self.settings.begin_epoch
        return done % self.settings.eval_interval == 0 or self.epoch == self.settings.end_epoch

    def _validate(self, writer: SummaryWriter | None) -> None:
        results = self.evaluate()
        mean_iou = results["fused"].mean_iou
        is_best = mean_iou > self.best_mean_iou
        if is_best:
            self.best_mean_iou = mean_iou
        if not distributed.is_main():
            return
        scores = ", ".join(f"{name} {result.mean_iou:.4f}" for name, result in results.items())
        get_logger().info("epoch %d: mIoU %s (best fused %.4f)", self.epoch, scores, self.best_mean_iou)
        if writer is not None:
            for name, result in results.items():
                writer.add_scalar(f"val/mean_iou_{name}", result.mean_iou, self.iteration)
        if is_best:
            save_atomically(self._weights(), self.settings.run_dir / BEST)

    def _weights(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "epoch": self.epoch,
            "best_mean_iou": self.best_mean_iou,
            **self.settings.metadata,
        }

    def _save_checkpoint(self) -> None:
        if distributed.is_main():
            state = {
                **self._weights(),
                "iteration": self.iteration,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "rng": torch.get_rng_state(),
            }
            save_atomically(state, self.settings.run_dir / CHECKPOINT)
        distributed.barrier()

    def resume(self, path: Path) -> str:
        """Goes on after the last epoch that `path` holds, with the present settings where they differ.

        Args:
            path: a ``checkpoint.pth`` of the same model.

        Returns:
            The configuration that the checkpoint was saved with, as YAML.

        Raises:
            ValueError: the file is damaged, or of another model.
        """
        state = read_checkpoint(path)
        try:
            self.model.load_state_dict(state["model"])
            restore_optimizer(self.optimizer, self.schedule, state["optimizer"], state["schedule"])
            if distributed.is_main():  # the others go on with streams of their own
                torch.set_rng_state(state["rng"])
            self.epoch, self.iteration = state["epoch"], state["iteration"]
            self.best_mean_iou = state["best_mean_iou"]
            saved_config = state["config"]
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path}: cannot be resumed with this config ({reason}); set TRAIN.RESUME False and another OUTPUT_DIR"
            ) from error
        get_logger().info("resumed from %s after epoch %d, best mIoU %.4f", path, self.epoch, self.best_mean_iou)
        return saved_config


def _close(writer: SummaryWriter) -> None:
    """Closes without hiding the error that ended the run: a full disk fails here too."""
    try:
        writer.close()
    except OSError as error:
        get_logger().warning("the last TensorBoard points are lost: %s", error)


def _write_scalars(writer: SummaryWriter, summary: Mapping[str, float], lr: float, iteration: int) -> None:
    for name, value in summary.items():
        writer.add_scalar(f"train/{name}", value, iteration)
    writer.add_scalar("train/lr", lr, iteration)
