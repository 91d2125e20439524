"""A cost model of a training step on several cards and hosts, to consult before renting them.

Nothing here was measured with NCCL; docs/scaling.md says what was checked, and where the numbers come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

BACKWARD_SHARE = 2 / 3  # share of a step's computation
BUCKET_BYTES = 25 * 2**20  # gradients that DistributedDataParallel sends together
# Seconds from NCCL's own tuning model for small messages (src/graph/tuning.cc, protocol LL).
TREE_BASE_S, RING_BASE_S = 6.8e-6, 6.6e-6
NVLINK_HOP_S, HOP_BESIDE_NETWORK_S = 0.6e-6, 1e-6  # the latter in a ring that goes over a network elsewhere
TREE_NETWORK_HOP_S, RING_NETWORK_HOP_S = 5.0e-6, 2.7e-6
_IMAGE_BYTES, _SLOW_DISK_MB_S = 2.3e6, 500  # an image of Cityscapes as PNG; one SATA SSD
AROUND_S = 1e-5  # assumed: changes of stream, and the kernels that synchronised BatchNorm adds around a message


@dataclass(frozen=True)
class Workload:
    """The work of one process in a step.

    Attributes:
        compute_s: seconds of a step alone, without its input.
        input_s: seconds that the input of a step takes, in parallel to it.
        gradient_bytes: bytes of all gradients of a process, as they are sent.
        num_layers: layers of synchronised BatchNorm, each with an all-gather forward and an all-reduce backward, times
            the micro-batches.
        spread: standard deviation of a process's computation from step to step, as a share of it.
        straggler: computation of the slowest process, as a multiple of that of the others.
    """

    compute_s: float
    input_s: float
    gradient_bytes: float
    num_layers: float
    spread: float = 0.0
    straggler: float = 1.0

    @property
    def wanted_s(self) -> float:
        """Seconds of a step without other processes."""
        return max(self.compute_s, self.input_s)


@dataclass(frozen=True)
class StepTime:
    """Where the time of a step goes, in seconds.

    Attributes:
        workload: the work of a process.
        link_s: time of the gradients on the link.
        exposed_s: part of it that the backward pass does not hide.
        messages_s: time of synchronised BatchNorm's messages.
        waiting_s: time that a process waits for the slowest one.
    """

    workload: Workload
    link_s: float
    exposed_s: float
    messages_s: float
    waiting_s: float

    @property
    def total_s(self) -> float:
        """Seconds of a step."""
        own_s = self.workload.compute_s + self.waiting_s
        return max(own_s + self.exposed_s + self.messages_s, self.workload.input_s)

    @property
    def efficiency(self) -> float:
        """Speed relative to that of as many independent processes."""
        return self.workload.wanted_s / self.total_s

    @property
    def limit(self) -> str:
        """The bottleneck."""
        if self.workload.input_s >= self.total_s:
            return "the input"
        parts = {
            "the link": self.exposed_s,
            "BatchNorm's messages": self.messages_s,
            "the slowest process": self.waiting_s,
            "the computation": self.workload.compute_s,
        }
        return max(parts, key=lambda name: parts[name])


def step_time(workload: Workload, *, hosts: int, per_host: int, link_gbit: float) -> StepTime:
    """Models a step.

    Computation and input are measured on one process. Gradients are averaged in a ring of the hosts, whose links carry
    ``2 (n - 1) / n`` times their bytes each way for `n` hosts, while the backward pass still runs; inside a host that
    is assumed to be free. Each BatchNorm waits for its two messages. All wait for the slowest process once a step: a
    straggler, which is slow in every step, or the one with the largest of as many independent normal times.

    Args:
        workload: the work of one process.
        hosts: number of hosts.
        per_host: processes on each host, with a card of their own.
        link_gbit: gigabits per second between two hosts, each way.
    """
    sent = 2 * (hosts - 1) / hosts * workload.gradient_bytes
    link_s = 8 * sent / (link_gbit * 1e9)
    last_bucket = min(1.0, BUCKET_BYTES / max(workload.gradient_bytes, 1.0))  # ready when the backward pass is over
    hidden_s = min(BACKWARD_SHARE * workload.compute_s, link_s * (1 - last_bucket))
    message_s = waiting_s = 0.0
    if hosts * per_host > 1:
        largest = max(workload.straggler, 1 + workload.spread * expected_maximum(hosts * per_host))
        waiting_s = (largest - 1) * workload.compute_s
        message_s = all_gather_s(hosts, per_host) + all_reduce_s(hosts, per_host) + 2 * AROUND_S
    return StepTime(workload, link_s, link_s - hidden_s, workload.num_layers * message_s, waiting_s)


def expected_maximum(n: int) -> float:
    """Expected largest of `n` independent standard normal numbers."""
    x, step = np.linspace(-10, 10, 2000, endpoint=False, retstep=True)
    x += step / 2
    none_is_above = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x]) ** n
    return float(step * np.sum((x > 0) - none_is_above))


def all_gather_s(hosts: int, per_host: int) -> float:
    """Latency of a small all-gather of NCCL: around a ring, so it grows with the number of processes."""
    hop_s = NVLINK_HOP_S if hosts == 1 else HOP_BESIDE_NETWORK_S
    return RING_BASE_S + hosts * (per_host - 1) * hop_s + (hosts - 1) * RING_NETWORK_HOP_S


def all_reduce_s(hosts: int, per_host: int) -> float:
    """Latency of a small all-reduce of NCCL: along chains inside the hosts and a tree of hosts, up and down."""
    hops_s = (per_host - 1) * NVLINK_HOP_S + math.ceil(math.log2(hosts)) * TREE_NETWORK_HOP_S
    return TREE_BASE_S + 2 * hops_s


def disturbances(workload: Workload, *, images_per_host: int) -> dict[str, Workload]:
    """The workload with what slows it down elsewhere; the numbers are examples, in the names.

    Args:
        workload: without any.
        images_per_host: images that the processes of a host read in a step.
    """
    disk_s = images_per_host * _IMAGE_BYTES / (_SLOW_DISK_MB_S * 1e6)
    return {
        "steps that vary by 5 % (standard deviation)": replace(workload, spread=0.05),
        "one card that is 20 % slower": replace(workload, straggler=1.2),
        f"files of {_IMAGE_BYTES / 1e6:g} MB from a disk of {_SLOW_DISK_MB_S} MB/s a host": replace(
            workload, input_s=max(workload.input_s, disk_s)
        ),
    }


def remedies(workload: Workload) -> dict[str, Workload]:
    """The workload with each remedy; a larger batch is assumed to take proportionally longer.

    Args:
        workload: with gradients of 4 bytes and synchronised BatchNorm.
    """
    halved = workload.gradient_bytes / 2
    return {
        "as it is": workload,
        "TRAIN.GRADIENT_COMPRESSION bf16": replace(workload, gradient_bytes=halved),
        "TRAIN.SYNC_BN False": replace(workload, num_layers=0),
        "both": replace(workload, gradient_bytes=halved, num_layers=0),
        "twice the batch": replace(workload, compute_s=2 * workload.compute_s, input_s=2 * workload.input_s),
        "four layers' messages as one (not built)": replace(workload, num_layers=workload.num_layers / 4),
    }
