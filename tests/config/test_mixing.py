"""Every published key beside every setting of the present schema, in every order."""

import logging
import re
from itertools import product

import pytest
import yaml

from ovenet.config import check_parts, load_config
from ovenet.config.compat import INERT_KEYS, TRANSLATED
from ovenet.errors import UserError

# Every published key has something to set in this model.
CONTEXT = {"MODEL.HEAD.NAME": "ocr", "MODEL.SEED.NAME": "fork"}

BOTH, OLD, NEW, TOLD, REFUSED = "both hold", "the old one", "the new one", "a warning names the old one", "refused"
LATER = (OLD, NEW, REFUSED)  # two names of one thing: the later one, or a contradiction

KEYWORDS = {"TRAIN.NONBACKBONE_KEYWORDS": ["cls", "aux", "ocr"]}
STAGE_VALUES = {
    "NUM_MODULES": lambda number: 7,
    "NUM_BLOCKS": lambda number: [3] * number,
    "NUM_CHANNELS": lambda number: [24] * number,
    "BLOCK": lambda number: "BASIC" if number == 1 else "BOTTLENECK",
}

# Old key: what is written, and what it means by itself.
PUBLISHED = {
    "MODEL.NAME": ({"MODEL.NAME": "seg_hrnet"}, {"MODEL.HEAD.NAME": "fcn"}),
    "MODEL.PRETRAINED": ({"MODEL.PRETRAINED": "old.pth"}, {"MODEL.BACKBONE.PRETRAINED": "old.pth"}),
    "MODEL.OFFSET_PRETRAINED": ({"MODEL.OFFSET_PRETRAINED": "old.pth"}, {"MODEL.SEED.PRETRAINED": "old.pth"}),
    "MODEL.FREEZED_PAR": ({"MODEL.FREEZED_PAR": True}, {"MODEL.FROZEN": ["backbone", "neck", "head"]}),
    "MODEL.OCR.MID_CHANNELS": ({"MODEL.OCR.MID_CHANNELS": 64}, {"MODEL.HEAD.MID_CHANNELS": 64}),
    "MODEL.OCR.KEY_CHANNELS": ({"MODEL.OCR.KEY_CHANNELS": 32}, {"MODEL.HEAD.KEY_CHANNELS": 32}),
    "MODEL.OCR.DROPOUT": ({"MODEL.OCR.DROPOUT": 0.2}, {"MODEL.HEAD.DROPOUT": 0.2}),
    "MODEL.EXTRA.FINAL_CONV_KERNEL": ({"MODEL.EXTRA.FINAL_CONV_KERNEL": 3}, {"MODEL.HEAD.FINAL_KERNEL": 3}),
    "MODEL.EXTRA.OFFSET_BRANCH": (
        {"MODEL.EXTRA.OFFSET_BRANCH": 3},
        {"MODEL.SEED.NAME": "fork", "MODEL.SEED.STAGE": 3},
    ),
    "MODEL.EXTRA.OFFSET_THRESHOLD": ({"MODEL.EXTRA.OFFSET_THRESHOLD": 0.2}, {"MODEL.SEED.MAX_OFFSET": 0.2}),
    "MODEL.EXTRA.ITERATIVE_REFINEMENT": ({"MODEL.EXTRA.ITERATIVE_REFINEMENT": 2}, {"MODEL.SEED.NUM_REFINEMENTS": 2}),
    "MODEL.EXTRA.LOGITS": ({"MODEL.EXTRA.LOGITS": False}, {"MODEL.SEED.FUSE_LOGITS": False}),
    "TRAIN.NONBACKBONE_KEYWORDS": (KEYWORDS, {"TRAIN.LR_MULT.HEAD": 10.0, "TRAIN.LR_MULT.OFFSET_HEAD": 10.0}),
    "TRAIN.NONBACKBONE_MULT": (
        {**KEYWORDS, "TRAIN.NONBACKBONE_MULT": 7},
        {"TRAIN.LR_MULT.HEAD": 7.0, "TRAIN.LR_MULT.OFFSET_HEAD": 7.0},
    ),
    **{
        f"MODEL.EXTRA.STAGE{n}.{field}": (
            {f"MODEL.EXTRA.STAGE{n}.{field}": value(n)},
            {"MODEL.BACKBONE.NAME": "hrnet", f"MODEL.BACKBONE.STAGES.{n - 1}.{field}": value(n)},
        )
        for n, (field, value) in product((1, 2, 3, 4), STAGE_VALUES.items())
    },
    **{
        f"MODEL.EXTRA.STAGE{n}_2.{field}": (
            {f"MODEL.EXTRA.STAGE{n}_2.{field}": value(n)},
            {f"MODEL.SEED.STAGES.{n - 5}.{field}": value(n)},
        )
        for n, (field, value) in product((2, 3, 4), STAGE_VALUES.items())
    },
}
# They are right or refused, and set nothing.
CHECKED = re.compile(r"MODEL\.EXTRA\.STAGE\d(_2)?\.(NUM_BRANCHES|NUM_RANCHES|FUSE_METHOD)")


