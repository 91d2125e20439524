"""Process groups. In a single process every function here works and does nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ovenet.errors import UserError, one_line
from ovenet.utils.logging import get_logger

T = TypeVar("T")

_OLDEST_TORCH_FOR_MPS = "2.13"  # the first with the gradient of `grid_sample` and its padding mode border

# Phrases by which gloo and NCCL report that a peer is gone or late.
_LOST = re.compile(r"timed? ?out|connection (closed|reset|refused)|broken pipe|heartbeat|remote process", re.IGNORECASE)
_activity = "the beginning"
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_WAY_OUT = "torchrun sets these variables; unset them to run one process"


class PeersLostError(UserError):
    """Another rank ended or is late; this process should exit without waiting for anything."""


def is_launched() -> bool:
    """Whether a launcher (torchrun, torch.distributed.launch) started this process as one of several."""
    return _launcher_number("WORLD_SIZE", 1) > 1


def is_launch_main() -> bool:
    """Whether this is rank 0 according to the launcher's environment, before the group exists."""
    return _launcher_number("RANK", 0) == 0


def _launcher_number(name: str, default: int) -> int:
    """The value of a launcher's environment variable.

    Raises:
        UserError: it is not an integer of at least 0.
    """
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"the environment says {name}={text}; expected an integer of at least 0: {_WAY_OUT}")
    return int(text)


@contextmanager
def process_group(device: torch.device, *, timeout_s: float = 1800) -> Iterator[None]:
    """Context manager that joins the launcher's group: NCCL on CUDA, gloo on the CPU, XCCL on xpu, none in one process.

    All ranks leave together. After an error a rank leaves at once, and the launcher ends the others.

    Args:
        device: of this process.
        timeout_s: seconds that a rank waits for the others.

    Raises:
        PeersLostError: another rank ended, or did not come in time; names the waiting rank and its activity.
    """
    if not is_launched():
        yield
        return
    _join(device, timeout_s)
    try:
        yield
        dist.barrier()
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        reason = next(line for line in str(error).splitlines() if _LOST.search(line))
        raise PeersLostError(
            f"process {rank()} of {world_size()} lost the others in {_activity}: {reason.strip()[:200]}; "
            "look for the first error above, or raise DIST_TIMEOUT if they only need longer"
        ) from error
    if dist.get_backend() != "gloo":  # gloo's own destruction can wait forever for a peer that has gone (torch 2.6)
        dist.destroy_process_group()


def _join(device: torch.device, timeout_s: float) -> None:
    """Initialises the process group.

    Raises:
        UserError: RANK is not below WORLD_SIZE, or torch cannot connect processes over this kind of device.
        PeersLostError: not all ranks came, or MASTER_ADDR and MASTER_PORT cannot be used.
    """
    world_size, own = _launcher_number("WORLD_SIZE", 1), _launcher_number("RANK", 0)
    if own >= world_size:
        raise UserError(f"the environment says RANK={own} of WORLD_SIZE={world_size}; ranks begin at 0: {_WAY_OUT}")
    backend = dist.Backend.default_device_backend_map[device.type]
    if not dist.is_backend_available(backend):
        raise UserError(f"this torch has no {backend}, which connects processes over {device.type}; start one process")
    said = ", ".join(f"{name}={os.environ.get(name, 'not set')}" for name in _LAUNCHER_VARIABLES)
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:  # torch's own errors of the store and the network are RuntimeErrors
        reason = one_line(error)
        raise PeersLostError(
            f"process {own} of {world_size} did not meet the others within {timeout_s:g} s ({reason}); the environment "
            f"says {said}: start all processes, each with a RANK of its own, and a port that is free: {_WAY_OUT}"
        ) from error


@contextmanager
def activity(name: str) -> Iterator[None]:
    """Names the current activity for the message of a failing collective."""
    global _activity
    before, _activity = _activity, name
    yield
    _activity = before  # not reset after an error: the message needs it


def rank() -> int:
    """Rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, the one that writes."""
    return rank() == 0


def local_rank() -> int:
    """Rank of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def barrier() -> None:
    """Waits until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def all_reduce_tables(tables: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Sums of tables over all ranks, in one reduction.

    Args:
        tables: of one type, the same names and shapes in the same order on every rank.
        device: where the ranks exchange them.

    Returns:
        The sums by name, on `device`.
    """
    flat = all_reduce_sum(torch.cat([table.flatten().to(device) for table in tables.values()]))
    parts = flat.split([table.numel() for table in tables.values()])
    return {name: part.view_as(table) for (name, table), part in zip(tables.items(), parts, strict=True)}


def gather_objects(value: T) -> list[T]:
    """The values of all ranks, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank."""
    if not dist.is_initialized():
        return value
    answer = [value]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]


def choose_device(name: str) -> torch.device:
    """The device of this process; each local rank takes its own.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``mps`` or ``xpu``. ``auto`` is CUDA where present, else the CPU, and the log
            says why: mps and xpu, on which nothing was ever run, may give wrong numbers without an error, and have to
            be asked for.

    Raises:
        UserError: torch finds no such device, there are fewer than local ranks, or it cannot do what a step needs.
    """
    if name == "cpu":
        return torch.device("cpu")
    found = _accelerator()
    if name == "auto":
        name = "cuda" if found == "cuda" else "cpu"
        reason = f"torch finds {'a' if name == 'cuda' else 'no'} CUDA device"
        if found not in (None, "cuda"):
            reason += f" but {found}, which has to be asked for: DEVICE {found}"
        get_logger().info("device: %s (DEVICE auto: %s)", name, reason)
        if name == "cpu":
            return torch.device("cpu")
    if name != found:
        others = "cpu" if found is None else f"{found} or cpu"
        raise UserError(f"DEVICE is {name}, but torch finds no {name.upper()} device; set DEVICE {others}")
    if name == "mps":
        _check_mps()
    index, num_devices = local_rank(), torch.accelerator.device_count()
    if index >= num_devices:
        raise UserError(
            f"local process {index} has no {name.upper()} device, {num_devices} are visible; "
            "start fewer processes per node"
        )
    if name != "cuda" and is_launch_main():
        get_logger().warning("DEVICE %s was never run: compare some predictions with those of DEVICE cpu first", name)
    torch.accelerator.set_device_index(index)
    return torch.device(name, index)


def _accelerator() -> str | None:
    """The kind of device that torch finds beside the CPU (a build of torch knows one); None if there is none."""
    if not torch.accelerator.is_available():
        return None
    accelerator = torch.accelerator.current_accelerator()
    return None if accelerator is None else accelerator.type


def _check_mps() -> None:
    """Refuses what is known to fail on mps.

    Raises:
        UserError: torch is too old, or a launcher started several processes.
    """
    if torch.__version__ < _OLDEST_TORCH_FOR_MPS:
        raise UserError(
            f"DEVICE is mps, where torch {torch.__version__} lacks the sampling of seeds; update it to "
            f"{_OLDEST_TORCH_FOR_MPS}, or set DEVICE cpu"
        )
    if is_launched():
        raise UserError("DEVICE is mps, over which torch does not connect processes; start one process")
