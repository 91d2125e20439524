"""Every published test, by a slow oracle that follows its public code step by step, against the files of that name.

Public code: HRNet-Semantic-Segmentation (branch HRNet-OCR), OVeNet, mmsegmentation. The first two resize normalised
pixels in floating point, this project resizes bytes: here, where segments are blobs of some pixels, that changes 0.3 %
of the labels, and nothing where the oracle does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.shipped import EXPERIMENTS, experiment_name, shipped
from torch import Tensor, nn
from yacs.config import CfgNode

from ovenet.builders import dataset_info
from ovenet.builders.inference import inference_settings
from ovenet.config import load_config
from ovenet.data.catalog import CATALOG
from ovenet.data.transforms import IMAGENET
from ovenet.inference.inferencer import SlidingWindowInferencer
from ovenet.structures import OVeNetOutput

MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
BLACK = -MEAN / STD
SWAPPED = {14: 15, 15: 14, 16: 17, 17: 16, 18: 19, 19: 18}  # classes of LIP: arms, legs, shoes


class Network(nn.Module):
    """Random weights; a pixel's scores depend on its surroundings, and a little on all that the network is given."""

    def __init__(self, num_classes: int):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        distance = torch.arange(-4, 5).abs().float()
        self.blur = (
            torch.exp(-(distance[:, None] ** 2 + distance**2) / 8) / 25
        )  # of random details alone, labels are noise
        self.first = (
            torch.randn(16, 3, 1, 1, generator=draw) * self.blur + torch.randn(16, 3, 9, 9, generator=draw) / 200
        )
        self.bias = torch.randn(16, generator=draw) / 2
        self.second = torch.randn(num_classes, 16, 3, 3, generator=draw).mean((2, 3), keepdim=True).expand(-1, -1, 3, 3)
        self.context = torch.randn(num_classes, 16, generator=draw) / 4

    def forward(self, images: Tensor) -> OVeNetOutput:
        features = F.conv2d(images, self.first, self.bias, stride=2, padding=4).relu()
        context = (features.mean(dim=(2, 3)) @ self.context.T)[..., None, None]
        scores = F.conv2d(features, self.second, stride=2, padding=1) + context
        return OVeNetOutput((scores,), (), (scores,))


