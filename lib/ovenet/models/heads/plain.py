"""The head of HRNetV2."""

from __future__ import annotations

from torch import Tensor, nn

CLASSIFIER_WEIGHT_STD = 0.01  # scores start near zero, all classes about equally likely


class PlainHead(nn.Module):
    """Convolution, BatchNorm, ReLU, and a convolution to the class scores.

    Args:
        in_channels: channels of the features.
        num_classes: ``K``.
        final_kernel: size of the last convolution, 1 or 3 (``MODEL.EXTRA.FINAL_CONV_KERNEL``).
    """

    num_outputs = 1

    def __init__(self, in_channels: int, num_classes: int, *, final_kernel: int = 1):
        super().__init__()
        self.layers = projection(in_channels, num_classes, final_kernel)

    def reset_prediction(self) -> None:
        """Initialises the last convolution so that training starts from about equal class probabilities."""
        reset_predictor(self.layers[-1], CLASSIFIER_WEIGHT_STD)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, h, w)`` to one map ``(B, K, h, w)`` of logits."""
        return (self.layers(features),)


def projection(in_channels: int, out_channels: int, final_kernel: int = 1) -> nn.Sequential:
    """The two-convolution predictor that every head of the published models ends in or begins with."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 1),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, final_kernel, padding=final_kernel // 2),
    )


def reset_predictor(conv: nn.Conv2d, std: float) -> None:
    """Small normal weights and a zero bias, for a convolution whose output is a prediction."""
    nn.init.normal_(conv.weight, std=std)
    nn.init.zeros_(conv.bias)
