"""Pairs of images and labels, drawn and audited."""

import numpy as np
from PIL import Image

from ovenet.audit import audit_list
from ovenet.data.info import DatasetInfo

FIVE = DatasetInfo("five", tuple("abcde"), tuple((i, i, i) for i in range(5)), tuple(range(5)))
RNG = np.random.default_rng(0)


def bands_of(values):
    """``(16, 20)`` uint8, or ``(16, 20, 3)`` of colours: four rows of each of four values."""
    return np.repeat(np.array(values, np.uint8), 4, axis=0)[:, None].repeat(20, axis=1)


class Data:
    """A folder of pairs whose labels are given as ids of four horizontal bands."""

    def __init__(self, folder):
        self.folder, self.pairs = folder, []

    def add(self, bands, *, image=None, label=None, name=None, label_suffix=".png", **save):
        """Adds a pair; `image` and `label` (pixels, a picture, or a file's bytes) replace the usual content."""
        name = name or str(len(self.pairs))
        ids = bands_of(bands)
        image = RNG.integers(0, 256, (*ids.shape, 3)).astype(np.uint8) if image is None else image
        label, label_name = ids if label is None else label, f"{name}_label{label_suffix}"
        for path, content, options in ((f"{name}.png", image, {}), (label_name, label, save)):
            if isinstance(content, bytes):
                (self.folder / path).write_bytes(content)
                continue
            content = Image.fromarray(content) if isinstance(content, np.ndarray) else content
            content.save(self.folder / path, **options)
        self.pairs.append((f"{name}.png", label_name))
        return self

    def audit(self, info=FIVE, **options):
        return audit_list("train", self.folder, self.pairs, info, num_threads=2, **options)

    def found(self, info=FIVE, **options):
        """What is found beside classes that do not occur."""
        return [finding for finding in self.audit(info, **options).findings if finding.kind != "absent class"]

    def errors(self, info=FIVE, **options):
        return [(f.kind, f.message, f.paths) for f in self.audit(info, **options).findings if f.is_error]

    def notes(self, info=FIVE, **options):
        return {f.kind: f.message for f in self.audit(info, **options).findings if not f.is_error}


def only(findings):
    assert len(findings) == 1, findings
    return findings[0]
