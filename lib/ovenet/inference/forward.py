"""Windows through the network: flipped views, precision, and one launch for all of it on a card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from ovenet.geometry import pixel_grid, seed_position
from ovenet.inference.views import VECTOR
from ovenet.models.displacement import Displacement, record_displacements
from ovenet.structures import OVeNetOutput, ScoreKind
from ovenet.utils.cuda_graph import CudaGraph, Graph, GraphedFunction
from ovenet.utils.environment import tf32

SEED = f"{VECTOR}seed"  # offset (x, y) and confidence
FIELD = f"{VECTOR}field: "  # other displacements (x, y), by title
SWITCH = "TEST.CUDA_GRAPH off"
MAX_GRAPHS = 16  # sizes beyond them run eagerly
_NUM_EAGER = 2  # runs of a size before it is captured; images of ever-changing sizes are never captured
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Forward:
    """Runs a network on batches of windows.

    Args:
        model: a segmentor; put into evaluation mode at each call.
        device: device of the model.
        flip: average with the flipped views.
        flip_pairs: pairs of train ids that change places when an image is flipped.
        output_index: which score map, -1 the final one.
        precision: precision of convolutions and matrix products.
        allow_tf32: CUDA: float32 convolutions and matrix products read 10 bits of mantissa.
        new_graph: creates the graph that batches of one size are captured in; None runs everything eagerly.

    Attributes:
        kind: kind of the scores, valid after the first run.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        flip: bool,
        flip_pairs: Sequence[tuple[int, int]],
        output_index: int,
        precision: str,
        allow_tf32: bool,
        new_graph: Callable[[torch.device], Graph] | None = CudaGraph,
    ):
        self.model, self.device = model, device
        self.flip, self.flip_pairs, self.output_index = flip, tuple(flip_pairs), output_index
        self.kind: ScoreKind = "logits"
        self._dtype, self._tf32 = AUTOCAST.get(precision), allow_tf32
        self._new_graph = new_graph
        self._has_fields = any(isinstance(module, Displacement) for module in model.modules())
        self._graphed: dict[tuple[object, ...], GraphedFunction[dict[str, Tensor]]] = {}

    @property
    def num_graphs(self) -> int:
        """Number of graphs captured so far."""
        return sum(graphed.num_graphs for graphed in self._graphed.values())

    def __call__(
        self, pixels: Tensor, names: Sequence[str] | None, *, together: bool, seeds: bool = False, fields: bool = False
    ) -> dict[str, Tensor]:
        """Maps ``(B, C, h, w)`` float32 of windows, which the next call may overwrite.

        Args:
            pixels: normalised, ``(B, 3, H, W)``.
            names: predictions to return; None for all.
            together: put flipped views into the same batch.
            seeds: return offset and confidence too, in units of the window.
            fields: return other displacements too, in units of the window.
        """
        if self.model.training:
            self.model.eval()
        fields = fields and self._has_fields
        request = None if names is None else tuple(names), together, seeds
        if self._new_graph is None or fields:  # a replay calls no hooks
            return self._run(*request, fields, pixels)
        if request not in self._graphed:
            self._graphed[request] = GraphedFunction(
                partial(self._run, *request, False),
                self.device,
                name="the network",
                switch=SWITCH,
                num_warmup=_NUM_EAGER,
                max_graphs=MAX_GRAPHS,
                new_graph=self._new_graph,
            )
        return self._graphed[request](pixels)

    def output(self, pixels: Tensor) -> OVeNetOutput:
        """The network's output, run eagerly."""
        if self.model.training:
            self.model.eval()
        return self._run_model(pixels)

    def unflip(self, scores: Tensor) -> Tensor:
        """Scores ``(B, K, h, w)`` of flipped images, flipped back."""
        scores = scores.flip(3)
        if not self.flip_pairs:
            return scores
        order = list(range(scores.shape[1]))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return torch.cat([scores[:, i : i + 1] for i in order], dim=1)  # an index would be a copy from the host

    def _run(
        self, names: tuple[str, ...] | None, together: bool, seeds: bool, fields: bool, pixels: Tensor
    ) -> dict[str, Tensor]:
        num_images = len(pixels)
        together = self.flip and together
        recording: AbstractContextManager[list[tuple[str, Tensor]]] = (
            record_displacements(self.model) if fields else nullcontext([])
        )
        with recording as displacements:
            output = self._run_model(torch.cat((pixels, pixels.flip(3))) if together else pixels)
        maps = _select(output.predictions(self.output_index), names)
        if self.flip:
            if together:
                flipped = {name: scores[num_images:] for name, scores in maps.items()}
            else:
                flipped = self._run_model(pixels.flip(3)).predictions(self.output_index)
            maps = {name: (s[:num_images] + self.unflip(flipped[name])) / 2 for name, s in maps.items()}
        maps = {name: scores.float() for name, scores in maps.items()}
        self.kind = output.score_kind
        if seeds and output.offset is not None and output.confidence is not None:
            offset = output.offset.float()
            height, width = offset.shape[-2:]
            offset = seed_position(offset) - pixel_grid((height, width), device=offset.device)
            maps[SEED] = torch.cat((offset, output.confidence.float()), dim=1)[:num_images]
        for title, displacement in displacements:
            stride = round(pixels.shape[3] / displacement.shape[3])
            maps[f"{FIELD}{title}, stride {stride}"] = displacement.float()[:num_images]
        return maps

    def _run_model(self, pixels: Tensor) -> OVeNetOutput:
        autocast = torch.autocast(self.device.type, dtype=self._dtype) if self._dtype else nullcontext()
        with tf32(self._tf32), autocast:
            return self.model(pixels)


def _select(maps: dict[str, Tensor], names: Sequence[str] | None) -> dict[str, Tensor]:
    return maps if names is None else {name: maps[name] for name in names}
