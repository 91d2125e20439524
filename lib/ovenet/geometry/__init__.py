"""All sampling and resizing of score maps, offsets and labels."""

from ovenet.geometry.carafe import reassemble
from ovenet.geometry.gather import GatherSampling
from ovenet.geometry.grid import pixel_grid
from ovenet.geometry.resample import lookup_labels, refine_offset, sample_bilinear, seed_position
from ovenet.geometry.resize import average_pool, resize_bilinear, resize_features, spatial_size
from ovenet.geometry.scores import at_least_float32, normalised, probabilities, tempered
from ovenet.geometry.separable import add_resized_rows_gradient, interpolation_weights, resize_rows, source_rows
from ovenet.geometry.warp import FLOW_ALIGNMENT, FREQ_FUSION, OVENET, SRM, WarpConvention, normalised_displacement, warp

__all__ = [
    "FLOW_ALIGNMENT",
    "FREQ_FUSION",
    "OVENET",
    "SRM",
    "GatherSampling",
    "WarpConvention",
    "add_resized_rows_gradient",
    "at_least_float32",
    "average_pool",
    "interpolation_weights",
    "lookup_labels",
    "normalised",
    "normalised_displacement",
    "pixel_grid",
    "probabilities",
    "reassemble",
    "refine_offset",
    "resize_bilinear",
    "resize_features",
    "resize_rows",
    "sample_bilinear",
    "seed_position",
    "source_rows",
    "spatial_size",
    "tempered",
    "warp",
]
