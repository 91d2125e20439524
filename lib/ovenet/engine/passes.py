"""Forward and backward passes of one step, launched one by one or as one CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ovenet.data.augmentation import augment_and_normalize
from ovenet.engine.parallel import compiled, data_parallel, why_no_graph
from ovenet.engine.settings import StepSettings
from ovenet.errors import UserError
from ovenet.losses import SegmentationCriterion
from ovenet.models.segmentor import Segmentor
from ovenet.structures import Batch, LossTerms, OVeNetOutput
from ovenet.utils import distributed
from ovenet.utils.cuda_graph import CudaGraph, Graph, GraphedFunction, aside

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NUM_WARMUP, _NUM_WARMUP_TOGETHER = 3, 11  # eager steps before a capture; torch asks for the latter with DDP


class Passes:
    """Forward and backward passes of micro-batches; every rank has one.

    Args:
        model: on `device`.
        criterion: its loss, on the same device.
        scaler: of the loss in float16.
        device: of this rank.
        settings: of every step.
        new_graph: makes the graphs, on any device; None makes CUDA graphs on CUDA.

    Attributes:
        parallel: the model as it is trained: compiled, and wrapped for several ranks.
        graphed: the passes as graphs.
        has_graphs: whether graphs are tried.
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
        wants_graphs = settings.cuda_graph == "auto" and (device.type == "cuda" or new_graph is not None)
        cause = why_no_graph(criterion, settings, device) if wants_graphs else ""
        self.has_graphs = wants_graphs and not cause
        self._compiled = compiled(model, device, settings)
        self.parallel = self._wrapped()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._iteration = 0
        self.graphed = GraphedFunction(
            self.eagerly,
            device,
            name="the step",
            switch="TRAIN.CUDA_GRAPH off",
            num_warmup=_NUM_WARMUP if distributed.world_size() == 1 else _NUM_WARMUP_TOGETHER,
            agreed=self._on_all_ranks,
            recover=self._wrap_again,
            new_graph=new_graph or CudaGraph,
        )
        if cause:
            self.graphed.give_up(cause)

    def __call__(self, batches: Sequence[Batch], iteration: int, *, freeze: bool) -> list[LossTerms]:
        """Losses of the micro-batches; leaves the gradient of their mean, scaled, in the parameters.

        A graph holds only what every step does alike, and its warm-up steps are steps like any other. It draws from the
        device's own random generator, whose count advances as in an eager step (torch tells it at each replay), so
        that a resumed run that warms up anew gets the bits of one that replays.

        Args:
            batches: of equal size, on any device.
            iteration: of the schedule; the criterion may depend on it.
            freeze: whether the resting parts rest; they have a graph of their own.
        """
        self._iteration = iteration
        tensors = [tensor for batch in batches for tensor in batch.tensors]
        if not self.has_graphs:
            return self.eagerly(*(tensor.to(self.device, non_blocking=True) for tensor in tensors))[0]
        if iteration < self.criterion.static_from_iteration:
            return self.graphed.eagerly(*tensors)[0]
        losses, gradients = self.graphed(*tensors, key=(self.parallel.training, freeze))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient  # in the graph's memory; the step removes those of resting parts
        return [  # read after the next replay has begun
            LossTerms(loss.total.clone(), {name: value.clone() for name, value in loss.terms.items()})
            for loss in losses
        ]

    def eagerly(self, *tensors: Tensor) -> tuple[list[LossTerms], list[Tensor | None]]:
        """The passes, launched one by one.

        Args:
            tensors: `Batch.tensors` of all micro-batches, on the device.

        Returns:
            Their losses, and the gradient of each parameter.
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
        """For all but the last micro-batch: their gradients stay on this rank."""
        return self.parallel.no_sync() if isinstance(self.parallel, DistributedDataParallel) else nullcontext()

    def _wrapped(self) -> nn.Module:
        if distributed.world_size() == 1:
            return self._compiled
        with aside(self.device) if self.has_graphs else nullcontext():  # DDP adds up gradients where it was made
            return data_parallel(self._compiled, self.device, self.settings)

    def _wrap_again(self) -> None:
        """After an interrupted backward pass, torch would wait for the missing gradients for ever."""
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
