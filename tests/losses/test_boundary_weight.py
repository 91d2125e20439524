"""The weight of pixels near a border of labels, against slow loops."""

import math

import pytest
import torch

from ovenet.losses import SegmentationCriterion
from ovenet.losses.settings import LossSettings
from ovenet.losses.targets import Targets, near_border
from ovenet.losses.upsampled import upsampled_cross_entropy
from ovenet.structures import OVeNetOutput

IGNORE = 255


def labels_with_blobs(seed=0, size=(19, 26), num_classes=4):
    """Blocks of 4x4 pixels of one class, some of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, num_classes + 1, (2, 5, 7), generator=generator)
    coarse[coarse == num_classes] = IGNORE
    return coarse.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)[:, : size[0], : size[1]]


def near_by_loops(labels, width):
    result = torch.zeros(labels.shape, dtype=torch.bool)
    batch, height, width_of_image = labels.shape
    for b in range(batch):
        for i in range(height):
            for j in range(width_of_image):
                around = set()
                for y in range(max(0, i - width), min(height, i + width + 1)):
                    for x in range(max(0, j - width), min(width_of_image, j + width + 1)):
                        around.add(labels[b, y, x].item())
                result[b, i, j] = len(around - {IGNORE}) > 1
    return result


@pytest.mark.parametrize("width", [1, 2, 30])
def test_pixels_near_a_border_equal_loops(width):
    labels = labels_with_blobs()
    targets = Targets.from_labels(labels, ignore_label=IGNORE)
    near = near_border(targets.labels, targets.valid, width)
    assert torch.equal(near, near_by_loops(labels, width))


def test_neither_an_ignored_pixel_nor_the_edge_of_the_image_is_a_border():
    labels = torch.tensor([[[3, 3, IGNORE, 3, 3, 3, 0]]])
    near = near_border(labels.masked_fill(labels == IGNORE, 0), labels != IGNORE, 2)
    assert near.tolist() == [[[False, False, False, False, True, True, True]]]
    nothing = torch.zeros(1, 3, 4, dtype=torch.int64)
    assert not near_border(nothing, nothing != 0, 2).any()


def test_the_weights_multiply_those_of_the_classes():
    labels = labels_with_blobs()
    class_weights = torch.tensor([0.5, 1.0, 2.0, 3.0])
    targets = Targets.from_labels(
        labels, ignore_label=IGNORE, class_weights=class_weights, boundary_weight=1.5, boundary_width=1
    )
    near = near_by_loops(labels, 1)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in labels.shape)).tolist():
        label = labels[tuple(place)].item()
        expected = 0.0 if label == IGNORE else class_weights[label].item() * (2.5 if near[tuple(place)] else 1.0)
        assert targets.weights[tuple(place)].item() == expected


@pytest.mark.parametrize("backend", ["plain", "blocked"])
def test_the_loss_is_the_weighted_mean(backend):
    """Of a map at label size: its sum and divisor, and its gradient, pixel by pixel in float64."""
    labels = labels_with_blobs()
    scores = torch.randn(2, 4, 19, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = Targets.from_labels(labels, ignore_label=IGNORE, dtype=torch.float64, boundary_weight=3.0)
    leaf = scores.clone().requires_grad_()
    (total,), (weight,) = upsampled_cross_entropy([leaf], targets, "logits", backend=backend)
    (total / weight).backward()
    near = near_by_loops(labels, 4)
    probabilities = scores.softmax(dim=1)
    sum_, divisor, slopes = 0.0, 0.0, torch.zeros_like(scores)
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in labels.shape)).tolist():
        label = labels[b, i, j].item()
        if label != IGNORE:
            w = 4.0 if near[b, i, j] else 1.0
            sum_ -= w * math.log(probabilities[b, label, i, j])
            divisor += w
            slopes[b, :, i, j] = w * probabilities[b, :, i, j]
            slopes[b, label, i, j] -= w
    assert total.item() == pytest.approx(sum_)
    assert weight.item() == divisor
    torch.testing.assert_close(leaf.grad, slopes / divisor)


def test_all_predictions_have_it():
    """Half of twelve columns are within 3 of the border: with w = 1 their losses count twice."""
    labels = (torch.arange(12) >= 6).long().expand(1, 8, 12).contiguous()
    maps = {}
    for name, scale in (("initial", 1.0), ("seed", 2.0), ("fused", 3.0)):
        maps[name] = (scale * torch.randn(1, 2, 8, 12, generator=torch.Generator().manual_seed(2)),)
    output = OVeNetOutput(**maps, offset=torch.zeros(1, 2, 8, 12), confidence=torch.full((1, 1, 8, 12), 0.5))
    settings = LossSettings(boundary_weight=1.0, boundary_width=3)
    terms = SegmentationCriterion(settings, ignore_label=IGNORE)(output, labels).terms
    plain = SegmentationCriterion(LossSettings(boundary_width=3), ignore_label=IGNORE)(output, labels).terms
    weights = torch.where((torch.arange(12) - 5.5).abs() < 3, 2.0, 1.0).expand(8, 12)
    for name, (scores,) in maps.items():
        nll = torch.nn.functional.cross_entropy(scores, labels, reduction="none")[0]
        assert terms[name].item() == pytest.approx((nll * weights).sum().item() / weights.sum().item(), rel=1e-5)
        assert plain[name].item() == pytest.approx(nll.mean().item(), rel=1e-5)
    assert terms["confidence"] == plain["confidence"]


def test_without_a_weight_it_costs_and_changes_nothing(monkeypatch):
    monkeypatch.setattr("ovenet.losses.targets.near_border", None)
    targets = Targets.from_labels(labels_with_blobs(), ignore_label=IGNORE, boundary_weight=0.0)
    assert torch.equal(targets.weights, targets.valid.float())


def test_an_ignored_crop_has_no_weight():
    labels = torch.full((1, 5, 6), IGNORE)
    assert Targets.from_labels(labels, ignore_label=IGNORE, boundary_weight=2.0).weights.sum() == 0
