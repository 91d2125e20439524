"""One optimizer step: passes of its micro-batches, and whether the step is applied or skipped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ovenet.engine.averaging import MovingAverage
from ovenet.engine.buffer_guard import BufferGuard
from ovenet.engine.optim import restore_optimizer, set_iteration
from ovenet.engine.passes import Passes
from ovenet.engine.settings import StepSettings
from ovenet.losses import SegmentationCriterion
from ovenet.models.segmentor import Segmentor
from ovenet.structures import Batch, LossTerms
from ovenet.utils import distributed
from ovenet.utils.cuda_graph import Graph


class StepFlags(NamedTuple):
    """Per-step flags, OR-reduced over all ranks.

    Attributes:
        bad_loss: the loss is not finite.
        bad_gradient: the gradient is not finite.
        stop: a rank was asked to stop.
        save: a checkpoint is due.
        is_scaled: the loss is scaled up (float16).
    """

    bad_loss: bool
    bad_gradient: bool
    stop: bool
    save: bool
    is_scaled: bool

    @classmethod
    def from_counts(cls, counts: Tensor) -> StepFlags:
        """The flags, from the number of ranks on which each is set, as integers on the CPU."""
        return cls(*(count > 0 for count in counts.tolist()))

    @property
    def is_skipped(self) -> bool:
        """Whether no rank changed its model."""
        return self.bad_loss or self.bad_gradient

    @property
    def is_rescaled(self) -> bool:
        """Whether the step was skipped only because float16 gradients overflowed; the loss scale is then lowered."""
        return self.bad_gradient and not self.bad_loss and self.is_scaled


class StepResult:
    """The result of a step. Reading it waits until the device has finished the step.

    Args:
        losses: losses of its micro-batches on this rank.
        lr: learning rate of the optimizer's first parameter group.
        counts: number of ranks on which each of `StepFlags` is set, on the device.
    """

    def __init__(self, losses: Sequence[LossTerms], lr: float, counts: Tensor):
        self._losses = losses
        self.lr = lr
        self._counts = torch.empty_like(counts, device="cpu", pin_memory=counts.is_cuda)
        self._counts.copy_(counts, non_blocking=counts.is_cuda)
        self._is_copied = torch.cuda.Event() if counts.is_cuda else None
        if self._is_copied is not None:
            self._is_copied.record()

    @cached_property
    def flags(self) -> StepFlags:
        """What all ranks agreed on."""
        if self._is_copied is not None:
            self._is_copied.synchronize()
        return StepFlags.from_counts(self._counts)

    @property
    def loss(self) -> LossTerms | None:
        """Mean over its micro-batches on this rank; None if the step was skipped."""
        return None if self.flags.is_skipped else _mean(self._losses)


class TrainStep:
    """Steps of one model; every rank has one.

    Args:
        model: on `device`; wrapped for several ranks here.
        criterion: its loss, on the same device.
        optimizer: see `build_optimizer`; a fused one, which can skip a step on the device.
        schedule: stepped once per call.
        device: device of this rank.
        settings: how every step is computed.
        resting_parts: modules of the model to pause on request, see `Segmentor.rest`.
        new_graph: makes the graphs, on any device; None makes CUDA graphs on CUDA.

    Attributes:
        latency: number of steps to start before the result of one is read, so that the device never waits.
        passes: forward and backward passes.
        ema: averaged weights; None without ``TRAIN.EMA``.
    """

    def __init__(
        self,
        model: Segmentor,
        criterion: SegmentationCriterion,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        device: torch.device,
        settings: StepSettings,
        *,
        resting_parts: Sequence[str] = (),
        new_graph: Callable[[torch.device], Graph] | None = None,
    ):
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.device = device
        self.settings = settings
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.latency = 1 if device.type == "cuda" else 0
        self.ema = MovingAverage(model, settings.ema) if settings.ema else None
        self.passes = Passes(model, criterion, self.scaler, device, settings, new_graph)
        self.resting_parts = tuple(resting_parts)
        self._is_resting = False
        self._resting = [p for part in resting_parts for p in model.get_submodule(part).parameters()]
        self._guard = BufferGuard(model)

    @property
    def parallel(self) -> nn.Module:
        """The model as it is trained: compiled, and wrapped for several ranks."""
        return self.passes.parallel

    def __call__(
        self, batches: Sequence[Batch], *, rest: bool = False, stop: bool = False, save: bool = False
    ) -> StepResult:
        """One step on this rank's share.

        Args:
            batches: micro-batches of equal size, whose gradients are averaged.
            rest: do not train the resting parts.
            stop: this rank was asked to stop.
            save: a checkpoint is due on this rank.

        Returns:
            The result. If loss or gradient is not finite on some rank, no rank changes its model: the device decides,
            and the CPU does not wait for it.
        """
        if self.resting_parts and rest != self._is_resting:
            self._is_resting = rest
            self.model.rest(self.resting_parts if rest else ())
        self._guard.snapshot()
        losses = self.passes(batches, self.schedule.last_epoch, rest=rest)
        if rest:  # without a gradient there is no momentum and no weight decay either
            for parameter in self._resting:
                parameter.grad = None
        norm = self._clip()
        counts = self._agree(losses, norm, stop, save)
        self._update(counts)
        lr = self.optimizer.param_groups[0]["lr"]  # before the schedule sets the next step's
        self.schedule.step()
        return StepResult(losses, lr, counts)

    def _clip(self) -> Tensor:
        """Unscales the gradient and clips it; returns its norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.passes.parameters if p.grad is not None])
        if self.settings.clip_grad_norm:
            clip_grads_with_norm_(self.passes.parameters, self.settings.clip_grad_norm, norm)
        return norm

    def _agree(self, losses: Sequence[LossTerms], norm: Tensor, stop: bool, save: bool) -> Tensor:
        """Number of ranks on which each of `StepFlags` is set, ``(5,)`` int32."""
        flags = {
            "bad_loss": ~torch.isfinite(torch.stack([loss.total for loss in losses])).all(),
            "bad_gradient": ~torch.isfinite(norm),
            "stop": torch.full((), stop, device=self.device),
            "save": torch.full((), save, device=self.device),
            "is_scaled": self.scaler.scale(torch.ones((), device=self.device)) > 1,
        }
        return distributed.all_reduce_sum(torch.stack([flags[name] for name in StepFlags._fields]).to(torch.int32))

    def _update(self, counts: Tensor) -> None:
        """Applies the step, or undoes its forward passes; the device decides."""
        bad_loss, bad_gradient, *_ = counts  # in the order of StepFlags
        is_bad = bad_loss + bad_gradient > 0
        self.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]  # read by fused ones, unknown to stubs
        if self.device.type != "mps" or not bool(is_bad):  # its fused optimizers ignored `found_inf` (torch PR 186360)
            self.optimizer.step()
        self._guard.rollback_if(is_bad)  # the forward pass has already updated BatchNorm's statistics
        if self.ema is not None:
            self.ema.update(is_bad)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """Entries of a checkpoint, without the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "parameter_names": self._trained_names(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def _trained_names(self) -> list[str]:
        """Names of the optimizer's parameters, in its order."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in self.optimizer.param_groups for parameter in group["params"]]

    def restore(self, state: Mapping[str, Any], iteration: int) -> None:
        """Restores the entries that `state` returned, but keeps the present learning rate and other settings.

        Args:
            state: entries of a checkpoint, with this model's parameter names.
            iteration: iteration of the schedule at which training continues.

        Raises:
            KeyError, ValueError, RuntimeError: the state belongs to another model or optimizer.
        """
        restore_optimizer(self.optimizer, state["optimizer"], state["parameter_names"], self._trained_names())
        set_iteration(self.schedule, iteration)
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.restore(state.get("ema"), self.model)


def _mean(losses: Sequence[LossTerms]) -> LossTerms:
    """Mean of each term."""
    if len(losses) == 1:
        return losses[0]

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean()

    names = losses[0].terms
    return LossTerms(mean([x.total for x in losses]), {name: mean([x.terms[name] for x in losses]) for name in names})
