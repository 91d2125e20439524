"""Published files and configs of version 1, in the present schema."""

from functools import reduce

import pytest
import torch

from ovenet.builders import build_model
from ovenet.config import load_config, load_config_text, present_settings
from ovenet.errors import UserError
from ovenet.utils.meta import meta_device


def stage(number, width, *, modules, blocks):
    return {
        "NUM_MODULES": modules, "NUM_BRANCHES": number, "BLOCK": "BASIC", "NUM_BLOCKS": [blocks] * number,
        "NUM_CHANNELS": [width * 2**r for r in range(number)], "FUSE_METHOD": "SUM",
    }  # fmt: skip


def stages(width, modules, *, blocks=4, first=4, suffix=""):
    content = {
        f"STAGE{n}{suffix}": stage(n, width, modules=m, blocks=blocks) for n, m in zip((2, 3, 4), modules, strict=True)
    }
    if not suffix:
        content["STAGE1"] = {
            "NUM_MODULES": 1, "NUM_RANCHES": 1, "BLOCK": "BOTTLENECK", "NUM_BLOCKS": [first], "NUM_CHANNELS": [64]
        }  # fmt: skip
    return content


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (stages(48, (1, 4, 3)), "hrnet_w48"),
        (stages(32, (1, 4, 3)), "hrnet_w32"),
        (stages(18, (1, 3, 2), blocks=2, first=2), "hrnet_w18_small_v2"),
        (stages(20, (1, 4, 3)), "hrnet"),
    ],
)
def test_stages_become_the_network_of_that_name(write_config, extra, name):
    cfg = load_config(write_config({"MODEL": {"EXTRA": extra}}))
    assert name == cfg.MODEL.BACKBONE.NAME
    assert ("STAGES" in cfg.MODEL.BACKBONE) == (name == "hrnet")
    with meta_device():
        model = build_model(cfg)
    assert model.backbone.channels == tuple(extra["STAGE4"]["NUM_CHANNELS"])


def test_copies_are_kept_where_they_are_not_the_usual_ones(write_config):
    usual = {**stages(48, (1, 4, 3)), **stages(48, (1, 3, 2), suffix="_2"), "OFFSET_BRANCH": 3}
    cfg = load_config(write_config({"MODEL": {"EXTRA": usual}}))
    assert (cfg.MODEL.SEED.NAME, cfg.MODEL.SEED.STAGE) == ("fork", 3)
    assert "STAGES" not in cfg.MODEL.SEED
    other = {**usual, **stages(48, (1, 2, 1), suffix="_2")}
    cfg = load_config(write_config({"MODEL": {"EXTRA": other}}))
    with meta_device():
        tail = build_model(cfg).seed.tail
    assert [len(tail.stage3), len(tail.stage4)] == [2, 1]


def test_copies_of_a_file_that_names_none_are_those_of_w48(write_config):
    """What the schema of version 1 said where a file was silent."""
    cfg = load_config(write_config({"MODEL": {"EXTRA": {**stages(18, (1, 3, 2), blocks=2), "OFFSET_BRANCH": 4}}}))
    assert cfg.MODEL.SEED.STAGES == [
        {"NUM_MODULES": 2, "NUM_BLOCKS": [4] * 4, "NUM_CHANNELS": [48, 96, 192, 384], "BLOCK": "BASIC"}
    ]


def test_copies_of_a_network_that_is_named_are_its_own(write_config):
    path = write_config({"MODEL": {"BACKBONE": {"NAME": "hrnet_w18_small_v1"}}})
    for overrides, modules in ((["MODEL.EXTRA.STAGE4_2.NUM_MODULES", "3"], 3), ([], 1)):
        cfg = load_config(path, ["MODEL.EXTRA.OFFSET_BRANCH", "4", *overrides])
        with meta_device():
            tail = build_model(cfg).seed.tail
        assert (tail.channels, len(tail.stage4)) == ((16, 32, 64, 128), modules)
    fork = write_config(
        {"MODEL": {"BACKBONE": {"NAME": "hrnet_w18"}, "SEED": {"NAME": "fork", "STAGE": 3}}}, "fork.yaml"
    )
    with meta_device():
        tail = build_model(load_config(fork, ["MODEL.EXTRA.STAGE4_2.NUM_MODULES", "1"])).seed.tail
    assert [len(tail.stage3), len(tail.stage4)] == [3, 1]


