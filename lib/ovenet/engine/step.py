"""One optimizer step: forward and backward of its micro-batches, and the decision whether it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ovenet.data.transforms import normalize_images
from ovenet.engine.optim import restore_optimizer
from ovenet.losses import SegmentationCriterion
from ovenet.structures import Batch, LossTerms
from ovenet.utils import distributed

Precision = Literal["fp32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepSettings:
    """How a step is computed.

    Attributes:
        precision: of convolutions and matrix products; losses and seed sampling are always float32.
        clip_grad_norm: longest gradient over all parameters; 0 for no limit.
        ema_decay: of the averaged weights; 0 for none.
        frozen: names of the parameters that do not learn during the first epochs.
    """

    precision: Precision = "fp32"
    clip_grad_norm: float = 0.0
    ema_decay: float = 0.0
    frozen: frozenset[str] = frozenset()


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        loss: mean over its micro-batches on this process; None if the step was skipped.
        stop: whether some process was asked to stop.
        is_rescaled: whether it was skipped only because float16 gradients overflowed; the next ones are scaled down.
    """

    loss: LossTerms | None
    stop: bool
    is_rescaled: bool = False


class TrainStep:
    """Steps of one model; one per process.

    Args:
        model: a segmentor on `device`; wrapped for several processes here.
        criterion: its loss, on the same device.
        optimizer: of the model's parameters.
        schedule: stepped once per call.
        device: of this process.
        settings: see there.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: SegmentationCriterion,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        device: torch.device,
        settings: StepSettings,
    ):
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.device = device
        self.settings = settings
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.ema: AveragedModel | None = None
        if settings.ema_decay:
            average = get_ema_multi_avg_fn(settings.ema_decay)
            self.ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self.parallel: nn.Module = model
        if distributed.world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.parallel = DistributedDataParallel(model, device_ids=ids)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._frozen = [p for name, p in model.named_parameters() if name in settings.frozen]

    def __call__(self, batches: Sequence[Batch], *, freeze: bool = False, stop: bool = False) -> StepResult:
        """One step on this process's share.

        Args:
            batches: micro-batches of equal size, whose gradients are averaged.
            freeze: leave the frozen parameters as they are.
            stop: this process was asked to stop.

        Returns:
            The loss, or None if the loss or the gradient was not finite on some process: then no process has
            changed its model.
        """
        statistics = [buffer.clone() for buffer in self.model.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with nullcontext() if is_last or self.parallel is self.model else self.parallel.no_sync():
                loss = self._forward(batch)
                self.scaler.scale(loss.total / len(batches)).backward()
            losses.append(loss)
        if freeze:
            for parameter in self._frozen:
                parameter.grad = None
        scale = self.scaler.get_scale()
        bad_loss, bad_gradient, stop = self._agree(losses, stop)
        is_finite = not (bad_loss or bad_gradient)
        if is_finite:
            self.scaler.step(self.optimizer)
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        else:  # the forward pass has updated BatchNorm already
            for buffer, before in zip(self.model.buffers(), statistics, strict=True):
                buffer.copy_(before)
        self.scaler.update()
        self.schedule.step()
        is_rescaled = bad_gradient and not bad_loss and self.scaler.is_enabled() and scale > 1
        return StepResult(_mean(losses) if is_finite else None, stop, is_rescaled)

    def _forward(self, batch: Batch) -> LossTerms:
        labels = batch.labels.to(self.device, non_blocking=True)
        images = normalize_images(batch.images.to(self.device, non_blocking=True))
        dtype = _AUTOCAST.get(self.settings.precision)
        with torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext():
            output = self.parallel(images)
        return self.criterion(output, labels)

    def _agree(self, losses: Sequence[LossTerms], stop: bool) -> tuple[bool, bool, bool]:
        """On any process: a loss that is not finite, such a gradient, a request to stop. One sum, one wait."""
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        bad_loss = ~torch.isfinite(torch.stack([loss.total.detach() for loss in losses])).all()
        flags = torch.stack((bad_loss, ~torch.isfinite(norm), torch.tensor(stop, device=self.device)))
        bad_loss, bad_gradient, stop = (n > 0 for n in distributed.all_sum(flags.to(torch.int32)).tolist())
        if self.settings.clip_grad_norm and not (bad_loss or bad_gradient):
            clip_grads_with_norm_(self._parameters, self.settings.clip_grad_norm, norm)
        return bad_loss, bad_gradient, stop

    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint beside the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave, but keeps the present learning rate and other settings.

        Raises:
            KeyError, ValueError, RuntimeError: the state is of another model or optimizer.
        """
        restore_optimizer(self.optimizer, self.schedule, state["optimizer"], state["schedule"])
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            if state.get("ema"):
                self.ema.load_state_dict(state["ema"])
            else:  # averaging begins with the weights at hand
                self.ema.module.load_state_dict(self.model.state_dict())


def _mean(losses: Sequence[LossTerms]) -> LossTerms:
    if len(losses) == 1:
        return losses[0]

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack([value.detach() for value in values]).mean()

    names = losses[0].terms
    return LossTerms(mean([x.total for x in losses]), {name: mean([x.terms[name] for x in losses]) for name in names})
