"""``ovenet test --corruptions``: any number of processes, interrupted and resumed, on a page, and bad input."""

import json
import re

import pytest
import torch
from tests.conftest import tiny_settings

from ovenet import build_model, load_config

PLAN = ("--corruptions", "rain,darkness", "--severities", "3")  # kinds that need no library


@pytest.fixture
def trained(tiny_data, tmp_path, write_config):
    """A config file of a tiny OVeNet that tests six images, its run's folder, and random weights in it."""
    settings = tiny_settings()
    settings["DATASET"] |= {"ROOT": str(tiny_data), "TEST_SET": "list/camvid/train.lst"}
    settings["OUTPUT_DIR"] = str(tmp_path / "output")
    path = write_config(settings, "tiny.yaml")
    run = tmp_path / "output/camvid/tiny"
    run.mkdir(parents=True)
    cfg = load_config(path, ["TRAIN.CORRUPTION_PROBABILITY", "0.5", "TRAIN.CORRUPTIONS", "[rain]"])
    torch.save({"model": build_model(cfg).state_dict(), "config": cfg.dump()}, run / "best.pth")
    return path, run


def summary_of(folder):
    content = json.loads((folder / "corruptions.json").read_text())
    del content["date"]
    return content


@pytest.mark.ci
def test_clean_and_corrupted(trained, run_tool, run_ranks):
    config, run = trained
    folder = run / "test/train_best_s1"
    done = run_tool("test", "--cfg", config, *PLAN)
    assert done.code == 0, done.err
    content = summary_of(folder)
    assert content["is_complete"]
    assert content["trained_with"] == ["rain"]
    assert "best.pth was trained with rain" in done.err
    assert re.search(r"^rain\* ", done.out, re.MULTILINE)
    assert re.search(r"^darkness ", done.out, re.MULTILINE)
    assert "3 tests" in done.err
    assert "0 tests to go" in done.err
    assert list(json.loads((folder / "corruption_examples.json").read_text())) == ["clean", "rain", "darkness"]

    for kind in ("rain", "darkness"):  # each is an ordinary test, scored as by TEST.CORRUPTION
        own = json.loads((folder / f"corruptions/{kind}_3/results.json").read_text())
        assert own["settings"]["corruption"] == kind
        assert "details" not in own
        expected = {name: scores["mean_iou"] for name, scores in own["results"].items()}
        assert content["scores"][kind]["3"] == expected
    alone = run_tool("test", "--cfg", config, "TEST.CORRUPTION", "rain", "TEST.DETAILS", False)
    assert alone.code == 0, alone.err
    assert "TEST.CORRUPTION rain" in alone.err  # the weights know it
    single = json.loads((run / "test/train_best_s1_rain3/results.json").read_text())
    assert single["results"] == json.loads((folder / "corruptions/rain_3/results.json").read_text())["results"]
    clean = json.loads((folder / "results.json").read_text())
    assert clean["results"]["fused"]["mean_iou"] == content["clean"]["fused"]

    before = {path: path.read_bytes() for path in folder.rglob("*/results.json")}
    for path in before:
        path.unlink()
    for ended in run_ranks(2, "tools/test.py", "--cfg", config, *PLAN):
        assert ended.returncode == 0, ended.stderr
    for path, text in before.items():
        assert {**json.loads(path.read_text()), "date": ""} == {**json.loads(text), "date": ""}
    assert summary_of(folder) == content


@pytest.mark.ci
def test_an_interrupted_loop_goes_on(trained, run_tool):
    config, run = trained
    folder = run / "test/train_best_s1"
    assert run_tool("test", "--cfg", config, *PLAN).code == 0
    expected = summary_of(folder)
    kept = [folder / "results.json", folder / "corruptions/rain_3/results.json"]
    times = [path.stat().st_mtime_ns for path in kept]
    (folder / "corruptions/darkness_3/results.json").unlink()
    (folder / "corruptions.json").unlink()
    image = config.parent / "data/camvid/train/3.png"
    pixels = image.read_bytes()
    image.write_bytes(b"no image")
    stopped = run_tool("test", "--cfg", config, *PLAN)
    assert stopped.code == 2
    assert "2 are done already" in stopped.err
    partial = summary_of(folder)
    assert list(partial["scores"]) == ["rain"]
    assert not partial["is_complete"]

    image.write_bytes(pixels)
    resumed = run_tool("test", "--cfg", config, *PLAN)
    assert resumed.code == 0, resumed.err
    assert "3 of 6 images are done" in resumed.err
    assert summary_of(folder) == expected
    assert [path.stat().st_mtime_ns for path in kept] == times

    image.write_bytes(b"no image")
    wish = ("--corruptions", "rain", "--severities", "3", "TEST.SAVE_PREDICTIONS", True)
    assert run_tool("test", "--cfg", config, *wish).code == 2  # the clean test once more, and not to its end
    assert len(list(folder.glob("predictions/ids/train/*.png"))) < 6
    image.write_bytes(pixels)
    assert run_tool("test", "--cfg", config, *wish).code == 0
    for own in (folder, folder / "corruptions/rain_3"):
        assert len(list(own.glob("predictions/ids/train/*.png"))) == 6


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--corruptions", "fgo"), ("--corruptions", "'fgo'", "fog")),
        (("--corruptions", ","), ("--corruptions", "names no kind")),
        (("--corruptions", "rain", "--severities", "0,1"), ("--severities", "'0'", "1 to 5")),
        (("--severities", "1"), ("--severities", "--corruptions")),
        (("--corruptions", "rain", "TEST.CORRUPTION", "rain"), ("TEST.CORRUPTION", "'rain'")),
        (("TEST.CORRUPTION", "darknes"), ("TEST.CORRUPTION", "'darknes'", "darkness")),
        (("TEST.CORRUPTION", "rain", "TEST.SEVERITY", 6), ("TEST.SEVERITY", "6")),
        (("TRAIN.CORRUPTIONS", "[wet]"), ("TRAIN.CORRUPTIONS", "'wet'")),
        (
            ("TRAIN.CORRUPTION_PROBABILITY", 1, "TRAIN.IMAGE_SIZE", "[40,64]"),
            ("TRAIN.IMAGE_SIZE", "[40, 64]", "41"),
        ),
    ],
)
def test_bad_input(trained, run_tool, arguments, expected):
    done = run_tool("test", "--cfg", trained[0], *arguments)
    assert done.code == 2
    message = done.err.strip().splitlines()[-1]  # a warning about the published file may precede it
    assert message.startswith("error: ")
    assert all(word in message for word in expected), message
