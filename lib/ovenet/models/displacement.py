"""Records displacement fields inside a network, for pictures and tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ovenet.geometry import WarpConvention, normalised_displacement


class Displacement(nn.Module):
    """Hands a field of displacements on; see `recorded`.

    Args:
        title: whose it is, for people.
        convention: of its numbers.
    """

    def __init__(self, title: str, convention: WarpConvention):
        super().__init__()
        self.title, self.convention = title, convention

    def forward(self, field: Tensor) -> Tensor:
        """The field ``(B, 2 G, H, W)``."""
        return field


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Collects the displacements of a model's forward passes, in the order in which they are made.

    Yields:
        A list that grows by titles and fields ``(B, 2, H, W)`` in ``(x, y)``, normalised so that the image spans 2; the
        mean where groups of channels have their own. Compiled models give none.
    """
    fields: list[tuple[str, Tensor]] = []

    def note(module: Displacement, _: tuple[Tensor], field: Tensor) -> None:
        mean = field.unflatten(1, (-1, 2)).mean(dim=1)
        fields.append((module.title, normalised_displacement(mean, module.convention)))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, Displacement)]
    try:
        yield fields
    finally:
        for hook in hooks:
            hook.remove()
