"""The probability of the predicted class, and those of all classes band by band, against plain Python."""

import math
from threading import Lock

import numpy as np
import pytest
import torch

from ovenet.geometry import tempered
from ovenet.inference.backend import CpuBackend
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.structures import OVeNetOutput

CPU = torch.device("cpu")


class TwoMaps(torch.nn.Module):
    """Scores of 5 classes by prediction, a linear map of each pixel, in any kind of scores."""

    def __init__(self, kind="logits", factor=1.0):
        super().__init__()
        self.kind = kind
        self.weight = factor * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(3))

    def forward(self, images):
        initial, fused = torch.einsum("mkc,bchw->mbkhw", self.weight, images)
        maps = {"logits": lambda x: x, "probabilities": lambda x: x.softmax(1), "unnormalized": lambda x: x.exp() / 7}
        initial, fused = (maps[self.kind](x) for x in (initial, fused))
        half = torch.full_like(initial[:, :1], 0.5)
        return OVeNetOutput((initial,), (fused,), (fused,), torch.zeros_like(initial[:, :2]), half, self.kind)


class Zeros(torch.nn.Module):
    """Unnormalised scores that are all 0, as masks of no object give them."""

    def forward(self, images):
        scores = torch.zeros(len(images), 3, *images.shape[-2:])
        return OVeNetOutput((scores,), (), (scores,), score_kind="unnormalized")


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, (23, 35, 3)).astype(np.uint8)


def inferencer(model, backend=None, **options):
    return SlidingWindowInferencer(
        model, InferenceSettings(**{"base_size": 35, "window_size": (100, 100), **options}), CPU, backend
    )


def gather(predictor, image, **options):
    """All classes' probabilities ``(H, W, K)`` by name, put together from the bands, and the prediction."""
    bands, lock = [], Lock()

    def on_band(band):
        for name, shares in band.probabilities.items():
            assert torch.equal(shares.amax(dim=1), band.probability[name])
        with lock:
            bands.append((band.rows.start, {name: shares.clone() for name, shares in band.probabilities.items()}))

    prediction = predictor.predict(image, on_band=on_band, probability=True, **options)
    bands.sort(key=lambda band: band[0])
    names = bands[0][1]
    return {name: torch.cat([maps[name] for _, maps in bands]).permute(0, 2, 1) for name in names}, prediction


def slow(scores, temperature):
    """Scores of one pixel, normalised, then to the power of 1 / T, normalised."""
    total = math.fsum(scores)
    powers = [(score / total) ** (1 / temperature) for score in scores]
    return [power / math.fsum(powers) for power in powers]


@pytest.mark.parametrize("kind", ["logits", "probabilities", "unnormalized"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score": "exp", "scales": (0.5, 1.0, 1.25)},
        {"score": "mmseg", "flip": True, "scales": (0.5, 1.0)},
        {"window_size": (16, 12), "stride": (8, 7), "flip": True, "scales": (1.0, 1.5)},
    ],
    ids=["softmax", "exp", "mmseg", "windows"],
)
def test_each_pixels_probabilities_are_its_normalised_scores_at_the_temperature(image, kind, options):
    temperatures = {"initial": 2.5, "fused": 0.4}
    predictor = inferencer(TwoMaps(kind), CpuBackend(band_elements=5 * 35 * 4), temperatures=temperatures, **options)
    scores = predictor.predict_scores(image)
    classes, prediction = gather(predictor, image)
    assert set(classes) == set(prediction.probability) == {"initial", "seed", "fused"}
    for name, whole in classes.items():
        assert torch.equal(prediction.labels[name].long(), scores[name].argmax(dim=0))
        assert prediction.probability[name].dtype == torch.float32
        for row, column in [(0, 0), (22, 34), (11, 7), (3, 30)]:
            expected = slow(scores[name][:, row, column].tolist(), temperatures.get(name, 1.0))
            assert whole[row, column].tolist() == pytest.approx(expected, abs=2e-6)
            assert prediction.probability[name][row, column].item() == pytest.approx(max(expected), abs=2e-6)


