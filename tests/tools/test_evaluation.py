"""Testing from the command line: the same to the last digit however it is dealt out or interrupted, and the report."""

import json
import os
import re
import signal

import pytest
import torch
from tests.forking import Forked

from ovenet import build_model, builders, load_config
from ovenet.utils.run_lock import run_lock


@pytest.fixture
def trained(small, tiny_data, tmp_path, write_config):
    """A config file of a small OVeNet that tests six images, its run's folder, and random weights in it."""
    small["DATASET"] |= {"ROOT": str(tiny_data), "TEST_SET": "list/camvid/train.lst"}
    small["OUTPUT_DIR"] = str(tmp_path / "output")
    path = write_config(small, "tiny.yaml")
    run = tmp_path / "output/camvid/tiny"
    run.mkdir(parents=True)
    torch.save({"model": build_model(load_config(path)).state_dict()}, run / "best.pth")
    return path, run


def files_of(run):
    """What a test wrote, but for the time."""
    folder = run / "test/train_best_s1"
    content = json.loads((folder / "results.json").read_text())
    del content["date"]
    return content, (folder / "images.jsonl").read_text()


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same_files(trained, run_tool, run_ranks, number):
    config, run = trained
    assert run_tool("test", "--cfg", config).code == 0
    expected = files_of(run)
    assert len(expected[1].splitlines()) == expected[0]["images"]["overall"]["num_images"] == 6
    for done in run_ranks(number, "tools/test.py", "--cfg", config):
        assert done.returncode == 0, done.stderr
    assert files_of(run) == expected
    assert not (run / "test/train_best_s1/unfinished").exists()


def test_an_interrupted_evaluation_goes_on(trained, run_tool, monkeypatch):
    config, run = trained
    assert run_tool("test", "--cfg", config).code == 0
    expected = files_of(run)
    (run / "test/train_best_s1/results.json").unlink()  # as if it had not come to its end

    image = config.parent / "data/camvid/train/3.png"
    pixels = image.read_bytes()
    image.write_bytes(b"no image")
    stopped = run_tool("test", "--cfg", config)
    assert stopped.code == 2
    assert re.search(r"train/3\.png: .*cannot be read", stopped.err)
    image.write_bytes(pixels)
    again = run_tool("test", "--cfg", config)
    assert again.code == 2
    assert "TEST.RESUME True goes on" in again.err
    other = run_tool("test", "--cfg", config, "TEST.RESUME", True, "TRAIN.IGNORE_LABEL", 254)
    assert other.code == 2
    assert re.search(r"TRAIN\.IGNORE_LABEL.*255.*254", other.err)

    seen = []
    monkeypatch.setattr(builders.testing.ImageWriter, "write", lambda self, index, *rest: seen.append(index))
    resumed = run_tool("test", "--cfg", config, "TEST.RESUME", True)
    assert resumed.code == 0, resumed.err
    assert "3 of 6 images are done" in resumed.err
    assert seen == [3, 4, 5]
    assert files_of(run) == expected
    assert run_tool("test", "--cfg", config, "TEST.RESUME", True).code == 0  # nothing to resume: all anew


