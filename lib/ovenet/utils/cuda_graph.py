"""Functions of fixed-size tensors as CUDA graphs: captured once, then launched as a whole.

A graph repeats the kernels of its capture on the same memory. Python values that the function reads, such as a factor,
are frozen in it; tensors that it keeps between calls must not be created during the capture.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ovenet.utils.logging import get_logger

T = TypeVar("T")
_NUM_WARMUP = 3  # calls in which kernels are compiled and chosen, tables made, workspaces allocated
_MAX_GRAPHS = 4


class _Pool:
    """Memory that graphs share. Its handle ends with the last graph: torch refuses a handle without graphs."""

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()


_streams: dict[int, torch.cuda.Stream] = {}
_pools: WeakValueDictionary[int, _Pool] = WeakValueDictionary()


class Graph(Protocol):
    """Work that is captured once and replayed."""

    def capture(self, function: Callable[[], T]) -> T:
        """Records the function's kernels without running them; its result has values only after `replay`.

        Raises:
            Exception: it cannot be captured; nothing was run, and nothing is left of the attempt.
        """

    def replay(self) -> None:
        """Runs the recorded kernels, on the same memory."""


class CudaGraph:
    """A `Graph` on a card. The graphs of a process share memory: read a result before another graph is replayed.

    Args:
        device: with its index.
    """

    def __init__(self, device: torch.device):
        self._index = _index(device)
        self._graph = torch.cuda.CUDAGraph()
        self._pool = _pools.get(self._index) or _Pool()
        _pools[self._index] = self._pool

    def capture(self, function: Callable[[], T]) -> T:
        """See `Graph.capture`.

        Other threads, which pin memory for the loader or watch over NCCL, continue with calls that a capture forbids,
        so only the calls of this thread count.
        """
        outer = torch.cuda.current_stream(self._index)
        gc.collect()  # unreferenced graphs; torch has not done this since 2.9
        was_collecting = gc.isenabled()
        gc.disable()  # the end of another graph would end this capture
        try:
            with self._capturing(self._graph, self._pool.handle):
                return function()
        except Exception:
            torch.cuda.set_stream(outer)  # torch stays on the other one if it cannot end the capture
            self._give_memory_back()
            self._free_generator()
            torch.cuda.set_stream(outer)
            raise
        finally:
            if was_collecting:
                gc.enable()

    def _capturing(self, graph: torch.cuda.CUDAGraph, pool: Any) -> AbstractContextManager[None]:
        return torch.cuda.graph(graph, pool=pool, stream=_stream(self._index), capture_error_mode="thread_local")

    def _give_memory_back(self) -> None:
        """Releases the pool's memory, as torch does after a successful capture but never after a failed one."""
        _pools.pop(self._index, None)  # graphs that were captured before keep theirs
        with suppress(RuntimeError):
            self._graph.reset()  # the newest torch does it all here
        for end in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):  # since torch 2.8; before
            if hasattr(torch._C, end):
                with suppress(RuntimeError):  # had been ended
                    getattr(torch._C, end)(self._index, self._pool.handle)
                    torch._C._cuda_releasePool(self._index, self._pool.handle)
                break

    def _free_generator(self) -> None:
        """Lets the random generator be used eagerly again, which older torch forbids after a failed capture.

        The end of any other capture allows it. The generator's state, which other graphs share, is unchanged.
        """
        with suppress(RuntimeError), self._capturing(torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()):
            torch.zeros(1, device=torch.device("cuda", self._index))

    def replay(self) -> None:
        """See `Graph.replay`; on the current stream."""
        self._graph.replay()


@contextmanager
def on_capture_stream(device: torch.device) -> Iterator[None]:
    """Context manager for work on the stream on which graphs are captured, in order with the current stream.

    autograd accumulates a gradient on the stream of its first use, so work to be captured runs here from the start.
    Other devices are unaffected.
    """
    if device.type != "cuda":
        yield
        return
    inner, outer = _stream(_index(device)), torch.cuda.current_stream(device)
    inner.wait_stream(outer)
    with torch.cuda.stream(inner):
        yield
    outer.wait_stream(inner)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _stream(index: int) -> torch.cuda.Stream:
    if index not in _streams:
        _streams[index] = torch.cuda.Stream(index)
    return _streams[index]


