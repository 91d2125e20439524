"""Evaluation counts every image once, and the files say what the scores say."""

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from ovenet.data.catalog import CATALOG
from ovenet.data.info import DatasetInfo
from ovenet.evaluation.evaluate import count_samples, evaluate, evaluation_from_counts
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.evaluation.metrics import scores_from_counts
from ovenet.evaluation.writers import format_table, results_as_dict, write_json
from ovenet.inference.backend import CpuBackend, CudaBackend
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.inference.pictures import colorize_labels, colorize_offset, picture_row, save_prediction
from ovenet.structures import OVeNetOutput, Sample

SYNTHETIC = CATALOG["synthetic"]
AB = DatasetInfo("ab", ("a", "b"), ((0, 0, 0), (255, 0, 0)), (0, 1), conditions=("fog", "rain", "snow"))


class RedModel(torch.nn.Module):
    """Class 1 where the pixel is red, else class 0; the seed prediction is always class 0."""

    def forward(self, images):
        red = (images[:, :1] > 0).float()
        fused, seed = torch.cat((1 - red, red), 1), torch.cat((torch.ones_like(red), torch.zeros_like(red)), 1)
        return OVeNetOutput((fused,), (seed,), (fused,), torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, 1))


def red_samples():
    for share in (2, 4):
        image = np.zeros((8, 8, 3), np.uint8)
        image[:, :share, 0] = 255
        labels = np.zeros((8, 8), np.int16)
        labels[:, :4] = 1
        labels[0] = 255
        yield Sample(image, labels, f"{share}.png")
    yield Sample(np.zeros((8, 8, 3), np.uint8), None, "unlabelled.png")


@pytest.mark.parametrize("backend", [CpuBackend(), CudaBackend()], ids=["one by one", "one ahead"])
def test_a_split_is_scored_by_hand(backend):
    predictor = SlidingWindowInferencer(
        RedModel(), InferenceSettings(base_size=8, window_size=(8, 8)), torch.device("cpu"), backend
    )
    evaluator = SegEvaluator(
        AB, ("initial", "seed", "fused"), ignore_label=255, detailed=False, device=torch.device("cpu")
    )
    seen = []
    count_samples(
        predictor,
        red_samples(),
        evaluator,
        on_image=lambda sample, prediction, counts: seen.append((sample.name, sorted(prediction.labels), bool(counts))),
    )
    results = evaluation_from_counts(evaluator).overall
    # 7 labelled rows; b is on 4 of 8 columns; the first image shows 2 of them, the second all 4
    assert results["fused"].iou[1] == pytest.approx((14 + 28) / 56)
    assert results["fused"].iou[0] == pytest.approx(56 / (56 + 14))
    assert results["fused"].num_pixels == 112
    assert results["seed"].iou[1] == 0
    assert seen == [(f"{n}.png", ["fused", "initial", "seed"], n != "unlabelled") for n in (2, 4, "unlabelled")]


def test_a_loader_starts_in_the_thread_that_evaluates():
    """Its processes, started by a thread of a pool, would end with an error, and torch may report them as killed."""
    started = []

    def samples():
        started.append(threading.current_thread())
        yield from red_samples()

    predictor = SlidingWindowInferencer(
        RedModel(), InferenceSettings(base_size=8, window_size=(8, 8)), torch.device("cpu"), CpuBackend()
    )
    evaluator = SegEvaluator(AB, ("fused",), ignore_label=255, detailed=False, device=torch.device("cpu"))
    count_samples(predictor, samples(), evaluator)
    assert started == [threading.current_thread()]


def test_the_next_image_is_launched_before_the_host_looks_at_one():
    model, order = RedModel(), []
    model.register_forward_hook(lambda *_: order.append("launched"))
    settings, cpu = InferenceSettings(base_size=8, window_size=(8, 8)), torch.device("cpu")
    for backend in (CpuBackend(), CudaBackend()):
        predictor = SlidingWindowInferencer(model, settings, cpu, backend)
        evaluator = SegEvaluator(AB, ("fused",), ignore_label=255, detailed=False, device=cpu)
        count_samples(predictor, red_samples(), evaluator, on_image=lambda *_: order.append("looked at"))
    a, b = "launched", "looked at"
    assert order == [a, b, a, b, a, b, a, a, b, a, b, b]


