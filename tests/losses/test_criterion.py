"""How the terms are weighted and added."""

import math

import numpy as np
import pytest
import torch

from ovenet.losses import LOSSES, SegmentationCriterion
from ovenet.losses.settings import LossSettings
from ovenet.structures import OVeNetOutput


def constant_output(initial: float, seed: float, fused: float, confidence: float, *, num_maps: int = 1) -> OVeNetOutput:
    """Two classes, every pixel's class 0 with the given probabilities, zero offsets."""

    def maps(p: float) -> tuple[torch.Tensor, ...]:
        logit = math.log(p / (1 - p))
        one = torch.tensor([logit, 0.0]).view(1, 2, 1, 1).expand(1, 2, 3, 4).clone().requires_grad_()
        return tuple(one * (i + 1) / num_maps for i in range(num_maps))  # the final map has p, earlier ones less logit

    confidence_map = torch.full((1, 1, 3, 4), confidence, requires_grad=True)
    return OVeNetOutput(maps(initial), maps(seed), maps(fused), torch.zeros(1, 2, 3, 4), confidence_map)


OHEM = {"NAME": "ohem", "THRESHOLD": 0.7, "MIN_KEPT": 5}
LABELS = torch.zeros(1, 9, 13, dtype=torch.int64)


def test_total_is_the_weighted_sum_of_the_terms():
    """All probabilities are constant, so upsampling changes nothing: L = κ(ln 4 + ln 2) + ln 1.25 + λ ln 10."""
    criterion = SegmentationCriterion(LossSettings(kappa=0.3, lambda_=2.0), ignore_label=255)
    loss = criterion(constant_output(0.25, 0.5, 0.8, 0.1), LABELS)
    terms = {"initial": math.log(4), "seed": math.log(2), "fused": math.log(1.25), "confidence": math.log(10)}
    assert {k: pytest.approx(v, abs=1e-5) for k, v in terms.items()} == {k: v.item() for k, v in loss.terms.items()}
    expected = 0.3 * (math.log(4) + math.log(2)) + math.log(1.25) + 2 * math.log(10)
    assert loss.total.item() == pytest.approx(expected, abs=1e-5)


def test_auxiliary_maps_are_weighted():
    """Half the logit of p = 0.8, ln(4) / 2 = ln 2, is p = 2/3 in the auxiliary map."""
    criterion = SegmentationCriterion(ignore_label=255, output_weights=(0.4, 1.0))
    loss = criterion(constant_output(0.8, 0.8, 0.8, 0.5, num_maps=2), LABELS)
    assert loss.terms["fused"].item() == pytest.approx(0.4 * math.log(1.5) + math.log(1.25), abs=1e-5)


def test_ohem_mines_the_final_map_only():
    """Every pixel is right with p = 0.8, above the threshold, and none is below the smallest: none is mined."""
    criterion = SegmentationCriterion(LossSettings(terms=(OHEM,)), ignore_label=255, output_weights=(0.4, 1.0))
    loss = criterion(constant_output(0.8, 0.8, 0.8, 0.5, num_maps=2), LABELS)
    assert loss.terms["fused"].item() == pytest.approx(0.4 * math.log(1.5), abs=1e-5)


def test_the_confidence_loss_does_not_grow_with_the_batch():
    criterion = SegmentationCriterion(ignore_label=255)
    one = constant_output(0.6, 0.6, 0.6, 0.3)
    four = OVeNetOutput(
        *(tuple(m.expand(4, -1, -1, -1) for m in maps) for maps in (one.initial, one.seed, one.fused)),
        one.offset.expand(4, -1, -1, -1),
        one.confidence.expand(4, -1, -1, -1),
    )
    a, b = criterion(one, LABELS), criterion(four, LABELS.expand(4, -1, -1))
    assert a.terms["confidence"].item() == pytest.approx(b.terms["confidence"].item())
    assert a.total.item() == pytest.approx(b.total.item())


def test_a_baseline_has_one_term():
    output = constant_output(0.8, 0.8, 0.8, 0.5)
    baseline = OVeNetOutput(output.initial, (), output.initial)
    loss = SegmentationCriterion(ignore_label=255)(baseline, LABELS)
    assert set(loss.terms) == {"fused"}
    assert loss.total.item() == pytest.approx(math.log(1.25), abs=1e-5)


@pytest.mark.parametrize("name", LOSSES.names())
def test_an_ignored_crop_gives_zero_with_a_gradient(name):
    output = constant_output(0.8, 0.8, 0.8, 0.5)
    criterion = SegmentationCriterion(LossSettings(terms=({"NAME": name},)), ignore_label=255)
    loss = criterion(output, torch.full((1, 9, 13), 255))
    assert loss.total.item() == 0.0
    for gradient in torch.autograd.grad(loss.total, (output.confidence, output.fused[0], output.seed[0])):
        assert (gradient == 0).all()


