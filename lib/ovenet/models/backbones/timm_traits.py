"""What a network of timm can do, and the blocks and weights of its plain vision transformers.

A plain vision transformer has maps of one stride, that of its patches: one map after each block.
"""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
from torch import Tensor, nn

from ovenet.errors import UserError
from ovenet.structures import Size
from ovenet.utils.meta import meta_device

NUM_READ = 4  # blocks that are read unless some are chosen
_ANY_SIZE = ("mvitv2", "twins", "vision_transformer_sam", "xcit")  # timm's modules that need no option for it
_UNDECAYED = {"cls_token", "pos_embed", "reg_token"}  # timm 1.0.22 forgets the last one


@dataclass(frozen=True)
class TimmTraits:
    """What is known of a network before it is built.

    Attributes:
        stride: of every map of a plain transformer; None for a network of stages.
        num_blocks: of a plain transformer.
        size_options: timm's options with which the network takes images of any size; None if it takes only one size.
        undecayed: names of the parameters that timm excludes from weight decay, for plain transformers.
    """

    stride: int | None = None
    num_blocks: int = 0
    size_options: Mapping[str, bool] | None = None
    undecayed: tuple[str, ...] = ()


@lru_cache
def timm_traits(name: str) -> TimmTraits:
    """What a network can do, from one without values; nothing is known of one that timm cannot build by default."""
    try:
        with meta_device():
            network: Any = timm.create_model(name)
    except Exception:  # timm may raise anything; building it for good says what is wrong
        return TimmTraits()
    strides = [info["reduction"] for info in getattr(network, "feature_info", ())]
    size_options = _size_options(name, type(network))
    if len(strides) < 2 or len(set(strides)) > 1 or not hasattr(network, "prune_intermediate_layers"):
        return TimmTraits(size_options=size_options)
    declared: set[str] = getattr(network, "no_weight_decay", set)()
    parameters = dict(network.named_parameters())
    undecayed = sorted(parameter for parameter in declared | _UNDECAYED if parameter in parameters)
    return TimmTraits(strides[0], len(strides), size_options, tuple(undecayed))


def _size_options(name: str, network: type[nn.Module]) -> Mapping[str, bool] | None:
    """See `TimmTraits.size_options`."""
    arguments = inspect.signature(network).parameters
    if "strict_img_size" in arguments:  # windows: positions are relative, within a window
        return {"strict_img_size": False}
    if "dynamic_img_size" in arguments:  # positions are resampled, or rotary
        return {"dynamic_img_size": True}
    defaults = timm.get_pretrained_cfg(name)
    is_fixed = defaults is not None and defaults.fixed_input_size
    return None if is_fixed and not network.__module__.endswith(_ANY_SIZE) else {}


def choose_blocks(name: str, blocks: Sequence[int] | None, traits: TimmTraits) -> tuple[int, ...]:
    """The blocks whose maps are read; by default four at equal distances that end with the last.

    Args:
        name: timm's name, for messages.
        blocks: numbers of blocks, from 0; None for the default.
        traits: of a plain transformer.

    Raises:
        UserError: a block does not exist, or they are not in ascending order.
    """
    num_blocks = traits.num_blocks
    if blocks is None:
        num_read = min(NUM_READ, num_blocks)
        return tuple(num_blocks * (i + 1) // num_read - 1 for i in range(num_read))
    if not blocks or any(not 0 <= block < num_blocks for block in blocks):
        raise UserError(
            f"MODEL.BACKBONE.BLOCKS is {list(blocks)}; expected some of the blocks 0 to {num_blocks - 1} that "
            f"{name} has"
        )
    if list(blocks) != sorted(set(blocks)):
        raise UserError(f"MODEL.BACKBONE.BLOCKS is {list(blocks)}; expected ascending numbers, each once")
    return tuple(blocks)


def require_no_stages(name: str, traits: TimmTraits, *, output_stride: int, img_size: Size | None) -> None:
    """Refuses settings that do not go with a plain transformer.

    Raises:
        UserError: a dilation, or a size that is not a multiple of the patches'.
    """
    if output_stride != 32:
        raise UserError(
            f"MODEL.BACKBONE.OUTPUT_STRIDE is {output_stride}, but every map of {name} has the stride of its patches, "
            f"{traits.stride}; leave it away (finer maps: MODEL.NECK.NAME simple_fpn or pixel_shuffle)"
        )
    if img_size is not None and any(length % (traits.stride or 1) for length in img_size):
        raise UserError(
            f"MODEL.BACKBONE.IMG_SIZE is {list(img_size)}; expected multiples of {traits.stride}, the patch size of "
            f"{name}"
        )


def feature_getter(body: nn.Module) -> Any:
    """The whole network inside timm's ``FeatureGetterNet``; None for a body of another kind."""
    network = getattr(body, "model", None)
    return network if hasattr(network, "forward_intermediates") else None


def convert_weights(network: Any, state: Mapping[str, Tensor], own: str) -> Mapping[str, Tensor]:
    """Converts a file's tensors by timm's own function for the network, which knows the authors' names too.

    It resamples positions of another grid, and patches of another size.

    Args:
        network: of timm.
        state: tensors by timm's names, the authors' or our own; returned as it is if it holds another model.
        own: our prefix of timm's names.

    Raises:
        UserError: positions of another grid cannot be resampled.
    """
    state = {name.removeprefix("module.").removeprefix("model."): tensor for name, tensor in state.items()}
    prefix = own if any(name.startswith(own) for name in state) else ""
    if not prefix and any(name.startswith("backbone.") for name in state):
        return state
    tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    others = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    converter = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if converter is not None:
        try:
            with redirect_stdout(io.StringIO()):  # it prints its exceptions
                tensors = converter(dict(tensors), network)
        except Exception:  # of another network, or positions that are checked below
            pass
    _require_positions(network, tensors)
    return {**others, **{prefix + name: tensor for name, tensor in tensors.items()}}


def _require_positions(network: Any, tensors: Mapping[str, Tensor]) -> None:
    """Refuses positions of another grid: without them the network would begin with random ones.

    Raises:
        UserError: a tensor of positions has another length.
    """
    for name, expected in network.state_dict().items():
        found = tensors.get(name)
        if found is None or "pos" not in name or found.shape == expected.shape:
            continue
        if found.ndim == expected.ndim and found.shape[-1] == expected.shape[-1]:  # else of another network
            raise UserError(
                f"{name} has the shape {tuple(found.shape)} in the file and {tuple(expected.shape)} here, and these "
                "positions cannot be resampled; set MODEL.BACKBONE.IMG_SIZE [height, width] to the size that the file "
                "was trained with"
            )
