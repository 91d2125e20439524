"""The environment of a run: hardware, versions, code."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ovenet.utils.logging import get_logger
from ovenet.version import version

_PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "Pillow", "yacs", "tensorboardX", "tqdm")


# Dense bfloat16 TFLOP/s of matrix products by NVIDIA's data sheets; the first matching name counts.
_PEAK_TFLOPS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H200", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("RTX 4090", 165.0),
    ("B200", 2250.0),
)


def peak_flops(device_name: str) -> float | None:
    """Peak FLOP/s of a card in dense bfloat16 matrix products; None if not known.

    Args:
        device_name: from `torch.cuda.get_device_name`.
    """
    return next((1e12 * peak for name, peak in _PEAK_TFLOPS if name in device_name), None)


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Peak memory of this process in bytes; 0 on Windows, which lacks the module.

    On Linux from the process's own status: `getrusage` includes the parent's memory at the fork.
    """
    status = Path("/proc/self/status")
    own = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="utf-8")) if status.exists() else None
    if own:
        return 1024 * int(own[1])
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def busy_cores(seconds: float) -> float | None:
    """Number of busy cores of the machine, measured over some seconds; None where the system has no counter.

    Args:
        seconds: duration of the measurement; the resolution is 0.01 s.
    """
    before, started = _busy_seconds(), time.monotonic()
    time.sleep(seconds)
    after = _busy_seconds()
    if before is None or after is None:
        return None
    return max(0.0, (after - before) / (time.monotonic() - started))


def _busy_seconds() -> float | None:
    """Busy time of all cores since boot, from Linux."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system = (int(n) for n in file.readline().split()[1:4])
    except (OSError, ValueError):
        return None
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def crowding(num_workers: int) -> str:
    """A warning if more threads want to run than there are cores; "" otherwise or if unknown.

    Args:
        num_workers: number of data loading processes.
    """
    if not hasattr(os, "getloadavg"):
        return ""
    load, cores = os.getloadavg()[0], num_cores()
    if load <= cores + 1:
        return ""
    return (
        f"the machine is crowded: load {load:.1f} on {cores} core(s), of which {torch.get_num_threads()} thread(s) and "
        f"{num_workers} loading process(es) are this one's"
    )


def describe_environment(repository: Path) -> dict[str, Any]:
    """Command line, versions, hardware and the state of the code.

    Args:
        repository: folder of the code; without git its state is None.
    """
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [sys.executable, *sys.argv],
        "directory": os.getcwd(),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "devices": _device_names(),
        "cpu_count": os.cpu_count(),
        "launcher": {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "SLURM_JOB_ID") if name in os.environ},
        "git": {
            "commit": _git(repository, "rev-parse", "HEAD"),
            "changes": _git(repository, "status", "--porcelain"),
            "diff": _git(repository, "diff", "HEAD"),
        },
    }


def code_version(repository: Path) -> str:
    """Version of the package and, in a git repository, the commit, with "-dirty" if files of it were changed."""
    commit = _git(repository, "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*")
    return f"{version()}, commit {commit}" if commit else version()


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Context manager for `allow_tf32`; restores the previous setting."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def allow_tf32(allowed: bool) -> None:
    """Sets whether CUDA reads 10 bits of mantissa in float32 convolutions and matrix products, or all 23."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def warn_of_emulation(key: str, precision: str, device: torch.device) -> None:
    """Warns if a card has no units for a precision.

    Args:
        key: key of the setting, for the message.
        precision: fp32, bf16 or fp16.
        device: device of the computation.
    """
    if precision != "bf16" or device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        get_logger().warning(
            "%s is bf16, for which %s (compute capability %d.%d, below 8.0) has no units: it is emulated, slower than "
            "fp32; set fp16",
            key,
            torch.cuda.get_device_name(device),
            *capability,
        )


def release_unused(device: torch.device) -> None:
    """Frees cached memory of a card, as after choosing algorithms, and resets its peak counters; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_device_memory(device: torch.device) -> int:
    """Peak memory of tensors on a card in bytes, CUDA graphs included.

    Between replays torch counts a graph's memory as free, but nothing else can use it.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    of_graphs = sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["segment_pool_id"] != (0, 0) and segment["device"] == index
    )
    return torch.cuda.max_memory_allocated(device) + of_graphs


def device_memory_used(device: torch.device) -> str:
    """Peak memory of a card that tensors used and that was reserved, for a log; "" on a CPU."""
    if device.type != "cuda":
        return ""
    peaks = peak_device_memory(device), torch.cuda.max_memory_reserved(device)
    used, reserved = (peak / 2**30 for peak in peaks)
    return f"{used:.2f} GiB of the card used at most, {reserved:.2f} reserved"


def _device_names() -> list[str]:
    """Names of the devices beside the CPU that torch finds; the kind where torch has no name, as of mps."""
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    name = getattr(torch.get_device_module(kind), "get_device_name", lambda _: str(kind))
    return [name(index) for index in range(torch.accelerator.device_count())]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(repository: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(repository), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
