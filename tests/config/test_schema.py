"""Settings declared once, and what is made of them."""

from pathlib import Path

import pytest
import yaml

from ovenet.config import default_config, load_config
from ovenet.config.reference import settings_page
from ovenet.config.schema import KEYS, affects_test, affects_training, keys_of_role, section
from ovenet.engine.settings import LearningRateMultipliers, StepSettings
from ovenet.errors import UserError
from ovenet.fields import Setting

ROOT = Path(__file__).parents[2]
# What ended a comparison of runs, and what did not, before there were roles: results of sweeps are found by these.
NOT_OF_THE_RESULT = {
    "OUTPUT_DIR", "LOG_DIR", "WANDB", "MLFLOW", "DEVICE", "WORKERS", "PRINT_FREQ", "DIST_TIMEOUT", "PIN_MEMORY",
    "SEED", "VERSION", "DATASET.ROOT", "DATASET.CACHE", "DATASET.CACHE_DIR", "DATASET.CACHE_GB", "DATASET.AUDIT",
    "LOSS.BACKEND",
    "TRAIN.RESUME", "TRAIN.CHECKPOINT_EVERY", "TRAIN.CHECKPOINT_MINUTES", "TRAIN.KEEP_CHECKPOINTS",
    "TRAIN.CHECKPOINT_ACTIVATIONS", "TRAIN.COMPILE", "TRAIN.CUDA_GRAPH", "TEST.RESUME", "TEST.REPORT",
    "TEST.SAVE_PREDICTIONS", "TEST.MODEL_FILE", "TEST.BATCH_SIZE_PER_GPU", "TEST.COMPILE", "TEST.CUDA_GRAPH",
    "TEST.DETAILS", "TEST.UNCERTAINTY", "TEST.CORRUPTION", "TEST.SEVERITY",
}  # fmt: skip


def test_the_page_is_written_from_the_code():
    assert (ROOT / "docs/settings.md").read_text("utf-8") == settings_page(), (
        "write it anew: python -m ovenet.config.reference > docs/settings.md"
    )


def test_every_key_has_a_meaning_and_a_default_in_its_range():
    for key in KEYS.values():
        assert len(key.setting.meaning) > 5, key.name
        assert key.setting.allows(key.default), key.name


def test_the_tree_has_plain_values():
    assert yaml.safe_load(default_config().dump())["TRAIN"]["IMAGE_SIZE"] == [1024, 512]
    one, other = default_config(), default_config()
    one.TEST.SCALE_LIST.append(2.0)
    assert other.TEST.SCALE_LIST == [1.0]


def test_what_makes_another_run():
    assert {key for key in [*KEYS, "VERSION"] if not affects_training(key)} == NOT_OF_THE_RESULT
    assert affects_training("MODEL.HEAD.MID_CHANNELS")


def test_what_makes_another_test():
    assert affects_test("MODEL.HEAD.MID_CHANNELS")
    assert affects_test("TRAIN.IGNORE_LABEL")
    assert affects_test("TEST.SCALE_LIST")
    assert not affects_test("TRAIN.LR")
    assert not affects_test("TEST.SAVE_PREDICTIONS")


def test_paths_are_places_or_inputs():
    paths = {key for key in KEYS if key.endswith(("_DIR", "ROOT", "_FILE", "PRETRAINED", "CLASS_WEIGHTS"))}
    assert paths | {"WANDB", "MLFLOW"} == keys_of_role("place", "input")


def test_a_component_gets_its_settings(write_config):
    path = write_config({"TRAIN": {"CLIP_GRAD_NORM": 2, "LR_MULT": {"SEED": 3.0}}})
    cfg = load_config(path, ["TRAIN.EMA", "0.5"])
    step = section(cfg, StepSettings)
    assert (step.clip_grad_norm, step.ema, step.precision) == (2.0, 0.5, "fp32")
    assert section(cfg, LearningRateMultipliers) == LearningRateMultipliers(seed=3.0)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("TRAIN.WARMUP", "-1", "at least 0"),
        ("TRAIN.WARMUP", "2147483648", "at most 2147483647"),  # what C libraries take
        ("TRAIN.END_EPOCH", "2147483648", "at most 2147483647"),
        ("WORKERS", "65537", "at most 65536"),
        ("TRAIN.EMA", "1.0", "below 1"),
    ],
)
def test_a_value_out_of_its_range_is_told_which_end(write_config, key, value, expected):
    with pytest.raises(UserError, match=rf"^{key}.*{value}.*{expected}$"):
        load_config(write_config({}), [key, value])


@pytest.mark.parametrize(
    ("setting", "allowed", "refused"),
    [
        (Setting("", at_least=0, below=1), (0, 0.5), (-0.1, 1.0, 1)),
        (Setting("", above=0, at_most=1), (0.1, 1), (0, 1.1, 2)),
        (Setting("", one_of=("a", "b")), ("a", "b"), ("c", "")),
        (Setting(""), (-5, 2**31 - 1, 1e300, "x", True), (2**31,)),
    ],
)
def test_ranges(setting, allowed, refused):
    assert all(setting.allows(value) for value in allowed)
    assert not any(setting.allows(value) for value in refused)