def test_a_signal_saves_what_was_counted(trained, run_tool):
    config, _ = trained
    slow = ("TEST.SCALE_LIST", "8,8,8,8,8,8", "TEST.IMAGE_SIZE", "[512,512]", "PRINT_FREQ", "1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = Forked(["tools/test.py", "--cfg", config, *slow], env=environment)
    for line in process.stderr:
        if "train.lst: 2/6" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.stderr.read()
    assert process.wait(60) == 75
    resumed = run_tool("test", "--cfg", config, *slow, "TEST.RESUME", True)
    assert resumed.code == 0, resumed.err
    assert "of 6 images are done" in resumed.err


def test_the_report_is_written_and_rewritten(trained, run_tool, tmp_path):
    config, run = trained
    tested = run_tool("test", "--cfg", config, "TEST.REPORT", True)
    assert tested.code == 0, tested.err
    folder = run / "test/train_best_s1"
    assert f"report:      {folder / 'report.html'} (6 of 6 images are shown.)" in tested.out
    page = (folder / "report.html").read_text()
    assert page.count('id="picture-0-') == 6
    (folder / "report.html").unlink()
    assert run_tool("report", run).code == 0
    assert (folder / "report.html").exists()

    two = tmp_path / "two.html"
    assert run_tool("report", run, folder).code == 2  # where to?
    assert run_tool("report", run, folder, "--output", two).code == 0
    refused = run_tool("report", run, folder, "--output", two)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert run_tool("report", run, folder, "--output", two, "--overwrite").code == 0
    missing = run_tool("report", tmp_path / "nowhere")
    assert missing.code == 2
    assert re.search(r"nowhere: .*results\.json.*tools/test\.py", missing.err)


def test_the_report_needs_details(trained, run_tool):
    config, run = trained
    refused = run_tool("test", "--cfg", config, "TEST.REPORT", True, "TEST.DETAILS", False)
    assert refused.code == 2
    assert re.search(r"TEST\.DETAILS is False.*True.*TEST\.REPORT True", refused.err)
    assert run_tool("test", "--cfg", config, "TEST.DETAILS", False).code == 0
    assert "details" not in files_of(run)[0]


def test_tests_that_differ_never_share_a_folder(trained, run_tool):
    config, run = trained
    assert run_tool("test", "--cfg", config, "TEST.REPORT", True).code == 0
    first = run / "test/train_best_s1"
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert run_tool("test", "--cfg", config, "TEST.BASE_SIZE", 48).code == 0  # another setting
    weights = torch.load(run / "best.pth")
    weights["model"]["head.layers.3.bias"] += 1
    torch.save(weights, run / "best.pth")  # another file of the same name
    assert run_tool("test", "--cfg", config).code == 0
    assert sorted(path.name for path in (run / "test").iterdir()) == [first.name, f"{first.name}_2", f"{first.name}_3"]
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    second = json.loads((run / "test" / f"{first.name}_2" / "results.json").read_text())["evaluation_settings"]
    third = json.loads((run / "test" / f"{first.name}_3" / "results.json").read_text())["evaluation_settings"]
    assert (second["TEST.BASE_SIZE"], third["TEST.BASE_SIZE"]) == (48, 64)
    assert second["weights (SHA-256)"] != third["weights (SHA-256)"]
    assert run_tool("test", "--cfg", config, "TEST.BASE_SIZE", 48, "TEST.MODEL_FILE", run / "best.pth").code == 0
    (run / "test" / f"{first.name}_4").rename(run / "test/kept")  # other weights and size: a folder of its own
    assert run_tool("test", "--cfg", config).code == 0  # the same once more
    assert len(list((run / "test").iterdir())) == 4


def test_a_run_or_its_weights_are_tested_with_their_own_settings(trained, run_tool):
    config, run = trained
    cfg = load_config(config, ["TEST.BASE_SIZE", "32"])
    weights = torch.load(run / "best.pth")
    torch.save({**weights, "config": cfg.dump()}, run / "best.pth")
    results = run / "test/train_best_s1/results.json"
    for named in (run, run / "best.pth"):
        done = run_tool("test", named, "TEST.FLIP_TEST", False)
        assert done.code == 0, done.err
        assert json.loads(results.read_text())["evaluation_settings"]["TEST.BASE_SIZE"] == 32
        assert "other settings" not in done.err
    said = run_tool("test", "--cfg", config)
    assert said.code == 0
    assert re.search(r"best\.pth.*TEST\.BASE_SIZE was 32, is 64", said.err)
    torch.save(weights, run / "best.pth")
    refused = run_tool("test", run)
    assert refused.code == 2
    assert "best.pth" in refused.err
    assert "no configuration" in refused.err
    assert "--cfg FILE" in refused.err
    assert run_tool("test").code == 2


def test_momentum_of_batchnorm_is_no_setting_of_a_test(trained, run_tool):
    config, run = trained
    assert run_tool("test", "--cfg", config).code == 0
    again = run_tool("test", "--cfg", config, "MODEL.BN_MOMENTUM", 0.3)
    assert again.code == 0
    assert "other settings" not in again.err
    assert [path.name for path in (run / "test").iterdir()] == ["train_best_s1"]


def test_results_tell_the_protocol(trained, run_tool):
    config, run = trained
    assert run_tool("test", "--cfg", config, "TEST.PROTOCOL", "hrnet").code == 0
    content = json.loads((run / "test/train_best_s1_hrnet/results.json").read_text())
    assert content["settings"]["protocol"] == "hrnet"


def test_predictions_asked_for_later_are_written_for_all_images(trained, run_tool):
    """Resuming used to leave out the images that had been counted before."""
    config, run = trained
    image = config.parent / "data/camvid/train/3.png"
    pixels = image.read_bytes()
    image.write_bytes(b"no image")
    assert run_tool("test", "--cfg", config).code == 2
    image.write_bytes(pixels)
    resumed = run_tool("test", "--cfg", config, "TEST.RESUME", True, "TEST.SAVE_PREDICTIONS", True)
    assert resumed.code == 0, resumed.err
    assert len(list(run.glob("test/*/predictions/ids/train/*.png"))) == 6


def test_two_tests_in_one_folder_do_not_mix(trained, run_tool):
    config, run = trained
    with run_lock(run / "test/train_best_s1"):
        refused = run_tool("test", "--cfg", config)
    assert refused.code == 2
    assert "train_best_s1: another run" in refused.err
    assert not (run / "test/train_best_s1/images.jsonl").exists()
    assert run_tool("test", "--cfg", config).code == 0
