"""The card of a model, of an evaluation that is known by hand (see `case` in conftest.py)."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ovenet.errors import UserError
from ovenet.report.card import CardSources, failures_picture, model_card
from tests.report.conftest import HEIGHT, INFO, WIDTH

CONFIG = """
DATASET: {TRAIN_SET: list/streets/train.lst}
MODEL: {BACKBONE: {NAME: hrnet_w18}, HEAD: {NAME: ocr}, SEED: {NAME: fork}}
"""
ABOUT = {"config": CONFIG, "dataset": "streets", "class_names": list(INFO.class_names)}


def card(test=None, **texts):
    sources = CardSources("streets_small", "streets.safetensors", ABOUT, 1_234_567, False, "0.1", test=test, **texts)
    return model_card(sources, "streets.jpg" if test else "")


def row(text, title):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {title} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_scores_are_those_of_the_test(evaluation):
    """Each of the 4 images has 77 labelled columns: 30 rows of sky, 30 of road, of which S_f takes one for sky."""
    road, sky, car, wrong = 4 * 30 * 77 - 200, 4 * 30 * 77, 200, 4 * 77
    iou = [(road - wrong) / road, sky / (sky + wrong), 1]
    text = card(evaluation)
    assert row(text, "mIoU")[2] == f"{100 * sum(iou) / 3:.2f}"
    assert row(text, "pixel accuracy")[2] == f"{100 * (1 - wrong / (road + sky + car)):.2f}"
    assert "1,234,567" in text
    assert "`fork`" in text
    assert f"{100 * iou[0]:.2f} %" in text
    assert "![" in text
    assert "streets.jpg" in text


def test_what_a_weak_class_is_taken_for(baseline):
    """A baseline has S_i alone, which misses 5, 6, 7 and 8 rows of the road."""
    share = 77 * 26 / (4 * 30 * 77 - 200)
    (line,) = [line for line in card(baseline).splitlines() if line.startswith("- road")]
    assert rf"sky \</script\> ({100 * share:.0f} %)" in line  # no name is read as HTML or Markdown


def test_the_worst_images_are_shown_worst_first(evaluation, baseline):
    worst = next(line for line in card(baseline).splitlines() if "lowest mIoU: " in line)
    assert worst.index("img\\_3") < worst.index("img\\_2")
    picture = np.asarray(Image.open(io.BytesIO(failures_picture(baseline, INFO))))
    assert picture.shape[0] == 3 * (HEIGHT + 18)  # three images below each other, each under its captions
    assert picture.shape[1] == 4 * WIDTH + 3 * 4  # photograph, label, prediction, errors
    middle = picture[18 + 33, 3 * (WIDTH + 4) + 20].astype(int)  # of a row that S_i misses, in the map of errors
    assert abs(middle - (240, 228, 66)).max() < 12
    assert abs(picture[18 + 20, 3 * (WIDTH + 4) + 20].astype(int) - 214).max() < 12


def test_without_saved_pictures_there_is_none(evaluation, tmp_path):
    for name in ("results.json", "images.jsonl"):
        shutil.copy(evaluation / name, tmp_path / name)
    assert failures_picture(tmp_path, INFO) is None


def test_the_spread_over_seeds(evaluation, tmp_path):
    scores = [0.61, 0.62, 0.66]
    files = []
    for seed, score in enumerate(scores):
        files.append(tmp_path / f"{seed}.json")
        files[-1].write_text(json.dumps({"scores": {"fused": {"mean_iou": score}}}))
    assert "over 3 trainings with different random seeds: 63.00 ± 2.65" in card(evaluation, seeds=files)
    assert "One training" in card(evaluation)
    assert "another training" in card(evaluation, seeds=[evaluation])


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"scores": {"fused": {"mean_iou": null}}}'])
def test_a_file_of_no_scores_is_one_line(evaluation, tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=r"x\.json"):
        card(evaluation, seeds=[tmp_path / "x.json"])


def test_a_model_that_was_not_tested_says_so():
    text = card()
    assert "Not tested" in text
    assert "Licence: not stated" in text
    text = card(licence="MIT.", data="Drawn streets.")
    assert "Licence: MIT." in text
    assert "Drawn streets." in text


def test_how_far_to_trust_it(evaluation, tmp_path):
    """Calibration, temperature and corrupted images, where they were tested."""
    assert "Neither" in card(evaluation)
    folder = tmp_path / "test"
    shutil.copytree(evaluation, folder)
    results = json.loads((folder / "results.json").read_text())
    results["details"]["class_calibration"] = {
        "fused": {"expected_error": 0.0123, "bin_accuracy": [None, 0.5, 0.9], "bin_pixels": [0, 25, 75]}
    }
    (folder / "results.json").write_text(json.dumps(results))
    means = {"fog": {"degradation": 0.2}, "snow": {"degradation": 0.6}, "rain": None}
    content = {
        "list": "list/x.lst",
        "severities": [1, 3],
        "clean": {"fused": 0.8},
        "by_kind": means,
        "mean": {"degradation": 0.4},
    }
    (folder / "corruptions.json").write_text(json.dumps(content))
    text = card(folder, temperature=1.178)
    assert "1.23 %" in text
    assert "at least 66.67 %, which are 75.00 % of all, 90.00 % are right" in text  # three bins
    assert "1.178" in text
    assert "cost on average 40.00 % of the mIoU of 80.00 %; most: snow (60.00 %), fog (20.00 %)" in text
    (folder / "corruptions.json").write_text("[]")
    with pytest.raises(UserError, match=r"corruptions\.json"):
        card(folder)


def test_image_wise_scores_are_in_the_table(baseline):
    """Image k lacks 5 + k of its 30 rows of road, which S_i takes for sky; image 1 has a car of 200 pixels too."""
    ious = []
    for k in range(4):
        road, missed = 30 * 77 - 200 * (k == 1), 77 * (5 + k)
        parts = [(road - missed) / road, 30 * 77 / (30 * 77 + missed), *([1] if k == 1 else [])]
        ious.append(sum(parts) / len(parts))
    assert row(card(baseline), "mean of the images' mIoU") == [f"{25 * sum(ious):.2f}"]
    assert row(card(baseline), "mean of the worst tenth of them") == [f"{100 * min(ious):.2f}"]
