"""The page's text: what it says, what it refuses, that it asks no one for anything."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from ovenet.errors import UserError
from ovenet.evaluation.curves import read_log
from ovenet.report import page
from ovenet.report.corruptions import corruption_sections
from ovenet.report.page import write_report
from ovenet.report.runs import read_run
from tests.report.conftest import write_evaluation


class Tables(HTMLParser):
    """The rows of all tables, and every attribute that could make a browser ask for something."""

    def __init__(self, html):
        super().__init__()
        self.rows, self.links, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[a] for a in ("src", "href", "xlink:href", "action") if a in attributes]
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th") and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def html(evaluation, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report([evaluation], path, command="python tools/report.py <b>")
    return path.read_text(encoding="utf-8")


def test_the_tables_show_the_results(html, evaluation):
    results = json.loads((evaluation / "results.json").read_text())["results"]
    rows = {row[0]: row[1:] for row in Tables(html).rows if row}
    expected = [f"{100 * results[name]['mean_iou']:.2f}" for name in ("initial", "seed", "fused")]
    gain = 100 * (results["fused"]["mean_iou"] - results["initial"]["mean_iou"])
    assert rows["mIoU"] == [*expected, f"+{gain:.2f}"]
    assert rows["road"][2] == f"{100 * results['fused']['iou']['road']:.2f}"
    assert {"fog", "rain", "sky </script>", "Boundary IoU, width 0.5 %"} <= set(rows)


def test_images_are_scored_one_by_one(html, evaluation):
    """From the records alone, so that results without image-wise scores make the same page."""
    records = [json.loads(line)["scores"] for line in (evaluation / "images.jsonl").read_text().splitlines()]
    ious = {name: [100 * scores[name]["mean_iou"] for scores in records] for name in ("initial", "seed", "fused")}
    rows = {row[0]: row[1:] for row in Tables(html).rows if row}
    assert "images" not in json.loads((evaluation / "results.json").read_text())
    means = {name: sum(values) / 4 for name, values in ious.items()}
    shown = [*(f"{mean:.2f}" for mean in means.values()), f"+{means['fused'] - means['initial']:.2f}"]
    assert rows["mIoU^I: mean over 4 images"] == shown
    assert rows["mIoU^I, worst 10 %: 1 image"][0] == f"{min(ious['initial']):.2f}"
    assert rows["fog: mIoU^I, mean over 3 images"][2] == f"{sum(ious['fused'][1:]) / 3:.2f}"
    assert rows["car (1)"][2] == "100.00"
    assert "fewer than 10" in html
    assert "4 images gain, 0 lose" in html


def test_the_summary_says_in_words_what_the_tables_say(html, evaluation, baseline, tmp_path):
    results = json.loads((evaluation / "results.json").read_text())
    ious = {name: 100 * scores["mean_iou"] for name, scores in results["results"].items()}
    (sentence,) = re.findall(r'<p class="verdict">(.*?)</p>', html)
    assert sentence.startswith(
        f"The seeds help: {ious['fused']:.2f} % mIoU with them (S_f), {ious['initial']:.2f} % without (S_i), "
        f"+{ious['fused'] - ious['initial']:.2f}. They correct"
    )
    seeds = results["details"]["seeds"]
    assert f"{100 * seeds['corrected']['fused']:.2f} % of the pixels that S_i has wrong" in sentence
    assert html.index('id="summary"') < html.index('id="images"') < html.index('id="scores"')
    write_report([baseline, evaluation], tmp_path / "r.html")
    first, second = re.findall(r'<p class="verdict">(.*?)</p>', (tmp_path / "r.html").read_text())
    plain = 100 * json.loads((baseline / "results.json").read_text())["results"]["fused"]["mean_iou"]
    assert first == f"hrnet_small: {plain:.2f} % mIoU, without seeds."
    assert second.endswith(f" {ious['fused'] - plain:.2f} points of mIoU above hrnet_small.")


def test_plots_follow_the_page_and_predictions_have_a_hue_each(html):
    assert "currentColor" in html
    assert "#010203" not in html
    assert "#040506" not in html
    for hue in ("#0072b2", "#e69f00", "#009e73"):
        assert f"stroke: {hue}" in html


def test_nothing_is_asked_for_from_elsewhere(html):
    assert all(link.startswith(("#", "data:")) for link in Tables(html).links)
    assert "@import" not in html
    assert not re.search(r"url\((?!['\"]?#|['\"]?data:)", html)


def test_texts_cannot_end_a_script_or_become_markup(html):
    assert "sky </script>" not in html
    assert "&lt;b&gt;" in html


def test_training_curves_are_there_where_there_is_a_log(html, baseline, tmp_path):
    assert 'id="training"' in html
    write_report([baseline], tmp_path / "b.html")
    text = (tmp_path / "b.html").read_text()
    assert 'id="training"' not in text
    assert 'id="seeds"' not in text


def test_runs_stand_side_by_side(evaluation, baseline, tmp_path):
    write_report([baseline, evaluation], tmp_path / "r.html")
    rows = [row for row in Tables((tmp_path / "r.html").read_text()).rows if row]
    assert ["", "hrnet_small", "ovenet_small"] in rows
    assert next(len(row) for row in rows if row[0] == "mIoU") == 1 + 1 + 4


def test_other_classes_cannot_be_compared(evaluation, other_classes, tmp_path):
    other = write_evaluation(tmp_path / "o/test/x", num_images=1, info=other_classes)
    with pytest.raises(ValueError, match=f"{re.escape(str(other))}: .*classes.*{re.escape(str(evaluation))}"):
        write_report([evaluation, other], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_an_evaluation_without_details_is_refused(evaluation, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(evaluation, folder)
    content = json.loads((folder / "results.json").read_text())
    del content["details"]
    (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"TEST\.DETAILS True"):
        write_report([folder], tmp_path / "r.html")
    (folder / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json: .*JSON"):
        write_report([folder], tmp_path / "r.html")


@pytest.mark.ci
def test_the_page_keeps_below_its_limit(evaluation, tmp_path, monkeypatch):
    whole = write_report([evaluation], tmp_path / "a.html")
    assert whole == "4 of 4 images are shown."
    size = sum(p.stat().st_size for p in (evaluation / "gallery").iterdir())
    limit = (tmp_path / "a.html").stat().st_size - size // 2
    monkeypatch.setattr(page, "MAX_BYTES", limit)
    note = write_report([evaluation], tmp_path / "b.html")
    assert re.match(r"[123] of 4 images are shown", note)
    assert (tmp_path / "b.html").stat().st_size <= limit


def test_without_pictures_the_page_says_how_to_get_them(evaluation, tmp_path):
    folder = tmp_path / "run/test/e"
    shutil.copytree(evaluation, folder, ignore=shutil.ignore_patterns("gallery"))
    assert write_report([folder], tmp_path / "r.html") == "No pictures were saved."
    assert "TEST.REPORT True" in (tmp_path / "r.html").read_text()


ATTACK = "</script><script>document.title = 'attacked'</script><!--<script>"


def test_nothing_inlined_ends_its_script(evaluation, tmp_path):
    folder = copy_of(evaluation, tmp_path)
    path = next((folder / "gallery").glob("*.json"))
    data = json.loads(path.read_text())
    data["photo"] = ATTACK
    path.write_text(json.dumps(data))
    write_report([folder], tmp_path / "report.html")
    assert "<script>document.title" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("index", ["../../../secret", -1, 1.5, None, True, 10**9])
@pytest.mark.ci
def test_an_index_is_a_number(evaluation, tmp_path, index):
    folder = copy_of(evaluation, tmp_path)
    secret = tmp_path / "secret.json"
    secret.write_text('"a secret"')
    lines = [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]
    lines[0]["index"] = index
    (folder / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if index == 10**9:  # a place in a longer list, of which there is no picture
        write_report([folder], tmp_path / "report.html")
    else:
        shown = re.escape(repr(index))
        with pytest.raises(UserError, match=rf"images\.jsonl, line 1: index is {shown}; .*integer of at least 0"):
            write_report([folder], tmp_path / "report.html")
        assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "content", [b"null", b"[]", b"{}", b'{"results": null}', b'{"results": {}, "details": {}}', b"\xff\xfe", b""]
)
def test_results_that_are_something_else(evaluation, tmp_path, content):
    folder = copy_of(evaluation, tmp_path)
    (folder / "results.json").write_bytes(content)
    with pytest.raises(UserError, match=r"results\.json"):
        write_report([folder], tmp_path / "report.html")


@pytest.mark.parametrize("content", [b"null\n", b"{\n", b"\xff\n", b'{"index": 0}\n'])
def test_records_that_are_something_else(evaluation, tmp_path, content):
    folder = copy_of(evaluation, tmp_path)
    (folder / "images.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"images\.jsonl"):
        write_report([folder], tmp_path / "report.html")


@pytest.mark.parametrize("scores", [None, [1], {"fused": None}, {"fused": {"iou": {"9": 1.0}}}])
def test_scores_of_an_image_that_are_something_else(evaluation, tmp_path, scores):
    folder = copy_of(evaluation, tmp_path)
    first, *others = (folder / "images.jsonl").read_text().splitlines()
    (folder / "images.jsonl").write_text("\n".join([json.dumps(json.loads(first) | {"scores": scores}), *others]))
    with pytest.raises(UserError, match=r"images\.jsonl: scores of an image.*tools/test\.py"):
        write_report([folder], tmp_path / "report.html")


@pytest.mark.ci
def test_dollars_are_no_formulas(evaluation, tmp_path):
    folder = copy_of(evaluation, tmp_path, name="$a_{$")
    results = json.loads((folder / "results.json").read_text())
    text = json.dumps(results).replace(json.dumps(results["classes"]["names"][0]), '"$x^{$"')
    (folder / "results.json").write_text(text)
    write_report([folder], tmp_path / "report.html")
    assert "$x^{$" in (tmp_path / "report.html").read_text()


def copy_of(evaluation, tmp_path, name="run"):
    folder = tmp_path / name / "test/x"
    shutil.copytree(evaluation, folder)
    return folder


@pytest.mark.ci
def test_foreign_lines_of_a_log_are_left_out(evaluation, tmp_path):
    folder = copy_of(evaluation, tmp_path)
    log = folder.parents[1] / "log.jsonl"
    log.write_bytes(b'null\n3\n{"kind": 3}\n\xff\n{"kind": "val", "iteration": 1, "mean_iou_fused": "x"}\n')
    assert read_log(log) == [{"kind": "val", "iteration": 1}]
    write_report([folder], tmp_path / "report.html")
    assert "Validation mIoU by iteration" in (tmp_path / "report.html").read_text()


def test_likely_label_errors_are_ranked(tmp_path):
    folder = write_evaluation(tmp_path / "run" / "test" / "val")
    lines = (folder / "images.jsonl").read_text().splitlines()
    for place, score in ((0, 0.5), (1, 0.25), (3, 0.125)):
        record = json.loads(lines[place])
        number = sum(record["pixels"]["label"].values())
        pairs = [[0, 2, number // 2]] if place == 3 else []
        record["label_quality"] = {"score": score, "disagree": number // 2, "pairs": pairs, "seeds": 0}
        lines[place] = json.dumps(record)
    (folder / "images.jsonl").write_text("\n".join(lines))
    write_report([folder], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    rows = [row for row in Tables(html[html.index('<section id="label-errors">') :]).rows if len(row) == 6]
    assert [row[:2] for row in rows[1:4]] == [
        ["fog/img_3.png", "12.50"],
        ["fog/img_1.png", "25.00"],
        ["rain/img_0.png", "50.00"],
    ]
    assert rows[1][3:] == ["0.00", "road → car", "50.00"]
    assert rows[2][4:] == ["–", "0.00"]
    assert '"label_quality":0.125' in html
    assert '<section id="label-errors">' not in html.split("<main>")[0]


def test_corruptions_have_a_section(tmp_path):
    folder = write_evaluation(tmp_path / "run/test/val")
    scores = {"fog": {"1": {"initial": 0.5, "fused": 0.6}, "3": {"initial": 0.2, "fused": 0.24}}}
    means = {"mean_iou": {"initial": 0.35, "fused": 0.42}, "degradation": 0.475, "gain": 0.07}
    content = {
        "severities": [1, 3], "clean": {"initial": 0.7, "fused": 0.8}, "scores": scores, "by_kind": {"fog": means},
        "by_severity": scores["fog"], "mean": means, "mPC": None, "rPC": None, "trained_with": [], "is_complete": True,
    }  # fmt: skip
    path = folder / "corruptions.json"
    path.write_text(json.dumps(content))
    write_report([folder], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    section = page[page.index('<section id="corruptions">') : page.index('<section id="confusion">')]
    row = re.search(r'<th scope="row">fog</th>(.*)</tr>', section)[1]
    assert re.findall(r">([^<>]+)</td>", row) == ["60.00", "24.00", "42.00", "47.50", "35.00", "+7.00"]
    del content["by_kind"]
    for damaged in (json.dumps(content), "[]", "{"):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"corruptions\.json"):
            corruption_sections([read_run(folder, "run")])


def test_probabilities_are_shown_where_they_were_counted(html, evaluation, tmp_path):
    assert "Probabilities of the classes" not in html  # results of earlier versions have none
    folder = tmp_path / "counted"
    shutil.copytree(evaluation, folder)
    results = json.loads((folder / "results.json").read_text())
    scores = {
        "expected_error": 0.0123,
        "classwise_expected_error": 0.0045,
        "brier": 0.25,
        "bin_confidence": [None, 0.5, 1.0],
        "bin_accuracy": [None, 0.25, 0.75],
        "coverage": [0.5, 1.0],
        "risk": [0.1, 0.2],
        "area_under_risk": 0.1,
    }
    results["details"]["class_calibration"] = {"initial": {**scores, "nll": 0.5}, "fused": {**scores, "nll": 0.4}}
    (folder / "results.json").write_text(json.dumps(results))
    write_report([folder], tmp_path / "report.html", command="")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ["S_f", "1.23", "0.45", "0.2500", "0.4000"] in Tables(text).rows
    assert '<a href="#probabilities">' in text
    assert "Reliability of the class probabilities" in text


def test_a_model_without_a_seed_shows_none(html, baseline, tmp_path):
    write_report([baseline], tmp_path / "b.html")
    alone = (tmp_path / "b.html").read_text(encoding="utf-8")
    for text in ("an arrow shows its seed", "mIoU of S_f", "S_s the one fetched"):
        assert text in html
        assert text not in alone
