"""Losses by name, against loops and closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ovenet
from ovenet.losses import LOSSES, build_losses
from ovenet.losses.functional import mean
from ovenet.losses.targets import Targets

IGNORE = 255


def example(num_classes=4):
    torch.manual_seed(3)
    scores = torch.randn(2, num_classes, 9, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, num_classes, (2, 9, 7))
    labels[:, :3] = IGNORE
    return scores, labels, Targets.from_labels(labels, ignore_label=IGNORE, dtype=torch.float64)


def value(term, scores, targets, kind="logits", *, is_final=True, **provided):
    (built,) = build_losses([term], **provided)
    return mean(*built.loss(scores, targets, kind, is_final=is_final))


def test_names():
    assert ovenet.list_losses() == sorted(["cross_entropy", "ohem", "focal", "dice", "lovasz"])


def test_cross_entropy_is_torchs_own():
    scores, labels, targets = example()
    expected = F.cross_entropy(scores, labels, ignore_index=IGNORE)
    torch.testing.assert_close(value({"NAME": "cross_entropy"}, scores, targets), expected)


def test_averaging_over_all_pixels_counts_the_ignored_ones():
    """A third of the rows is ignored: two thirds of torch's mean over the valid pixels."""
    scores, labels, targets = example()
    expected = F.cross_entropy(scores, labels, ignore_index=IGNORE) * 2 / 3
    torch.testing.assert_close(value({"NAME": "cross_entropy"}, scores, targets, average="all"), expected)
    half = labels.clone()
    half[:] = 1
    half.view(2, -1)[:, : 63 // 2] = IGNORE  # 31 of 63
    targets = Targets.from_labels(half, ignore_label=IGNORE, dtype=torch.float64)
    own = F.cross_entropy(scores, half, ignore_index=IGNORE)
    torch.testing.assert_close(value({"NAME": "cross_entropy"}, scores, targets, average="all"), own * 32 / 63)


def test_with_ohem_all_pixels_share_the_auxiliary_loss():
    """As in HRNet-OCR's code: auxiliary losses are averaged over all pixels, the mined ones over themselves."""
    scores, labels, _ = example()
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)[: scores.shape[1]]
    weights = torch.cat([weights, torch.ones(scores.shape[1] - len(weights), dtype=torch.float64)])
    targets = Targets.from_labels(labels, ignore_label=IGNORE, class_weights=weights, dtype=torch.float64)
    log_probs = scores.detach().log_softmax(1).numpy()
    total = 0.0
    for b, y, x in np.ndindex(*labels.shape):
        if labels[b, y, x] != IGNORE:
            total -= weights[labels[b, y, x]].item() * log_probs[b, labels[b, y, x], y, x]
    term = {"NAME": "ohem", "THRESHOLD": 0.5, "MIN_KEPT": 5}
    auxiliary = value(term, scores, targets, average="all", is_final=False)
    assert auxiliary.item() == pytest.approx(total / labels.numel())
    torch.testing.assert_close(value(term, scores, targets, average="all"), value(term, scores, targets))


def test_focal_loss_equals_a_loop():
    scores, labels, targets = example()
    probabilities = scores.detach().softmax(1).numpy()
    losses = []
    for b, y, x in np.ndindex(2, 9, 7):
        if labels[b, y, x] != IGNORE:
            p = probabilities[b, labels[b, y, x], y, x]
            losses.append(-((1 - p) ** 1.5) * math.log(p))
    assert value({"NAME": "focal", "GAMMA": 1.5}, scores, targets).item() == pytest.approx(np.mean(losses), rel=1e-9)


def test_focal_loss_without_gamma_is_cross_entropy():
    scores, labels, targets = example()
    expected = F.cross_entropy(scores, labels, ignore_index=IGNORE)
    torch.testing.assert_close(value({"NAME": "focal", "GAMMA": 0}, scores, targets), expected)


def test_dice_loss_equals_a_loop():
    pytest.importorskip("segmentation_models_pytorch")
    scores, labels, targets = example()
    probabilities, valid = scores.detach().softmax(1).numpy(), (labels != IGNORE).numpy()
    losses = []
    for k in range(4):
        p, y = probabilities[:, k][valid], (labels == k).numpy()[valid]
        losses.append(1 - 2 * (p * y).sum() / (p.sum() + y.sum()))
    assert value({"NAME": "dice"}, scores, targets).item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_lovasz_loss_of_hard_predictions_is_one_minus_iou():
    """At probabilities of 0 and 1 the surrogate is the loss itself (Berman et al., 2018)."""
    pytest.importorskip("segmentation_models_pytorch")
    _, labels, targets = example()
    predicted = (labels.masked_fill(labels == IGNORE, 0) + (torch.rand(labels.shape) < 0.3)) % 4
    probabilities = F.one_hot(predicted, 4).permute(0, 3, 1, 2).double()
    valid, losses = labels != IGNORE, []
    for k in range(4):
        p, y = (predicted == k)[valid], (labels == k)[valid]
        losses.append(1 - ((p & y).sum() / (p | y).sum()).item())
    got = value({"NAME": "lovasz"}, probabilities, targets, "probabilities").item()
    assert got == pytest.approx(np.mean(losses), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES.names())
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_the_gradient_reaches_every_valid_pixel(name, kind):
    scores, labels, targets = example()
    values = scores if kind == "logits" else scores.softmax(1)
    loss = value({"NAME": name, **({"MIN_KEPT": 10**6} if name == "ohem" else {})}, values, targets, kind)
    (gradient,) = torch.autograd.grad(loss, scores)
    valid = (labels != IGNORE).unsqueeze(1).expand_as(gradient)
    assert torch.isfinite(gradient).all()
    assert (gradient[~valid].abs() < 1e-9).all()
    assert (gradient.abs().sum(1)[labels != IGNORE] > 0).float().mean() > 0.95


def test_terms_are_weighted_and_added():
    first, second = build_losses([{"NAME": "cross_entropy"}, {"NAME": "focal", "WEIGHT": 0.5, "GAMMA": 1.0}])
    assert (first.weight, second.weight, second.loss.gamma) == (1.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"NAME": "dise"}, r"'dise'.* dice"),
        ({"NAME": "focal", "GAMA": 1}, r"LOSS\.TERMS\[0\]\.GAMA.*focal.*GAMMA"),
        ({"NAME": "focal", "GAMMA": "much"}, r"LOSS\.TERMS\[0\]\.GAMMA is 'much'.*number"),
        ({"WEIGHT": 1}, r"LOSS\.TERMS\[0\] is \{'WEIGHT': 1\}.*NAME.*cross_entropy"),
        ({"NAME": "focal", "WEIGHT": -1}, r"LOSS\.TERMS\[0\]\.WEIGHT is -1.*at least 0"),
    ],
)
def test_bad_terms_are_named(term, message):
    with pytest.raises(ovenet.UserError, match=message):
        build_losses([term])
