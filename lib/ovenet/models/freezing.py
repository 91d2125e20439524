"""Training the offset branch alone (``MODEL.FREEZED_PAR``)."""

from __future__ import annotations

from ovenet.models.segmentor import Segmentor


def freeze_main_network(model: Segmentor) -> None:
    """Freezes everything but the offset branch and the offset head: weights, BatchNorm statistics and dropout.

    Args:
        model: an OVeNet, changed in place.

    Raises:
        ValueError: the model has no offset branch, so that nothing would be left to train.
    """
    if model.offset_head is None:
        raise ValueError(
            "MODEL.FREEZED_PAR trains the offset branch alone, but this model has none; set MODEL.EXTRA.OFFSET_BRANCH"
        )
    branch = set(model.backbone.offset_modules())
    trunk = [f"backbone.{name}" for name, _ in model.backbone.named_children() if name not in branch]
    model.frozen_parts = (*trunk, "neck", "head")
    for name in model.frozen_parts:
        model.get_submodule(name).requires_grad_(False)
    model.train(model.training)
