"""Inheritance, overrides, checks and messages of the configuration."""

import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from tests.conftest import tiny_settings
from tests.shipped import experiment_name, shipped

from ovenet.config import check_parts, default_config, flatten, load_config
from ovenet.config.compat import INERT_KEYS, REMOVED_KEYS, TRANSLATED
from ovenet.errors import UserError
from ovenet.utils.meta import meta_device

ROOT = Path(__file__).parents[2]
# Of version 1, which described the same models by MODEL.EXTRA.
PARAMETER_COUNTS = json.loads((Path(__file__).parent / "parameter_counts.json").read_text())
EXPERIMENTS = [path for path in shipped("**/*.yaml") if path.parent.name not in ("_base_", "sweeps")]
_NUM_PARAMETERS: dict[str, int] = {}  # of the networks that were built, by their settings


def test_later_values_win(write_config):
    write_config({"TRAIN": {"LR": 0.5, "WD": 0.1}, "WORKERS": 1}, "a.yaml")
    write_config({"TRAIN": {"LR": 0.25}}, "b.yaml")
    path = write_config({"_BASE_": ["a.yaml", "b.yaml"], "WORKERS": 2}, "c.yaml")
    cfg = load_config(path, ["WORKERS", "3", "TEST.SCALE_LIST", "0.5,1.0"])
    assert (cfg.TRAIN.LR, cfg.TRAIN.WD, cfg.WORKERS, cfg.TEST.SCALE_LIST) == (0.25, 0.1, 3, [0.5, 1.0])
    assert cfg.TRAIN.MOMENTUM == default_config().TRAIN.MOMENTUM
    assert cfg.is_frozen()


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["TRAIN.LR", "1"], "LR", 1.0),
        (["TRAIN.LR", "1e-2"], "LR", 0.01),
        (["TRAIN.IMAGE_SIZE", "(64, 32)"], "IMAGE_SIZE", [64, 32]),
        (["TRAIN.FLIP", "False"], "FLIP", False),
        (["TRAIN.OPTIMIZER", "adamw"], "OPTIMIZER", "adamw"),
        (["TRAIN.FREEZE_LAYERS", "2024"], "FREEZE_LAYERS", "2024"),
    ],
)
def test_values_take_the_type_of_their_key(write_config, overrides, key, value):
    assert load_config(write_config({}), overrides).TRAIN[key] == value


def test_the_command_line_takes_the_words_of_yaml(write_config):
    path = write_config({"MODEL": {"HEAD": {"NAME": "conv1x1", "EMBEDDING": 8}}})
    cfg = load_config(path, ["MODEL.HEAD.EMBEDDING", "null", "TRAIN.FLIP", "false", "TEST.FLIP_TEST", "true"])
    assert cfg.MODEL.HEAD.get("EMBEDDING") is None
    assert (cfg.TRAIN.FLIP, cfg.TEST.FLIP_TEST) == (False, True)


def test_yaml_numbers_without_a_point_are_numbers(write_config):
    path = write_config({})
    path.write_text("TRAIN: {LR: 1e-2}\nGPUS: (0,1,2,3)\nTEST: {SCALE_LIST: 1}\n")
    cfg = load_config(path)
    assert cfg.TRAIN.LR == 0.01
    assert cfg.TEST.SCALE_LIST == [1]