def photo(height: int, width: int) -> np.ndarray:
    """Blobs of colour, some hundred pixels of every class."""
    noise = np.random.default_rng(height).integers(0, 256, (height // 16, width // 16, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def rounded(number: float) -> int:
    return int(number + 0.5)


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


def upsampled(scores: Tensor, height: int, width: int, corners: bool) -> Tensor:
    return F.interpolate(scores, (height, width), mode="bilinear", align_corners=corners)


def normalised(image: np.ndarray) -> np.ndarray:
    return (image.astype(np.float32) / 255 - MEAN) / STD


def run(network: nn.Module, pixels: np.ndarray) -> Tensor:
    """Scores of one input ``(H, W, 3)``, at the network's stride."""
    return network(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]).fused[-1]


class PublicTest:
    """HRNet's and OVeNet's: exponentials of scores, averaged over windows and summed over scales.

    Args:
        network: see `Network`.
        base: long side at scale 1.
        crop: ``(H, W)`` of a window.
        flip: average the scores of both views.
        swap: classes that change places in the flipped view.
        corners: convention of the upsampling.
        as_bytes: resize bytes, as it is done here.
    """

    def __init__(
        self,
        network: nn.Module,
        base: int,
        crop: tuple[int, int],
        *,
        flip: bool,
        swap: dict[int, int],
        corners: bool,
        as_bytes: bool,
    ):
        self.network, self.base, self.crop, self.flip, self.swap = network, base, crop, flip, swap
        self.corners, self.as_bytes = corners, as_bytes

    def exponentials(self, pixels: np.ndarray) -> Tensor:
        height, width = pixels.shape[:2]
        scores = upsampled(run(self.network, pixels), height, width, self.corners)
        if self.flip:
            flipped = upsampled(run(self.network, pixels[:, ::-1]), height, width, self.corners)
            order = [self.swap.get(index, index) for index in range(scores.shape[1])]
            scores = (scores + flipped[:, order].flip(3)) / 2
        return scores.exp()

    def long_side(self, pixels: np.ndarray, scale: float) -> np.ndarray:
        height, width = pixels.shape[:2]
        side = rounded(self.base * scale)
        size = (side, rounded(width * side / height)) if height > width else (rounded(height * side / width), side)
        if self.as_bytes:
            grey_levels = np.rint((pixels * STD + MEAN) * 255).astype(np.uint8)
            return normalised(resized(grey_levels, *size))
        return resized(pixels, *size)

    def black_below(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        out = np.empty((max(height, self.crop[0]), max(width, self.crop[1]), 3), np.float32)
        out[:] = BLACK
        out[:height, :width] = pixels
        return out

    def padded_windows(self, pixels: np.ndarray, scale: float) -> Tensor:
        """The base class of HRNet's datasets."""
        height, width = pixels.shape[:2]
        canvas = self.black_below(pixels)
        full_height, full_width = canvas.shape[:2]
        if max(height, width) <= min(self.crop):
            return self.exponentials(canvas)[..., :height, :width]
        total, count, top = 0.0, torch.zeros(full_height, full_width), 0
        while True:
            left = 0
            while True:
                cut = canvas[top : top + self.crop[0], left : left + self.crop[1]]
                seen = self.exponentials(self.black_below(cut))[..., : cut.shape[0], : cut.shape[1]]
                borders = (left, full_width - left - cut.shape[1], top, full_height - top - cut.shape[0])
                total = total + F.pad(seen, borders)
                count[top : top + cut.shape[0], left : left + cut.shape[1]] += 1
                if left + self.crop[1] >= full_width:
                    break
                left += int(self.crop[1] * 2.0 / 3.0)
            if top + self.crop[0] >= full_height:
                break
            top += int(self.crop[0] * 2.0 / 3.0)
        return (total / count)[..., :height, :width]

    def shifted_windows(self, pixels: np.ndarray, scale: float) -> Tensor:
        """Cityscapes and ACDC, and OVeNet's ADE20K: whole up to scale 1, then side by side, the last shifted inward."""
        height, width = pixels.shape[:2]
        if scale <= 1:
            return self.exponentials(pixels)
        total, count = 0.0, torch.zeros(height, width)
        for row in range(max(1, -(-height // self.crop[0]))):
            for column in range(max(1, -(-width // self.crop[1]))):
                bottom, right = min((row + 1) * self.crop[0], height), min((column + 1) * self.crop[1], width)
                top, left = max(bottom - self.crop[0], 0), max(right - self.crop[1], 0)
                seen = self.exponentials(pixels[top:bottom, left:right])
                total = total + F.pad(seen, (left, width - right, top, height - bottom))
                count[top:bottom, left:right] += 1
        return total / count

    def sum_over_scales(self, pixels: np.ndarray, scales: tuple[float, ...], windows: str) -> Tensor:
        height, width = pixels.shape[:2]
        total = torch.zeros(1)
        for scale in scales:
            scores = getattr(self, windows)(self.long_side(pixels, scale), scale)
            total = total + upsampled(scores, height, width, self.corners)
        return total

    def own_size(self, image: np.ndarray, scales: tuple[float, ...], windows: str) -> Tensor:
        """Cityscapes, ACDC, PASCAL-Context."""
        return self.sum_over_scales(normalised(image), scales, windows)[0].argmax(0)

    def short_side_first(self, image: np.ndarray, scales: tuple[float, ...], windows: str, *, cut: bool) -> Tensor:
        """ADE20K, which leaves the padding in, and COCO-Stuff, which cuts it off."""
        height, width = image.shape[:2]
        factor = self.base / min(height, width)
        small = resized(
            image, *(self.base if n == min(height, width) else rounded(n * factor) for n in (height, width))
        )
        padding = [-n % 8 for n in small.shape[:2]]
        grey = [round(value * 255) for value in MEAN.tolist()]
        full = cv2.copyMakeBorder(small, 0, padding[0], 0, padding[1], cv2.BORDER_CONSTANT, value=grey)
        total = self.sum_over_scales(normalised(full), scales, windows)
        total = total[..., : small.shape[0], : small.shape[1]] if cut else total
        return upsampled(total, height, width, self.corners)[0].argmax(0)

    def stretched_first(self, image: np.ndarray, scales: tuple[float, ...], windows: str) -> Tensor:
        """LIP."""
        total = self.sum_over_scales(normalised(resized(image, *self.crop)), scales, windows)
        return upsampled(total, *image.shape[:2], self.corners)[0].argmax(0)


def slide(network: nn.Module, pixels: np.ndarray, crop: int, stride: int) -> Tensor:
    """mmsegmentation's windows: logits averaged where they overlap, the last window of an axis shifted inward."""
    height, width = pixels.shape[:2]
    total, count = 0.0, torch.zeros(height, width)
    for row in range(max(0, -((crop - height) // stride)) + 1):
        for column in range(max(0, -((crop - width) // stride)) + 1):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            seen = upsampled(run(network, pixels[top:bottom, left:right]), bottom - top, right - left, False)
            total = total + F.pad(seen, (left, width - right, top, height - bottom))
            count[top:bottom, left:right] += 1
    return total / count


def mmsegmentation(
    network: nn.Module,
    image: np.ndarray,
    box: tuple[int, int],
    scales: tuple[float, ...],
    *,
    flip: bool,
    windows: tuple[int, int] | None = None,
) -> Tensor:
    """Every view whole or in windows, its scores brought to the size of the image, probabilities averaged."""
    height, width = image.shape[:2]
    total = torch.zeros(1)
    for scale in scales:
        long, short = (int(side * scale) for side in box)
        factor = min(long / max(height, width), short / min(height, width))
        view = normalised(resized(image, rounded(height * factor), rounded(width * factor)))
        for is_flipped in (False, True) if flip else (False,):
            pixels = view[:, ::-1] if is_flipped else view
            scores = slide(network, pixels, *(windows or (max(view.shape), max(view.shape))))
            scores = upsampled(scores, height, width, False).softmax(1)
            total = total + (scores.flip(3) if is_flipped else scores)
    return total[0].argmax(0)


SCALES = (0.5, 1.0, 1.25, 2.0)
SMALL = ("TEST.BASE_SIZE", 72, "TEST.IMAGE_SIZE", [72, 72])  # of 520, for speed
WIDE = ("TEST.BASE_SIZE", 192, "TEST.IMAGE_SIZE", [192, 96])
VIEWS = pytest.mark.parametrize(
    ("size", "scales", "flip"),
    [((91, 122), (1.0,), False), ((91, 122), SCALES, True), ((138, 100), SCALES, False), ((138, 100), (1.0,), True)],
)


def predicted(
    experiment: str, image: np.ndarray, *overrides: object, single_scale: bool = False
) -> tuple[CfgNode, Tensor]:
    """What the test of an experiment makes of an image."""
    cfg = load_config(EXPERIMENTS / f"{experiment}.yaml", [str(value) for value in overrides])
    settings = inference_settings(cfg, dataset_info(cfg), IMAGENET, single_scale=single_scale)
    predictor = SlidingWindowInferencer(Network(cfg.DATASET.NUM_CLASSES), settings, torch.device("cpu"))
    return cfg, predictor.predict(image).labels["fused"].long()


def several(scales: tuple[float, ...], flip: bool) -> tuple[object, ...]:
    return ("TEST.SCALE_LIST", list(scales), "TEST.FLIP_TEST", flip)


def assert_same(ours: Tensor, theirs: Tensor, most: float) -> None:
    assert ours.shape == theirs.shape
    assert len(theirs.unique()) > 5
    assert (ours != theirs).double().mean() <= most


def assert_public(cfg: CfgNode, ours: Tensor, labels: Callable[[PublicTest], Tensor], **options: Any) -> None:
    """The labels of an oracle, up to the rounding of resized bytes, and with it."""
    width, height = cfg.TEST.IMAGE_SIZE
    options = {"flip": cfg.TEST.FLIP_TEST, "swap": {}, "corners": cfg.MODEL.ALIGN_CORNERS, **options}
    for as_bytes, most in ((True, 0.0005), (False, 0.006)):
        network = Network(cfg.DATASET.NUM_CLASSES)
        assert_same(
            ours, labels(PublicTest(network, cfg.TEST.BASE_SIZE, (height, width), as_bytes=as_bytes, **options)), most
        )


@VIEWS
@pytest.mark.parametrize("network", ["hrnet", "hrnet_ocr"])
def test_hrnet_on_ade20k(network, size, scales, flip):
    image = photo(*size)
    name = f"ade20k/seg_{network}_w48_520x520_ohem_sgd_lr2e-2_wd1e-4_bs_16_epoch120"
    cfg, ours = predicted(name, image, *SMALL, *several(scales, flip))
    assert_public(cfg, ours, lambda test: test.short_side_first(image, scales, "padded_windows", cut=False))


@VIEWS
@pytest.mark.parametrize("network", ["hrnet", "hrnet_ocr"])
def test_ovenet_on_ade20k(network, size, scales, flip):
    image = photo(*size)
    name = f"ade20k/ovenet_{network}_w48_520x520_ohem_sgd_lr2e-2_wd1e-4_bs_16_epoch120"
    cfg, ours = predicted(name, image, *SMALL, *several(scales, flip))
    assert_public(cfg, ours, lambda test: test.short_side_first(image, scales, "shifted_windows", cut=False))


@VIEWS
def test_hrnet_on_cocostuff(size, scales, flip):
    image = photo(*size)
    name = "cocostuff/seg_hrnet_ocr_w48_520x520_ohem_sgd_lr1e-3_wd1e-4_bs_16_epoch110"
    cfg, ours = predicted(name, image, *SMALL, *several(scales, flip))
    assert_public(cfg, ours, lambda test: test.short_side_first(image, scales, "padded_windows", cut=True))


@VIEWS
@pytest.mark.parametrize("network", ["hrnet_w48_cls59", "hrnet_ocr_w48_cls59", "hrnet_ocr_w48_cls60"])
def test_hrnet_on_pascal_context(network, size, scales, flip):
    image = photo(*size)
    name = f"pascal_context/seg_{network}_520x520_sgd_lr1e-3_wd1e-4_bs_16_epoch200"
    cfg, ours = predicted(name, image, *SMALL, *several(scales, flip))
    assert_public(cfg, ours, lambda test: test.own_size(image, scales, "padded_windows"))


@VIEWS
def test_hrnet_on_lip(size, scales, flip):
    """Left and right change places in the flipped view."""
    image = photo(*size)
    name = "lip/seg_hrnet_ocr_w48_473x473_sgd_lr7e-3_wd5e-4_bs_40_epoch150"
    cfg, ours = predicted(name, image, *SMALL, *several(scales, flip))
    assert_public(cfg, ours, lambda test: test.stretched_first(image, scales, "padded_windows"), swap=SWAPPED)


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), (SCALES, True)])
@pytest.mark.parametrize(
    "name",
    [
        "cityscapes/seg_hrnet_w48_train_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484",
        "cityscapes/seg_hrnet_ocr_w48_train_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484",
        "cityscapes/ovenet_hrnet_ocr_w48_train_ohem_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484",
        "acdc/ovenet_hrnet_ocr_w48_train_540x960_sgd_lr1e-2_wd5e-4_bs_12_epoch484",
        "acdc/ovenet_hrnet_w48_train_ohem_540x960_sgd_lr1e-2_wd5e-4_bs_12_epoch484",
    ],
)
def test_cityscapes_and_acdc(name, scales, flip):
    image = photo(96, 192)
    cfg, ours = predicted(name, image, *WIDE, *several(scales, flip))
    assert_public(cfg, ours, lambda test: test.own_size(image, scales, "shifted_windows"))


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((0.5, 1.0, 1.75), True)])
@pytest.mark.parametrize("size", [(91, 122), (138, 100), (60, 270)])
@pytest.mark.parametrize(
    "name",
    [
        "cityscapes/ocrnet_hr18_4xb2-40k_cityscapes-512x1024",
        "ade20k/ocrnet_hr18_4xb4-80k_ade20k-512x512",
        "pascal_voc/ocrnet_hr18_4xb4-20k_voc12aug-512x512",
    ],
)
def test_ocrnets_of_mmsegmentation(name, size, scales, flip):
    image = photo(*size)
    cfg, ours = predicted(name, image, "TEST.BASE_BOX", [256, 64], *several(scales, flip))
    assert not cfg.TEST.STRIDE
    theirs = mmsegmentation(Network(cfg.DATASET.NUM_CLASSES), image, (256, 64), scales, flip=flip)
    assert_same(ours, theirs, 0.0005)


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((0.5, 1.0, 1.75), True)])
@pytest.mark.parametrize(
    "name",
    ["ade20k/offseg-t_ade20k_160k-512x512", "cocostuff/segformer_mit-b0_offset_learning_8xb2-80k_stuff164k-512x512"],
)
def test_windows_of_offseg_and_segformer(name, scales, flip):
    """512 x 512, 480 apart: here 64 and 60."""
    assert load_config(EXPERIMENTS / f"{name}.yaml").TEST.STRIDE == [480, 480]
    image = photo(91, 122)
    sizes = ("TEST.BASE_BOX", [256, 64], "TEST.IMAGE_SIZE", [64, 64], "TEST.STRIDE", [60, 60])
    cfg, ours = predicted(name, image, *sizes, *several(scales, flip))
    network = Network(cfg.DATASET.NUM_CLASSES)
    assert_same(ours, mmsegmentation(network, image, (256, 64), scales, flip=flip, windows=(64, 60)), 0.0005)


@pytest.mark.parametrize("dataset", ["ade20k", "cocostuff"])
def test_validation_during_training_sees_the_short_side(dataset):
    """Whole, padded to a multiple of 8 in the mean colour; public code crops it at random, which nobody can repeat."""
    image = photo(91, 122)
    name = shipped(f"{dataset}/published/seg_hrnet_ocr_*")[0].stem
    cfg, ours = predicted(f"{dataset}/{name}", image, *SMALL, *several(SCALES, True), single_scale=True)
    pixels = np.zeros((72, 104, 3), np.float32)  # 72 x 122 * 72 / 91 = 96.5, up to 104
    pixels[:, :97] = normalised(resized(image, 72, 97))
    scores = upsampled(run(Network(cfg.DATASET.NUM_CLASSES), pixels), 72, 104, cfg.MODEL.ALIGN_CORNERS)
    theirs = upsampled(scores.softmax(1)[..., :97], 91, 122, cfg.MODEL.ALIGN_CORNERS)[0].argmax(0)
    assert_same(ours, theirs, 0.0005)


SIZES = {  # window and base size by data set
    "cityscapes": ([2048, 1024], 2048),
    "acdc": ([1920, 1080], 1920),
    "ade20k": ([520, 520], 520),
    "cocostuff": ([520, 520], 520),
    "pascal_context": ([520, 520], 520),
    "pascal_voc": ([520, 520], 520),
    "lip": ([473, 473], 473),
}
PUBLISHED = [path for name in SIZES for path in shipped(f"{name}/published/*_sgd_*.yaml")]


@pytest.mark.parametrize("path", PUBLISHED, ids=experiment_name)
def test_sizes_of_the_published_files(path):
    """Every file whose name says how it was trained."""
    cfg = load_config(path)
    dataset, test = experiment_name(path).split("/")[0], cfg.TEST
    protocol = "default" if dataset in ("cityscapes", "acdc", "pascal_voc") else "hrnet"
    if dataset == "ade20k" and cfg.MODEL.SEED.NAME != "none":
        protocol = "ovenet"
    assert (protocol, "exp") == (test.PROTOCOL, test.SCORE)
    window, base_size = SIZES[dataset]
    window = [480, 480] if "_480x480_" in path.stem else window
    assert (window, base_size) == (test.IMAGE_SIZE, test.BASE_SIZE)
    assert (list(test.SCALE_LIST), test.FLIP_TEST, test.OUTPUT_INDEX) == ([1.0], False, -1)


def test_lip_knows_left_and_right():
    info = CATALOG["lip"]
    assert {pair: other for a, b in info.flip_pairs for pair, other in ((a, b), (b, a))} == SWAPPED
