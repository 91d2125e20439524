"""Calibration of the class probabilities, against loops over the pixels in plain Python."""

import math

import numpy as np
import pytest
import torch

from ovenet.data.info import DatasetInfo
from ovenet.evaluation import class_counts
from ovenet.evaluation.class_counts import LEAST_PROBABILITY, ROW_STRIDE, ImageClassCounts, _dense_bins, _sparse_bins
from ovenet.evaluation.details import details_from_counts
from ovenet.evaluation.evaluate import count_samples, evaluation_from_counts
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.evaluation.writers import evaluation_as_dict, format_table
from ovenet.inference.backend import CpuBackend
from ovenet.inference.inferencer import ClassBand, InferenceSettings, SlidingWindowInferencer
from ovenet.structures import OVeNetOutput, Sample

CPU = torch.device("cpu")
K = 17  # the best class may be below 1/15
NAMES = ("initial", "seed", "fused")
INFO = DatasetInfo("many", tuple("abcdefghijklmnopq"), tuple((k, k, k) for k in range(K)), tuple(range(K)))


class ThreeMaps(torch.nn.Module):
    """Logits of 17 classes, a linear map of each pixel; sharper from S_i to S_f."""

    def __init__(self):
        super().__init__()
        weight = torch.randn(K, 3, generator=torch.Generator().manual_seed(3))
        self.register_buffer("weight", weight)

    def forward(self, images):
        scores = torch.einsum("kc,bchw->bkhw", self.weight, images)
        maps = tuple((factor * scores,) for factor in (0.1, 1.5, 6.0))
        zeros = torch.zeros_like(images[:, :2])
        return OVeNetOutput(*maps, zeros, zeros[:, :1])


def make_samples():
    rng = np.random.default_rng(5)
    for size in ((63, 95), (30, 41), (5, 1)):
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        labels = np.kron(rng.integers(0, K, (13, 20)), np.ones((5, 5), int))[: size[0], : size[1]].astype(np.int16)
        labels[rng.random(size) < 0.1] = 255
        yield Sample(image, labels, "x.png")
    yield Sample(image, None, "unlabelled.png")


def predictor_on(device=CPU, **options):
    settings = InferenceSettings(**{"base_size": None, "window_size": (100, 100), **options})
    backend = CpuBackend(band_elements=K * 95 * 7) if device.type == "cpu" else None
    return SlidingWindowInferencer(ThreeMaps().to(device), settings, device, backend)


def counted(predictor, samples):
    evaluator = SegEvaluator(INFO, NAMES, ignore_label=255, detailed=True, device=predictor.device)
    count_samples(predictor, samples, evaluator)
    return evaluator


