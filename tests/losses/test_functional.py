"""Losses against loops over pixels."""

import math

import numpy as np
import pytest
import torch

from ovenet.losses import functional
from ovenet.losses.targets import Targets

IGNORE = 255


@pytest.fixture
def scores():
    return torch.randn(2, 4, 5, 7, dtype=torch.float64)


@pytest.fixture
def labels():
    labels = torch.randint(0, 4, (2, 5, 7))
    labels[torch.rand(2, 5, 7) < 0.3] = IGNORE
    return labels


def true_class_probabilities(scores, labels):
    """``[(probability, label)]`` of the valid pixels, by loops."""
    found = []
    for b in range(labels.shape[0]):
        for i in range(labels.shape[1]):
            for j in range(labels.shape[2]):
                k = int(labels[b, i, j])
                if k != IGNORE:
                    e = np.exp(scores[b, :, i, j].numpy())
                    found.append((e[k] / e.sum(), k))
    return found


def pixel_loss(scores, labels, weights=None):
    """Losses of the pixels, and their targets."""
    class_weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    targets = Targets.from_labels(labels, ignore_label=IGNORE, class_weights=class_weights, dtype=scores.dtype)
    return functional.negative_log_likelihood(functional.log_probabilities(scores, "logits"), targets), targets


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 3.0]])
def test_cross_entropy_equals_loops(scores, labels, weights):
    factors = weights or [1.0] * 4
    pixels = true_class_probabilities(scores, labels)
    total, weight = functional.cross_entropy(*pixel_loss(scores, labels, weights))
    assert total.item() == pytest.approx(sum(-factors[k] * math.log(p) for p, k in pixels))
    assert weight.item() == pytest.approx(sum(factors[k] for _, k in pixels))


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.2, 3), (0.9, 3), (0.01, 12), (0.3, 10_000), (1e-9, 1)])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 3.0]])
def test_ohem_equals_sorting(scores, labels, threshold, min_kept, weights):
    factors = weights or [1.0] * 4
    pixels = true_class_probabilities(scores, labels)
    ordered = sorted(p for p, _ in pixels)
    limit = max(threshold, ordered[min(min_kept, len(ordered) - 1)])
    kept = [(p, k) for p, k in pixels if p < limit]
    nll, targets = pixel_loss(scores, labels, weights)
    found = functional.ohem_limit(nll, targets, threshold=threshold, min_kept=min_kept)
    assert found.item() == pytest.approx(limit)
    total, count = functional.ohem_cross_entropy(nll, targets, found)
    assert count.item() == len(kept)
    assert total.item() == pytest.approx(sum(-factors[k] * math.log(p) for p, k in kept))


def test_confidence_loss_equals_loops(labels):
    confidence = torch.rand(2, 1, 5, 7, dtype=torch.float64)
    offset = torch.empty(2, 2, 5, 7, dtype=torch.float64).uniform_(-0.7, 0.7)
    total, count = functional.confidence_loss(confidence, labels, offset, ignore_label=IGNORE)
    expected, number = 0.0, 0
    for b in range(2):
        for i in range(5):
            for j in range(7):
                x = min(max(-1 + 2 * j / 6 + offset[b, 0, i, j].item(), -1), 1)
                y = min(max(-1 + 2 * i / 4 + offset[b, 1, i, j].item(), -1), 1)
                seed = labels[b, round((y + 1) * 2), round((x + 1) * 3)].item()
                own = labels[b, i, j].item()
                if IGNORE in (seed, own):
                    continue
                f = confidence[b, 0, i, j].item()
                expected -= math.log(f if seed == own else 1 - f)
                number += 1
    assert 0 < number < 70
    assert count.item() == number
    assert total.item() == pytest.approx(expected)


def test_ignored_seeds_and_pixels_never_count():
    """All pixels are ignored but one, whose offset leads to an ignored one: nothing is left."""
    labels = torch.full((1, 3, 3), IGNORE)
    labels[0, 1, 1] = 0
    offset = torch.zeros(1, 2, 3, 3)
    offset[0, 0, 1, 1] = 1.0
    _, count = functional.confidence_loss(torch.full((1, 1, 3, 3), 0.5), labels, offset, ignore_label=IGNORE)
    assert count == 0


def test_the_confidence_loss_is_finite_at_the_ends_and_passes_nan_on():
    labels, offset = torch.tensor([[[0, 1]]]), torch.zeros(1, 2, 1, 2)
    total, _ = functional.confidence_loss(torch.zeros(1, 1, 1, 2), labels, offset, ignore_label=IGNORE)
    assert torch.isfinite(total)
    total, _ = functional.confidence_loss(torch.full((1, 1, 1, 2), torch.nan), labels, offset, ignore_label=IGNORE)
    assert torch.isnan(total)


def test_probabilities_and_logits_agree(scores):
    as_logits = functional.log_probabilities(scores, "logits")
    as_probabilities = functional.log_probabilities(scores.softmax(1), "probabilities")
    torch.testing.assert_close(as_logits, as_probabilities)


def test_the_loss_of_a_hopeless_probability_still_has_a_gradient():
    logits = torch.tensor([[[[60.0]], [[-20.0]]]], requires_grad=True)  # the true class has probability e^-80
    log_probs = functional.log_probabilities(logits.softmax(1), "probabilities")
    (-log_probs[0, 1, 0, 0]).backward()
    assert logits.grad[0, 1, 0, 0].item() == pytest.approx(-1.0, abs=1e-3)


def test_everything_ignored_is_zero_with_a_gradient():
    labels = torch.full((1, 4, 4), IGNORE)
    for kind in ("plain", "ohem", "confidence"):
        x = torch.rand(1, 3 if kind != "confidence" else 1, 4, 4, requires_grad=True)
        if kind == "confidence":
            parts = functional.confidence_loss(x, labels, torch.zeros(1, 2, 4, 4), ignore_label=IGNORE)
        else:
            nll, targets = pixel_loss(x, labels)
            parts = functional.cross_entropy(nll, targets)
        if kind == "ohem":
            limit = functional.ohem_limit(nll, targets, threshold=0.7, min_kept=5)
            parts = functional.ohem_cross_entropy(nll, targets, limit)
        loss = functional.mean(*parts)
        loss.backward()
        assert loss.item() == 0.0
        assert (x.grad == 0).all()


def test_losses_have_right_gradients(labels):
    scores = torch.randn(2, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    targets = Targets.from_labels(labels, ignore_label=IGNORE, dtype=torch.float64)

    def loss(s):
        plain, mixed = (
            functional.negative_log_likelihood(functional.log_probabilities(values, kind), targets)
            for values, kind in ((s, "logits"), (s.softmax(1), "probabilities"))
        )
        return sum(functional.mean(*functional.cross_entropy(nll, targets)) for nll in (plain, mixed))

    assert torch.autograd.gradcheck(loss, (scores,))
