"""A model of what a training step takes on several hosts, to be looked at before they are rented.

Computation and input are measured on one process; gradients are averaged in a ring, each host's link carrying
``2 (n - 1) / n`` times their bytes each way for `n` hosts, while the backward pass still runs. See docs/scaling.md for
what it was checked against.
"""

from __future__ import annotations

from dataclasses import dataclass

BACKWARD_SHARE = 2 / 3  # of the computation of a step
MESSAGE_S = 5e-5  # a small message between hosts, such as BatchNorm's statistics of a layer


@dataclass(frozen=True)
class Workload:
    """What one process does in a step.

    Attributes:
        compute_s: seconds of a step alone, input not counted.
        input_s: seconds that the input of a step takes, which goes on beside it.
        gradient_bytes: that a process sends for each step before anything is divided among processes.
        num_messages: small messages of synchronised BatchNorm, one after the other.
    """

    compute_s: float
    input_s: float
    gradient_bytes: float
    num_messages: int


@dataclass(frozen=True)
class StepTime:
    """Where the time of a step goes, in seconds.

    Attributes:
        compute_s: of the workload.
        link_s: that gradients take on the link.
        exposed_s: of these, what the backward pass does not hide.
        messages_s: of synchronised BatchNorm.
        input_s: of the workload.
    """

    compute_s: float
    link_s: float
    exposed_s: float
    messages_s: float
    input_s: float

    @property
    def total_s(self) -> float:
        """Of a step."""
        return max(self.compute_s + self.exposed_s + self.messages_s, self.input_s)

    @property
    def limit(self) -> str:
        """What would have to be faster first."""
        if self.input_s >= self.total_s:
            return "the input"
        extra = {"the link": self.exposed_s, "BatchNorm's messages": self.messages_s, "the computation": self.compute_s}
        return max(extra, key=lambda name: extra[name])


def step_time(workload: Workload, *, hosts: int, link_gbit: float) -> StepTime:
    """A step on several hosts.

    Args:
        workload: of one process.
        hosts: number of them.
        link_gbit: gigabits a second between two hosts, each way.
    """
    sent = 2 * (hosts - 1) / hosts * workload.gradient_bytes
    link_s = 8 * sent / (link_gbit * 1e9)
    hidden_s = min(BACKWARD_SHARE * workload.compute_s, link_s * (1 - _last_bucket(workload)))
    messages_s = workload.num_messages * MESSAGE_S if hosts > 1 else 0.0
    return StepTime(workload.compute_s, link_s, link_s - hidden_s, messages_s, workload.input_s)


def _last_bucket(workload: Workload) -> float:
    """Share of the gradients that is ready only when the backward pass is over: DDP's last bucket of 25 MiB."""
    return min(1.0, 25 * 2**20 / max(workload.gradient_bytes, 1.0))
