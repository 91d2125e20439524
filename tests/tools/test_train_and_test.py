"""Training and testing from the command line, on data of a few pixels."""

import json
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tests.conftest import tiny_settings


@pytest.fixture
def experiment(small, tiny_data, tmp_path, write_config):
    """A config file of a small OVeNet on the tiny data, and its run's folder."""
    small["DATASET"]["ROOT"] = str(tiny_data)
    small["OUTPUT_DIR"] = str(tmp_path / "output")
    return write_config(small, "tiny.yaml"), tmp_path / "output" / "camvid" / "tiny"


@pytest.fixture
def fresh_experiment(experiment):
    """The same of an OVeNet that a fresh interpreter knows, and whose seed has layers of its own."""
    path, run_dir = experiment
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, "MODEL": tiny_settings()["MODEL"]}))
    return path, run_dir


def read_events(folder) -> set[str]:
    """Tags in TensorBoard files: records of length, its checksum, an Event, its checksum."""
    tags = set()
    for path in folder.glob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])
            tags |= {value.tag for value in event.summary.value}
            at += 16 + length
    return tags


def test_a_cache_changes_no_bit(run_tool, experiment, tiny_data):
    config, run_dir = experiment
    weights = []
    for number, kind in enumerate(("none", "disk", "disk")):
        output = run_dir.parents[1] / str(number)
        trained = run_tool("train", "--cfg", config, "DATASET.CACHE", kind, "OUTPUT_DIR", output, "TRAIN.END_EPOCH", 1)
        assert trained.code == 0, trained.err
        assert ("decoding 6 of 6 pairs" in trained.err) == (number == 1)
        weights.append(torch.load(output / "camvid" / "tiny" / "final_state.pth")["model"])
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())
    assert len(list((tiny_data / "cache").rglob("*.npy"))) == 12


def test_the_cache_in_memory_is_removed_at_the_end(run_fork, experiment):
    settings = ("DATASET.CACHE", "ram", "TRAIN.END_EPOCH", 1)
    trained = run_fork("tools/train.py", "--cfg", experiment[0], *settings)
    assert trained.returncode == 0, trained.stderr
    line = next(line for line in trained.stderr.splitlines() if "decoding 6 of 6 pairs" in line)
    folder = Path(line.split(": ")[0].split()[-1])
    assert folder.parts[:3] == ("/", "dev", "shm")
    assert not folder.exists()