def test_the_ocr_head_and_the_seed_take_their_settings_along(write_config):
    settings = {
        "MODEL": {
            "NAME": "seg_hrnet_ocr", "OCR": {"MID_CHANNELS": 64, "KEY_CHANNELS": 32, "DROPOUT": 0.1, "SCALE": 1},
            "PRETRAINED": "a.pth", "OFFSET_PRETRAINED": "b.pth", "FREEZED_PAR": True,
            "EXTRA": {
                "OFFSET_BRANCH": 4, "OFFSET_THRESHOLD": 0.2, "ITERATIVE_REFINEMENT": 2, "LOGITS": False,
                "FINAL_CONV_KERNEL": 3,
            },
        },
        "TRAIN": {"NONBACKBONE_KEYWORDS": ["cls", "aux", "ocr"], "NONBACKBONE_MULT": 7},
    }  # fmt: skip
    cfg = load_config(write_config(settings))
    assert dict(cfg.MODEL.HEAD) == {
        "NAME": "ocr", "MID_CHANNELS": 64, "KEY_CHANNELS": 32, "DROPOUT": 0.1, "FINAL_KERNEL": 3
    }  # fmt: skip
    seed = cfg.MODEL.SEED
    assert (seed.MAX_OFFSET, seed.NUM_REFINEMENTS, seed.FUSE_LOGITS, seed.PRETRAINED) == (0.2, 2, False, "b.pth")
    assert cfg.MODEL.BACKBONE.PRETRAINED == "a.pth"
    assert cfg.MODEL.FROZEN == ["backbone", "neck", "head"]
    assert dict(cfg.TRAIN.LR_MULT) == {"BACKBONE": 1.0, "HEAD": 7.0, "SEED": 1.0, "OFFSET_HEAD": 7.0}


def test_both_schemas_mix_and_the_later_one_wins(write_config):
    path = write_config({"MODEL": {"BACKBONE": {"NAME": "hrnet_w18"}, "SEED": {"NAME": "fork", "MAX_OFFSET": 0.3}}})
    cfg = load_config(path, ["MODEL.EXTRA.STAGE4.NUM_MODULES", "1", "MODEL.EXTRA.OFFSET_THRESHOLD", "0.4"])
    with meta_device():
        model = build_model(cfg)
    assert (len(model.backbone.stage4), model.backbone.channels) == (1, (18, 36, 72, 144))
    assert model.max_offset == 0.4
    published = write_config({"MODEL": {"NAME": "seg_hrnet_ocr", "EXTRA": {"OFFSET_BRANCH": 4}}}, "published.yaml")
    cfg = load_config(published, ["MODEL.SEED.MAX_OFFSET", "0.25", "MODEL.HEAD.NAME", "fcn"])
    assert (cfg.MODEL.SEED.NAME, cfg.MODEL.SEED.MAX_OFFSET, cfg.MODEL.HEAD.NAME) == ("fork", 0.25, "fcn")


