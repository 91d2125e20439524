"""One optimizer step: forward and backward passes of its micro-batches, and whether the step is applied or skipped."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ovenet.data.augmentation import prepared
from ovenet.engine.averaging import MovingAverage
from ovenet.engine.optim import go_to, restore_optimizer
from ovenet.engine.settings import StepSettings
from ovenet.errors import UserError
from ovenet.losses import SegmentationCriterion
from ovenet.models.block_compilation import compile_blocks, compiler_problem
from ovenet.structures import Batch, LossTerms
from ovenet.utils import distributed
from ovenet.utils.cuda_graph import CudaGraph, Graph, GraphedFunction, aside
from ovenet.utils.logging import get_logger

_POWERSGD_RANK = 2
_POWERSGD_START = 1000  # steps before it are not compressed, as torch advises
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NUM_WARMUP, _NUM_WARMUP_TOGETHER = 3, 11  # eager steps before a capture; torch asks for the latter with DDP
_OLDEST_NCCL = (2, 9, 6)
_NEVER = 2**31 - 1
_SAME_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class StepResult:
    """What a step did. Reading it waits until the device has finished the step.

    Args:
        losses: of its micro-batches on this process.
        lr: learning rate of the optimizer's first group of parameters in it.
        flags: whole numbers, above 0 where on some process: the loss is not finite, the gradient is not finite, the
            process was asked to stop, a checkpoint is due, the loss is scaled up (float16).
    """

    def __init__(self, losses: Sequence[LossTerms], lr: float, flags: Tensor):
        self._losses = losses
        self.lr = lr
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
        resting_parts: modules of the model that rest during the first epochs, see `Segmentor.rest`.
        new_graph: makes the graphs, on any device; None makes CUDA graphs on CUDA.

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
        self.resting_parts = tuple(resting_parts)
        self._normalization = model.normalization
        wants_graphs = settings.cuda_graph == "auto" and (device.type == "cuda" or new_graph is not None)
        cause = _why_eager(criterion, settings, device) if wants_graphs else ""
        self._has_graphs = wants_graphs and not cause
        self._compiled = _compiled(model, device, settings)
        self.parallel = self._joined()
        self._guard = BufferGuard(model)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._is_resting = False
        self._resting = [p for part in resting_parts for p in model.get_submodule(part).parameters()]
        self._graphed = GraphedFunction(
            self._passes,
            device,
            name="the step",
            switch="TRAIN.CUDA_GRAPH off",
            num_warmup=_NUM_WARMUP if distributed.world_size() == 1 else _NUM_WARMUP_TOGETHER,
            agreed=self._on_all,
            recover=self._join_again,
            new_graph=new_graph or CudaGraph,
        )
        if cause:
            self._graphed.give_up(cause)

    def __call__(
        self, batches: Sequence[Batch], *, freeze: bool = False, stop: bool = False, save: bool = False
    ) -> StepResult:
        """One step on this process's share.

        Args:
            batches: micro-batches of equal size, whose gradients are averaged.
            freeze: leave the resting parts as they are.
            stop: this process was asked to stop.
            save: this process holds a checkpoint due; told to all of them with the step's own sum.

        Returns:
            What happened. If the loss or the gradient is not finite on some process, no process changes its model: the
            device decides that, nobody waits for it.
        """
        if self.resting_parts and freeze != self._is_resting:
            self._is_resting = freeze
            self.model.rest(self.resting_parts if freeze else ())
        self._guard.snapshot()
        losses = self._losses(batches)
        if freeze:  # without a gradient there is no momentum and no weight decay either
            for parameter in self._resting:
                parameter.grad = None
        flags = self._agree(losses, stop, save)
        is_bad = flags[:2].sum() > 0
        self.optimizer.found_inf = is_bad.float()  # where GradScaler leaves it too: fused optimizers skip the step
        self.optimizer.step()
        self._guard.rollback_if(is_bad)  # the forward pass has already updated BatchNorm's statistics
        if self.ema is not None:
            self.ema.update(is_bad)
        self.scaler.update()
        lr = self.optimizer.param_groups[0]["lr"]  # before the schedule goes on to the next step's
        self.schedule.step()
        return StepResult(losses, lr, flags)

    def _losses(self, batches: Sequence[Batch]) -> list[LossTerms]:
        """Losses of the micro-batches; leaves the gradient of their mean, scaled, in the parameters.

        A graph holds nothing but what every step does alike, and its warm-up steps are steps as any other. It draws
        from the device's own random generator, whose count goes on by as much as in an eager step (torch tells it at
        each replay), so that an interrupted run that warms up anew gets the bits of one that replays.
        """
        tensors = [tensor for batch in batches for tensor in batch.tensors]
        if not self._has_graphs:
            return self._passes(*(tensor.to(self.device, non_blocking=True) for tensor in tensors))[0]
        if self.schedule.last_epoch < self.criterion.settles_at:
            return self._graphed.eagerly(*tensors)[0]
        losses, gradients = self._graphed(*tensors, key=(self.parallel.training, self._is_resting))
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient  # of the graph's memory; frozen ones have been taken away
        return [  # read after the next replay has begun
            LossTerms(loss.total.clone(), {name: value.clone() for name, value in loss.terms.items()})
            for loss in losses
        ]

    def _passes(self, *tensors: Tensor) -> tuple[list[LossTerms], list[Tensor | None]]:
        """Forward and backward passes of the micro-batches.

        Args:
            tensors: of the first (see `Batch.tensors`), of the second and so on, on the device.

        Returns:
            Their losses, and the gradients by parameter.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        batches = Batch.from_tensors(tensors)
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with nullcontext() if is_last or distributed.world_size() == 1 else self.parallel.no_sync():
                loss = self._forward(batch)
                self.scaler.scale(loss.total / len(batches)).backward()
            losses.append(LossTerms(loss.total.detach(), loss.terms))
        return losses, [parameter.grad for parameter in self._parameters]

    def _forward(self, batch: Batch) -> LossTerms:
        images, labels = prepared(batch, self._normalization)
        dtype = _AUTOCAST.get(self.settings.precision)
        with torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext():
            output = _with_batch_norm(self.parallel, images)
        return self.criterion(output, labels, iteration=self.schedule.last_epoch)

    def _joined(self) -> nn.Module:
        if distributed.world_size() == 1:
            return self._compiled
        with aside(self.device) if self._has_graphs else nullcontext():  # DDP adds up gradients where it was made
            return _joined(self._compiled, self.device, self.settings)

    def _join_again(self) -> None:
        """After a backward pass that was broken off, which leaves torch waiting for the gradients that did not come."""
        if distributed.world_size() > 1:
            is_training = self.parallel.training
            del self.parallel
            gc.collect()  # the old one's hooks on the parameters end with it
            self.parallel = self._joined().train(is_training)

    def _on_all(self, is_fine: bool) -> bool:
        """Whether something is fine on all processes."""
        return not bool(distributed.all_reduce_sum(torch.tensor(int(not is_fine), device=self.device)))

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
            self.ema.restore(state.get("ema"), self.model)