@pytest.mark.slow
def test_compiling_without_a_compiler_is_one_line(run_process, fresh_experiment, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    trained = run_process(sys.executable, "tools/train.py", "--cfg", fresh_experiment[0], "TRAIN.COMPILE", "default")
    assert trained.returncode == 2
    assert trained.stderr.splitlines()[-1].startswith("error: torch.compile finds no working C++ compiler; install g++")


def test_from_training_to_scores_and_pictures(run_tool, experiment):
    config, run_dir = experiment
    trained = run_tool("train", "--cfg", config, "PRINT_FREQ", 1)
    assert trained.code == 0, trained.err
    assert "epoch 2/2, iteration 3/3: loss" in trained.err  # plain lines where there is no terminal
    assert {p.name for p in run_dir.iterdir()} >= {
        "checkpoint.pth", "best.pth", "final_state.pth", "config.yaml", "train.log", "tensorboard",
    }  # fmt: skip
    tags = read_events(run_dir / "tensorboard")
    terms = {f"train/loss{t}" for t in ("", "_initial", "_seed", "_fused", "_confidence")}
    assert tags >= terms | {"train/lr", "train/images_per_second", "val/picture"}
    assert tags >= {f"val/mean_iou_{name}" for name in ("initial", "seed", "fused")}

    tested = run_tool(
        "test", "--cfg", config, "TEST.MODEL_FILE", run_dir / "final_state.pth", "TEST.SCALE_LIST", "0.5,1.0,1.5",
        "TEST.FLIP_TEST", "True", "TEST.SAVE_PREDICTIONS", "True",
    )  # fmt: skip
    assert tested.code == 0, tested.err
    assert tested.out.splitlines()[0].split() == ["IoU", "in", "%", "S_i", "S_s", "S_f"]
    assert "100.0%" in tested.err
    assert "list/camvid/val.lst: 3/3" in tested.err  # plain lines where there is no terminal
    folder = run_dir / "test" / "val_final_state_s0.5-1-1.5_flip"
    content = json.loads((folder / "results.json").read_text())
    assert content["settings"]["scales"] == [0.5, 1.0, 1.5]
    ids = np.asarray(Image.open(folder / "predictions/ids/val/1.png"))
    assert ids.shape == (48, 64)
    assert ids.max() < 11
    assert Image.open(folder / "pictures/val/0.png").size == (8 * 64 + 7 * 4, 18 + 48)  # tiles, gaps, captions

    # the JSON's scores follow from the saved predictions
    right = total = 0
    for i in range(3):
        ids = np.asarray(Image.open(folder / f"predictions/ids/val/{i}.png"))
        labels = np.asarray(Image.open(config.parent / f"data/camvid/valannot/{i}.png"))
        right += int((ids == labels)[labels != 11].sum())
        total += int((labels != 11).sum())
    assert content["results"]["fused"]["num_pixels"] == total
    assert content["results"]["fused"]["pixel_accuracy"] == pytest.approx(right / total)


def test_a_run_is_resumed_or_left_alone_but_never_overwritten(run_tool, experiment):
    config, run_dir = experiment
    assert run_tool("train", "--cfg", config, "TRAIN.END_EPOCH", 1).code == 0
    before = {p: p.read_bytes() for p in run_dir.glob("*.pth")}
    again = run_tool("train", "--cfg", config)
    assert again.code == 2
    assert re.search(r"checkpoint\.pth exists.*TRAIN\.RESUME True.*OUTPUT_DIR", again.err)
    assert {p: p.read_bytes() for p in run_dir.glob("*.pth")} == before
    resumed = run_tool("train", "--cfg", config, "TRAIN.RESUME", True)
    assert resumed.code == 0, resumed.err
    assert "checkpoint.pth: epoch 2, iteration 3, best mIoU" in resumed.err
    assert "epochs 2 to 2" in resumed.err  # counted from 1, as in the lines of an epoch
    assert "epoch 2/2" in resumed.err
    assert "epoch 1/2" not in resumed.err
    assert "TRAIN.END_EPOCH was 1, is 2; TRAIN.RESUME was False, is True" in resumed.err
    done = run_tool("train", "--cfg", config, "TRAIN.RESUME", True)
    assert done.code == 0
    assert re.search(r"nothing .*TRAIN\.END_EPOCH.*OUTPUT_DIR", done.err)


def test_the_saved_config_repeats_the_run(run_tool, experiment, tmp_path):
    config, run_dir = experiment
    assert run_tool("train", "--cfg", config).code == 0
    assert run_tool("train", "--cfg", run_dir / "config.yaml", "OUTPUT_DIR", tmp_path / "again").code == 0
    first = torch.load(run_dir / "final_state.pth")["model"]
    second = torch.load(tmp_path / "again/camvid/config/final_state.pth")["model"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_split_without_labels_only_saves_predictions(run_tool, experiment):
    config, run_dir = experiment
    assert run_tool("train", "--cfg", config).code == 0
    tested = run_tool("test", "--cfg", config, "DATASET.TEST_SET", "list/camvid/test.lst")
    assert tested.code == 0, tested.err
    assert "nothing to score" in tested.out
    folder = run_dir / "test" / "test_best_s1"
    assert (folder / "predictions/ids/val/0.png").exists()
    assert not (folder / "results.json").exists()


def test_training_starts_from_files(run_tool, fresh_experiment, tmp_path):
    config, run_dir = fresh_experiment
    assert run_tool("train", "--cfg", config).code == 0
    trained = torch.load(run_dir / "final_state.pth")["model"]
    trunk = {name.replace("backbone.", "module."): v for name, v in trained.items() if name.startswith("backbone.")}
    torch.save({"state_dict": trunk}, tmp_path / "trunk.pth")
    started = run_tool(
        "train", "--cfg", config, "OUTPUT_DIR", tmp_path / "o", "MODEL.PRETRAINED", tmp_path / "trunk.pth",
        "MODEL.OFFSET_PRETRAINED", tmp_path / "trunk.pth", "TRAIN.LR", 1e-12, "MODEL.FREEZED_PAR", True,
        "TRAIN.END_EPOCH", 1,
    )  # fmt: skip
    assert started.code == 0, started.err
    assert started.err.count("(100.0%)") == 2
    result = torch.load(tmp_path / "o/camvid/tiny/final_state.pth")["model"]
    for name, value in result.items():
        if name.startswith("backbone."):
            assert torch.equal(value, trained[name]), name
    tail = {name: value for name, value in result.items() if name.startswith("seed.tail.") and name.endswith("weight")}
    assert tail
    for name, value in tail.items():
        assert torch.allclose(value, trained[name.replace("seed.tail.", "backbone.")], atol=1e-6), name


@pytest.fixture(
    params=[
        "forks",
        pytest.param("torch.distributed.launch", marks=pytest.mark.slow),
        pytest.param("torch.distributed.run", marks=pytest.mark.slow),
    ]
)
def run_two(request, run_fork, run_ranks):
    """Runs a program as two processes, by a launcher or as one would start them; gives the results of each start."""
    if request.param == "forks":
        return lambda *command: run_ranks(2, *command)
    launch = ("-m", request.param, "--nproc_per_node=2")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # free now, and most likely still in a moment
    launch += ("--standalone",) if request.param == "torch.distributed.run" else (f"--master_port={port}",)
    return lambda *command: [run_fork(*launch, *command)]


def test_two_processes_train_and_test(run_two, run_tool, fresh_experiment):
    config, run_dir = fresh_experiment
    trained = run_two("tools/train.py", "--cfg", config, "TRAIN.BATCH_SIZE_PER_GPU", 1)
    said = "".join(done.stderr for done in trained)
    assert {done.returncode for done in trained} == {0}, said
    assert "3 iterations each, 2 process(es)" in said
    assert said.count("done: best mIoU") == 1
    tested = run_two("tools/test.py", "--cfg", config, "OUTPUT_DIR", run_dir.parents[1])
    assert {done.returncode for done in tested} == {0}, "".join(done.stderr for done in tested)
    two = json.loads((run_dir / "test/val_best_s1/results.json").read_text())
    assert run_tool("test", "--cfg", config).code == 0
    one = json.loads((run_dir / "test/val_best_s1/results.json").read_text())
    assert one.pop("date")
    assert two.pop("date")
    assert one == two


@pytest.mark.gpu
def test_training_and_testing_on_cuda(run_tool, experiment):
    config, _ = experiment
    trained = run_tool("train", "--cfg", config, "DEVICE", "cuda")
    assert trained.code == 0, trained.err
    assert "on cuda" in trained.err
    tested = run_tool("test", "--cfg", config, "DEVICE", "cuda", "TEST.FLIP_TEST", "True")
    assert tested.code == 0, tested.err


def test_extra_epochs_follow_on_another_list(run_tool, experiment, tiny_data):
    config, run_dir = experiment
    (tiny_data / "list/camvid/extra.lst").write_text("".join(f"val/{i}.png valannot/{i}.png\n" for i in range(3)) * 2)
    arguments = ("--cfg", config, "PRINT_FREQ", 1, "TRAIN.END_EPOCH", 1, "TRAIN.EXTRA_EPOCH", 2)
    result = run_tool(
        "train",
        *arguments,
        "DATASET.EXTRA_TRAIN_SET",
        "list/camvid/extra.lst",
        "TRAIN.EXTRA_LR",
        0.004,
        "TRAIN.LR",
        0.02,
    )
    assert result.code == 0, result.err
    points = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    rates = [point["lr"] for point in points if point["kind"] == "train"]
    # 3 iterations of the first schedule, then 6 of the second
    expected = [0.02 * (1 - i / 3) ** 0.9 for i in range(3)] + [0.004 * (1 - i / 6) ** 0.9 for i in range(6)]
    assert rates == pytest.approx(expected)
    assert [point["epoch"] for point in points if point["kind"] == "val"][-1] == 2


def test_a_cost_that_cannot_be_counted_ends_nothing(run_tool, experiment, monkeypatch):
    def fail(cfg):
        raise NotImplementedError("needs real numbers")

    monkeypatch.setattr("ovenet.builders.describe_network", fail)
    trained = run_tool("train", "--cfg", experiment[0], "TRAIN.END_EPOCH", 1)
    assert trained.code == 0, trained.err
    assert "cannot be counted" in trained.err


def is_learned(name):
    """No statistic of BatchNorm."""
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_a_run_writes_down_what_it_ran_on(run_tool, experiment):
    config, run_dir = experiment
    assert run_tool("train", "--cfg", config, "TRAIN.END_EPOCH", 1).code == 0
    parameters = sum(v.numel() for k, v in torch.load(run_dir / "final_state.pth")["model"].items() if is_learned(k))
    log = (run_dir / "train.log").read_text()
    assert re.search(rf"{parameters / 1e6:.2f} million parameters, \d+\.\d GMAC for a crop of 48x32", log)
    (line,) = (run_dir / "environment.jsonl").read_text().splitlines()
    environment = json.loads(line)
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "TRAIN.END_EPOCH" in environment["command"]
    assert set(environment["git"]) == {"commit", "changes", "diff"}


def test_weights_and_biases_when_asked(run_tool, experiment, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config, run_dir = experiment
    assert run_tool("train", "--cfg", config, "TRAIN.END_EPOCH", 1, "WANDB", "ovenet-test").code == 0
    (file,) = (run_dir / "wandb").rglob("*.wandb")
    assert b"val/mean_iou_fused" in file.read_bytes()