def test_one_views_temperature_divides_its_logits(image):
    plain, cooled = inferencer(TwoMaps()), inferencer(TwoMaps(), temperatures={"fused": 1.7})
    logits = plain.predict_output(image).fused[-1][0]
    expected = (logits.double() / 1.7).softmax(dim=0)
    torch.testing.assert_close(gather(cooled, image)[0]["fused"].permute(2, 0, 1).double(), expected, atol=1e-6, rtol=0)


def test_nothing_else_changes_when_probabilities_are_asked_for(image):
    predictor = inferencer(TwoMaps(), flip=True, scales=(0.5, 1.0))
    plain = predictor.predict(image, seeds=True, score_side=12)
    _, asked = gather(predictor, image, seeds=True, score_side=12)
    assert plain.probability == {}
    for name, labels in plain.labels.items():
        assert torch.equal(asked.labels[name], labels)
        assert torch.equal(asked.scores[name], plain.scores[name])
    assert torch.equal(asked.offset, plain.offset)
    copied = asked.start_copy()()
    assert torch.equal(copied.probability["seed"], asked.probability["seed"])
    assert torch.equal(copied.scores["initial"], asked.scores["initial"])


def test_thinned_scores_are_those_at_the_temperature(image):
    predictor = inferencer(TwoMaps(), temperatures={"fused": 3.0})
    classes, prediction = gather(predictor, image, score_side=12)  # 35 columns: every 3rd
    for name in ("initial", "fused"):
        assert torch.equal(prediction.scores[name], classes[name].permute(2, 0, 1)[:, ::3, ::3])
    only_scores = predictor.predict(image, score_side=12)
    assert torch.equal(only_scores.scores["fused"], prediction.scores["fused"])


def test_exponentials_that_overflow_are_shared_by_their_classes(image):
    predictor = inferencer(TwoMaps(factor=400.0), score="exp")
    _, prediction = gather(predictor, image)
    for shares in prediction.probability.values():
        assert ((shares >= 0) & (shares < 1.001)).all()  # near 0 where the exponentials of all classes are
        assert (shares > 0.19).float().mean() > 0.9  # at most five classes overflow


def test_scores_that_are_all_zero_give_no_class_a_probability(image):
    for temperatures in ({}, {"fused": 2.0}):
        _, prediction = gather(inferencer(Zeros(), temperatures=temperatures), image)
        assert not prediction.probability["fused"].any()


@pytest.mark.parametrize("temperature", [0.01, 1e-3, 50.0])
def test_extreme_temperatures_stay_finite(temperature):
    shares = torch.tensor([[0.06, 0.05, 0.0, 0.89], [0.25, 0.25, 0.25, 0.25], [1e-38, 1.0, 0.0, 0.0]])
    expected = [slow(row, temperature) if temperature > 0.1 else None for row in shares.double().tolist()]
    found = tempered(shares, temperature)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    for row, wanted in zip(found.tolist(), expected, strict=True):
        assert wanted is None or row == pytest.approx(wanted, abs=1e-5)


@pytest.mark.gpu
def test_a_card_gives_the_same_probabilities(image):
    device = torch.device("cuda")
    options = {"base_size": 35, "window_size": (16, 16), "scales": (0.5, 1.0), "temperatures": {"fused": 1.5}}
    on_cpu, host = gather(SlidingWindowInferencer(TwoMaps(), InferenceSettings(**options), CPU), image)
    model = TwoMaps().to(device)
    model.weight = model.weight.to(device)
    on_card, prediction = gather(SlidingWindowInferencer(model, InferenceSettings(**options), device), image)
    for name in on_cpu:
        torch.testing.assert_close(on_card[name].cpu(), on_cpu[name], atol=1e-4, rtol=0)
        torch.testing.assert_close(prediction.probability[name].cpu(), host.probability[name], atol=1e-4, rtol=0)
