"""Interrupted evaluations: nothing counts twice, nothing is lost but the last images."""

import json
import shutil

import pytest
import torch

from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.evaluation.partial import PartialEvaluation

AB = DatasetInfo("ab", ("a", "b"), ((0, 0, 0), (255, 0, 0)), (0, 1))


def counted(images):
    """A evaluator that says which images it saw: the i-th adds 10 to the power of i."""
    evaluator = SegEvaluator(AB, ("fused",), ignore_label=255, detailed=False, device=torch.device("cpu"))
    for i in images:
        evaluator.counts["confusion"][0, 0, 0, 0, 0] += 10**i
        evaluator.num_images += 1
    return evaluator


def run(folder, images, *, rank=0, unsaved=(), settings=None):
    partial = PartialEvaluation(folder, settings or {"a": 1}, interval_s=1e9)
    partial.begin(rank)
    for n, i in enumerate(images):
        partial.add({"index": i}, counted(images[: n + 1]))
    partial.save(counted(images))
    for i in unsaved:
        partial.add({"index": i}, counted([*images, i]))
    return partial


def joined(folder):
    partial = PartialEvaluation(folder, {"a": 1})
    done = partial.join()
    return done, int(partial.joined["confusion"].sum())


def test_counts_of_all_processes_are_joined(tmp_path):
    run(tmp_path / "p", [0, 2], rank=0)
    run(tmp_path / "p", [1, 3], rank=1)
    assert joined(tmp_path / "p") == ({0, 1, 2, 3}, 1111)
    run(tmp_path / "p", [4])
    assert joined(tmp_path / "p") == ({0, 1, 2, 3, 4}, 11111)
    assert [r["index"] for r in PartialEvaluation(tmp_path / "p", {"a": 1}).records()] == [0, 1, 2, 3, 4]


def test_counts_that_cover_an_image_without_a_line_are_not_saved(tmp_path):
    partial = run(tmp_path / "p", [0, 1])
    partial.save(counted([0, 1, 2]))  # interrupted between counting and noting
    assert joined(tmp_path / "p") == ({0, 1}, 11)


def test_images_after_the_last_save_are_evaluated_again(tmp_path):
    run(tmp_path / "p", [0, 1], unsaved=[2])
    assert joined(tmp_path / "p") == ({0, 1}, 11)


def test_an_end_between_joining_and_deleting_counts_nothing_twice(tmp_path):
    run(tmp_path / "p", [0], rank=0)
    run(tmp_path / "p", [1], rank=1)
    shutil.copytree(tmp_path / "p", tmp_path / "before")
    joined(tmp_path / "p")
    for path in (tmp_path / "before").iterdir():  # as if they had not been deleted
        shutil.copy(path, tmp_path / "p")
    assert joined(tmp_path / "p") == ({0, 1}, 11)


def test_lines_without_counts_are_forgotten(tmp_path):
    partial = PartialEvaluation(tmp_path / "p", {"a": 1}, interval_s=1e9)
    partial.begin(0)
    partial.add({"index": 0}, counted([0]))
    assert not partial.exists()
    assert PartialEvaluation(tmp_path / "p", {"a": 1}).join() == set()


def test_other_settings_are_refused(tmp_path):
    run(tmp_path / "p", [0])
    with pytest.raises(ValueError, match=r"\ba 1, .*\b2; .*delete"):
        PartialEvaluation(tmp_path / "p", {"a": 2}).join()
    assert json.loads((tmp_path / "p/settings.json").read_text()) == {"a": 1}


def test_counts_are_saved_now_and_then(tmp_path):
    partial = PartialEvaluation(tmp_path / "p", {"a": 1}, interval_s=0)
    partial.begin(0)
    partial.add({"index": 5}, counted([5]))
    assert joined(tmp_path / "p") == ({5}, 100000)


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
@pytest.mark.parametrize("suffix", [".pth", ".jsonl"])
def test_a_damaged_part_is_set_aside_and_done_again(tmp_path, damage, suffix, caplog):
    folder = tmp_path / "p"
    run(folder, [0, 2], rank=0)
    run(folder, [1, 3], rank=1)
    (path,) = folder.glob(f"*_1{suffix}")
    part = path.stem
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage is None else damage)
    if suffix == ".jsonl" and damage == b"":
        path.write_text('{"index": "one"}\n{"other": 3}\n')  # lines of something else
    assert joined(folder) == ({0, 2}, 101)
    assert f"{part}.pth: damaged" in caplog.text
    assert {p.name for p in folder.glob("*.damaged")} == {f"{part}.pth.damaged", f"{part}.jsonl.damaged"}
    run(folder, [1, 3])
    assert joined(folder) == ({0, 1, 2, 3}, 1111)


def test_settings_of_an_earlier_version_are_read_as_present_ones(tmp_path):
    run(tmp_path / "p", [1, 2])
    with pytest.raises(UserError, match=r"\bb None, .*\b2;"):
        PartialEvaluation(tmp_path / "p", {"a": 1, "b": 2}).check_settings()
    PartialEvaluation(tmp_path / "p", {"a": 1, "b": 2}, read_settings=lambda found: {"b": 2, **found}).check_settings()


def test_foreign_files_and_settings(tmp_path):
    folder = tmp_path / "p"
    run(folder, [0])
    (folder / "notes.pth").write_text("mine")
    assert joined(folder) == ({0}, 1)
    assert (folder / "notes.pth").read_text() == "mine"
    for content in ("", "[1]", "{"):
        (folder / "settings.json").write_text(content)
        with pytest.raises(UserError, match=r"settings\.json: .*delete"):
            joined(folder)
