"""One optimizer step: forward and backward passes of its micro-batches, and whether the step is applied or skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from ovenet.data.augmentation import prepared
from ovenet.data.transforms import IMAGENET
from ovenet.engine.optim import go_to, restore_optimizer
from ovenet.errors import UserError
from ovenet.losses import SegmentationCriterion
from ovenet.structures import Batch, LossTerms, Normalization
from ovenet.utils import distributed

Precision = Literal["fp32", "bf16", "fp16"]
Compression = Literal["none", "bf16", "powersgd"]
_POWERSGD_RANK = 2
_POWERSGD_START = 1000  # steps before it are not compressed, as torch advises
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class StepSettings:
    """How a step is computed.

    Attributes:
        precision: of convolutions and matrix products; losses and seed sampling are always float32.
        clip_grad_norm: longest gradient over all parameters; 0 for no limit.
        ema_decay: of the averaged weights; 0 for none.
        frozen: names of the parameters that do not learn during the first epochs.
        compile_mode: `mode` of `torch.compile`; None runs eagerly.
        normalization: of the pixels, the model's.
        compression: of the gradients that processes send each other: ``none``; ``bf16``, half the bytes, 8 bits of
            mantissa; ``powersgd``, products of two thin matrices (Vogels et al., 2019), whose remainders each process
            keeps for its next step.
    """

    precision: Precision = "fp32"
    clip_grad_norm: float = 0.0
    ema_decay: float = 0.0
    frozen: frozenset[str] = frozenset()
    compile_mode: str | None = None
    normalization: Normalization = IMAGENET
    compression: Compression = "none"


class StepResult:
    """What a step did. Reading it waits until the device has finished the step.

    Args:
        losses: of its micro-batches on this process.
        flags: whole numbers, above 0 where on some process: the loss is not finite, the gradient is not finite, the
            process was asked to stop, a checkpoint is due, the loss is scaled up (float16).
    """

    def __init__(self, losses: Sequence[LossTerms], flags: Tensor):
        self._losses = losses
        self._flags = torch.empty_like(flags, device="cpu", pin_memory=flags.is_cuda)
        self._flags.copy_(flags, non_blocking=True)
        self._is_copied = torch.cuda.Event() if flags.is_cuda else None
        if self._is_copied is not None:
            self._is_copied.record()

    @cached_property
    def _read(self) -> list[bool]:
        if self._is_copied is not None:
            self._is_copied.synchronize()
        return [number > 0 for number in self._flags.tolist()]

    @property
    def loss(self) -> LossTerms | None:
        """Mean over its micro-batches on this process; None if the step was skipped."""
        bad_loss, bad_gradient, *_ = self._read
        return None if bad_loss or bad_gradient else _mean(self._losses)

    @property
    def stop(self) -> bool:
        """Whether some process was asked to stop."""
        return self._read[2]

    @property
    def save(self) -> bool:
        """Whether some process holds a checkpoint due."""
        return self._read[3]

    @property
    def is_rescaled(self) -> bool:
        """Whether it was skipped only because float16 gradients overflowed; the next ones are scaled down."""
        bad_loss, bad_gradient, *_, is_scaled = self._read
        return bad_gradient and not bad_loss and is_scaled


class BufferGuard:
    """Takes a snapshot of buffers, BatchNorm's statistics above all, and rolls back to it if a step turns out bad.

    Args:
        module: whose buffers; they must stay the same tensors.
    """

    def __init__(self, module: nn.Module):
        # As whole numbers of the same bits: times 0 they are 0 even where the statistics are not finite.
        by_width: dict[torch.dtype, list[Tensor]] = {}
        for buffer in module.buffers():
            dtype = _SAME_WIDTH[buffer.element_size()]
            by_width.setdefault(dtype, []).append(buffer.detach().view(dtype))
        self._groups = [(buffers, [torch.empty_like(b) for b in buffers]) for buffers in by_width.values()]

    def snapshot(self) -> None:
        """Copies all buffers."""
        for buffers, copies in self._groups:
            torch._foreach_copy_(copies, buffers)

    def rollback_if(self, is_bad: Tensor) -> None:
        """Writes the copies back where `is_bad`, a single truth value on the device, holds; never waits for it."""
        for buffers, copies in self._groups:
            bad = is_bad.to(buffers[0].dtype)
            torch._foreach_mul_(buffers, 1 - bad)
            torch._foreach_mul_(copies, bad)
            torch._foreach_add_(buffers, copies)


class TrainStep:
    """Steps of one model; one per process.

    Args:
        model: a segmentor on `device`; wrapped for several processes here.
        criterion: its loss, on the same device.
        optimizer: of the model's parameters, see `build_optimizer`: a fused one, which can skip a step on the device.
        schedule: stepped once per call.
        device: of this process.
        settings: of every step.

    Attributes:
        latency: steps in flight: started before the result of one is read, so that the device never waits.
        parallel: the model as it is trained: compiled, and joined with those of the other processes.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: SegmentationCriterion,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
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
        self.latency = 1 if device.type == "cuda" else 0
        self._ema_weight = torch.zeros((), device=device)
        self.ema: AveragedModel | None = None
        if settings.ema_decay:
            self.ema = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self.parallel = _wrapped(model, device, settings)
        self._guard = BufferGuard(model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._frozen = [p for name, p in model.named_parameters() if name in settings.frozen]

    def __call__(
        self, batches: Sequence[Batch], *, freeze: bool = False, stop: bool = False, save: bool = False
    ) -> StepResult:
        """One step on this process's share.

        Args:
            batches: micro-batches of equal size, whose gradients are averaged.
            freeze: leave the frozen parameters as they are.
            stop: this process was asked to stop.
            save: this process holds a checkpoint due; told to all of them with the step's own sum.

        Returns:
            What happened. If the loss or the gradient is not finite on some process, no process changes its model: the
            device decides that, nobody waits for it.
        """
        self._guard.snapshot()
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with nullcontext() if is_last or distributed.world_size() == 1 else self.parallel.no_sync():
                loss = self._forward(batch)
                self.scaler.scale(loss.total / len(batches)).backward()
            losses.append(loss)
        if freeze:
            for parameter in self._frozen:
                parameter.grad = None
        flags = self._agree(losses, stop, save)
        is_bad = flags[:2].sum() > 0
        self.optimizer.found_inf = is_bad.float()  # where GradScaler leaves it too: fused optimizers skip the step
        self.optimizer.step()
        self._guard.rollback_if(is_bad)  # the forward pass has already updated BatchNorm's statistics
        if self.ema is not None:
            self._ema_weight = (1 - self.settings.ema_decay) * ~is_bad
            self.ema.update_parameters(self.model)
        self.scaler.update()
        self.schedule.step()
        return StepResult(losses, flags)

    def _forward(self, batch: Batch) -> LossTerms:
        images, labels = prepared(batch.to(self.device), self.settings.normalization)
        dtype = _AUTOCAST.get(self.settings.precision)
        with torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext():
            output = _with_batch_norm(self.parallel, images)
        return self.criterion(output, labels, iteration=self.schedule.last_epoch)

    def _agree(self, losses: Sequence[LossTerms], *told: bool) -> Tensor:
        """The flags of `StepResult`, summed over all processes."""
        scale = self.scaler.scale(torch.ones((), device=self.device))
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        bad_loss = ~torch.isfinite(torch.stack([loss.total.detach() for loss in losses])).all()
        told_here = [torch.full((), value, device=self.device) for value in told]
        flags = torch.stack((bad_loss, ~torch.isfinite(norm), *told_here, scale > 1)).to(torch.int32)
        if self.settings.clip_grad_norm:
            clip_grads_with_norm_(self._parameters, self.settings.clip_grad_norm, norm)
        return distributed.all_reduce_sum(flags)

    def _average(self, averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        """Exponential moving average; stays as it is after a bad step."""
        if averaged[0].is_floating_point():
            change = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(change, self._ema_weight)
            torch._foreach_add_(averaged, change)
        else:
            torch._foreach_copy_(averaged, current)

    def state(self) -> dict[str, Any]:
        """What goes into a checkpoint beside the model."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "parameter_names": self._trained_names(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def _trained_names(self) -> list[str]:
        """Of the optimizer's parameters, in the order in which it counts them."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in self.optimizer.param_groups for parameter in group["params"]]

    def restore(self, state: Mapping[str, Any], iteration: int) -> None:
        """Takes over what `state` gave, but keeps the present learning rate and other settings.

        Args:
            state: with the names of this model.
            iteration: of the schedule, where training goes on.

        Raises:
            KeyError, ValueError, RuntimeError: the state is of another model or optimizer.
        """
        restore_optimizer(self.optimizer, state["optimizer"], state["parameter_names"], self._trained_names())
        go_to(self.schedule, iteration)
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            if state.get("ema"):
                self.ema.load_state_dict(state["ema"])
            else:  # averaging starts from the current weights
                self.ema.module.load_state_dict(self.model.state_dict())


def _wrapped(model: nn.Module, device: torch.device, settings: StepSettings) -> nn.Module:
    """The model for training: compiled if asked, its gradients averaged over the processes."""
    if settings.compile_mode is not None:
        model = torch.compile(model, mode=settings.compile_mode, dynamic=False)
    if distributed.world_size() == 1:
        return model
    parallel = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # gradients are averaged in place
    )
    if settings.compression == "bf16":
        parallel.register_comm_hook(None, bf16_compress_hook)
    elif settings.compression == "powersgd":
        state = PowerSGDState(None, matrix_approximation_rank=_POWERSGD_RANK, start_powerSGD_iter=_POWERSGD_START)
        parallel.register_comm_hook(state, powerSGD_hook)
    return parallel


def _with_batch_norm(model: nn.Module, images: Tensor) -> Any:
    """The model's output.

    Raises:
        UserError: a BatchNorm gets a single number per channel, from which there is no deviation.
    """
    try:
        return model(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"TRAIN.BATCH_SIZE_PER_GPU is {len(images)}: a map of one pixel gives BatchNorm a single number per "
            "channel; set at least 2"
        ) from error


def _mean(losses: Sequence[LossTerms]) -> LossTerms:
    if len(losses) == 1:
        return losses[0]

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack([value.detach() for value in values]).mean()

    names = losses[0].terms
    return LossTerms(mean([x.total for x in losses]), {name: mean([x.terms[name] for x in losses]) for name in names})
