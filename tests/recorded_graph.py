"""A CUDA graph without CUDA: operations are recorded below autograd; a replay repeats them on the same memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What a stream that is being captured refuses: the CPU would need the result, or the number of results.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal", "is_nonzero"}
COPIES_FROM_PYTHON = {"lift_fresh"}


class RecordedGraph:
    """See `ovenet.utils.cuda_graph.Graph`. As there, a capture does nothing, and what it makes holds garbage until a
    replay; numbers of Python are frozen in it; random numbers are drawn anew, in order, by each replay.
    """

    def __init__(self, device):
        self.calls = []
        self.num_replays = 0

    def capture(self, function):
        random_state = torch.get_rng_state()
        recorder = _Recorder(self.calls)
        try:
            with recorder:
                result = function()
        finally:
            torch.set_rng_state(random_state)
            recorder.undo()
        return result

    @torch.no_grad()
    def replay(self):
        self.num_replays += 1
        for func, args, kwargs, outputs in self.calls:
            if _is_view(func):
                continue
            for old, new in zip(outputs, tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, calls):
        super().__init__()
        self.calls = calls
        self.known = {}  # storages, by address; kept alive, so that addresses stay theirs
        self.outer = []  # tensors that were there before, with their values
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        with_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in WAITING or with_mask:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if name in COPIES_FROM_PYTHON:
            raise RuntimeError(f"cannot copy from the CPU when stream is capturing: {name}")
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and self._is_new(tensor):
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self.outer.append((whole, whole.clone()))
        result = func(*args, **kwargs)
        outputs = tree_leaves(result)
        self.calls.append((func, args, kwargs, outputs))
        self.made += [x for x in outputs if isinstance(x, Tensor) and self._is_new(x)]
        return result

    def _is_new(self, tensor):
        storage = tensor.untyped_storage()
        is_new = storage.data_ptr() not in self.known
        self.known.setdefault(storage.data_ptr(), storage)
        return is_new

    @torch.no_grad()
    def undo(self):
        for tensor, before in self.outer:
            tensor.copy_(before)
        for tensor in self.made:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 1)


def _is_view(func):
    infos = [a.alias_info for a in func._schema.arguments if a.alias_info is not None]
    return bool(infos) and not any(info.is_write for info in infos)
