"""The fitted temperature, against a golden-section search over a loop in plain Python."""

import math

import numpy as np
import pytest
import torch

from ovenet.evaluation.temperature_fit import COLDNESS, TemperatureCounts, best_temperature
from ovenet.inference.inferencer import ClassBand

CPU = torch.device("cpu")


def loss_at(temperature, pixels):
    """Mean negative log-likelihood of ``(probabilities, label)`` at a temperature."""
    total = 0.0
    for shares, label in pixels:
        powers = [share ** (1 / temperature) for share in shares]
        total -= math.log(powers[label] / math.fsum(powers))
    return total / len(pixels)


def golden_section(function, low, high, num_steps=60):
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(num_steps):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if function(a) < function(b) else (a, high)
    return (low + high) / 2


def drawn(temperature, size=(22, 25), num_classes=5):
    """Probabilities ``(H, K, W)``, and labels drawn from them at a temperature; a few without a label."""
    rng = np.random.default_rng(4)
    logits = 3 * rng.standard_normal((size[0], num_classes, size[1]))
    noisy = logits / temperature + rng.gumbel(size=logits.shape)
    labels = noisy.argmax(axis=1).astype(np.int16)
    labels[rng.random(size) < 0.1] = -1
    return torch.from_numpy(logits).float().softmax(dim=1), torch.from_numpy(labels)


@pytest.mark.parametrize("temperature", [0.45, 1.0, 2.7])
def test_the_temperature_is_that_of_the_smallest_loss(temperature):
    shares, labels = drawn(temperature)
    counts = TemperatureCounts(("fused",), CPU)
    for rows in (range(9), range(9, 10), range(10, 22)):
        band = shares[rows.start : rows.stop]
        counts.add(ClassBand(rows, {"fused": band}, {}, {}), labels)
    pixels = [
        (shares[row, :, column].tolist(), int(labels[row, column]))
        for row in range(0, 22, 4)
        for column in range(25)
        if labels[row, column] >= 0
    ]
    assert counts.num_pixels == len(pixels)
    sums = counts.sums[0].numpy() / counts.num_pixels.item()
    for place in (0, 16, 32):  # T of 10, 1 and 0.1
        loss = loss_at(1 / COLDNESS[place], pixels)
        assert sums[place, 0] / 2**16 == pytest.approx(loss, rel=1e-4)
    expected = golden_section(lambda t: loss_at(t, pixels), 0.1, 10)
    found = best_temperature(sums)
    assert found == pytest.approx(expected, rel=2e-4)
    assert found == pytest.approx(temperature, rel=0.5)


def test_a_loss_that_only_falls_gives_an_end_of_the_grid():
    sharp, flat = torch.tensor([[0.6], [0.4]]).expand(1, 2, 8), torch.zeros(1, 8, dtype=torch.int16)
    always_right, as_often_wrong = TemperatureCounts(("fused",), CPU), TemperatureCounts(("fused",), CPU)
    always_right.add(ClassBand(range(1), {"fused": sharp}, {}, {}), flat)
    as_often_wrong.add(ClassBand(range(1), {"fused": sharp}, {}, {}), torch.tensor([[0, 1] * 4], dtype=torch.int16))
    assert best_temperature(always_right.sums[0].numpy()) == pytest.approx(0.1)
    assert best_temperature(as_often_wrong.sums[0].numpy()) == pytest.approx(10)


@pytest.mark.gpu
def test_a_card_fits_the_same():
    shares, labels = drawn(2.0)
    found = []
    for device in (CPU, torch.device("cuda", 0)):
        counts = TemperatureCounts(("fused",), device)
        counts.add(ClassBand(range(22), {"fused": shares.to(device)}, {}, {}), labels.to(device))
        found.append(best_temperature(counts.sums[0].cpu().numpy() / counts.num_pixels.item()))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
