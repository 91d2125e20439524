"""Annotations of other programs as masks: labelme's JSON files, and COCO's."""

from ovenet.preparation.annotations.shapes import read_json
from ovenet.preparation.annotations.spans import fill, run_spans
from ovenet.preparation.annotations.write import FORMS, Import, import_annotations

__all__ = ["FORMS", "Import", "fill", "import_annotations", "read_json", "run_spans"]