@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        ({"TRAIN": {"LEARNING_RATE": 1}}, [], r"TRAIN\.LEARNING_RATE.*TRAIN\.\w+\?"),
        ({"TEST": {"STRIDE": [0, 5]}}, [], r"TEST\.STRIDE.*\[0, 5\].*\[width, height\] from 1 to those of"),
        ({"TEST": {"STRIDE": [2049, 5]}}, [], r"TEST\.STRIDE.*\[2049, 5\]; .*\[2048, 1024\], or \[\]"),
        ({"TEST": {"STRIDE": [5]}}, [], r"TEST\.STRIDE.*\[5\]"),
        (
            {"TEST": {"STRIDE": [5, 5], "PROTOCOL": "ovenet"}},
            [],
            r"TEST\.STRIDE.*\[5, 5\].*\[\] with TEST\.PROTOCOL ovenet",
        ),
        (
            {"TEST": {"BASE_BOX": [5, 5]}},
            ["TEST.PROTOCOL", "hrnet"],
            r"TEST\.BASE_BOX .* TEST\.PROTOCOL hrnet",
        ),
        ({"TEST": {"PROTOCOL": "mmseg"}}, [], r"TEST\.PROTOCOL.*'mmseg'.*one of default, ovenet, hrnet"),
        ({"TRIAN": {"LR": 1}}, [], r"TRIAN\.LR.*TRAIN\.LR\?"),
        ({}, ["TEST.FLIPTEST", "True"], r"the command line.*TEST\.FLIPTEST.*TEST\.FLIP_TEST"),
        ({"TRAIN": {"LR": "fast"}}, [], r"TRAIN\.LR.*'fast'.*a number"),
        ({"TRAIN": {"FLIP": "yes please"}}, [], r"TRAIN\.FLIP.*'yes please'.*True or False"),
        ({"TRAIN": {"END_EPOCH": 1.5}}, [], r"TRAIN\.END_EPOCH is 1\.5.*an integer"),
        ({"TRAIN": {"IMAGE_SIZE": "big"}}, [], r"TRAIN\.IMAGE_SIZE.*'big'.*a list of integers"),
        ({"TRAIN": {"IMAGE_SIZE": [64]}}, [], r"TRAIN\.IMAGE_SIZE.*\[64\].*\[width, height\]"),
        ({"TRAIN": 3}, [], r"TRAIN is a section"),
        ({"MODEL": {"NAME": "unet"}}, [], r"MODEL\.NAME.*'unet'.*one of seg_hrnet"),
        ({"MODEL": {"EXTRA": {"OFFSET_BRANCH": 1}}}, [], r"OFFSET_BRANCH is 1.*one of 0, 2, 3, 4"),
        ({"MODEL": {"FREEZED_PAR": True}}, [], r"MODEL\.FREEZED_PAR in published files\) is .*OFFSET_BRANCH"),
        ({"MODEL": {"OFFSET_PRETRAINED": "x.pth"}}, [], r"MODEL\.OFFSET_PRETRAINED in .*'x.pth'; .*OFFSET_BRANCH"),
        (
            {"LOSS": {"BALANCE_WEIGHTS": [0.4, 1]}},
            [],
            r"LOSS\.BALANCE_WEIGHTS.*\[0\.4, 1\].*1 weights",
        ),
        ({"LOSS": {"BALANCE_WEIGHTS": [-1]}}, [], r"LOSS\.BALANCE_WEIGHTS.*\[-1\].*1 weights of at least 0"),
        ({"TEST": {"OUTPUT_INDEX": 1}}, [], r"TEST\.OUTPUT_INDEX is 1.*between -1 and 0"),
        ({"TEST": {"SCALE_LIST": [1, -1]}}, [], r"TEST\.SCALE_LIST .* all above 0"),
        ({"TRAIN": {"IGNORE_LABEL": 3}}, [], r"TRAIN\.IGNORE_LABEL is 3.*outside the classes 0 to 18"),
        ({"TRAIN": {"END_EPOCH": 0}}, [], r"TRAIN\.END_EPOCH is 0.*more than TRAIN\.BEGIN_EPOCH"),
        ({"TRAIN": {"ITERATIONS": 9, "EXTRA_EPOCH": 2}}, [], r"EXTRA_EPOCH is 2.*0 with TRAIN\.ITERATIONS"),
        ({"LOSS": {"INTERIOR": 0.3}}, [], r"LOSS\.INTERIOR is 0\.3.*0 with MODEL\.SEED\.NAME none"),
        (
            {"LOSS": {"INTERIOR": 0.3}},
            ["MODEL.SEED.NAME", "corrected"],
            r"LOSS\.INTERIOR is 0\.3.*0 with MODEL\.SEED\.NAME corrected",
        ),
        (
            {"LOSS": {"INTERIOR": 0.3}},
            ["MODEL.SEED.NAME", "control", "MODEL.SEED.SOURCE", "own"],
            r"LOSS\.INTERIOR is 0\.3.*0 with MODEL\.SEED\.NAME control",
        ),
        (
            {"LOSS": {"CONFIDENCE_TARGET": "better_scores"}},
            [],
            r"LOSS\.CONFIDENCE_TARGET.*'better_scores'.*'same_class' without a seed",
        ),
        ({"TRAIN": {"LR": 0}}, [], r"TRAIN\.LR.*0\.0.*more than 0"),
        ({"MODEL": {"EXTRA": {"STAGE3": {"NUM_BLOCKS": [4]}}}}, [], r"STAGE3\.NUM_BLOCKS.*\[4\].*3 integers"),
        ({"MODEL": {"EXTRA": {"STAGE2": {"NUM_BRANCHES": 3}}}}, [], r"STAGE2\.NUM_BRANCHES is 3.*expected 2"),
        ({"MODEL": {"EXTRA": {"STAGE4": {"BLOCK": "BOX"}}}}, [], r"STAGE4\.BLOCK.*'BOX'.*BASIC or"),
        ({"_BASE_": "config.yaml"}, [], r"_BASE_ leads back"),
        ({"_BASE_": "nowhere.yaml"}, [], r"nowhere\.yaml.*No such file"),
        ({}, ["TRAIN.LR"], r"TRAIN\.LR has no value"),
    ],
)
def test_bad_settings_are_named(write_config, settings, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        check_parts(load_config(write_config(settings), overrides))
    assert "\n" not in str(error.value)


def test_what_is_no_config_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Is a directory"):
        load_config(tmp_path)
    (tmp_path / "a.yaml").write_text("a: [1, 2")
    with pytest.raises(ValueError, match=r"a\.yaml.*YAML"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("just text")
    with pytest.raises(ValueError, match=r"b\.yaml.*`KEY: value` lines"):
        load_config(tmp_path / "b.yaml")


def test_bombs_and_towers_of_yaml_are_refused_in_time(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"bomb\.yaml, line \d+: .*100000"):
        load_config(tmp_path / "bomb.yaml")
    (tmp_path / "tower.yaml").write_text("TRAIN: " + "[" * 5000 + "]" * 5000)
    with pytest.raises(UserError, match=r"tower\.yaml.*nested"):
        load_config(tmp_path / "tower.yaml")
    merges = ["a0: &a0 {x: 1}"]
    merges += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)]
    (tmp_path / "merges.yaml").write_text("\n".join(merges))
    with pytest.raises(UserError, match=r"merges\.yaml, line \d+: .*100000"):
        load_config(tmp_path / "merges.yaml")
    (tmp_path / "circle.yaml").write_text("TRAIN: &a\n  LR: *a\n")
    with pytest.raises(UserError, match=r"circle\.yaml, line 2.*\*a\b.*&a\b"):
        load_config(tmp_path / "circle.yaml")