@dataclass(frozen=True)
class _Captured(Generic[T]):
    inputs: list[Tensor]
    graph: Graph
    result: T


class GraphedFunction(Generic[T]):
    """A function that runs eagerly at first, and later as one graph for each size of its arguments.

    Args:
        function: takes tensors on `device`, returns tensors in any structure. It must not wait for the device.
        device: where it runs.
        name: names the work in the log: ``the step``.
        switch: setting that turns graphs off: ``TRAIN.CUDA_GRAPH off``.
        num_warmup: eager calls of a size before its capture.
        max_graphs: number of sizes with a graph; others stay eager.
        agreed: called after each attempt with whether it succeeded on this rank; returns whether it did on all.
        recover: called on all ranks after a failed attempt, before the function runs eagerly.
        new_graph: makes an empty `Graph`.
    """

    def __init__(
        self,
        function: Callable[..., T],
        device: torch.device,
        *,
        name: str,
        switch: str,
        num_warmup: int = _NUM_WARMUP,
        max_graphs: int = _MAX_GRAPHS,
        agreed: Callable[[bool], bool] = bool,
        recover: Callable[[], None] = lambda: None,
        new_graph: Callable[[torch.device], Graph] = CudaGraph,
    ):
        self.function, self.device = function, device
        self.name, self.switch = name, switch
        self.num_warmup, self.max_graphs = num_warmup, max_graphs
        self._agreed, self._recover, self._new_graph = agreed, recover, new_graph
        self._num_calls: dict[Hashable, int] = {}
        self._captured: dict[Hashable, _Captured[T]] = {}
        self._is_disabled = False

    @property
    def num_graphs(self) -> int:
        """Number of graphs captured so far."""
        return len(self._captured)

    def __call__(self, *arguments: Tensor, key: Hashable = None) -> T:
        """The function's result; the next call overwrites it.

        Args:
            arguments: on any device; copied without waiting from page-locked memory.
            key: other values that the kernels depend on, such as the mode of a model.
        """
        signature = (key, *((x.shape, x.dtype, x.stride()) for x in arguments))
        if signature not in self._captured:
            calls = self._num_calls[signature] = self._num_calls.get(signature, 0) + 1
            if self._is_disabled or calls <= self.num_warmup or self.num_graphs >= self.max_graphs:
                return self.run_eager(*arguments)
            captured = self._capture(arguments)
            if captured is None:
                return self.run_eager(*arguments)
            self._captured[signature] = captured
            get_logger().info("%s: captured as one CUDA graph (number %d)", self.name, self.num_graphs)
        captured = self._captured[signature]
        for own, given in zip(captured.inputs, arguments, strict=True):
            own.copy_(given, non_blocking=True)
        captured.graph.replay()
        return captured.result

    def run_eager(self, *arguments: Tensor) -> T:
        """The function's result, without a graph."""
        with on_capture_stream(self.device):
            return self.function(*(x.to(self.device, non_blocking=True) for x in arguments))

    def _capture(self, arguments: Sequence[Tensor]) -> _Captured[T] | None:
        """The graph, and copies of the arguments that every replay reads.

        None if it cannot be captured: then the function runs eagerly from here on, without any graph.
        """
        inputs = [torch.empty_like(x, device=self.device).copy_(x, non_blocking=True) for x in arguments]
        graph = self._new_graph(self.device)
        captured, cause = None, ""
        try:
            captured = _Captured(inputs, graph, graph.capture(lambda: self.function(*inputs)))
        except Exception as error:  # any error of CUDA, a library or the function
            cause = _first_cause(error)
        if self._agreed(captured is not None):
            return captured
        captured = None
        gc.collect()  # the error holds what was made for the graph, in circles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warn_eager(self.name, cause or "another process could not capture it", self.switch)
        self._is_disabled = True
        self._captured.clear()
        self._recover()
        return None


def warn_eager(name: str, cause: str, switch: str) -> None:
    """Warns that work has no graph; arguments as of `GraphedFunction`."""
    get_logger().warning("%s runs eagerly: %s; %s silences this", name, cause, switch)


def _first_cause(error: BaseException) -> str:
    """The first error on one line; a failed capture fails once more when it is ended."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