def slow_scores(predictor, samples, name):
    """ECE, classwise errors, Brier score, NLL and risk, pixel by pixel, from `predict_scores`."""
    best_bins = [[0, 0.0, 0] for _ in range(15)]
    class_bins = [[[0, 0.0, 0] for _ in range(15)] for _ in range(K)]
    brier, nll, ranked = 0.0, 0.0, []
    for sample in samples:
        if sample.labels is None:
            continue
        shares = predictor.predict_scores(sample.image)[name].tolist()
        for row in range(0, len(sample.labels), ROW_STRIDE):
            for column, label in enumerate(sample.labels[row].tolist()):
                if label == 255:
                    continue
                p = [shares[k][row][column] for k in range(K)]
                best = max(range(K), key=p.__getitem__)
                ranked.append((p[best], best == label))
                for table, share, hit in (
                    (best_bins, p[best], best == label),
                    *((class_bins[k], p[k], k == label) for k in range(K)),
                ):
                    one = table[min(round(share * 2**16) * 15 // 2**16, 14)]  # rounded, then binned
                    one[0] += 1
                    one[1] += share
                    one[2] += hit
                brier += sum((p[k] - (k == label)) ** 2 for k in range(K))
                nll -= math.log(max(p[label], LEAST_PROBABILITY))
    total = len(ranked)

    def error(bins):
        return sum(count / total * abs(hits / count - sum_ / count) for count, sum_, hits in bins if count)

    ranked.sort(key=lambda pixel: -pixel[0])
    wrong, area = 0, 0.0
    for kept, (_, is_right) in enumerate(ranked, start=1):
        wrong += not is_right
        area += wrong / kept / total
    return error(best_bins), [error(bins) for bins in class_bins], brier / total, nll / total, best_bins, area


def test_scores_equal_those_of_a_loop_over_the_pixels():
    """Sums in steps of 2^-16 are off by 2^-17 a pixel at most, on average by much less."""
    samples = list(make_samples())
    predictor = predictor_on()
    found = details_from_counts(counted(predictor, samples)).class_calibration
    for name in NAMES:
        error, class_error, brier, nll, bins, area = slow_scores(predictor, samples, name)
        scores = found[name]
        assert scores.expected_error == pytest.approx(error, abs=1e-5)
        assert scores.class_error == pytest.approx(class_error, abs=1e-5)
        assert scores.classwise_expected_error == pytest.approx(sum(class_error) / K, abs=1e-5)
        assert scores.brier == pytest.approx(brier, abs=3e-5)
        assert scores.nll == pytest.approx(nll, abs=1e-5)
        assert scores.bin_pixels.tolist() == [count for count, _, _ in bins]
        for index, (count, sum_, hits) in enumerate(bins):
            if count:
                assert scores.bin_accuracy[index] == hits / count
                assert scores.bin_confidence[index] == pytest.approx(sum_ / count, abs=1e-5)
        assert scores.area_under_risk == pytest.approx(area, abs=1e-2)  # pixels of a level are kept together
    assert found["initial"].bin_pixels[0] > 0
    assert found["fused"].nll > found["initial"].nll  # sharper, and no better: worse


def test_counts_add_up_over_processes_and_do_not_depend_on_the_bands():
    samples = list(make_samples())
    whole = counted(predictor_on(), samples)
    parts = [counted(predictor_on(), samples[start::2]) for start in range(2)]
    parts[0].merge(parts[1].counts)
    other = predictor_on()
    other.backend = CpuBackend(band_elements=2**19)
    for name in class_counts.TABLES:
        assert torch.equal(whole.counts[name], parts[0].counts[name])
        assert torch.equal(whole.counts[name], counted(other, samples).counts[name])


@pytest.mark.parametrize("least", [0, class_counts._ABOVE_FIRST])
def test_both_ways_to_count_bins_are_the_same(monkeypatch, least):
    steps = torch.randint(-1, 2**16 + 1, (7, 5, 11), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    monkeypatch.setattr(class_counts, "_MAX_PIXELS", 50)
    sparse = _sparse_bins(steps, least)
    assert torch.equal(sparse, _dense_bins(steps, least))
    assert sparse[..., 0].sum() == (steps >= least).sum()


def test_probabilities_that_are_no_numbers_count_as_zero():
    shares = torch.full((4, 3, 2), torch.nan)
    shares[0, :, 0] = torch.tensor([0.5, 0.25, 0.25])
    band = ClassBand(
        range(4), {"fused": shares}, {"fused": torch.zeros(4, 2, dtype=torch.uint8)}, {"fused": shares.amax(dim=1)}
    )
    counts = ImageClassCounts(np.zeros((4, 2), np.int16), ("fused",), 3, ignore_label=255, device=CPU)
    counts.add(band)
    tables = counts.tables()
    assert tables["best_bins"][0, [0, 7]].tolist() == [[1, 0, 1], [1, 2**15, 1]]
    loss = tables["class_scores"][0, 1] / 2**16
    assert loss == pytest.approx(-math.log(0.5) - math.log(LEAST_PROBABILITY), abs=1e-4)


def test_results_have_a_block_by_prediction():
    samples = list(make_samples())
    evaluation = evaluation_from_counts(counted(predictor_on(), samples))
    content = evaluation_as_dict(evaluation, INFO)["details"]["class_calibration"]
    assert list(content) == list(NAMES)
    assert {"expected_error", "classwise_expected_error", "brier", "nll"} <= content["fused"].keys()
    assert len(content["fused"]["bin_confidence"]) == 15
    (line,) = [
        line
        for line in format_table(evaluation.overall, details=evaluation.details).splitlines()
        if "likelihood" in line
    ]
    assert f"S_f {100 * content['fused']['expected_error']:.2f} %" in line
    nothing = SegEvaluator(INFO, NAMES, ignore_label=255, detailed=True, device=CPU)
    assert details_from_counts(nothing).class_calibration is None


@pytest.mark.gpu
def test_a_card_counts_what_the_cpu_counts():
    samples = list(make_samples())
    on_cpu, on_card = (counted(predictor_on(device), samples) for device in (CPU, torch.device("cuda", 0)))
    scores = [details_from_counts(evaluator).class_calibration["fused"] for evaluator in (on_cpu, on_card)]
    for key in ("expected_error", "classwise_expected_error", "brier", "nll"):
        assert getattr(scores[0], key) == pytest.approx(getattr(scores[1], key), abs=1e-3)
