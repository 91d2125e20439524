"""Settings of the data: its files, random crops and batches."""

from __future__ import annotations

from dataclasses import dataclass

from ovenet.fields import setting

LARGEST_SIDE = 2**16  # of an image, in pixels


@dataclass(frozen=True)
class DatasetSettings:
    """The dataset and its lists."""

    root: str = setting(
        "data/", "folder of the datasets and of list/, or an address such as s3://bucket/folder", role="place"
    )
    dataset: str = setting(
        "cityscapes", "a dataset of docs/data.md, or a folder ROOT/<name> with a dataset.json", in_test=True
    )
    num_classes: int = setting(19, "K, the number of classes", at_least=2, at_most=2**15 - 1, in_test=True)
    train_set: str = setting(
        "list/cityscapes/train.lst", "relative to ROOT: `image label` per line; written if it is missing"
    )
    test_set: str = setting(
        "list/cityscapes/val.lst", "relative to ROOT: `image [label]` per line; val is list/<dataset>/val.lst"
    )
    extra_train_set: str = setting("", 'list for TRAIN.EXTRA_EPOCH epochs after TRAIN.END_EPOCH; "" is TRAIN_SET')
    skip_broken: bool = setting(
        False, "train on the next sample instead of one that cannot be read; False ends the run"
    )
    audit: int = setting(
        32, "number of pairs checked before training; tools/audit_data.py checks all", at_least=0, role="speed"
    )
    cache: str = setting(
        "none",
        "cache of decoded training images: on disk (in CACHE_DIR) or in ram (shared memory)",
        one_of=("none", "disk", "ram"),
        role="speed",
    )
    cache_dir: str = setting("", 'folder of the disk cache; "" is ROOT/cache', role="place")
    cache_gb: float = setting(
        0.0, "most that the cache may hold, in GB; the rest is read anew; 0 is no bound", at_least=0, role="speed"
    )


@dataclass(frozen=True)
class CropSettings:
    """Random crops and augmentation. Sizes are ``[width, height]`` in pixels."""

    image_size: tuple[int, ...] = setting((1024, 512), "crop, [width, height] in pixels")
    base_size: int = setting(
        2048, "long side of the image at scale 1, in pixels; 0 is the image's own", at_least=0, at_most=LARGEST_SIDE
    )
    base_box: tuple[int, ...] = setting(
        (), "[long, short] side that the image fits into at scale 1, instead of BASE_SIZE; [] for BASE_SIZE"
    )
    multi_scale: bool = setting(True, "random scale 0.5, 0.6 … 0.5 + SCALE_FACTOR / 10")
    scale_factor: int = setting(16, "steps of 0.1 above 0.5", at_least=0, at_most=1000)
    scale_range: tuple[float, ...] = setting(
        (), "[low, high]: any scale between them, instead of the steps of SCALE_FACTOR; [] for the steps"
    )
    flip: bool = setting(True, "flip half of the samples")
    random_brightness: bool = setting(False, "shift the brightness of half of the samples")
    random_brightness_shift_value: int = setting(10, "largest shift, in grey levels of 255", at_least=0)
    photometric_distortion: bool = setting(False, "random brightness, contrast, saturation and hue")
    cat_max_ratio: float = setting(
        1.0, "largest share of one class in a crop; other crops are drawn again, up to 10 times", above=0, at_most=1
    )
    rare_class_crops: float = setting(
        0.0,
        "share of crops around a pixel of a class drawn uniformly from those in the image",
        at_least=0,
        at_most=1,
    )
    corruption_probability: float = setting(
        0.0, "share of crops that one kind of CORRUPTIONS changes, at a random severity", at_least=0, at_most=1
    )
    corruptions: tuple[str, ...] = setting(
        ("common",), "kinds to draw from with CORRUPTION_PROBABILITY: names, all, common, noise, blur, weather, digital"
    )
    ignore_label: int = setting(
        255, "train id of ignored pixels; outside 0 … K-1", at_least=-(2**15), at_most=2**15 - 1, in_test=True
    )


@dataclass(frozen=True)
class LoaderSettings:
    """Batches of a training."""

    batch_size_per_gpu: int = setting(
        2, "crops per process and iteration; BatchNorm needs 2 in all", at_least=1, at_most=2**16
    )
    shuffle: bool = setting(True, "new order every epoch")
    repeats: int = setting(1, "passes over the list in an epoch; more for short lists", at_least=1, at_most=2**16)
    num_samples: int = setting(0, "use only the first N lines of the list; 0 is all", at_least=0)


@dataclass(frozen=True)
class WorkerSettings:
    """Processes that load data."""

    workers: int = setting(4, "data loading processes per process", at_least=0, at_most=2**16, role="speed")
    pin_memory: bool = setting(True, "page-locked batches (CUDA only)", role="speed")
