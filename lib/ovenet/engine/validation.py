"""Validation during training, and the weights with the best score."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from ovenet.engine.checkpointer import Checkpointer
from ovenet.engine.interruption import Interruption
from ovenet.engine.run_log import RunLog
from ovenet.engine.train_state import TrainState
from ovenet.structures import EvalResult
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger

Evaluate = Callable[[nn.Module, Callable[[], bool]], Mapping[str, EvalResult]]


class Validation:
    """Scores models on the validation split; every rank calls it.

    Args:
        evaluate: scores a model; see `ovenet.engine.trainer.Trainer`.
        state: counters of the run; its best score is updated.
        checkpoints: writes the weights with the best score.
        log: gets the scores.
        interruption: requests to stop.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        state: TrainState,
        checkpoints: Checkpointer,
        log: RunLog,
        interruption: Interruption,
    ):
        self.evaluate = evaluate
        self.state = state
        self.checkpoints = checkpoints
        self.log = log
        self.interruption = interruption

    def __call__(self, model: nn.Module, device: torch.device, file: str, suffix: str = "") -> bool:
        """Scores a model, and saves it if it is the best so far.

        Args:
            model: the model.
            device: of this rank.
            file: where the best weights go.
            suffix: appended to the names of the scores.

        Returns:
            Whether the scores are complete: no rank was asked to stop before.
        """
        with distributed.activity(f"the validation after epoch {self.state.epoch}"):
            results = self.evaluate(model, self._is_stop_requested)
            requests = torch.tensor(int(self._is_stop_requested()), device=device)
            if bool(distributed.all_reduce_sum(requests)):
                return False
        mean_iou = results["fused"].mean_iou
        is_best = mean_iou > self.state.best[file]
        if is_best:
            self.state.best[file] = mean_iou
        if distributed.is_main():
            if results["fused"].num_pixels:
                self._report(results, file, suffix)
                if is_best:
                    self.checkpoints.save_weights(model, file)
            else:
                message = "epoch %d: no labelled pixel in the validation list, so no score"
                get_logger().warning(message, self.state.epoch)
        return True

    def _is_stop_requested(self) -> bool:
        return self.interruption.received is not None

    def _report(self, results: Mapping[str, EvalResult], file: str, suffix: str) -> None:
        epoch, best = self.state.epoch, 100 * self.state.best[file]
        scores = ", ".join(f"{name}{suffix} {100 * result.mean_iou:.2f} %" for name, result in results.items())
        get_logger().info("epoch %d: mIoU %s (best fused%s %.2f %%)", epoch, scores, suffix, best)
        values = {f"mean_iou_{name}{suffix}": result.mean_iou for name, result in results.items()}
        self.log.scalars("val", values, iteration=self.state.iteration, epoch=epoch - 1)