def rates(head, offset_head):
    return {"TRAIN.LR_MULT.HEAD": head, "TRAIN.LR_MULT.OFFSET_HEAD": offset_head}


COPY = {"NUM_MODULES": 1, "NUM_BLOCKS": [2] * 4, "NUM_CHANNELS": [8] * 4, "BLOCK": "BASIC"}
TINY = [
    {"NUM_MODULES": 1, "NUM_BLOCKS": [1] * n, "NUM_CHANNELS": [4] * n, "BLOCK": "BOTTLENECK" if n == 1 else "BASIC"}
    for n in (1, 2, 3, 4)
]
PRESENT = {
    "the default backbone": {"MODEL.BACKBONE.NAME": "hrnet_w48"},
    "another HRNet": {"MODEL.BACKBONE.NAME": "hrnet_w18"},
    "stages": {"MODEL.BACKBONE.NAME": "hrnet", "MODEL.BACKBONE.STAGES": TINY},
    "another backbone": {"MODEL.BACKBONE.NAME": "resnet50_v1c"},
    "pretrained": {"MODEL.BACKBONE.PRETRAINED": "new.pth"},
    "neck": {"MODEL.NECK.NAME": "concat"},
    "ocr": {"MODEL.HEAD.NAME": "ocr"},
    "fcn": {"MODEL.HEAD.NAME": "fcn"},
    "another head": {"MODEL.HEAD.NAME": "conv1x1"},
    "width of the head": {"MODEL.HEAD.MID_CHANNELS": 128},
    "kernel of the head": {"MODEL.HEAD.FINAL_KERNEL": 1},
    "fork": {"MODEL.SEED.NAME": "fork"},
    "shared": {"MODEL.SEED.NAME": "shared"},
    "no seed": {"MODEL.SEED.NAME": "none"},
    "first copy": {"MODEL.SEED.STAGE": 2},
    "copies": {"MODEL.SEED.STAGES": [COPY]},
    "offsets": {"MODEL.SEED.MAX_OFFSET": 0.3},
    "refinements": {"MODEL.SEED.NUM_REFINEMENTS": 1},
    "logits": {"MODEL.SEED.FUSE_LOGITS": True},
    "pretrained seed": {"MODEL.SEED.PRETRAINED": "new.pth"},
    "frozen": {"MODEL.FROZEN": ["backbone.layer1"]},
    "rate of the head": {"TRAIN.LR_MULT.HEAD": 5.0},
    "rate of the seed": {"TRAIN.LR_MULT.SEED": 5.0},
    "rate of the offset head": {"TRAIN.LR_MULT.OFFSET_HEAD": 5.0},
    "corners": {"MODEL.ALIGN_CORNERS": True},
}