def _compiled(model: nn.Module, device: torch.device, settings: StepSettings) -> nn.Module:
    """The model, compiled if asked."""
    if settings.compile == "blocks":
        _compile_blocks(model, device)
    elif settings.compile != "none":
        model = torch.compile(model, mode=settings.compile, dynamic=False)
    return model


def _joined(model: nn.Module, device: torch.device, settings: StepSettings) -> nn.Module:
    """The model with its gradients averaged over the processes."""
    parallel = DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # gradients are averaged in place
    )
    if settings.cuda_graph == "auto" and device.type == "cuda":
        parallel._set_ddp_runtime_logging_sample_rate(_NEVER)  # reads a clock, which a capture does not allow
    if settings.gradient_compression == "bf16":
        parallel.register_comm_hook(None, bf16_compress_hook)
    elif settings.gradient_compression == "powersgd":
        state = PowerSGDState(None, matrix_approximation_rank=_POWERSGD_RANK, start_powerSGD_iter=_POWERSGD_START)
        parallel.register_comm_hook(state, powerSGD_hook)
    return parallel


def _compile_blocks(model: nn.Module, device: torch.device) -> None:
    """As far as that goes; says so where it does not."""
    problem = compiler_problem(device)
    if not problem and not compile_blocks(model):
        problem = "the network has no two alike, or their BatchNorm counts the batches of all processes"
    if problem:
        get_logger().warning("TRAIN.COMPILE is blocks, but they run as with none: %s", problem)


def _why_eager(criterion: SegmentationCriterion, settings: StepSettings, device: torch.device) -> str:
    """Why a step cannot be one graph, as far as that is known before it is tried; "" if nothing is known."""
    if criterion.queries is not None:
        return "the loss of masks and their classes finds pairs on the CPU"
    if criterion.contrast is not None:
        return "LOSS.CONTRAST draws as many pixels as there are"
    if settings.compile in ("reduce-overhead", "max-autotune"):
        return f"TRAIN.COMPILE {settings.compile} makes graphs of its own"
    if distributed.world_size() == 1:
        return ""
    if settings.gradient_compression != "none":
        return f"TRAIN.GRADIENT_COMPRESSION {settings.gradient_compression} is not known to be safe in a graph"
    if settings.compile not in ("none", "blocks"):
        return f"TRAIN.COMPILE {settings.compile} on several processes is not known to be safe in a graph"
    if device.type == "cuda" and torch.cuda.nccl.version() < _OLDEST_NCCL:
        return f"NCCL is {'.'.join(map(str, torch.cuda.nccl.version()))}, which cannot be captured"
    return ""


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
