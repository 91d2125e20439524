"""Parts that predict: class scores, or offsets with their confidence."""

from ovenet.models.heads.ocr import OCRHead
from ovenet.models.heads.offset import OffsetHead
from ovenet.models.heads.plain import PlainHead

__all__ = ["OCRHead", "OffsetHead", "PlainHead"]