# (old, new): outcomes with the old one later, the new one later, and both in one source; all else: both hold.
EXPECTED = {
    ("MODEL.NAME", "ocr"): LATER,
    ("MODEL.NAME", "another head"): LATER,
    ("MODEL.NAME", "width of the head"): (OLD, REFUSED, REFUSED),  # an argument of the head before, or of none
    ("MODEL.NAME", "kernel of the head"): (OLD, BOTH, BOTH),
    ("MODEL.PRETRAINED", "pretrained"): LATER,
    ("MODEL.OFFSET_PRETRAINED", "pretrained seed"): LATER,
    ("MODEL.OFFSET_PRETRAINED", "shared"): (REFUSED, REFUSED, REFUSED),
    ("MODEL.OFFSET_PRETRAINED", "no seed"): (REFUSED, REFUSED, REFUSED),
    ("MODEL.FREEZED_PAR", "frozen"): LATER,
    ("MODEL.FREEZED_PAR", "no seed"): (REFUSED, REFUSED, REFUSED),
    ("MODEL.OCR.MID_CHANNELS", "width of the head"): LATER,
    **{
        (f"MODEL.OCR.{key}", head): (TOLD, TOLD, TOLD)
        for key, head in product(("MID_CHANNELS", "KEY_CHANNELS", "DROPOUT"), ("fcn", "another head"))
    },
    ("MODEL.EXTRA.FINAL_CONV_KERNEL", "kernel of the head"): LATER,
    ("MODEL.EXTRA.FINAL_CONV_KERNEL", "another head"): (TOLD, TOLD, TOLD),
    ("MODEL.EXTRA.OFFSET_BRANCH", "shared"): LATER,
    ("MODEL.EXTRA.OFFSET_BRANCH", "no seed"): LATER,
    ("MODEL.EXTRA.OFFSET_BRANCH", "first copy"): LATER,
    ("MODEL.EXTRA.OFFSET_THRESHOLD", "offsets"): LATER,
    ("MODEL.EXTRA.ITERATIVE_REFINEMENT", "refinements"): LATER,
    ("MODEL.EXTRA.LOGITS", "logits"): LATER,
    **{
        (f"MODEL.EXTRA.{key}", "no seed"): (TOLD, TOLD, TOLD)
        for key in ("OFFSET_THRESHOLD", "ITERATIVE_REFINEMENT", "LOGITS")
    },
    **{
        (f"TRAIN.NONBACKBONE_{key}", new): outcomes
        for key, factor in (("KEYWORDS", 10.0), ("MULT", 7.0))
        for new, outcomes in {
            "fcn": (TOLD, TOLD, TOLD),  # whose parameters the public code calls last_layer
            "another head": (rates(factor, 0.0),) * 3,  # never published
            "no seed": (rates(factor, 0.0),) * 3,
            "rate of the head": (OLD, rates(5.0, factor), REFUSED),
            "rate of the offset head": (OLD, rates(factor, 5.0), REFUSED),
        }.items()
    },
    **{
        (old, new): outcomes
        for old in PUBLISHED
        if re.match(r"MODEL\.EXTRA\.STAGE\d\.", old)
        for new, outcomes in {
            "the default backbone": LATER,
            "another HRNet": LATER,
            "stages": LATER,
            "another backbone": (REFUSED, NEW, REFUSED),
        }.items()
    },
    **{
        (old, new): (TOLD, TOLD, TOLD)  # the copies begin at stage 4
        for old, new in product(PUBLISHED, PRESENT)
        if re.match(r"MODEL\.EXTRA\.STAGE[23]_2", old) and new != "first copy"
    },
    **{
        (old, new): outcomes
        for old in PUBLISHED
        if re.match(r"MODEL\.EXTRA\.STAGE4_2", old)
        for new, outcomes in {
            "another HRNet": (BOTH, TOLD, BOTH),  # its own stages are copied
            "stages": (BOTH, TOLD, BOTH),
            "another backbone": (TOLD, TOLD, TOLD),
            "shared": (TOLD, TOLD, TOLD),
            "no seed": (TOLD, TOLD, TOLD),
            "copies": LATER,
        }.items()
    },
}


def nested(settings):
    tree = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def arguments(settings):
    return [text for key, value in settings.items() for text in (key, str(value))]


def value_at(cfg, path):
    node = cfg
    for name in path.split("."):
        node = node[int(name)] if isinstance(node, (list, tuple)) else node[name]
    return node


@pytest.fixture
def combined(tmp_path, caplog, monkeypatch):
    """A function that gives outcomes: the configuration and what it warned of, or the error."""
    monkeypatch.setattr(logging.getLogger("ovenet"), "propagate", True)
    written = set()

    def path_of(*layers):
        name = None
        for number, settings in enumerate(layers):
            content = nested(settings) | ({"_BASE_": name} if name else {})
            text = yaml.safe_dump(content)
            name = f"{number}_{abs(hash(text))}.yaml"
            if name not in written:
                (tmp_path / name).write_text(text)
                written.add(name)
        return tmp_path / name

    def load(layers, overrides=()):
        caplog.clear()
        try:
            cfg = load_config(path_of(CONTEXT, *layers), overrides)
            check_parts(cfg)
        except UserError as error:
            return None, str(error)
        return cfg, caplog.text

    return load


