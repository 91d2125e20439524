"""Settings of inference: how an image is run through the network."""

from __future__ import annotations

from dataclasses import dataclass

from ovenet.data.settings import LARGEST_SIDE
from ovenet.fields import setting
from ovenet.models.settings import PRECISIONS

LARGEST_SCALE = 100


@dataclass(frozen=True)
class InferenceKeys:
    """How an image is run through the network. Sizes are ``[width, height]`` in pixels."""

    image_size: tuple[int, ...] = setting(
        (2048, 1024),
        "window, [width, height]; images that fit, or whose dataset says so, are run whole",
        in_test=True,
    )
    stride: tuple[int, ...] = setting(
        (), "[width, height] between overlapping windows; [] for adjacent ones", in_test=True
    )
    base_size: int = setting(
        2048,
        "long side of the image at scale 1; its short side for datasets whose rule says so; 0 is the image's own",
        at_least=0,
        at_most=LARGEST_SIDE,
        in_test=True,
    )
    base_box: tuple[int, ...] = setting(
        (),
        "[long, short] side that the image fits into at scale 1, run whole; [] as the dataset is evaluated",
        in_test=True,
    )
    protocol: str = setting(
        "default",
        "sizes and windows: the dataset's, or those of the public code (ovenet, hrnet)",
        one_of=("default", "ovenet", "hrnet"),
        in_test=True,
    )
    scale_list: tuple[float, ...] = setting((1.0,), "scales whose scores are averaged", in_test=True)
    flip_test: bool = setting(False, "average with the flipped image", in_test=True)
    score: str = setting(
        "softmax",
        "averaged over scales: softmax; exp as HRNet and OVeNet do; mmseg: softmax of each flip",
        one_of=("softmax", "exp", "mmseg"),
        in_test=True,
    )
    output_index: int = setting(
        -1, "which score map is scored: -1 the final one, 0 the auxiliary one (OCR)", in_test=True
    )
    batch_size_per_gpu: int = setting(
        0,
        "windows and views per forward pass; 0 is 1, on CUDA as many as have 2^22 pixels together, at least 2",
        at_least=0,
        at_most=2**16,
        role="speed",
    )
    precision: str = setting(
        "fp32",
        "precision of convolutions; everything after the network is float32",
        one_of=PRECISIONS,
        in_test=True,
    )
    tf32: bool = setting(
        True,
        "CUDA: float32 convolutions and matrix products read 10 bits of mantissa; False to compare scores",
        in_test=True,
    )
    cuda_graph: str = setting(
        "auto",
        "CUDA: auto launches batches of a recurring size as CUDA graphs",
        one_of=("auto", "off"),
        role="speed",
    )
    fuse_conv_bn: bool = setting(
        True, "fuse BatchNorm into convolutions: faster, scores differ in the last digits", in_test=True
    )
    compile: str = setting(
        "none",
        "torch.compile; minutes per size",
        one_of=("none", "default", "reduce-overhead", "max-autotune"),
        role="speed",
        in_test=True,
    )
    runtime: str = setting(
        "torch",
        "on the CPU also onnxruntime, openvino, or auto, the fastest one installed",
        one_of=("auto", "torch", "onnxruntime", "openvino"),
        in_test=True,
    )
    temperature: float | str = setting(
        "none",
        "of the class probabilities: none; fitted, the file that calibrate wrote beside the weights; or a number",
        in_test=True,
    )
