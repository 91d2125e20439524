"""Process groups. Every function here works, and does nothing, in a single process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def is_launched() -> bool:
    """Whether a launcher (torchrun, torch.distributed.launch) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_launch_main() -> bool:
    """Whether this is process 0, told from the launcher's environment, before the group exists."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the launcher's group for a while: NCCL on CUDA, gloo on the CPU; nothing in a single process.

    All processes leave together. After an error a process leaves at once, and the launcher ends the others.
    """
    if not is_launched():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield
    dist.barrier()
    if dist.get_backend() == "nccl":  # gloo's own destruction can wait forever for a peer that has gone (torch 2.6)
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is process 0, the one that writes."""
    return rank() == 0


def barrier() -> None:
    """Waits until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def all_sum(value: Tensor) -> Tensor:
    """Sum over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def choose_device(name: str) -> torch.device:
    """The device of this process.

    Args:
        name: ``auto``, ``cpu`` or ``cuda``; with CUDA each local process takes its own card.

    Raises:
        ValueError: CUDA is asked for and not there.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("DEVICE is cuda, but torch finds no CUDA device; set DEVICE cpu")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"local process {index} has no CUDA device, {torch.cuda.device_count()} are visible; "
            "start fewer processes per node"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
