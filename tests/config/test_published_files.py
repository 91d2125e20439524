"""Experiment files under published names against the published files; pairs that the paper compares.

The tables are typed from the files of HRNet-Semantic-Segmentation (branches pytorch-v1.1 and HRNet-OCR) and of OVeNet,
and from their code for what is built in. Left out is what changes no number: sizes of validation batches, printing,
file names of lists that are this project's own. And TEST.NUM_SAMPLES of ADE20K, COCO-Stuff and LIP, which in the
public code shortens the validation during training but not the test (`TRAIN.EVAL_NUM_SAMPLES`).
"""

from pathlib import Path

import pytest
import yaml
from tests.shipped import EXPERIMENTS, experiment_name, shipped
from torch import nn

from ovenet.builders import build_model
from ovenet.config import flat_settings, load_config
from ovenet.utils.meta import meta_device

W48_IMAGENET = "pretrained_models/hrnetv2_w48_imagenet_pretrained.pth"
W18_IMAGENET = "pretrained_models/hrnet_w18_small_model_v2.pth"
CITY = "512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484"

HRNET = {  # pytorch-v1.1: cityscapes/seg_hrnet_w48_train_512x1024_…
    "DATASET.DATASET": "cityscapes",
    "DATASET.NUM_CLASSES": 19,
    "DATASET.TRAIN_SET": "list/cityscapes/train.lst",
    "DATASET.EXTRA_TRAIN_SET": "",
    "LOSS.USE_OHEM": False,
    "LOSS.AVERAGE": "valid",
    "LOSS.TERMS": [],
    "LOSS.CLASS_BALANCE": True,  # False in the files of HRNet-OCR, whose code weights the classes all the same
    "MODEL.ALIGN_CORNERS": False,
    "MODEL.BACKBONE.NAME": "hrnet_w48",
    "MODEL.BACKBONE.PRETRAINED": W48_IMAGENET,
    "MODEL.HEAD.NAME": "fcn",
    "MODEL.SEED.NAME": "none",
    "MODEL.FROZEN": [],
    "TRAIN.IMAGE_SIZE": [1024, 512],
    "TRAIN.BASE_SIZE": 2048,
    "TRAIN.BATCH_SIZE_PER_GPU": 3,
    "TRAIN.SHUFFLE": True,
    "TRAIN.BEGIN_EPOCH": 0,
    "TRAIN.END_EPOCH": 484,
    "TRAIN.EXTRA_EPOCH": 0,
    "TRAIN.OPTIMIZER": "sgd",
    "TRAIN.LR": 0.01,
    "TRAIN.LR_POWER": 0.9,  # of the code
    "TRAIN.LR_MULT.BACKBONE": 1.0,
    "TRAIN.LR_MULT.HEAD": 1.0,
    "TRAIN.LR_MULT.SEED": 1.0,
    "TRAIN.WD": 0.0005,
    "TRAIN.MOMENTUM": 0.9,
    "TRAIN.NESTEROV": False,
    "TRAIN.FLIP": True,
    "TRAIN.MULTI_SCALE": True,
    "TRAIN.SCALE_FACTOR": 16,
    "TRAIN.RANDOM_BRIGHTNESS": False,
    "TRAIN.IGNORE_LABEL": 255,
    "TEST.IMAGE_SIZE": [2048, 1024],
    "TEST.BASE_SIZE": 2048,
    "TEST.FLIP_TEST": False,
    "TEST.STRIDE": [],
    "TEST.BASE_BOX": [],
    "TEST.PROTOCOL": "default",
    "TEST.SCORE": "exp",
    "BatchNorm": {0.01},  # momenta of the network
    "parameters": 65_859_379,
}
OHEM = {
    "LOSS.USE_OHEM": True,
    "LOSS.OHEMTHRES": 0.9,
    "LOSS.OHEMKEEP": 131072,
    "LOSS.AVERAGE": "all",  # of the code for OCR: auxiliary losses are averaged over all pixels beside OHEM
}
OCR_CODE = {"MODEL.ALIGN_CORNERS": True, "BatchNorm": {0.1}}
OCR = {
    **OCR_CODE,
    "MODEL.HEAD.NAME": "ocr",
    "LOSS.BALANCE_WEIGHTS": [0.4, 1],
    "parameters": 70_372_678,
    "dropout": [0.05],
}
SEED = {
    "MODEL.SEED.NAME": "fork",
    "MODEL.SEED.PRETRAINED": W48_IMAGENET,
    "LOSS.KAPPA": 0.5,  # of the code
    "LOSS.LAMBDA": 2.0,  # the two crops that its code sums over
    "TRAIN.BATCH_SIZE_PER_GPU": 2,
    "first copied stage": 4,
    "refinements": 0,
    "fuses logits": True,
}
OVENET = {**SEED, **OHEM, "parameters": 98_795_926, "τ": 0.5}
OVENET_OCR = {**OCR, **SEED, "parameters": 103_309_225, "τ": 0.2}
ACDC = {
    "DATASET.DATASET": "acdc",
    "DATASET.TRAIN_SET": "list/acdc/train.lst",
    "TRAIN.IMAGE_SIZE": [960, 540],
    "TRAIN.BASE_SIZE": 1920,
    "TRAIN.BATCH_SIZE_PER_GPU": 2,
    "TEST.IMAGE_SIZE": [1920, 1080],
    "TEST.BASE_SIZE": 1920,
}
ADE20K = {
    **OHEM,
    "DATASET.DATASET": "ade20k",
    "DATASET.NUM_CLASSES": 150,
    "DATASET.TRAIN_SET": "list/ade20k/train.lst",
    "TRAIN.IMAGE_SIZE": [520, 520],
    "TRAIN.BASE_SIZE": 520,
    "TRAIN.BATCH_SIZE_PER_GPU": 4,
    "TRAIN.END_EPOCH": 120,
    "TRAIN.LR": 0.02,
    "TRAIN.WD": 0.0001,
    "TEST.IMAGE_SIZE": [520, 520],
    "TEST.BASE_SIZE": 520,
    "TEST.PROTOCOL": "hrnet",
    "parameters": None,  # not published for 150 classes
}
COCOSTUFF = {
    **ADE20K,
    "DATASET.DATASET": "cocostuff",
    "DATASET.NUM_CLASSES": 171,
    "DATASET.TRAIN_SET": "list/cocostuff/train.lst",
    "TRAIN.END_EPOCH": 110,
    "TRAIN.LR": 0.001,
    "TRAIN.LR_MULT.HEAD": 10.0,
}
LIP = {
    "DATASET.DATASET": "lip",
    "DATASET.NUM_CLASSES": 20,
    "DATASET.TRAIN_SET": "list/lip/train.lst",
    "TRAIN.IMAGE_SIZE": [473, 473],
    "TRAIN.BASE_SIZE": 473,
    "TRAIN.BATCH_SIZE_PER_GPU": 10,
    "TRAIN.END_EPOCH": 150,
    "TRAIN.LR": 0.007,
    "TRAIN.SCALE_FACTOR": 11,
    "TEST.IMAGE_SIZE": [473, 473],
    "TEST.BASE_SIZE": 473,
    "TEST.PROTOCOL": "hrnet",
    "parameters": None,
}
PASCAL = {
    "DATASET.DATASET": "pascal_context",
    "DATASET.TRAIN_SET": "list/pascal_context/train.lst",
    "TRAIN.IMAGE_SIZE": [520, 520],
    "TRAIN.BASE_SIZE": 520,
    "TRAIN.BATCH_SIZE_PER_GPU": 4,
    "TRAIN.END_EPOCH": 200,
    "TRAIN.LR": 0.001,
    "TRAIN.LR_MULT.HEAD": 10.0,
    "TRAIN.WD": 0.0001,
    "TEST.IMAGE_SIZE": [520, 520],
    "TEST.BASE_SIZE": 520,
    "TEST.PROTOCOL": "hrnet",
    "parameters": None,
}
VOC = {  # trained on trainval there; here on the augmented training set
    "DATASET.DATASET": "pascal_voc",
    "DATASET.NUM_CLASSES": 21,
    "DATASET.TRAIN_SET": "list/pascal_voc/train.lst",
    "TRAIN.BATCH_SIZE_PER_GPU": 2,
    "TEST.PROTOCOL": "default",  # its test passes the data set an argument that it does not take
}