def test_aliases_are_read(write_config):
    path = write_config({})
    path.write_text("TRAIN: &a {BASE_BOX: &box [64, 32], LR: 0.5}\nTEST: {BASE_BOX: *box}\n")
    cfg = load_config(path)
    assert (cfg.TRAIN.BASE_BOX, cfg.TEST.BASE_BOX) == ([64, 32], [64, 32])
    path.write_text("TRAIN: {LR: *rate}\n")
    with pytest.raises(UserError, match=r"config\.yaml: .*YAML.*alias 'rate'"):
        load_config(path)


@pytest.mark.parametrize("base", [3, None, {"a": 1}, [["b.yaml"]], [{"c": 1}]])
def test_bases_are_files(write_config, base):
    path = write_config({"_BASE_": base} if base is not None else {})
    if base is None:
        path.write_text("_BASE_:\n")
    with pytest.raises(UserError, match=re.escape(f"_BASE_ is {base!r}; ") + ".*list of files"):
        load_config(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("TRAIN.LR", ".inf"), ("TRAIN.LR", "1e999"), ("TEST.SCALE_LIST", "[1, .nan]"), ("LOSS.KAPPA", "nan")],
)
def test_numbers_are_finite(write_config, key, value):
    path = write_config({})
    section, name = key.split(".")
    path.write_text(f"{section}: {{{name}: {value}}}\n")
    with pytest.raises(UserError, match=rf"{key} is "):
        load_config(path)


