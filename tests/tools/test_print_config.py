"""The settings of an experiment, with their sources."""

import re

import pytest
import yaml

from ovenet.config import load_config


def test_every_setting_has_its_source_and_the_output_is_a_config(run_tool, tmp_path):
    (tmp_path / "base.yaml").write_text("TRAIN: {LR: 0.5, WD: 0.25}\nMODEL: {HEAD: {NAME: ocr, DROPOUT: 0.2}}\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\nTRAIN: {LR: 0.125}\n")
    overrides = ("TRAIN.END_EPOCH", "7", "LOSS.ENGINE", "plain")
    printed = run_tool("print_config", "--cfg", tmp_path / "own.yaml", *overrides)
    assert printed.code == 0, printed.err
    found = dict(re.findall(r"^(\S+): .*?  # (.*)$", printed.out, re.MULTILINE))
    assert found["TRAIN.LR"] == str(tmp_path / "own.yaml")
    assert found["TRAIN.WD"] == found["MODEL.HEAD.NAME"] == found["MODEL.HEAD.DROPOUT"] == str(tmp_path / "base.yaml")
    assert found["TRAIN.END_EPOCH"] == found["LOSS.BACKEND"] == "the command line"
    assert found["SEED"] == "default"
    (tmp_path / "again.yaml").write_text(printed.out)
    assert load_config(tmp_path / "again.yaml") == load_config(tmp_path / "own.yaml", overrides)


def test_published_names_are_shown_as_what_they_mean(run_tool, tmp_path):
    (tmp_path / "old.yaml").write_text("MODEL: {NAME: seg_hrnet_ocr, OCR: {KEY_CHANNELS: 64}}\n")
    printed = run_tool("print_config", "--changed", "--cfg", tmp_path / "old.yaml")
    values = yaml.safe_load(printed.out)
    assert (values["MODEL.HEAD.NAME"], values["MODEL.HEAD.KEY_CHANNELS"]) == ("ocr", 64)
    assert "TRAIN.LR" not in values
    assert printed.out.count("old.yaml") >= 2


def test_bad_input(run_tool, tmp_path):
    printed = run_tool("print_config", "--cfg", tmp_path / "none.yaml")
    assert printed.code == 2
    assert "none.yaml: cannot read" in printed.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["MODEL.PRETRAINED", "a", "MODEL.BACKBONE.PRETRAINED", "b"], ["MODEL.PRETRAINED is 'a'", "PRETRAINED is 'b'"]),
        (["MODEL.HEAD.NAME", "fcn", "MODEL.NAME", "seg_hrnet_ocr"], ["NAME is 'seg_hrnet_ocr'", "HEAD.NAME is 'fcn'"]),
        (
            ["MODEL.BACKBONE.NAME", "convnext_tiny", "MODEL.EXTRA.STAGE4.NUM_MODULES", "1"],
            ["STAGE4.NUM_MODULES is 1", "MODEL.BACKBONE.NAME is 'convnext_tiny', "],
        ),
        (["LOSS.ENGINE", "plain", "LOSS.BACKEND", "auto"], ["LOSS.ENGINE is 'plain'", "LOSS.BACKEND, its name now"]),
        (["LOSS.BACKEND", "auto", "LOSS.ENGINE", "plain"], ["LOSS.ENGINE is 'plain'", "LOSS.BACKEND, its name now"]),
    ],
)
def test_contradictions_end_the_program_in_one_line(run_tool, tmp_path, arguments, parts):
    (tmp_path / "own.yaml").write_text("SEED: 1\n")
    printed = run_tool("print_config", "--cfg", tmp_path / "own.yaml", *arguments)
    assert printed.code == 2
    assert len(printed.err.strip().splitlines()) == 1
    for part in (*parts, "the command line: ", "leave one"):
        assert part in printed.err
