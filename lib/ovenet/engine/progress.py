"""What a person sees of a running epoch: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ovenet.structures import LossTerms
from ovenet.utils import distributed
from ovenet.utils.logging import FILE_ONLY, get_logger

SILENCE_S = 60.0  # after which a line tells that a run goes on
T = TypeVar("T")


class Meter:
    """Means over the iterations since it was made."""

    def __init__(self) -> None:
        self.num_steps = 0
        self._sums: dict[str, Tensor] = {}  # on the device: reading them every iteration would stall it
        self._num_images = 0
        self._started = time.perf_counter()

    def add(self, loss: LossTerms, num_images: int) -> None:
        """Counts one iteration of `num_images` images over all processes."""
        self.num_steps += 1
        self._num_images += num_images
        values = {"loss": loss.total.detach(), **{f"loss_{name}": value for name, value in loss.terms.items()}}
        self._sums = {name: value + self._sums.get(name, 0.0) for name, value in values.items()}

    def __len__(self) -> int:
        return self.num_steps

    def summary(self) -> dict[str, float]:
        """``loss`` and ``loss_<term>``, means over all processes, and ``images_per_second`` with the waiting for data.

        Reached by every process.
        """
        sums = distributed.all_reduce_sum(torch.stack([value.double() for value in self._sums.values()]))
        values = (sums / (self.num_steps * distributed.world_size())).tolist()
        means = dict(zip(self._sums, values, strict=True))
        return {**means, "images_per_second": self._num_images / (time.perf_counter() - self._started)}


def track(items: Iterable[T], title: str, num_items: int, *, print_freq: int, enabled: bool) -> Iterator[T]:
    """Passes items on and shows how many are done: a bar on a terminal, log lines elsewhere.

    Args:
        items: what to pass on.
        title: what is going on.
        num_items: how many there are.
        print_freq: items between log lines.
        enabled: False shows nothing.
    """
    has_bar = enabled and sys.stderr.isatty()
    started = time.perf_counter()
    for done, item in enumerate(tqdm(items, title, num_items, disable=not has_bar, dynamic_ncols=True), start=1):
        yield item
        if enabled and not has_bar and (done % print_freq == 0 or done == num_items):
            seconds = time.perf_counter() - started
            eta = timedelta(seconds=round(seconds / done * (num_items - done)))
            get_logger().info("%s: %d/%d, %.2f s each, ETA %s", title, done, num_items, seconds / done, eta)


class WaitingClock:
    """Tells the time spent waiting for items from the time spent on them."""

    BOUND = 0.2  # share of waiting from which more or faster loading processes pay

    def __init__(self) -> None:
        self.waited_s = 0.0
        self._started = time.perf_counter()

    @property
    def total_s(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started

    @property
    def waiting_share(self) -> float:
        """Of the time so far, in ``[0, 1]``."""
        return self.waited_s / self.total_s

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Passes items on and counts the time until each one is there, but for the first: it starts the processes."""
        iterator, is_first = iter(items), True
        while True:
            asked = time.perf_counter()
            item = next(iterator, None)
            if item is None:
                return
            if is_first:
                self._started, is_first = time.perf_counter(), False
            else:
                self.waited_s += time.perf_counter() - asked
            yield item

    def __str__(self) -> str:
        verdict = "data-bound: raise WORKERS" if self.waiting_share > self.BOUND else "compute-bound"
        return f"{self.total_s:.1f} s, {self.waiting_share:.0%} of it waiting for data, {verdict}"


class Progress:
    """Progress of one epoch on process 0; a context manager.

    Args:
        title: what is going on.
        num_steps: iterations of the epoch.
        done: how many were done before.
        enabled: False shows nothing.
    """

    def __init__(self, title: str, num_steps: int, *, done: int = 0, enabled: bool):
        self.title = title
        self.num_steps = num_steps
        self.enabled = enabled
        self._started = time.perf_counter()
        self._has_bar = enabled and sys.stderr.isatty()
        self._done, self._done_before = done, done
        self._told = self._started
        self._bar = tqdm(
            total=num_steps, initial=done, desc=title, disable=not self._has_bar, dynamic_ncols=True, leave=False
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, later_steps: int = 0) -> None:
        """Counts one iteration; says so where nothing was said for a minute, as in slow runs.

        Args:
            later_steps: iterations of the epochs to come.
        """
        self._done += 1
        self._bar.update()
        if self.enabled and time.perf_counter() - self._told > SILENCE_S:
            seconds, eta = self._pace(self._done, later_steps)
            get_logger().info(
                "%s, iteration %d/%d: %.1f s each, ETA %s", self.title, self._done, self.num_steps, seconds, eta,
                extra={FILE_ONLY: self._has_bar},
            )  # fmt: skip
            self._told = time.perf_counter()

    def _pace(self, step: int, later_steps: int) -> tuple[float, timedelta]:
        """Seconds per step, and the time to the end of the run."""
        seconds = (time.perf_counter() - self._started) / (step - self._done_before)
        return seconds, timedelta(seconds=round(seconds * (self.num_steps - step + later_steps)))

    def report(self, step: int, summary: Mapping[str, float], lr: float, later_steps: int) -> None:
        """Shows the loss, the learning rate and the time to the end of the run.

        Args:
            step: iterations of this epoch that are done.
            summary: from `Meter.summary`.
            lr: learning rate.
            later_steps: iterations of the epochs to come.
        """
        if not self.enabled:
            return
        _, eta = self._pace(step, later_steps)
        self._told = time.perf_counter()
        if self._has_bar:
            self._bar.set_postfix_str(f"loss {summary['loss']:.4f} lr {lr:.5f} ETA {eta}")
        terms = " ".join(f"{name[5:]} {value:.4f}" for name, value in summary.items() if name.startswith("loss_"))
        get_logger().info(
            "%s, iteration %d/%d: loss %.4f (%s) lr %.6f, %.1f images/s, ETA %s",
            self.title,
            step,
            self.num_steps,
            summary["loss"],
            terms,
            lr,
            summary["images_per_second"],
            eta,
            extra={FILE_ONLY: self._has_bar},
        )
