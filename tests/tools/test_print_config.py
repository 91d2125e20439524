"""The settings of an experiment, with their sources."""

import re

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
    assert "none.yaml: cannot read the config file" in printed.err