@pytest.mark.gpu
def test_a_card_counts_what_the_cpu_counts():
    counts = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        settings = InferenceSettings(base_size=8, window_size=(8, 8), cuda_graph=True)
        predictor = SlidingWindowInferencer(RedModel(), settings, device)
        evaluator = SegEvaluator(AB, ("initial", "seed", "fused"), ignore_label=255, detailed=False, device=device)
        seen = []
        count_samples(
            predictor, [*red_samples()] * 4, evaluator, on_image=lambda *image, seen=seen: seen.append(image[1:])
        )
        assert all(labels.device.type == "cpu" for prediction, _ in seen for labels in prediction.labels.values())
        counts.append([evaluator.counts["confusion"].cpu(), *(torch.from_numpy(c.confusion) for _, c in seen if c)])
    assert len(counts[0]) == len(counts[1]) == 1 + 8
    assert all(torch.equal(a, b) for a, b in zip(*counts, strict=True))


def test_conditions_are_scored_alone_and_together():
    predictor = SlidingWindowInferencer(
        RedModel(), InferenceSettings(base_size=8, window_size=(8, 8)), torch.device("cpu")
    )
    samples = [
        Sample(s.image, s.labels, f"rgb/{folder}/val/{s.name}")
        for s, folder in zip(red_samples(), ("fog", "rain", "snow"), strict=True)
    ]
    names = ("initial", "seed", "fused")
    evaluation = evaluate(predictor, samples, AB, names, ignore_label=255)
    assert set(evaluation.by_condition) == {"fog", "rain"}  # the snow has no labels
    assert evaluation.by_condition["fog"]["fused"].iou[1] == pytest.approx(14 / 28)
    assert evaluation.by_condition["rain"]["fused"].iou[1] == 1
    assert evaluation.overall["fused"].iou[1] == pytest.approx((14 + 28) / 56)
    alone = evaluate(predictor, samples[:1], AB, names, ignore_label=255).overall["fused"]
    assert alone.mean_iou == evaluation.by_condition["fog"]["fused"].mean_iou
    table = format_table(evaluation.overall, evaluation.by_condition)
    assert any(line.split()[:2] == ["mIoU,", "rain"] for line in table.splitlines())


def test_the_table_shows_all_predictions_and_leaves_out_absent_classes():
    fused = scores_from_counts(torch.tensor([[3, 1, 0], [2, 4, 1], [0, 0, 0]]), ("road", "sky", "train"))
    initial = scores_from_counts(torch.tensor([[4, 0, 0], [0, 7, 0], [0, 0, 0]]), ("road", "sky", "train"))
    table = format_table({"initial": initial, "fused": fused})
    lines = table.splitlines()
    assert lines[0].split() == ["IoU", "in", "%", "S_i", "S_f"]
    assert lines[2].split() == ["road", "100.00", "50.00"]
    assert any(line.split() == ["mIoU", "100.00", "50.00"] for line in lines)
    assert any(line.split() == ["pixel", "accuracy", "100.00", "63.64"] for line in lines)
    assert lines[-1] == "not in the labels and left out of the means: train"


def test_json_says_what_the_scores_say(tmp_path):
    result = scores_from_counts(torch.tensor([[3, 1, 0], [2, 4, 1], [0, 0, 0]]), ("road", "sky", "train"))
    write_json(results_as_dict({"fused": result}), tmp_path / "a/b.json")
    content = json.loads((tmp_path / "a/b.json").read_text())["fused"]
    assert content["iou"] == {"road": 0.5, "sky": 0.5, "train": None}
    assert content["mean_iou"] == 0.5
    assert content["absent"] == ["train"]