def test_weights_must_fit_the_outputs():
    with pytest.raises(ValueError, match=r"LOSS\.BALANCE_WEIGHTS has 2 .*model has 1 "):
        SegmentationCriterion(ignore_label=255, output_weights=(0.4, 1))(constant_output(0.8, 0.8, 0.8, 0.5), LABELS)


@pytest.mark.parametrize(("initial", "seed", "expected"), [(0.3, 0.6, math.log(10)), (0.6, 0.3, -math.log(0.9))])
def test_the_confidence_may_learn_which_scores_are_better(initial, seed, expected):
    """A confidence of 0.1 everywhere is right where the seed's scores are worse."""
    criterion = SegmentationCriterion(LossSettings(confidence_target="better_scores"), ignore_label=255)
    loss = criterion(constant_output(initial, seed, 0.5, 0.1), LABELS)
    assert loss.terms["confidence"].item() == pytest.approx(expected, abs=1e-5)


def test_the_loss_of_the_offsets_is_a_term_of_its_own():
    """Where all pixels are of one class there is no border; beside one, offsets of zero have the loss 1."""
    criterion = SegmentationCriterion(LossSettings(interior=3.0), ignore_label=255)
    loss = criterion(constant_output(0.5, 0.5, 0.5, 0.5), LABELS)
    assert loss.terms["offset"].item() == pytest.approx(0.0, abs=1e-6)
    other = torch.where(torch.arange(13) < 6, 0, 1).expand(1, 9, 13)
    mixed = constant_output(0.5, 0.5, 0.5, 0.5)
    loss = criterion(mixed, other)
    without = SegmentationCriterion(ignore_label=255)(mixed, other)
    assert loss.terms["offset"].item() == pytest.approx(1.0)
    assert loss.total.item() == pytest.approx(without.total.item() + 3, abs=1e-5)


def public_confidence_loss(offset, confidence, labels, align_corners):
    """As in OVeNet's code, on one image after the other: summed over the batch, divided by the area of an image."""
    height, width = labels.shape[-2:]
    total = 0.0
    for x, f, label in zip(offset, confidence, labels, strict=True):
        x, f = (upsampled_by_loops(m, height, width, align_corners) for m in (x, f))
        for i in range(height):
            for j in range(width):
                column = min(max(j + x[0, i, j] * (width - 1) / 2, 0), width - 1)  # the image spans -1 to 1
                row = min(max(i + x[1, i, j] * (height - 1) / 2, 0), height - 1)
                same = label[round(row), round(column)] == label[i, j]
                total -= math.log((f[0, i, j] if same else 1 - f[0, i, j]) + 1e-7)
    return total / (height * width)


def upsampled_by_loops(maps, height, width, align_corners):
    _, h, w = maps.shape
    out = np.empty((len(maps), height, width))

    def place(i, n, m):
        at = i * (n - 1) / (m - 1) if align_corners else max((i + 0.5) * n / m - 0.5, 0.0)
        low = min(int(at), n - 1)
        return low, min(low + 1, n - 1), at - low

    for i in range(height):
        top, bottom, v = place(i, h, height)
        for j in range(width):
            left, right, u = place(j, w, width)
            upper = (1 - u) * maps[:, top, left] + u * maps[:, top, right]
            out[:, i, j] = (1 - v) * upper + v * ((1 - u) * maps[:, bottom, left] + u * maps[:, bottom, right])
    return out


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("batch", [2, 3])
def test_lambda_of_the_batch_gives_the_public_confidence_loss(batch, align_corners):
    """Without ignored pixels: 2.00 of ours at batch 2, 3.00 at batch 3; offsets are resized as scores are."""
    generator = torch.Generator().manual_seed(batch)
    offset = torch.rand(batch, 2, 4, 6, generator=generator) - 0.5
    confidence = 0.05 + 0.9 * torch.rand(batch, 1, 4, 6, generator=generator)
    labels = torch.randint(0, 2, (batch, 15, 22), generator=generator)
    maps = (torch.zeros(batch, 2, 4, 6),)
    output = OVeNetOutput(maps, maps, maps, offset, confidence)
    terms = {}
    for weight in (0.0, float(batch)):
        criterion = SegmentationCriterion(LossSettings(lambda_=weight), ignore_label=255, align_corners=align_corners)
        terms[weight] = criterion(output, labels).total.item()
    expected = public_confidence_loss(offset.numpy(), confidence.numpy(), labels.numpy(), align_corners)
    assert terms[batch] - terms[0.0] == pytest.approx(expected, rel=2e-5)