def test_the_branched_name_without_a_branch_is_said_to_be_the_baseline(write_config, caplog):
    import logging

    logging.getLogger("ovenet").propagate = True
    with caplog.at_level(logging.WARNING):
        cfg = load_config(write_config({"MODEL": {"NAME": "branched_seg_hrnet"}}))
    assert cfg.MODEL.SEED.NAME == "none"
    assert "MODEL.NAME is branched_seg_hrnet, but MODEL.EXTRA.OFFSET_BRANCH is 0" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"TRAIN": {"NONBACKBONE_KEYWORDS": ["stage4"]}}, r"NONBACKBONE_KEYWORDS.*\['stage4'\]; .*TRAIN\.LR_MULT"),
        ({"MODEL": {"EXTRA": {"STAGE2": {"FUSE_METHOD": "CAT"}}}}, r"STAGE2\.FUSE_METHOD.*'CAT'.*SUM"),
        ({"MODEL": {"EXTRA": {"STAGE4": {"NUM_MODULES": 0}}}}, r"STAGE4\.NUM_MODULES is 0.*at least 1"),
        ({"MODEL": {"EXTRA": {"FINAL_CONV_KERNEL": 2}}}, r"FINAL_CONV_KERNEL is 2.*one of 1, 3"),
        ({"MODEL": {"EXTRA": {"STAGE5": {"NUM_MODULES": 1}}}}, r"unknown key MODEL\.EXTRA\.STAGE5"),
        ({"VERSION": 3}, r"version 3.*\b2\b"),
    ],
)
def test_bad_published_settings_are_named(write_config, settings, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(write_config(settings))
    assert "\n" not in str(error.value)


def test_a_config_of_version_1_is_read():
    """As a checkpoint of that version carries it, inert keys and all."""
    text = (
        "AUTO_RESUME: false\nGPUS: [0]\nMODEL: {NAME: seg_hrnet, EXTRA: {OFFSET_BRANCH: 4, OFFSET_THRESHOLD: 0.2}}\n"
        "TRAIN: {LR: 0.02, NONBACKBONE_KEYWORDS: [], LR_STEP: [90, 110]}\n"
    )
    cfg = load_config_text(text, "old.pth")
    assert (cfg.VERSION, cfg.TRAIN.LR, cfg.MODEL.SEED.MAX_OFFSET) == (2, 0.02, 0.2)
    assert load_config_text(cfg.dump(), "new.pth") == cfg


def test_keys_of_earlier_versions_are_read_under_their_new_names(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("LOSS: {ENGINE: plain}\n")
    cfg = load_config(path, ["TEST.FOLD_BATCHNORM", "False"])
    assert (cfg.LOSS.BACKEND, cfg.TEST.FUSE_CONV_BN) == ("plain", False)


@pytest.mark.parametrize(
    ("key", "off", "on"),
    [
        ("LOSS.FUSION_WARMUP", 0, 240),
        ("LOSS.OFFSET", 0.0, 0.3),
        ("LOSS.OFFSET_TARGET", "same_class", "right_pixel"),
        ("MODEL.SEED.CONFIDENCE_SEES_SCORES", False, True),
    ],
)
def test_a_setting_that_was_removed_may_still_be_off(write_config, key, off, on):
    """As every checkpoint of then has it. Switched on it is refused, wherever it stands."""
    seed = {"MODEL": {"SEED": {"NAME": "neck"}}}
    plain = load_config(write_config(seed))
    *sections, name = key.split(".")
    section = reduce(lambda node, part: node.setdefault(part, {}), sections, seed)
    section[name] = off
    path = write_config(seed, "old.yaml")
    assert load_config(path) == load_config_text(path.read_text(), "old.pth") == load_config(path, [key, str(off)])
    assert load_config(path) == plain
    saved = {key: off, "MODEL.SEED.NAME": "neck"}
    assert present_settings(saved, {"MODEL.SEED.NAME": "neck"}) == {"MODEL.SEED.NAME": "neck"}
    with pytest.raises(UserError, match=rf"^the command line: {key} is {on!r}, .*leave it away.*commit"):
        load_config(path, [key, str(on)])
    section[name] = on
    with pytest.raises(UserError, match=rf"^old\.pth: {key} is {on!r}, .*leave it away.*commit"):
        load_config_text(write_config(seed, "on.yaml").read_text(), "old.pth")


@pytest.mark.parametrize(
    ("model", "align_corners", "momentum"),
    [
        ({"NAME": "branched_seg_hrnet"}, False, 0.01),  # OVeNet's code without OCR
        ({"NAME": "seg_hrnet"}, False, 0.01),  # HRNet's branches without OCR
        ({"NAME": "branched_seg_hrnet", "ALIGN_CORNERS": True}, True, 0.1),  # a file that names it is obeyed
        ({"NAME": "seg_hrnet", "ALIGN_CORNERS": False}, False, 0.1),  # HRNet-OCR's code: Cityscapes, PASCAL-Context
        ({"NAME": "seg_hrnet", "NUM_OUTPUTS": 1}, True, 0.1),  # likewise: ADE20K, COCO-Stuff
        ({"NAME": "seg_hrnet_ocr"}, True, 0.1),
        ({"BACKBONE": {"NAME": "hrnet_w48"}}, True, 0.1),  # no published file
    ],
)
def test_networks_without_ocr_have_the_conventions_of_their_code(write_config, model, align_corners, momentum):
    """The public code without OCR has no ALIGN_CORNERS and neither has NUM_OUTPUTS: both came with OCR."""
    model = {**model, "EXTRA": {"OFFSET_BRANCH": 4}} if "NAME" in model else model
    cfg = load_config(write_config({"MODEL": model}))
    with meta_device():
        norms = [m for m in build_model(cfg).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert cfg.MODEL.ALIGN_CORNERS is align_corners
    assert {norm.momentum for norm in norms} == {momentum}


@pytest.mark.parametrize(
    ("base", "child", "overrides", "conventions"),
    [
        ({"NAME": "seg_hrnet"}, {}, ("MODEL.HEAD.NAME", "ocr"), (True, 0.0)),
        ({"NAME": "seg_hrnet"}, {}, ("MODEL.NAME", "seg_hrnet_ocr"), (True, 0.0)),
        (
            {"NAME": "seg_hrnet"},
            {"BACKBONE": {"NAME": "convnext_tiny"}, "HEAD": {"NAME": "segformer"}},
            (),
            (True, 0.0),
        ),
        ({"NAME": "seg_hrnet_ocr"}, {"NAME": "seg_hrnet"}, (), (False, 0.01)),
        ({"NAME": "seg_hrnet_ocr", "NUM_OUTPUTS": 2}, {}, ("MODEL.NAME", "seg_hrnet"), (True, 0.0)),
        ({"NAME": "seg_hrnet"}, {"NUM_OUTPUTS": 1}, (), (True, 0.0)),
        ({"NAME": "seg_hrnet"}, {"BACKBONE": {"NAME": "hrnet_w18"}}, (), (False, 0.01)),
    ],
)
def test_conventions_are_those_of_the_network_that_all_sources_make(write_config, base, child, overrides, conventions):
    write_config({"MODEL": base}, "base.yaml")
    model = load_config(write_config({"_BASE_": "base.yaml", "MODEL": child}), overrides).MODEL
    assert conventions == (model.ALIGN_CORNERS, model.BN_MOMENTUM)


def test_a_setting_that_is_gone_is_still_read(write_config):
    path = write_config({"CUDNN": {"WORKSPACE_MIB": 1024}})
    assert "WORKSPACE_MIB" not in load_config(path).CUDNN


def test_the_conventions_of_a_public_file_can_be_set(write_config):
    path = write_config({"MODEL": {"NAME": "branched_seg_hrnet"}})
    cfg = load_config(path, ["MODEL.ALIGN_CORNERS", "True"])
    assert (cfg.MODEL.ALIGN_CORNERS, cfg.MODEL.BN_MOMENTUM) == (True, 0.01)
    cfg = load_config(path, ["MODEL.BN_MOMENTUM", "0.05"])
    assert (cfg.MODEL.ALIGN_CORNERS, cfg.MODEL.BN_MOMENTUM) == (False, 0.05)
    cfg = load_config(path, ["MODEL.NAME", "seg_hrnet_ocr"])  # the last name decides
    assert (cfg.MODEL.ALIGN_CORNERS, cfg.MODEL.BN_MOMENTUM) == (True, 0.0)
    over = write_config({"_BASE_": "base.yaml", "MODEL": {"NAME": "seg_hrnet"}}, "over.yaml")
    write_config({"MODEL": {"ALIGN_CORNERS": True}}, "base.yaml")
    assert load_config(over).MODEL.ALIGN_CORNERS is True
    assert load_config_text(load_config(path).dump(), "a checkpoint") == load_config(path)
