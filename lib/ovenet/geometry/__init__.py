"""All sampling and resizing of score maps, offsets and labels."""

from ovenet.geometry.grid import pixel_grid
from ovenet.geometry.resample import lookup_labels, refine_offset, sample_bilinear, seed_position
from ovenet.geometry.resize import resize_bilinear

__all__ = ["lookup_labels", "pixel_grid", "refine_offset", "resize_bilinear", "sample_bilinear", "seed_position"]