def is_repeated(old):
    """Whether another field of the same stage goes over the whole product."""
    return any("STAGE" in key and "NUM_MODULES" not in key for key in old)


def ways(old, new):
    """In which order, layers of files, overrides."""
    yield 0, [new, old], []
    yield 1, [old, new], []
    yield 2, [{**old, **new}], []
    if not is_repeated(old):
        yield 0, [new], arguments(old)
        yield 1, [old], arguments(new)
        yield 2, [], arguments(old) + arguments(new)
        yield 2, [], arguments(new) + arguments(old)


@pytest.mark.parametrize("old", PUBLISHED)
def test_published_keys_beside_present_ones(old, combined):
    written, alone = PUBLISHED[old]
    for name, present in PRESENT.items():
        if is_repeated(written) and not any(re.match(r"MODEL\.(BACKBONE|SEED)\.(NAME|STAGE)", key) for key in present):
            continue
        outcomes = EXPECTED.get((old, name), (BOTH, BOTH, BOTH))
        for order, layers, overrides in ways(written, present):
            outcome, where = outcomes[order], (name, layers, overrides)
            cfg, text = combined(layers, overrides)
            if outcome == REFUSED:
                assert cfg is None, where
                assert "\n" not in text
                assert any(key in text for key in (*written, *alone, *present)), text
                continue
            assert cfg is not None, (where, text)
            told = [group for group in (old, old.rpartition(".")[0] + ".*") if f"{group} (" in text]
            assert bool(told) == (outcome == TOLD), (where, text)
            by_outcome = {BOTH: {**present, **alone}, OLD: alone, NEW: present, TOLD: present}
            expected = outcome if isinstance(outcome, dict) else by_outcome[outcome]
            assert {key: value_at(cfg, key) for key in expected} == expected, where


def test_the_table_has_every_published_key():
    assert {key for key in TRANSLATED if not CHECKED.fullmatch(key)} == set(PUBLISHED)
    assert {old for old, _ in EXPECTED} <= set(PUBLISHED)
    assert {new for _, new in EXPECTED} <= set(PRESENT)


@pytest.mark.parametrize("key", INERT_KEYS)
def test_keys_without_effect_are_told(key, combined):
    for value, layers in product((1, False, "x"), ([], [{"MODEL.BACKBONE.NAME": "hrnet_w18"}])):
        cfg, text = combined([*layers, {key: value}])
        assert cfg is not None
        assert text.count(f"{key} (") == 1


def test_what_was_overridden_does_not_come_back(combined):
    """An argument goes with the part that it was set for; the published key it took the place of stays overridden."""
    offsets = [{"MODEL.EXTRA.OFFSET_THRESHOLD": 0.2}, {"MODEL.SEED.MAX_OFFSET": 0.3}, {"MODEL.SEED.NAME": "shared"}]
    cfg, _ = combined(offsets)
    assert "MAX_OFFSET" not in cfg.MODEL.SEED
    cfg, _ = combined([offsets[0], {"MODEL.SEED.MAX_OFFSET": None}])
    assert "MAX_OFFSET" not in cfg.MODEL.SEED
    cfg, _ = combined([offsets[1], offsets[0], offsets[2]])
    assert cfg.MODEL.SEED.MAX_OFFSET == 0.2
    cfg, _ = combined([{"MODEL.PRETRAINED": "a"}, {"MODEL.BACKBONE.PRETRAINED": "b"}], ["MODEL.PRETRAINED", "c"])
    assert cfg.MODEL.BACKBONE.PRETRAINED == "c"
    cfg, _ = combined([KEYWORDS, {"TRAIN.NONBACKBONE_KEYWORDS": []}])
    assert (cfg.TRAIN.LR_MULT.HEAD, cfg.TRAIN.LR_MULT.OFFSET_HEAD) == (1.0, 0.0)


