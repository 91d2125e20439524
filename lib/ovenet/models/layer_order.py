"""The order of a backbone's layers, for layer-wise learning rate decay (``TRAIN.LR_LAYER_DECAY``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ovenet.utils.meta import meta_device


def count_above(layers: Mapping[str, int]) -> dict[str, int]:
    """How many layers lie between each parameter and the scores, from the layers' numbers, counted from the image.

    Args:
        layers: number of each parameter's layer, by the parameter's name.

    Returns:
        By name: 1 for the last layer, as the head above it counts as one, as in BEiT (Bao et al., 2022); empty if all
        parameters are in one layer.
    """
    order = sorted(set(layers.values()))
    above = {layer: len(order) - place for place, layer in enumerate(order)}
    return {} if len(order) < 2 else {name: above[layer] for name, layer in layers.items()}


def number_layers(module: nn.Module, groups: Any) -> dict[str, int]:
    """Number of each parameter's layer.

    Args:
        module: whose parameters.
        groups: what timm's ``group_matcher`` returns: regular expressions for the start of parameter names. The numbers
            in an expression's groups and in the tuple beside it are the place of the layer; ``(99999,)`` in the place
            of the last number joins the layer before.
    """
    from timm.models import group_parameters  # timm takes a second to import

    return group_parameters(module, groups, reverse=True)


def number_timm_layers(name: str, body: nn.Module, place: str) -> dict[str, int]:
    """Number of each parameter's layer, by the groups that timm has for the whole network.

    Args:
        name: timm's name of the network.
        body: the network without its classifier; where timm flattened it, its names have ``_`` in place of dots.
        place: start of the names to return, such as ``body.``.

    Returns:
        By name; empty if timm has no groups for the network, or not for all of its parameters.
    """
    import timm

    with meta_device():
        whole: Any = timm.create_model(name)
    if not hasattr(whole, "group_matcher"):
        return {}
    numbers = number_layers(whole, whole.group_matcher(coarse=False))
    flattened = {key.replace(".", "_"): number for key, number in numbers.items()}
    names = {key: key.replace(".", "_") for key, _ in body.named_parameters()}
    if not flattened.keys() >= set(names.values()):
        return {}
    return {place + key: flattened[flat] for key, flat in names.items()}
