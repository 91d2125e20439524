"""A pipeline of Albumentations (https://albumentations.ai) as the transform of a dataset.

The package itself is not imported: a pipeline is called as all of its releases call it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ovenet.errors import UserError
from ovenet.structures import Sample

_LARGEST_SEED = 2**32


def is_albumentations(transform: object) -> bool:
    """Whether an object is a pipeline or a single transform of Albumentations."""
    return any(cls.__module__.split(".")[0] == "albumentations" for cls in type(transform).__mro__)


class AlbumentationsTransform:
    """Transforms image and mask together.

    Args:
        pipeline: ``albumentations.Compose([…])``, without ``Normalize`` and ``ToTensorV2``. Transforms that add pixels
            should give them the ignored label: ``fill_mask=255`` (``mask_value`` in earlier releases).
    """

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """One variant of a sample.

        Args:
            sample: with labels.
            rng: seeds the pipeline where it can be seeded, since release 1.4.21; earlier ones draw from Python's and
                numpy's generators.

        Raises:
            UserError: the pipeline returns no uint8 image, or a mask of another size.
        """
        if hasattr(self.pipeline, "set_random_seed"):
            self.pipeline.set_random_seed(int(rng.integers(_LARGEST_SEED)))
        out = self.pipeline(image=sample.image, mask=sample.labels)
        image, labels = out["image"], out["mask"]
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = getattr(image, "dtype", type(image).__name__)
            raise UserError(
                f"the Albumentations pipeline returns an image of {kind}; leave A.Normalize and ToTensorV2 away, the "
                "dataset does both"
            )
        if labels.shape != image.shape[:2]:
            raise UserError(
                f"the Albumentations pipeline returns an image of {image.shape[:2]} and a mask of {labels.shape}; "
                "expected one size"
            )
        return replace(sample, image=image, labels=labels.astype(np.int16))