def test_stages_change_nothing_else_of_the_backbone(combined):
    present = {
        "MODEL.BACKBONE.NAME": "hrnet_w18",
        "MODEL.BACKBONE.PRETRAINED": "a.pth",
        "MODEL.BACKBONE.FLAVOUR": "mmseg",
    }
    cfg, _ = combined([present], ["MODEL.EXTRA.STAGE4.NUM_MODULES", "1"])
    assert (cfg.MODEL.BACKBONE.PRETRAINED, cfg.MODEL.BACKBONE.FLAVOUR) == ("a.pth", "mmseg")
    assert [spec["NUM_MODULES"] for spec in cfg.MODEL.BACKBONE.STAGES] == [1, 1, 4, 1]
    assert "STAGES" not in cfg.MODEL.SEED  # copied from this network
    cfg, _ = combined([present], ["MODEL.EXTRA.STAGE4.NUM_MODULES", "3"])
    assert dict(cfg.MODEL.BACKBONE) == {"NAME": "hrnet_w18", "PRETRAINED": "a.pth", "FLAVOUR": "mmseg"}


def test_agreement_is_no_contradiction(combined):
    pairs = {
        "MODEL.PRETRAINED": ("a.pth", "MODEL.BACKBONE.PRETRAINED", "a.pth"),
        "MODEL.NAME": ("seg_hrnet_ocr", "MODEL.HEAD.NAME", "ocr"),
        "MODEL.EXTRA.OFFSET_BRANCH": (3, "MODEL.SEED.STAGE", 3),
        "MODEL.FREEZED_PAR": (True, "MODEL.FROZEN", ["backbone", "neck", "head"]),
        "TRAIN.NONBACKBONE_KEYWORDS": (["cls", "aux", "ocr"], "TRAIN.LR_MULT.HEAD", 10.0),
        "MODEL.EXTRA.STAGE4.NUM_MODULES": (3, "MODEL.BACKBONE.NAME", "hrnet_w48"),
    }
    for old, (value, new, same) in pairs.items():
        cfg, text = combined([{old: value, new: same}])
        assert cfg is not None, text
        assert value_at(cfg, new) == same


def test_weights_of_another_backbone_are_left_out_aloud(combined):
    pretrained, other = {"MODEL.BACKBONE.PRETRAINED": "a.pth"}, ["MODEL.BACKBONE.NAME", "hrnet_w18"]
    told = "MODEL.BACKBONE.PRETRAINED (MODEL.BACKBONE.NAME"
    cfg, text = combined([pretrained], other)
    assert "PRETRAINED" not in cfg.MODEL.BACKBONE or cfg.MODEL.BACKBONE.PRETRAINED == ""
    assert told in text
    cfg, text = combined([pretrained], [*other, "MODEL.BACKBONE.PRETRAINED", "b.pth"])
    assert cfg.MODEL.BACKBONE.PRETRAINED == "b.pth"
    assert told not in text
    assert told not in combined([{"MODEL.BACKBONE.PRETRAINED": ""}], other)[1]
    assert told not in combined([{"MODEL.PRETRAINED": "a.pth"}], other)[1]  # a published key stays in force


def test_layers_that_rest_for_no_epoch_are_told(combined):
    rest = {"TRAIN.FREEZE_LAYERS": "layer1"}
    assert "TRAIN.FREEZE_LAYERS (TRAIN.FREEZE_EPOCHS is -1)" in combined([rest])[1]
    assert "FREEZE_LAYERS" not in combined([{**rest, "TRAIN.FREEZE_EPOCHS": 2}])[1]


def test_an_unknown_part_is_named_with_its_key(combined):
    cfg, text = combined([{"MODEL.EXTRA.OFFSET_THRESHOLD": 0.2}], ["MODEL.SEED.NAME", "shard"])
    assert cfg is None
    assert text.startswith("MODEL.SEED.NAME is 'shard': there is no seed 'shard'")
    for key, value in (("MODEL.BACKBONE.STAGES", "[1, 2]"), ("MODEL.BACKBONE.STAGES", "x"), ("MODEL.SEED.STAGE", "x")):
        options = ["MODEL.BACKBONE.NAME", "hrnet", key, value]
        cfg, text = combined([{"MODEL.EXTRA.STAGE4_2.NUM_MODULES": 1, "MODEL.EXTRA.STAGE4.NUM_MODULES": 1}], options)
        assert cfg is None
        assert key in text
