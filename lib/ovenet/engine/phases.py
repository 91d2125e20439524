"""How long training lasts: its phases, in epochs and in iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from ovenet.data.dataset import AugmentedDataset
from ovenet.data.loaders import TrainLoader
from ovenet.data.samplers import TrainSampler
from ovenet.utils import distributed


@dataclass(frozen=True)
class Phase:
    """A part of the training on one list.

    Attributes:
        loader: yields `Batch`, the micro-batches of one epoch, in the order of `sampler`.
        sampler: has the epoch, and the first sample to use, as attributes.
        end_epoch: index of its last epoch plus 1.
        num_iterations: length in iterations, which replaces `end_epoch` in a training of one phase; 0 for none.
    """

    loader: TrainLoader
    sampler: TrainSampler
    end_epoch: int
    num_iterations: int = 0

    @property
    def crops(self) -> AugmentedDataset:
        """The dataset of `loader`."""
        return cast(AugmentedDataset, self.loader.dataset)


@dataclass(frozen=True)
class Timeline:
    """The phases one after the other, the same on every rank.

    Attributes:
        phases: at least one.
        begin_epoch: index of the first epoch.
        accumulate: micro-batches per iteration.
    """

    phases: tuple[Phase, ...]
    begin_epoch: int
    accumulate: int

    @property
    def lengths(self) -> list[int]:
        """Iterations of each phase."""
        begins = (self.begin_epoch, *(phase.end_epoch for phase in self.phases))
        return [
            phase.num_iterations or self._per_epoch(phase) * (phase.end_epoch - begin)
            for phase, begin in zip(self.phases, begins, strict=False)
        ]

    @property
    def num_iterations(self) -> int:
        """Iterations of all phases; depends on the batch size and the number of ranks."""
        return sum(self.lengths)

    @property
    def is_in_iterations(self) -> bool:
        """Whether the length is given in iterations, so that the last epoch may be cut short."""
        return bool(self.phases[-1].num_iterations)

    def phase(self, epoch: int) -> Phase:
        """The phase that an epoch belongs to."""
        return next((p for p in self.phases if epoch < p.end_epoch or p.num_iterations), self.phases[-1])

    def iterations_per_epoch(self, epoch: int) -> int:
        """Iterations of a whole epoch in its phase."""
        return self._per_epoch(self.phase(epoch))

    def samples_per_iteration(self, epoch: int) -> int:
        """Samples that all ranks together use in an iteration."""
        batch_size = self.phase(epoch).loader.batch_size
        assert batch_size is not None  # batches are made by the loader
        return self.accumulate * batch_size * distributed.world_size()

    def iterations_before(self, epoch: int) -> int:
        """Iterations of all epochs before an epoch."""
        total, begin = 0, self.begin_epoch
        for phase in self.phases:
            end = min(epoch, phase.end_epoch)
            total += self._per_epoch(phase) * (end - begin)
            begin = end
        return total

    def _per_epoch(self, phase: Phase) -> int:
        return len(phase.loader) // self.accumulate
