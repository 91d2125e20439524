"""tools/replay.py on a file that training really saved."""

import re

import pytest
import torch


@pytest.fixture
def broken_run(small, run_tool, tiny_data, tmp_path, write_config):
    """A run whose learning rate makes its loss overflow; its folder."""
    small["DATASET"]["ROOT"] = str(tiny_data)
    small["OUTPUT_DIR"] = str(tmp_path / "output")
    small["TRAIN"] |= {"LR": 1e30, "MAX_SKIPPED": 2}
    result = run_tool("train", "--cfg", write_config(small, "tiny.yaml"))
    return result, tmp_path / "output/camvid/tiny"


def test_a_batch_that_broke_a_step_is_saved_and_replayed(run_tool, broken_run):
    result, folder = broken_run
    assert result.code == 2
    assert re.search(r"not finite.*\b2\b.*TRAIN\.MAX_SKIPPED", result.err)
    (file,) = folder.glob("repro_*.pth")
    assert f"python tools/replay.py {file}" in result.err
    content = torch.load(file, weights_only=True)
    assert content["batches"][0]["images"].dtype == torch.uint8
    names = content["batches"][0]["names"]
    assert f"(images here: {', '.join(names)})" in result.err
    replayed = run_tool("replay", file)
    assert replayed.code == 0, replayed.err
    assert f"iteration {content['iteration']}, 1 batch(es)" in replayed.out
    assert ", ".join(names) in replayed.out
    assert re.search(r"output .*not finite: (?!none)\w", replayed.out)


def test_other_files_are_named(run_tool, tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    result = run_tool("replay", tmp_path / "a.pth")
    assert result.code == 2
    assert re.search(r"a\.pth: .*expected.*repro_\*\.pth", result.err)
