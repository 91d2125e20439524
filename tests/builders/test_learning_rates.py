"""Learning rates of published YAML files: the public code looks for keywords in its names of parameters."""

import gzip
from pathlib import Path

import pytest

from ovenet.builders import build_model, build_optimizer
from ovenet.config import load_config
from ovenet.errors import UserError
from ovenet.models.weights import names_here
from ovenet.utils.meta import meta_device

KEYS = Path(__file__).parents[1] / "models/published_keys"
# File of names, MODEL.NAME, OFFSET_BRANCH.
MODELS = [
    ("hrnet_w48_cityscapes", "seg_hrnet", 0),
    ("hrnet_ocr_w48_cityscapes", "seg_hrnet_ocr", 0),
    ("ovenet_hrnet_w48_cityscapes", "branched_seg_hrnet", 4),
    ("ovenet_hrnet_ocr_w48_cityscapes", "seg_hrnet_ocr", 4),
]
# How many parameters learn faster, counted by hand: a convolution has a weight and mostly a bias, a BatchNorm two.
# OCR's auxiliary head has 6, its attention 18 (six convolutions without bias, each with BatchNorm), its 3x3 convolution
# 4, the join 3, the classifier 2; the plain head and the offset head have 6.
OCR = 6 + 18 + 4 + 3 + 2
NUM_FASTER = {
    ("hrnet_ocr_w48_cityscapes", ("cls", "aux", "ocr")): OCR,
    ("ovenet_hrnet_ocr_w48_cityscapes", ("cls", "aux", "ocr")): OCR + 6,
    ("hrnet_w48_cityscapes", ("last_layer",)): 6,
    ("hrnet_w48_cityscapes", ("last_layer", "offset_layer")): 6,
    ("ovenet_hrnet_w48_cityscapes", ("last_layer",)): 6,
    ("ovenet_hrnet_w48_cityscapes", ("last_layer", "offset_layer")): 6 + 6,
}


def published_names(name):
    return [line.split()[0] for line in gzip.decompress((KEYS / f"{name}.txt.gz").read_bytes()).decode().splitlines()]


def built(write_config, name, branch, train):
    path = write_config({"MODEL": {"NAME": name, "EXTRA": {"OFFSET_BRANCH": branch}}, "TRAIN": {"LR": 0.5} | train})
    cfg = load_config(path)
    with meta_device():
        model = build_model(cfg)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, cfg).param_groups
    return model, {names[id(parameter)]: group["lr"] / 0.5 for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("words", [("cls", "aux", "ocr"), ("last_layer",), ("last_layer", "offset_layer"), ()])
@pytest.mark.parametrize(("file", "name", "branch"), MODELS)
def test_parameters_learn_at_the_published_rates(write_config, file, name, branch, words):
    train = {"NONBACKBONE_KEYWORDS": list(words), "NONBACKBONE_MULT": 8}
    model, factors = built(write_config, name, branch, train)
    names = published_names(file)
    expected = {}
    for old, new in names_here(names, model).items():
        if new in factors:
            expected[new] = 8.0 if any(word in f"module.model.{old}" for word in words) else 1.0
    assert factors == expected
    faster = [name for name, factor in factors.items() if factor == 8.0]
    assert len(faster) == NUM_FASTER.get((file, words), 0)


@pytest.mark.parametrize("words", [["cls"], ["aux"], ["ocr", "cls"], ["head"]])
def test_a_piece_of_a_head_is_refused(write_config, words):
    """Every published list names the whole head."""
    with pytest.raises(UserError, match=r"config\.yaml: TRAIN\.NONBACKBONE_KEYWORDS.*head ocr.*LR_MULT") as error:
        built(write_config, "seg_hrnet_ocr", 4, {"NONBACKBONE_KEYWORDS": words})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("factor", "expected"), [(3, {"head": 3.0, "tail": 2.0}), (0, {"head": 2.0, "tail": 2.0})])
def test_the_offset_head_has_a_factor_of_its_own(write_config, factor, expected):
    _, factors = built(write_config, "seg_hrnet_ocr", 4, {"LR_MULT": {"SEED": 2, "OFFSET_HEAD": factor}})
    for name, value in factors.items():
        part, piece = name.split(".")[:2]
        assert value == (expected[piece] if part == "seed" else 1.0), name
