"""The model as it is trained: compiled, and wrapped so that gradients are averaged over all ranks."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from ovenet.engine.settings import StepSettings
from ovenet.losses import SegmentationCriterion
from ovenet.models.block_compilation import compile_blocks, compiler_problem
from ovenet.utils import distributed
from ovenet.utils.logging import get_logger

_POWERSGD_RANK = 2
_POWERSGD_START = 1000  # steps before it are not compressed, as torch advises
_OLDEST_NCCL = (2, 9, 6)
_NEVER = 2**31 - 1


def compiled(model: nn.Module, device: torch.device, settings: StepSettings) -> nn.Module:
    """The model, compiled as ``TRAIN.COMPILE`` says."""
    if settings.compile == "blocks":
        _compile_blocks(model, device)
    elif settings.compile != "none":
        return cast(nn.Module, torch.compile(model, mode=settings.compile, dynamic=False))
    return model


def _compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compiles the blocks of the model where possible; warns where it is not."""
    problem = compiler_problem(device)
    if not problem and not compile_blocks(model):
        problem = "the network has no two alike, or their BatchNorm counts the batches of all processes"
    if problem:
        get_logger().warning("TRAIN.COMPILE is blocks, but they run as with none: %s", problem)


def data_parallel(model: nn.Module, device: torch.device, settings: StepSettings) -> DistributedDataParallel:
    """The model in DistributedDataParallel, with gradients compressed as ``TRAIN.GRADIENT_COMPRESSION`` says."""
    parallel = DistributedDataParallel(
        model,
        device_ids=None if device.type == "cpu" else [device.index],
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


def cuda_graph_obstacle(criterion: SegmentationCriterion, settings: StepSettings, device: torch.device) -> str:
    """Why a step cannot be one CUDA graph, as far as known before a capture is tried; "" if nothing is known."""
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