PUBLIC_OVENET = """
CUDNN: {BENCHMARK: true, DETERMINISTIC: false, ENABLED: true}
GPUS: (0,1,2,3)
OUTPUT_DIR: 'output'
LOG_DIR: 'log'
WORKERS: 4
PRINT_FREQ: 50
DATASET: {DATASET: cityscapes, ROOT: 'data/', TEST_SET: 'list/cityscapes/val.lst',
  TRAIN_SET: 'list/cityscapes/train.lst', NUM_CLASSES: 19}
MODEL:
  NAME: branched_seg_hrnet
  FREEZED_PAR: false
  PRETRAINED: 'pretrained_models/a.pth'
  OFFSET_PRETRAINED: 'pretrained_models/a.pth'
  EXTRA:
    FINAL_CONV_KERNEL: 1
    FINAL_CONV_SEED: 1
    OFFSET_THRESHOLD: 0.5
    CONFIDENCE: 0
    ITERATIVE_REFINEMENT: 0
    LOGITS: true
    OFFSET_BRANCH: 4
    STAGE1: {NUM_MODULES: 1, NUM_RANCHES: 1, BLOCK: BOTTLENECK, NUM_BLOCKS: [4], NUM_CHANNELS: [64], FUSE_METHOD: SUM}
    STAGE4_2: {NUM_MODULES: 2, NUM_BRANCHES: 4, BLOCK: BASIC, NUM_BLOCKS: [4, 4, 4, 4],
      NUM_CHANNELS: [48, 96, 192, 384], FUSE_METHOD: SUM}
LOSS: {USE_OHEM: true, OHEMTHRES: 0.9, OHEMKEEP: 131072}
TRAIN: {IMAGE_SIZE: [1024, 512], BASE_SIZE: 2048, BATCH_SIZE_PER_GPU: 2, SHUFFLE: true, BEGIN_EPOCH: 0, END_EPOCH: 484,
  RESUME: true, OPTIMIZER: sgd, LR: 0.01, WD: 0.0005, MOMENTUM: 0.9, NESTEROV: false, FLIP: true, MULTI_SCALE: true,
  DOWNSAMPLERATE: 1, IGNORE_LABEL: 255, SCALE_FACTOR: 16, OFFSET_DIR: 'offset_cityscapes'}
TEST: {IMAGE_SIZE: [2048, 1024], BASE_SIZE: 2048, BATCH_SIZE_PER_GPU: 2, FLIP_TEST: false, VISUALIZATION: true,
  MULTI_SCALE: false}
"""


def test_public_files_are_accepted_and_inert_keys_named_once(write_config, caplog):
    path = write_config({})
    path.write_text(PUBLIC_OVENET)
    logger = logging.getLogger("ovenet")
    logger.propagate = True
    with caplog.at_level(logging.WARNING):
        cfg = load_config(path)
    assert dict(cfg.MODEL.SEED) == {
        "NAME": "fork", "STAGE": 4, "MAX_OFFSET": 0.5, "NUM_REFINEMENTS": 0, "FUSE_LOGITS": True,
        "PRETRAINED": "pretrained_models/a.pth",
    }  # fmt: skip
    assert cfg.MODEL.BACKBONE == {"NAME": "hrnet_w48", "PRETRAINED": "pretrained_models/a.pth"}
    (message,) = {r.getMessage() for r in caplog.records}
    for key in ("GPUS", "TRAIN.OFFSET_DIR", "TEST.VISUALIZATION", "MODEL.EXTRA.CONFIDENCE"):
        assert message.count(f"{key} (") == 1
    assert "TRAIN.LR" not in message


def test_every_key_is_read():
    """A key that nothing reads would be a promise that nothing keeps."""
    sources = [p for p in (ROOT / "lib").rglob("*.py") if p.name != "settings.py"]
    code = "\n".join(p.read_text() for p in [*sources, *(ROOT / "tools").glob("*.py")])
    for key, _ in flatten(default_config()):
        *sections, name = key.split(".")
        if sections[:1] == ["MODEL"] or sections == ["TRAIN", "LR_MULT"] or key == "VERSION":
            is_read = re.search(rf"\.{name}\b|\"{name}\"", code) is not None  # read through a shorter name
        else:
            handed_over = rf"\b(settings|run|schedule|step|checkpoints|workers)\.{name.lower()}_?\b"  # lambda_
            is_read = re.search(rf"cfg\.{re.escape(key)}\b|{handed_over}", code) is not None
        assert is_read, key


