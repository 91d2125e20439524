"""Every command of docs/model_zoo.md parses, every published score has one, and its test is the published one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import timm

from ovenet.commands import COMMANDS
from ovenet.config import load_config
from ovenet.config.loading import find_experiment
from ovenet.models.pretrained import pretrained_models
from ovenet.utils.cli import config_parser

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in TEXT.split("\n## ")[1:]}
OF_EXPERIMENTS = re.compile(r"^\|.*`(\w+/[\w.-]+)` \| *([\d./ –]*).*\|$", re.MULTILINE)


def commands(section: str) -> list[tuple[str, str]]:
    """Commands of a section, for each experiment of its table, and the remarks behind them."""
    found = re.findall(r"^    (ovenet .*?)(?:  # (.*))?$", SECTIONS[section], re.MULTILINE)
    names = [name for name, _ in OF_EXPERIMENTS.findall(SECTIONS[section])]
    return [
        (command.replace("EXPERIMENT", name), remark)
        for command, remark in found
        for name in (names if "EXPERIMENT" in command else [""])
    ]


def settings(command: str):
    program, verb, *arguments = shlex.split(command)
    assert program == "ovenet"
    assert verb in COMMANDS
    args = config_parser("").parse_args(arguments)
    assert find_experiment(args.cfg).is_relative_to(ROOT / "experiments"), command
    return load_config(args.cfg, args.overrides)


TESTS = [
    (section, *row)
    for section in SECTIONS
    for row in commands(section)
    if " --cfg " in row[0] and not row[0].startswith("ovenet train")
]


@pytest.mark.parametrize(("section", "command", "remark"), TESTS)
def test_a_command_has_settings_and_weights(section, command, remark):
    cfg = settings(command)
    assert cfg.TEST.MODEL_FILE.startswith("pretrained_models/")
    assert (len(cfg.TEST.SCALE_LIST) > 1) <= cfg.TEST.FLIP_TEST, "several scales come with flips"
    name = command.split(" --cfg ")[1].split()[0]
    is_short = re.fullmatch(r"\w+/(hrnet|ovenet)_w48\w*", name) is not None
    assert (cfg.TEST.PROTOCOL, cfg.TEST.SCORE) == ("default", "softmax") if is_short else cfg.TEST.SCORE != "softmax"


SCALES = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
README = {  # HRNet-Semantic-Segmentation, branch HRNet-OCR: every score of a model with weights, its scales and flips
    "80.9": ([1.0], False),
    "81.6": ([1.0], False),
    "82.3": (SCALES, True),
    "55.83": ([1.0], True),
    "56.48": ([1.0], True),
    "54.1": ([*SCALES, 2.0], True),
    "56.2": ([*SCALES, 2.0], True),
    "48.3": ([*SCALES, 2.0], True),
    "50.1": ([*SCALES, 2.0], True),
    "36.2": ([1.0], False),
    "39.7": ([1.0], False),
    "37.9": ([*SCALES, 2.0], True),
    "40.6": ([*SCALES, 2.0], True),
    "43.1": ([1.0], False),
    "44.5": ([1.0], False),
    "44.2": ([*SCALES, 2.0], True),
    "45.5": ([*SCALES, 2.0], True),
}


def test_scores_of_hrnet_each_have_a_command():
    section = "HRNet and HRNet+OCR"
    scores = {
        score for row in re.findall(r"^\| HRNet[^|]*\|([^|]*)\|", SECTIONS[section], re.MULTILINE)
        for score in re.findall(r"\d+\.\d+", row)
    }  # fmt: skip
    remarks = {remark.split(",")[0]: settings(command) for command, remark in commands(section) if remark}
    assert scores == set(README)
    assert {score: (list(cfg.TEST.SCALE_LIST), cfg.TEST.FLIP_TEST) for score, cfg in remarks.items()} == README


@pytest.mark.parametrize(
    ("section", "num_scores", "num_commands"),
    [
        ("OVeNet", 0, 2 * 6 + 6),
        ("mmsegmentation's OCRNets", 2 * 21 + 3, 2 * 24),
        ("mmsegmentation's SegFormers and SegNeXts", 2 * 9, 2),
        ("OffSeg, and offset learning for SegFormer, SegNeXt and Mask2Former", 25, 2 * 25),
    ],
)
def test_every_experiment_of_a_table_has_its_commands(section, num_scores, num_commands):
    rows = OF_EXPERIMENTS.findall(SECTIONS[section])
    scores = [score for _, row in rows for score in re.findall(r"\d+\.\d+", row)]
    assert len({name for name, _ in rows}) == len(rows)
    assert (len(scores), len(commands(section))) == (num_scores, num_commands)


@pytest.mark.parametrize("model", pretrained_models().values(), ids=lambda model: model.name)
def test_every_named_model_has_a_row_with_its_scores(model):
    """The name in the row, or the experiment or the file that has it."""
    of_it = [f"`{name}`" for name in (model.name, model.experiment, model.file)]
    rows = [row for row in TEXT.splitlines() if row.startswith("|") and any(name in row for name in of_it)]
    rows = [row for row in rows if f"`{model.name}`" in row] or [row for row in rows if of_it[2] in row] or rows
    (row,) = rows
    scores = [float(score) for score in re.findall(r"(?<=[|/] )\d+\.\d+(?= [|/])", row)]
    assert scores == [score for score in model.mean_iou if score is not None]
    assert model.page in TEXT


def test_names_in_commands_and_pages_are_models():
    name = r"([a-z][\w-]+-\d+x\d+)"
    shown = re.findall(rf"^    ovenet (?:infer|test|export) {name}", TEXT, re.MULTILINE)
    shown += re.findall(rf"^    ovenet train --cfg .* MODEL.BACKBONE.PRETRAINED {name}$", TEXT, re.MULTILINE)
    index = re.findall(r"ovenet infer (\w\S*-\d+x\d+) ", (ROOT / "docs/index.md").read_text(encoding="utf-8"))
    assert (len(shown), len(index)) == (4, 1)
    assert {*shown, *index} <= set(pretrained_models())


def test_weights_that_come_along_are_there():
    for command, _ in commands("Bundled weights"):
        _, verb, name, _ = shlex.split(command)
        assert verb in COMMANDS
        assert (ROOT / f"pretrained_models/{name}.safetensors").is_file()


def test_all_commands_are_checked():
    assert len(re.findall(r"\bovenet (test|submission|infer|train|export) ", TEXT)) == sum(
        len(re.findall(r"^    ovenet (?!models)", part, re.MULTILINE)) for part in SECTIONS.values()
    )
    assert len(TESTS) > 100


def expanded(name: str) -> list[str]:
    """``a_{b,c}`` as its two names."""
    match = re.search(r"\{(.+?)\}", name)
    return [name.replace(match[0], part) for part in match[1].split(",")] if match else [name]


def test_licences_of_timms_weights_are_those_that_timm_names():
    rows = re.findall(
        r"^\| (`[^|]+`) \| `(\w+)` \| ([\w.-]+) \|", SECTIONS["Pretrained backbones of timm"], re.MULTILINE
    )
    assert len(rows) == 9
    for names, tag, licence in rows:
        for name in (one for pattern in re.findall("`(.+?)`", names) for one in expanded(pattern)):
            config = timm.get_pretrained_cfg(f"{name}.{tag}", allow_unregistered=False)
            assert (config.license, config.hf_hub_id) == (licence, f"timm/{name}.{tag}")
            if not name.startswith("convnext"):
                assert timm.get_pretrained_cfg(name).tag == tag, name
