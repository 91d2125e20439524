"""The report's section on uncertainty, for runs that have it and beside runs that do not."""

import dataclasses
import json
import re
import shutil

import pytest
import torch

from ovenet.evaluation.evaluate import uncertainty_of
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.evaluation.writers import uncertainty_as_dict
from ovenet.report.page import write_report
from tests.report.conftest import HEIGHT, INFO, NAMES, WIDTH, case
from tests.report.test_page import Tables


def add_uncertainty(evaluation, target, kind):
    """A copy of an evaluation, scored with its uncertainty: the upper third is marked as invalid."""
    shutil.copytree(evaluation, target)
    evaluator = SegEvaluator(
        INFO, NAMES, ignore_label=255, detailed=False, device=torch.device("cpu"), uncertainty=kind
    )
    rows = torch.arange(HEIGHT)[:, None].expand(HEIGHT, WIDTH)
    probability = dict.fromkeys(NAMES, 0.4 + 0.6 * rows / HEIGHT)
    for index in range(4):
        sample, prediction = case(index)
        prediction = dataclasses.replace(prediction, probability=probability)
        evaluator.add(sample.labels, prediction, sample.name, invalid=(rows < HEIGHT / 3).numpy())
    results = json.loads((target / "results.json").read_text())
    results["uncertainty"] = uncertainty_as_dict(uncertainty_of(evaluator), INFO)
    (target / "results.json").write_text(json.dumps(results))
    return results["uncertainty"]


def uncertainty_section(folders, path):
    write_report(folders, path)
    return re.search(r'<section id="uncertainty">.*?</section>', path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.ci
def test_the_section_has_the_averages_and_the_curve(evaluation, baseline, tmp_path):
    target = tmp_path / "run/test/val"
    scores = add_uncertainty(evaluation, target, "probability")
    section = uncertainty_section([target], tmp_path / "one.html")[0]
    rows = {row[0]: row[1:] for row in Tables(section).rows}
    expected = [f"{100 * scores['overall'][name]['average']:.2f}" for name in NAMES]
    gain = 100 * (scores["overall"]["fused"]["average"] - scores["overall"]["initial"]["average"])
    assert rows["all images"] == [*expected, f"{gain:+.2f}".replace("-", "−")]
    assert {"fog", "rain"} <= set(rows)
    assert "S_f, by probability" in section
    assert uncertainty_section([baseline], tmp_path / "without.html") is None


@pytest.mark.ci
def test_a_run_without_it_has_dashes_beside_one_that_has_it(evaluation, baseline, tmp_path):
    target = tmp_path / "run/test/val"
    scores = add_uncertainty(evaluation, target, "seed")
    rows = Tables(uncertainty_section([baseline, target], tmp_path / "two.html")[0]).rows
    row = next(row for row in rows if row[0] == "all images")
    assert row == ["all images", "–", "–", "–", f"{100 * scores['overall']['fused']['average']:.2f}", "–"]