@pytest.mark.parametrize(
    "text",
    [
        "backbone,head.layers",
        "backbone, head.layers",
        "[backbone, head.layers]",
        "['backbone','head.layers']",
        "('backbone', 'head.layers')",
    ],
)
def test_lists_of_texts(write_config, text):
    path = write_config({"MODEL": {"FROZEN": ["neck"]}})
    assert load_config(path).MODEL.FROZEN == ["neck"]
    assert load_config(path, ["MODEL.FROZEN", text]).MODEL.FROZEN == ["backbone", "head.layers"]
    with pytest.raises(UserError, match=r"MODEL\.FROZEN.*\[1\].*a list of strings"):
        load_config(path, ["MODEL.FROZEN", "[1]"])


def test_published_keys_are_no_keys_of_the_schema():
    """They stop at the door."""
    assert not {*INERT_KEYS, *REMOVED_KEYS, *TRANSLATED} & {key for key, _ in flatten(default_config())}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=experiment_name)
def test_experiments_load_and_their_models_build(path, tmp_path):
    from ovenet.builders import build_criterion, build_model

    (tmp_path / "folder").mkdir()  # for the experiment on a folder of one's own
    (tmp_path / "folder/dataset.json").write_text('{"classes": [{"name": "no"}, {"name": "yes"}]}')
    cfg = load_config(path, ["DATASET.ROOT", str(tmp_path)])
    check_parts(cfg)
    described = cfg.MODEL.dump() + str((cfg.DATASET.NUM_CLASSES, cfg.TRAIN.CHECKPOINT_ACTIVATIONS))
    if described not in _NUM_PARAMETERS:  # many experiments differ in their data alone
        with meta_device():
            model = build_model(cfg)
        _NUM_PARAMETERS[described] = sum(p.numel() for p in model.parameters())
    count = _NUM_PARAMETERS[described]
    assert count == PARAMETER_COUNTS.get(f"{experiment_name(path)}.yaml", count)
    build_criterion(cfg)
    assert yaml.safe_load(cfg.dump())["DATASET"]["DATASET"] == experiment_name(path).split("/")[0]


def test_the_saved_config_gives_the_same_config(write_config, tmp_path):
    cfg = load_config(EXPERIMENTS[0])
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    assert load_config(tmp_path / "saved.yaml") == cfg


def test_a_key_that_stands_twice_is_named(write_config):
    """YAML takes the last one, and the first section's settings are gone."""
    path = write_config({})
    path.write_text("TRAIN: {LR: 0.1}\nSEED: 1\nTRAIN: {WD: 0.2}\n")
    with pytest.raises(UserError, match=r"config\.yaml, line 3.*TRAIN.*line 1"):
        load_config(path)
    path.write_text("TRAIN:\n  LR: 0.1\n  LR: 0.2\n")
    with pytest.raises(UserError, match=r"line 3.*LR.*line 2"):
        load_config(path)
    path.write_text("A: &a {LR: 0.1}\n".replace("A", "TRAIN") + "# no second one\n")
    assert load_config(path).TRAIN.LR == 0.1


@pytest.mark.parametrize(
    "name",
    ["camvid/lite0_fcn", "camvid/lite0_fcn.yaml", "experiments/camvid/lite0_fcn.yaml", "experiments/camvid/lite0_fcn"],
)
def test_experiments_are_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    expected = load_config(ROOT / "experiments/camvid/lite0_fcn.yaml")
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == expected
    (tmp_path / "camvid").mkdir()
    (tmp_path / "camvid/lite0_fcn.yaml").write_text("SEED: 77\n")
    if name == "camvid/lite0_fcn.yaml":
        assert load_config(name).SEED == 77  # what is there goes before what comes along
    with pytest.raises(UserError, match="camvid/no_such"):
        load_config("camvid/no_such")


def test_off_may_be_written_without_quotes(write_config):
    settings = tiny_settings()
    settings["TRAIN"]["CUDA_GRAPH"] = False  # what YAML makes of off
    assert load_config(write_config(settings)).TRAIN.CUDA_GRAPH == "off"
    assert load_config(write_config(tiny_settings()), ["TRAIN.CUDA_GRAPH", "off"]).TRAIN.CUDA_GRAPH == "off"
    settings["TRAIN"]["CUDA_GRAPH"] = True
    with pytest.raises(UserError, match=r"TRAIN\.CUDA_GRAPH.*'on'.*auto, off"):
        load_config(write_config(settings))