def test_saved_predictions_have_the_ids_of_the_label_files(tmp_path):
    labels = torch.tensor([[0, 1], [18, 10]])
    save_prediction(labels, "leftImg8bit/val/x/a.jpg", tmp_path, SYNTHETIC)
    ids = np.asarray(Image.open(tmp_path / "ids/leftImg8bit/val/x/a.png"))
    color = np.asarray(Image.open(tmp_path / "color/leftImg8bit/val/x/a.png").convert("RGB"))
    np.testing.assert_array_equal(ids, [[7, 8], [33, 23]])
    assert tuple(color[1, 1]) == (70, 130, 180)


def test_ignored_pixels_are_black():
    picture = colorize_labels(torch.tensor([[0, 255, -1]]), SYNTHETIC)
    assert picture[:, 0, 0].tolist() == [128, 64, 128]
    assert picture[:, 0, 1:].sum() == 0


def test_the_colour_wheel_has_a_fixed_scale():
    offset = torch.zeros(2, 2, 3)
    offset[0, 0, 0] = 0.25
    alone = colorize_offset(offset, 0.5)
    offset[0, 1, 2] = 0.5
    together = colorize_offset(offset, 0.5)
    assert torch.equal(alone[:, 0], together[:, 0])
    assert alone[:, 0, 1].tolist() == [255, 255, 255]
    assert colorize_offset(offset * 100, 0.5).shape == (3, 2, 3)


def tile(row, index, size=(6, 8)):
    """A tile below its caption, without the gaps beside it."""
    left = index * (size[1] + 4)
    return row[:, 18 : 18 + size[0], left : left + size[1]]


def test_a_picture_row_has_a_tile_for_everything():
    sample = Sample(np.zeros((6, 8, 3), np.uint8), np.zeros((6, 8), np.int16), "a.png")
    scores = (torch.randn(1, 19, 2, 2),)
    output = OVeNetOutput(scores, scores, scores, torch.zeros(1, 2, 2, 2), torch.ones(1, 1, 2, 2))
    row = picture_row(sample, output, SYNTHETIC, max_offset=0.5, align_corners=True)
    assert row.shape == (3, 18 + 6, 8 * 12 - 4)
    assert (row[:, 18:, 8:12] == 255).all()  # a gap
    assert (row[:, :18] < 128).any()  # captions
    assert (tile(row, 7) == 255).all()  # confidence 1
    baseline = OVeNetOutput(scores, (), scores)
    assert picture_row(sample, baseline, SYNTHETIC, max_offset=0.5, align_corners=True).shape == (3, 24, 4 * 12 - 4)
    unlabelled = Sample(sample.image, None, "a.png")
    assert picture_row(unlabelled, baseline, SYNTHETIC, max_offset=0.5, align_corners=True).shape == (3, 24, 2 * 12 - 4)


def test_the_error_map_tells_what_the_seeds_did():
    """Label, S_i and S_f of five columns: right, corrected, broken, wrong in both, no label."""
    labels = torch.tensor([[1, 1, 1, 1, 255]])
    initial, fused = torch.tensor([[1, 0, 1, 0, 1]]), torch.tensor([[1, 1, 0, 2, 1]])
    one_hot = [torch.nn.functional.one_hot(m, 19).permute(2, 0, 1)[None].float() for m in (initial, fused)]
    sample = Sample(np.zeros((1, 5, 3), np.uint8), labels.numpy().astype(np.int16), "a.png")
    output = OVeNetOutput((one_hot[0],), (one_hot[1],), (one_hot[1],), torch.zeros(1, 2, 1, 5), torch.ones(1, 1, 1, 5))
    row = picture_row(sample, output, SYNTHETIC, max_offset=0.5, align_corners=True)
    errors = tile(row, 5, (1, 5))[:, 0].T.tolist()
    assert errors == [[214, 214, 214], [0, 114, 178], [213, 94, 0], [240, 228, 66], [0, 0, 0]]
