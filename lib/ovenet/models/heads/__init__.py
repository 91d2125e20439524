"""Heads: class scores from the maps of a neck."""

from ovenet.models.heads.fcn import ConvHead, FCNHead
from ovenet.models.heads.light_ham import LightHamHead
from ovenet.models.heads.mask2former import Mask2FormerHead
from ovenet.models.heads.ocr import OCRHead
from ovenet.models.heads.offset_learning import OffsetLearningHead
from ovenet.models.heads.segformer import SegFormerHead

__all__ = [
    "ConvHead",
    "FCNHead",
    "LightHamHead",
    "Mask2FormerHead",
    "OCRHead",
    "OffsetLearningHead",
    "SegFormerHead",
]
