"""A segmentation model put together from its parts."""

from __future__ import annotations

from torch import Tensor, nn

from ovenet.models.fusion import SeedFusion
from ovenet.models.heads import OCRHead, OffsetHead, PlainHead
from ovenet.structures import OVeNetOutput


class Segmentor(nn.Module):
    """Backbone, neck and head; with an offset head and seed fusion it is an OVeNet, without them the baseline.

    Args:
        backbone: image to `BackboneFeatures`.
        neck: the backbone's maps to one map.
        head: that map to a tuple of logits, the final one last.
        offset_neck: the same for the offset branch.
        offset_head: to offsets and confidence.
        fusion: how the seed's scores are used.

    Raises:
        ValueError: some of the three offset parts are given and others are not.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        *,
        offset_neck: nn.Module | None = None,
        offset_head: OffsetHead | None = None,
        fusion: SeedFusion | None = None,
    ):
        super().__init__()
        offset_parts = (offset_neck, offset_head, fusion)
        if any(offset_parts) != all(offset_parts):
            raise ValueError("offset_neck, offset_head and fusion go together: give all of them or none")
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.offset_neck = offset_neck
        self.offset_head = offset_head
        self.fusion = fusion
        self.frozen_parts: tuple[str, ...] = ()
        initialize(self)

    def forward(self, images: Tensor) -> OVeNetOutput:
        """Predicts at stride 4.

        Args:
            images: ``(B, 3, H, W)`` RGB, normalised by `ovenet.data.transforms.normalize_images`; any size.
        """
        features = self.backbone(images)
        scores = self.head(self.neck(features.main))
        if self.fusion is None:
            return OVeNetOutput(initial=scores, seed=(), fused=scores)
        offset, confidence = self.offset_head(self.offset_neck(features.offset))
        return self.fusion(scores, offset, confidence)

    def train(self, mode: bool = True) -> Segmentor:
        """Like `torch.nn.Module.train`, but frozen parts stay in evaluation mode, so that their statistics rest."""
        super().train(mode)
        for name in self.frozen_parts:
            self.get_submodule(name).eval()
        return self


def initialize(model: nn.Module) -> None:
    """Random start: He et al. (2015) for convolutions, small weights for those that predict.

    Args:
        model: changed in place.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, (PlainHead, OCRHead, OffsetHead)):
            module.reset_prediction()