PUBLISHED = {
    # HRNet
    f"cityscapes/seg_hrnet_w48_train_{CITY}": {},
    f"cityscapes/seg_hrnet_w48_train_ohem_{CITY}": OHEM,
    f"cityscapes/seg_hrnet_w18_small_v2_{CITY}": {
        "MODEL.BACKBONE.NAME": "hrnet_w18_small_v2",
        "MODEL.BACKBONE.PRETRAINED": W18_IMAGENET,
        "parameters": None,
    },
    # HRNet-OCR
    f"cityscapes/seg_hrnet_ocr_w48_train_{CITY}": OCR,
    f"cityscapes/seg_hrnet_ocr_w48_trainval_{CITY}": {**OCR, "DATASET.TRAIN_SET": "list/cityscapes/trainval.lst"},
    "ade20k/seg_hrnet_w48_520x520_ohem_sgd_lr2e-2_wd1e-4_bs_16_epoch120": {
        **OCR_CODE,
        **ADE20K,
        "TRAIN.SCALE_FACTOR": 11,
    },
    "ade20k/seg_hrnet_ocr_w48_520x520_ohem_sgd_lr2e-2_wd1e-4_bs_16_epoch120": {**OCR, **ADE20K},
    "cocostuff/seg_hrnet_ocr_w48_520x520_ohem_sgd_lr1e-3_wd1e-4_bs_16_epoch110": {**OCR, **COCOSTUFF},
    "cocostuff/seg_hrnet_w48_520x520_ohem_sgd_lr1e-3_wd1e-4_bs_16_epoch110": {**OCR_CODE, **COCOSTUFF},
    "lip/seg_hrnet_ocr_w48_473x473_sgd_lr7e-3_wd5e-4_bs_40_epoch150": {**OCR, **LIP},
    "lip/seg_hrnet_w48_473x473_sgd_lr7e-3_wd5e-4_bs_40_epoch150": LIP,
    "pascal_context/seg_hrnet_w48_cls59_520x520_sgd_lr1e-3_wd1e-4_bs_16_epoch200": {
        **PASCAL,
        "DATASET.NUM_CLASSES": 59,
        "BatchNorm": {0.1},
    },
    "pascal_context/seg_hrnet_w48_cls60_480x480_sgd_lr4e-3_wd1e-4_bs_16_epoch200": {
        **PASCAL,
        "DATASET.NUM_CLASSES": 60,
        "TRAIN.IMAGE_SIZE": [480, 480],
        "TRAIN.LR": 0.004,
        "TRAIN.LR_MULT.HEAD": 1.0,
        "TEST.IMAGE_SIZE": [480, 480],
    },
    "pascal_context/seg_hrnet_ocr_w48_cls59_520x520_sgd_lr1e-3_wd1e-4_bs_16_epoch200": {
        **OCR,
        **PASCAL,
        "DATASET.NUM_CLASSES": 59,
    },
    "pascal_context/seg_hrnet_ocr_w48_cls60_520x520_sgd_lr1e-3_wd1e-4_bs_16_epoch200": {
        **OCR,
        **PASCAL,
        "DATASET.NUM_CLASSES": 60,
    },
    # OVeNet
    f"cityscapes/seg_hrnet_w48_train_ohem_{CITY}_cityscapes_pretrained": OVENET,
    f"cityscapes/seg_offset_hrnet_ocr_w48_train_{CITY}": {
        **OVENET_OCR,
        "DATASET.TRAIN_SET": "list/cityscapes/trainval.lst",
    },
    f"acdc/seg_hrnet_w48_train_ohem_{CITY}_acdc_pretrained": {
        **OVENET,
        **ACDC,
        "MODEL.BACKBONE.PRETRAINED": "pretrained_models/acdc_final_state.pth",
        "MODEL.SEED.PRETRAINED": "pretrained_models/initial_final_state.pth",
        "MODEL.FROZEN": ["backbone", "neck", "head"],
    },
    f"acdc/seg_hrnet_ocr_w48_train_{CITY}": {**OCR, **ACDC},
    f"acdc/seg_offset_hrnet_ocr_w48_train_{CITY}": {**OVENET_OCR, **ACDC},
    f"acdc/seg_offset_hrnet_ocr_w48_train_{CITY}_freezed": {
        **OVENET_OCR,
        **ACDC,
        "MODEL.BACKBONE.PRETRAINED": "pretrained_models/acdc_hrnet_ocr.pth",
        "MODEL.FROZEN": ["backbone", "neck", "head"],
    },
    "ade20k/seg_ovenet_hrnet_ocr_w48_train_520x520_sgd_lr1e-2_wd1e-4_bs_16_epoch120": {
        **OVENET_OCR,
        **ADE20K,
        "TRAIN.BATCH_SIZE_PER_GPU": 2,
        "TEST.PROTOCOL": "ovenet",
    },
    "pascal_voc/seg_hrnet_ocr_w48_520x520_sgd_lr1e-3_wd1e-4_bs_16_epoch200": {**OCR, **PASCAL, **VOC},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_under_published_names_are_the_published_ones(name):
    cfg = load_config(EXPERIMENTS / f"{name}.yaml")
    with meta_device():
        model = build_model(cfg)
    fork = getattr(model, "seed", None)
    actual = {
        **flat_settings(cfg),
        "BatchNorm": {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "dropout": [m.p for m in model.modules() if isinstance(m, nn.Dropout2d)],
        "τ": model.max_offset,
    }
    if fork is not None:
        actual["first copied stage"] = cfg.MODEL.SEED.get("STAGE", 4)
        actual["refinements"] = cfg.MODEL.SEED.get("NUM_REFINEMENTS", 0)
        actual["fuses logits"] = cfg.MODEL.SEED.get("FUSE_LOGITS", True)
    expected = {key: value for key, value in {**HRNET, **PUBLISHED[name]}.items() if key != "parameters" or value}
    assert {key: actual.get(key) for key in expected} == expected


def _baseline(path: Path) -> Path | None:
    """The file that it is a diff of, where its name says so."""
    base = str(yaml.safe_load(path.read_text()).get("_BASE_"))
    rest = path.name.removeprefix("ovenet_")
    return path.parent / base if base.removeprefix("published/") in (f"hrnet_{rest}", rest) else None


OVENETS = shipped("*/ovenet_*.yaml")


@pytest.mark.parametrize("path", [p for p in OVENETS if _baseline(p)], ids=experiment_name)
def test_ovenets_train_as_their_baselines(path):
    """Or the comparison of the paper cannot be made: the seed is all that differs."""
    ovenet, baseline = flat_settings(load_config(path)), flat_settings(load_config(_baseline(path)))
    differences = {key for key in {*ovenet, *baseline} if ovenet.get(key) != baseline.get(key)}
    assert differences
    assert all(key.startswith("MODEL.SEED.") for key in differences)


def test_the_papers_comparisons_are_among_them():
    names = {experiment_name(p) for p in OVENETS if _baseline(p)}
    assert names >= {f"{d}/ovenet_w48{ocr}" for d in ("cityscapes", "acdc", "ade20k") for ocr in ("", "_ocr")}


@pytest.mark.parametrize("path", shipped("*/published/*ovenet*_sgd_lr*.yaml"), ids=lambda p: p.stem)
def test_the_weight_of_the_confidence_loss_goes_with_the_batch(path):
    cfg = load_config(path)
    w18 = "w18_small" in path.name  # nobody published an OVeNet on it
    expected = 1.0 if w18 else cfg.TRAIN.BATCH_SIZE_PER_GPU
    assert expected == cfg.LOSS.LAMBDA


@pytest.mark.parametrize(
    "path",
    [path for path in shipped("*/published/ovenet_*_sgd_lr*.yaml") if "_ocr_" not in path.name],
    ids=experiment_name,
)
def test_ovenets_without_ocr_have_what_their_public_code_has_built_in(path):
    """Of ADE20K too, whose baseline HRNet trained with its code for OCR."""
    cfg = load_config(path)
    assert (cfg.MODEL.ALIGN_CORNERS, cfg.MODEL.BN_MOMENTUM) == (False, 0.01)
