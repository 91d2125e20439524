"""A long list of bad input, from injecting it: always one line that says what and where, and exit code 2."""

import json
import os
import shutil
import struct
import zipfile
import zlib

import pytest
import torch

HUGE = 10**30


@pytest.fixture
def tiny(small, tiny_data, tmp_path, write_config):
    """``--cfg FILE`` of an OVeNet of four convolutions."""
    small["DATASET"]["ROOT"] = str(tiny_data)
    small["OUTPUT_DIR"] = str(tmp_path / "output")
    return ("--cfg", write_config(small, "tiny.yaml"))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A folder for the run of one epoch that all tests get a copy of."""
    return tmp_path_factory.mktemp("run") / "tiny"


@pytest.fixture
def trained(tiny, run_tool, tmp_path, finished_run):
    """``--cfg FILE`` of a run of one epoch, and its folder."""
    run = tmp_path / "output/camvid/tiny"
    if not finished_run.exists():
        assert run_tool("train", *tiny, "TRAIN.END_EPOCH", 1).code == 0
        shutil.copytree(run, finished_run)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(finished_run, run)
    return tiny, run


def assert_clear(done, *parts):
    assert "Traceback" not in done.err
    assert done.code == 2, (done.out, done.err)
    last = done.err.strip().splitlines()[-1]
    assert len(last) < 1200, last
    for part in parts:
        assert part in last, last


@pytest.mark.parametrize(
    ("tool", "key", "value"),
    [
        ("train", "TRAIN.SCALE_FACTOR", HUGE),
        ("train", "TRAIN.SCALE_FACTOR", 10**6),
        ("train", "TRAIN.IMAGE_SIZE", f"[{HUGE},32]"),
        ("train", "TRAIN.IMAGE_SIZE", "[10000000,32]"),
        ("train", "TRAIN.BASE_SIZE", HUGE),
        ("train", "TRAIN.BASE_SIZE", 10**8),
        ("train", "TRAIN.END_EPOCH", HUGE),
        ("train", "TRAIN.ITERATIONS", HUGE),
        ("train", "TRAIN.IGNORE_LABEL", HUGE),
        ("train", "TRAIN.IGNORE_LABEL", 10**6),
        ("train", "TRAIN.IGNORE_LABEL", -(10**6)),
        ("train", "TRAIN.ACCUMULATE", 100),
        ("train", "TRAIN.BATCH_SIZE_PER_GPU", HUGE),
        ("train", "TRAIN.WARMUP", HUGE),
        ("train", "TRAIN.KEEP_CHECKPOINTS", 10**9),
        ("train", "TRAIN.KEEP_CHECKPOINTS", HUGE),
        ("train", "TRAIN.LR", "inf"),
        ("train", "TRAIN.LR", "1e400"),
        ("train", "TRAIN.WD", "nan"),
        ("train", "TRAIN.SCALE_RANGE", "[0.5,1e9]"),
        ("train", "TRAIN.BASE_BOX", f"[{10**9},{10**9}]"),
        ("train", "SEED", HUGE),
        ("train", "SEED", -1),
        ("train", "WORKERS", HUGE),
        ("train", "DIST_TIMEOUT", HUGE),
        ("train", "PRINT_FREQ", HUGE),
        ("train", "DATASET.NUM_CLASSES", HUGE),
        ("train", "LOSS.OHEMKEEP", HUGE),
        ("test", "TEST.SCALE_LIST", "inf"),
        ("test", "TEST.SCALE_LIST", "1e9"),
        ("test", "TEST.BASE_SIZE", HUGE),
        ("test", "TEST.IMAGE_SIZE", f"[{HUGE},{HUGE}]"),
        ("test", "TEST.BATCH_SIZE_PER_GPU", HUGE),
    ],
)
def test_absurd_numbers(run_tool, tiny, tool, key, value):
    assert_clear(run_tool(tool, *tiny, key, value), key)


@pytest.mark.parametrize(
    "text", ["", "[]", "- a", "3", "\x00", "!!python/object/apply:os.system ['true']", "a: {", None]
)
def test_weights_whose_settings_are_something_else(run_tool, trained, tmp_path, text):
    _, run = trained
    content = torch.load(run / "final_state.pth", weights_only=True)
    path = tmp_path / "odd.pth"
    for value in (text, 7, None, ["a"]) if text == "" else (text,):
        torch.save(content | {"config": value}, path)
        image = tmp_path / "data/camvid/val/0.png"
        assert_clear(run_tool("infer", path, image, "--output", tmp_path / "o"), "odd.pth")
        assert_clear(run_tool("test", path), "odd.pth")


@pytest.mark.parametrize("key", ["dataset_info", "normalization"])
@pytest.mark.parametrize("value", [{}, None, 3, "text", {"name": 3}, {"mean": 1}])
def test_weights_with_a_damaged_description(run_tool, trained, tmp_path, key, value):
    _, run = trained
    content = torch.load(run / "final_state.pth", weights_only=True)
    torch.save(content | {key: value}, tmp_path / "odd.pth")
    image = tmp_path / "data/camvid/val/0.png"
    assert_clear(run_tool("infer", tmp_path / "odd.pth", image, "--output", tmp_path / "o"), "odd.pth", key)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", None), ("optimizer", {}), ("optimizer", {"state": {}, "param_groups": []}),
        ("epoch", None), ("epoch", "one"), ("iteration", []), ("best", 3), ("best", {}), ("best", {"best.pth": "x"}),
        ("samples_done", "x"), ("random_states", 7), ("random_states", [{}]), ("world_size", None), ("config", None),
        ("config", 5), ("num_skipped", "none"), ("progress", "half"), ("parameter_names", 4), ("ema", 5), ("model", 5),
    ],
)  # fmt: skip
def test_a_checkpoint_with_a_field_that_is_missing_or_mistyped(run_tool, trained, key, value):
    arguments, run = trained
    state = torch.load(run / "checkpoint.pth", weights_only=True)
    for damaged in ({**state, key: value}, {k: v for k, v in state.items() if k != key}):
        if key in ("progress", "parameter_names", "ema") and key not in damaged:
            continue  # may be missing
        torch.save(damaged, run / "checkpoint.pth")
        before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name != "train.log"}
        done = run_tool("train", *arguments, "TRAIN.RESUME", True, "TRAIN.END_EPOCH", 2)
        if done.code == 0:  # what it says is not needed
            assert key in ("num_skipped", "ema", "best", "progress", "random_states", "world_size")
            return
        assert_clear(done, "checkpoint.pth")
        assert {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name != "train.log"} == before


def test_runs_that_are_none(run_tool, trained, tmp_path, monkeypatch):
    _, run = trained
    log = run / "log.jsonl"
    lines = log.read_text()
    for bad in ("null\n", "3\n", "[]\n", "{}\n", '{"kind": 3}\n', '{"kind": "val"}\n', "\x00\n"):
        log.write_text(bad + lines)
        assert run_tool("compare", run).code == 0
        log.write_text(bad)
        assert_clear(run_tool("compare", run), "log.jsonl")
    log.write_bytes(b"\xff\xfe" + lines.encode())
    assert run_tool("compare", run).code == 0
    log.write_text(lines)
    for bad in (b"", b"[]", b"3", b"a: {", b"\xff\xfe\x00", b"TRAIN: 3"):
        (run / "config.yaml").write_bytes(bad)
        done = run_tool("compare", run, "--seeds")
        if done.code:
            assert_clear(done, "config.yaml")
    monkeypatch.chdir(tmp_path)
    assert_clear(run_tool("report", "."), "run tools/test.py first")
    monkeypatch.chdir("/")
    assert_clear(run_tool("report", "."), "run tools/test.py first")


def test_a_plot_of_no_known_kind(run_tool, trained, tmp_path):
    _, run = trained
    assert_clear(run_tool("compare", run, "--output", tmp_path / "curves.xyz"), "curves.xyz", ".png")
    assert run_tool("compare", run, "--output", tmp_path / "curves.svg").code == 0


def test_one_list_for_both(run_tool, tiny):
    done = run_tool("audit_data", *tiny, "DATASET.TEST_SET", "list/camvid/train.lst")
    assert "Traceback" not in done.err
    assert done.code in (0, 2)
    assert "shared image: 6 " in done.out


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_paths_that_are_no_unicode(run_tool, trained, tmp_path):
    arguments, run = trained
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    assert run_tool("test", run, "OUTPUT_DIR", odd).code == 0
    image = tmp_path / "data/camvid/val/0.png"
    done = run_tool("infer", run / "final_state.pth", image, "--output", odd)
    assert done.code == 0, done.err
    assert os.path.exists(f"{odd}/ids/0.png")
    done = run_tool("train", *arguments, "OUTPUT_DIR", odd, "TRAIN.END_EPOCH", 1)
    assert done.code == 0 or "Traceback" not in done.err


@pytest.mark.parametrize("option", [("--max-memory", "inf"), ("--max-memory", "nan"), ("--max-memory", "-1")])
def test_options_of_inference(run_tool, trained, tmp_path, option):
    _, run = trained
    image = tmp_path / "data/camvid/val/0.png"
    assert_clear(run_tool("infer", run / "final_state.pth", image, "--output", tmp_path / "o", *option), "--max-memory")


@pytest.mark.parametrize(
    "options", [("--max-frames", "-1"), ("--scales", "inf"), ("--scales", "nan"), ("--scales", "1e9")]
)
def test_more_options_of_inference(run_tool, trained, tmp_path, options):
    _, run = trained
    image = tmp_path / "data/camvid/val/0.png"
    assert_clear(run_tool("infer", run / "final_state.pth", image, "--output", tmp_path / "o", *options))


@pytest.mark.parametrize("number", ["99999999999999999999", "-1", "²", "x", ""])
def test_cameras_that_cannot_be(run_tool, trained, tmp_path, number):
    _, run = trained
    done = run_tool("infer", run / "final_state.pth", f"camera:{number}", "--output", tmp_path / "o", "--strict")
    assert_clear(done, "camera:")


def test_a_deeply_nested_description(run_tool, tiny, tmp_path):
    folder = tmp_path / "data/mine"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text("[" * 100_000 + "]" * 100_000)
    assert_clear(run_tool("train", *tiny, "DATASET.DATASET", "mine"), "dataset.json")
    assert_clear(run_tool("prepare_data", "mine", "--root", tmp_path / "data"), "dataset.json")


@pytest.fixture
def submission(small, run_tool, tmp_path, write_config):
    """``--cfg FILE`` of a small network on drawn scenes, and a valid zip of its predictions."""
    from tests.drawn_scenes import write_dataset

    from ovenet import build_model, load_config

    write_dataset(tmp_path / "scenes/synthetic", {"train": 2, "val": 2, "test": 2}, size=(32, 64), seed=0)
    small["OUTPUT_DIR"] = str(tmp_path / "out")
    small["DATASET"] = {
        "ROOT": str(tmp_path / "scenes"), "DATASET": "synthetic", "NUM_CLASSES": 19,
        "TRAIN_SET": "list/synthetic/train.lst", "TEST_SET": "list/synthetic/val.lst",
    }  # fmt: skip
    config = write_config(small, "scenes.yaml")
    torch.save({"model": build_model(load_config(config)).state_dict()}, tmp_path / "w.pth")
    path = tmp_path / "a.zip"
    made = run_tool(
        "make_submission", "--cfg", config, "--dry-run", "--output", path, "TEST.MODEL_FILE", tmp_path / "w.pth"
    )
    assert made.code == 0, made.err
    return ("--cfg", config, "--dry-run", "--validate"), path


@pytest.mark.slow
def test_zips_that_cannot_be_unpacked(run_tool, submission, tmp_path):
    command, path = submission
    whole = path.read_bytes()
    assert run_tool("make_submission", *command, path).code == 0

    def damaged(change):
        content = bytearray(whole)
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            at = content.find(mark)
            change(content, at + offset)
        bad = tmp_path / "bad.zip"
        bad.write_bytes(content)
        assert_clear(run_tool("make_submission", *command, bad), "bad.zip")

    def encrypted(content, at):
        content[at] |= 1

    def oddly_compressed(content, at):
        content[at + 2 : at + 4] = struct.pack("<H", 99)

    damaged(encrypted)
    damaged(oddly_compressed)


@pytest.mark.slow
def test_a_zip_bomb_is_not_unpacked(run_tool, submission, tmp_path, monkeypatch):
    command, path = submission
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, bytes(50_000_000))

    def unpacked(*_):
        raise AssertionError("it was unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "read", unpacked)
    assert_clear(run_tool("make_submission", *command, bomb), "bomb.zip", "50.0 MB")


@pytest.mark.slow
def test_a_png_bomb_in_a_zip(run_tool, submission, tmp_path):
    """A PNG of a few bytes that says it has billions of pixels."""
    command, path = submission
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", 60_000, 60_000, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    with zipfile.ZipFile(tmp_path / "png.zip", "w") as archive:
        for name in names:
            archive.writestr(name, png)
    assert_clear(run_tool("make_submission", *command, tmp_path / "png.zip"), "png.zip")


@pytest.mark.parametrize(
    "values", [pytest.param((None,), marks=pytest.mark.ci), pytest.param(({}, [], 3, "x"), marks=pytest.mark.slow)]
)
def test_results_that_are_half(run_tool, trained, values):
    arguments, run = trained
    assert run_tool("test", *arguments).code == 0
    (folder,) = run.glob("test/*")
    results = json.loads((folder / "results.json").read_text())
    for key in results:
        for value in values:
            (folder / "results.json").write_text(json.dumps(results | {key: value}))
            done = run_tool("report", run)
            assert "Traceback" not in done.err, (key, value)
            assert done.code in (0, 2)
            if done.code:
                assert_clear(done, "results.json")
