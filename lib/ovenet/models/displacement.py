"""Recording of displacement fields inside a network, for pictures and tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ovenet.geometry import WarpConvention, normalised_displacement


class Displacement(nn.Module):
    """The identity on a displacement field, which `record_displacements` hooks into.

    Args:
        title: name of the module that predicts the field, for captions.
        convention: units and sampling convention of the field.
    """

    def __init__(self, title: str, convention: WarpConvention):
        super().__init__()
        self.title, self.convention = title, convention

    def forward(self, field: Tensor) -> Tensor:
        """The field ``(B, 2 G, H, W)``."""
        return field


@contextmanager
def record_displacements(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Collects the displacement fields of a model's forward passes, in execution order.

    Yields:
        A list to which pairs of a title and a field are appended. Fields are ``(B, 2, H, W)`` in ``(x, y)``, normalised
        so that the image spans 2, and averaged over groups of channels. Compiled models record none.
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
