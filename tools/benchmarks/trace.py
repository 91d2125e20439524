"""What a trace of torch's profiler says about some steps: which kernels took the time, and how busy the card was."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_ON_CARD = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of the trace
_ON_CPU = ("cpu_op",)
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
_COPIES = ("cudaMemcpy", "cudaMemset")  # begin the names
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_MAX_NAME = 120  # letters; templates are longer


@dataclass(frozen=True)
class Kernel:
    """Attributes:
    name: of the kernel or operation.
    count: per step.
    seconds: per step, of all of them.
    share: of the time that the card was at work.
    """

    name: str
    count: float
    seconds: float
    share: float


def summarize(events: Sequence[Mapping[str, Any]], num_steps: int, *, on_card: bool, top: int = 40) -> dict[str, Any]:
    """Sums up complete events of a chrome trace.

    Args:
        events: ``traceEvents``; times in microseconds.
        num_steps: in the trace; all numbers are per step.
        on_card: kernels and copies on the card; else operations on the CPU, those in others counted in both.
        top: so many of them are listed.
    """
    complete = [event for event in events if event.get("ph") == "X" and "dur" in event]
    work = [event for event in complete if event.get("cat") in (_ON_CARD if on_card else _ON_CPU)]
    calls = [event["name"] for event in complete if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    durations: dict[str, list[float]] = defaultdict(list)
    for event in work:
        durations[event["name"]].append(event["dur"] * 1e-6)
    busy_s, span_s = busy_and_span([(event["ts"], event["ts"] + event["dur"]) for event in work])
    total = sum(map(sum, durations.values()))
    ordered = sorted(durations.items(), key=lambda item: -sum(item[1]))
    return {
        "steps": num_steps,
        "span_s": span_s / num_steps,
        "busy_s": busy_s / num_steps,
        "busy_share": busy_s / span_s if span_s else 0.0,
        "kernels": len(work) / num_steps,
        "launches": sum(name.startswith(_LAUNCHES) for name in calls) / num_steps,
        "graph_launches": calls.count("cudaGraphLaunch") / num_steps,
        "copies": sum(name.startswith(_COPIES) for name in calls) / num_steps,
        "waits": sum(name.startswith(_WAITS) for name in calls) / num_steps,
        "top": [
            asdict(Kernel(name[:_MAX_NAME], len(times) / num_steps, sum(times) / num_steps, sum(times) / total))
            for name, times in ordered[:top]
        ],
    }


def busy_and_span(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Seconds that at least one of the intervals covers, and from the first's begin to the last's end.

    Args:
        intervals: begin and end in microseconds, in any order; they may overlap.
    """
    busy, end = 0.0, float("-inf")
    for begin, stop in sorted(intervals):
        busy += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return busy * 1e-6, (end - min(begin for begin, _ in intervals)) * 1e-6 if intervals else 0.0


def as_text(summary: Mapping[str, Any]) -> str:
    """A table of the kernels, and what the step is made of in the last line."""
    lines = ["| kernel | a step | ms a step | share |", "|---|---|---|---|"]
    for kernel in summary["top"]:
        name = kernel["name"].replace("|", "/")
        lines.append(f"| {name} | {kernel['count']:g} | {1000 * kernel['seconds']:.2f} | {kernel['share']:.1%} |")
    lines.append(
        f"{1000 * summary['span_s']:.1f} ms a step, busy {summary['busy_share']:.1%}, {summary['kernels']:g} kernels, "
        f"{summary['launches']:g} launches ({summary['graph_launches']:g} of graphs), {summary['copies']:g} copies, "
        f"{summary['waits']:g} waits"
    )
    return "\n".join(lines)
