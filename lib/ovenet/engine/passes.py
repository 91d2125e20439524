"""Forward and backward passes of one step, launched one by one or as one CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ovenet.data.augmentation import augment_and_normalize
from ovenet.engine.parallel import compiled, cuda_graph_obstacle, data_parallel
from ovenet.engine.settings import StepSettings
from ovenet.errors import UserError
from ovenet.losses import SegmentationCriterion
from ovenet.models.segmentor import Segmentor
from ovenet.structures import Batch, LossTerms, OVeNetOutput
from ovenet.utils import distributed
from ovenet.utils.cuda_graph import CudaGraph, Graph, GraphedFunction, on_capture_stream, warn_eager

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NUM_WARMUP, _NUM_WARMUP_TOGETHER = 3, 11  # eager steps before a capture; torch asks for the latter with DDP
_NAME, _SWITCH = "the step", "TRAIN.CUDA_GRAPH off"
_Passed = tuple[list[LossTerms], list[Tensor | None]]  # losses of the micro-batches, gradients of the parameters


class Passes:
    """Forward and backward passes of micro-batches; every rank has one.

    Args:
        model: on `device`.
        criterion: its loss, on the same device.
        scaler: scales the loss in float16.
        device: device of this rank.
        settings: how every step is computed.
        new_graph: makes the graphs, on any device; None makes CUDA graphs on CUDA.

    Attributes:
        parallel: the model as it is trained: compiled, and wrapped for several ranks.
        graphed: the passes as graphs; None if they are switched off or known to be impossible.
    """

    def __init__(
        self,
        model: Segmentor,
        criterion: SegmentationCriterion,
        scaler: torch.amp.GradScaler,
        device: torch.device,
        settings: StepSettings,
        new_graph: Callable[[torch.device], Graph] | None,
    ):
        self.model = model
        self.criterion = criterion
        self.scaler = scaler
        self.device = device
        self.settings = settings
        if new_graph is None and device.type == "cuda":
            new_graph = CudaGraph
        self.graphed = self._as_graphs(new_graph) if new_graph and settings.cuda_graph == "auto" else None
        self._compiled = compiled(model, device, settings)
        self.parallel = self._wrapped()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._iteration = 0

    def __call__(self, batches: Sequence[Batch], iteration: int, *, rest: bool) -> list[LossTerms]:
        """Losses of the micro-batches; leaves the gradient of their mean, scaled, in the parameters.

        A graph holds only the kernels that all steps share, and its warm-up steps train like any other. It draws from
        the device's random generator, whose offset advances as in an eager step (torch updates it at each replay), so
        that a resumed run, which warms up again, gets the same bits.

        Args:
            batches: micro-batches of equal size, on any device.
            iteration: iteration of the schedule, on which the criterion may depend.
            rest: whether the model's resting parts rest; the passes then have a graph of their own.
        """
        self._iteration = iteration
        tensors = [tensor for batch in batches for tensor in batch.tensors]
        if self.graphed is None:
            is_async = self.device.type == "cuda"  # on mps such a copy may read freed memory (torch issue 189690)
            return self.run_eager(*(tensor.to(self.device, non_blocking=is_async) for tensor in tensors))[0]
        if iteration < self.criterion.static_from_iteration:
            return self.graphed.run_eager(*tensors)[0]
        losses, gradients = self.graphed(*tensors, key=(self.parallel.training, rest))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient  # in the graph's memory; the step removes those of resting parts
        return [  # read after the next replay has begun
            LossTerms(loss.total.clone(), {name: value.clone() for name, value in loss.terms.items()})
            for loss in losses
        ]

    def run_eager(self, *tensors: Tensor) -> _Passed:
        """The passes, launched one by one.

        Args:
            tensors: `Batch.tensors` of all micro-batches, on the device.

        Returns:
            The losses of the micro-batches, and the gradient of each parameter.
        """
        for parameter in self.parameters:
            parameter.grad = None
        losses = []
        batches = Batch.from_tensors(tensors)
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with nullcontext() if is_last else self._without_averaging():
                loss = self.forward(batch)
                self.scaler.scale(loss.total / len(batches)).backward()
            losses.append(LossTerms(loss.total.detach(), loss.terms))
        return losses, [parameter.grad for parameter in self.parameters]

    def forward(self, batch: Batch) -> LossTerms:
        """Loss of one micro-batch on the device; convolutions in ``TRAIN.PRECISION``, the loss in float32."""
        images, labels = augment_and_normalize(batch, self.model.normalization)
        dtype = _AUTOCAST.get(self.settings.precision)
        with torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext():
            output = _with_batch_norm(self.parallel, images)
        return self.criterion(output, labels, iteration=self._iteration)

    def _without_averaging(self) -> AbstractContextManager[object]:
        """Context in which gradients stay on this rank, for all micro-batches but the last."""
        return self.parallel.no_sync() if isinstance(self.parallel, DistributedDataParallel) else nullcontext()

    def _as_graphs(self, new_graph: Callable[[torch.device], Graph]) -> GraphedFunction[_Passed] | None:
        obstacle = cuda_graph_obstacle(self.criterion, self.settings, self.device)
        if obstacle:
            warn_eager(_NAME, obstacle, _SWITCH)
            return None
        return GraphedFunction(
            self.run_eager,
            self.device,
            name=_NAME,
            switch=_SWITCH,
            num_warmup=_NUM_WARMUP if distributed.world_size() == 1 else _NUM_WARMUP_TOGETHER,
            agreed=self._on_all_ranks,
            recover=self._wrap_again,
            new_graph=new_graph,
        )

    def _wrapped(self) -> nn.Module:
        if distributed.world_size() == 1:
            return self._compiled
        # DDP accumulates gradients on the stream on which it was created.
        with nullcontext() if self.graphed is None else on_capture_stream(self.device):
            return data_parallel(self._compiled, self.device, self.settings)

    def _wrap_again(self) -> None:
        """Replaces the wrapper, which would wait forever for the missing gradients of an interrupted backward pass."""
        if distributed.world_size() > 1:
            is_training = self.parallel.training
            del self.parallel
            gc.collect()  # the old wrapper's hooks on the parameters end with it
            self.parallel = self._wrapped().train(is_training)

    def _on_all_ranks(self, is_fine: bool) -> bool:
        return not bool(distributed.all_reduce_sum(torch.tensor(int(not is_fine), device=self.device)))


def _with_batch_norm(model: nn.Module, images: Tensor) -> OVeNetOutput:
    """The model's output.

    Raises:
        UserError: a BatchNorm gets a single value per channel, which has no variance.
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
