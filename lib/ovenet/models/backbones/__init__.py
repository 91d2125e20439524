"""Feature extractors. Importing this registers all but timm's, which are looked up by name."""

from ovenet.models.backbones import conv_attention, efficientformer, lite0, mit, resnet, swin
from ovenet.models.backbones.hrnet import HRNet, HRNetTail
from ovenet.models.backbones.resnet import ResNet
from ovenet.models.hrnet_stages import StageSpec

__all__ = [
    "HRNet",
    "HRNetTail",
    "ResNet",
    "StageSpec",
    "conv_attention",
    "efficientformer",
    "lite0",
    "mit",
    "resnet",
    "swin",
]
