"""Borders and directions against OpenCV's distance transform and plain loops."""

import math

import cv2
import numpy as np
import pytest
import torch

from ovenet.losses import SegmentationCriterion
from ovenet.losses.directions import (
    BOUNDARY_WIDTH,
    DirectionTargets,
    border_distance,
    direction_losses,
    distance_gradient,
    interior_loss,
)
from ovenet.losses.settings import LossSettings
from ovenet.structures import NUM_DIRECTIONS, DirectionOutput, OVeNetOutput

IGNORED = 255
REACH = 8


def blocks(height, width, seed, *, num_classes=4, side=5):
    """Labels in blocks, with a thin line and some ignored pixels."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, num_classes, (-(-height // side), -(-width // side)))
    labels = np.kron(small, np.ones((side, side), dtype=int))[:height, :width]
    labels[:, width // 3] = 0
    labels[rng.random(labels.shape) < 0.01] = IGNORED
    return labels


def transform(labels):
    """Distance to the nearest pixel with another label, by OpenCV, class by class."""
    distance = np.full(labels.shape, np.inf)
    for k in np.unique(labels):
        own = (labels == k).astype(np.uint8)
        if not own.all():
            found = cv2.distanceTransform(own, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            distance[own > 0] = found[own > 0]
    return distance


@pytest.mark.parametrize("size", [(63, 95), (40, 7), (3, 31), (1, 1), (2, 2), (1, 20), (20, 1)])
def test_distances_are_those_of_a_distance_transform(size):
    labels = np.stack([blocks(*size, seed) for seed in range(3)])
    expected = np.minimum(np.stack([transform(one) for one in labels]), REACH)
    np.testing.assert_allclose(border_distance(torch.from_numpy(labels)).numpy(), expected, atol=1e-4)


def test_an_image_of_one_class_has_no_border():
    labels = torch.full((2, 20, 30), 3)
    assert (border_distance(labels) == REACH).all()
    targets = DirectionTargets.from_labels(labels, ignore_label=IGNORED)
    assert targets.valid.all()
    assert not targets.boundary.any()
    assert not targets.directed.any()


def loop(labels, distance, y, x):
    """The gradient of the distance at a pixel: each pixel of its class around it pulls with its distance."""
    height, width = labels.shape
    total = np.zeros(2)
    for row in range(max(y - 2, 0), min(y + 3, height)):
        for column in range(max(x - 2, 0), min(x + 3, width)):
            way = np.array([column - x, row - y])
            if way.any() and labels[row, column] == labels[y, x]:
                total += distance[row, column] * way / (way @ way)
    return total


def test_directions_are_those_of_a_loop():
    labels = blocks(33, 45, 7, side=11)
    distance = transform(labels)
    targets = DirectionTargets.from_labels(torch.from_numpy(labels)[None], ignore_label=IGNORED)
    np.testing.assert_array_equal(targets.boundary[0].numpy(), distance < 5)
    np.testing.assert_array_equal(targets.valid[0].numpy(), labels != IGNORED)
    num_directed = 0
    for y, x in np.ndindex(*labels.shape):
        vector = loop(labels, distance, y, x)
        directed = distance[y, x] < 5 and labels[y, x] != IGNORED and np.hypot(*vector) > 1e-3
        assert bool(targets.directed[0, y, x]) == directed
        if not directed:
            continue
        num_directed += 1
        np.testing.assert_allclose(targets.direction[0, :, y, x].numpy(), vector / np.hypot(*vector), atol=1e-4)
        eighths = math.degrees(math.atan2(vector[1], vector[0])) / 45
        if abs(eighths % 1 - 0.5) > 1e-3:  # between two directions, rounding decides
            assert targets.index[0, y, x] == round(eighths) % 8
    assert num_directed > 500


def test_directions_lead_into_the_class():
    """Left half, right half; and a square, from whose corner the way is diagonal."""
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[..., 20:] = 1
    targets = DirectionTargets.from_labels(labels, ignore_label=IGNORED)
    assert (targets.index[0, 5:35, 16:20] == 4).all()  # to the left
    assert (targets.index[0, 5:35, 20:24] == 0).all()
    assert targets.boundary[0].sum(dim=1).unique().tolist() == [8]  # distances 1 to 4 on both sides
    labels = torch.zeros(1, 40, 40, dtype=torch.long)
    labels[:, 10:30, 10:30] = 1
    index = DirectionTargets.from_labels(labels, ignore_label=IGNORED).index[0]
    assert [index[y, x].item() for y, x in ((10, 10), (10, 29), (29, 29), (29, 10))] == [1, 3, 5, 7]  # y is downwards


def test_images_in_threads_are_those_of_one_batch():
    labels = torch.from_numpy(np.stack([blocks(150, 240, seed) for seed in range(2)]))
    both = DirectionTargets.from_labels(labels, ignore_label=IGNORED)
    for one, image in enumerate(labels):
        alone = DirectionTargets.from_labels(image[None], ignore_label=IGNORED)
        for name in ("boundary", "valid", "directed", "direction"):
            assert torch.equal(getattr(both, name)[one], getattr(alone, name)[0])


def test_the_middle_of_a_line_has_no_direction():
    labels = torch.zeros(1, 40, 41, dtype=torch.long)
    labels[..., 20] = 1
    targets = DirectionTargets.from_labels(labels, ignore_label=IGNORED)
    assert targets.boundary[..., 20].all()
    assert not targets.directed[0, 5:35, 20].any()


def test_distances_reach_as_far_as_the_kernel_needs():
    labels = torch.from_numpy(blocks(60, 60, 3, side=20))[None]
    near = border_distance(labels) < BOUNDARY_WIDTH
    exact = distance_gradient(torch.from_numpy(transform(labels[0].numpy())).float()[None].clamp(max=1e3), labels)
    short = distance_gradient(border_distance(labels), labels)
    np.testing.assert_allclose((short * near.unsqueeze(1)).numpy(), (exact * near.unsqueeze(1)).numpy(), atol=1e-3)


@pytest.fixture
def prediction():
    generator = torch.Generator().manual_seed(1)
    boundary, direction = (torch.randn(2, n, 30, 41, generator=generator) for n in (1, NUM_DIRECTIONS))
    return DirectionOutput(boundary.requires_grad_(), direction.requires_grad_())


@pytest.fixture
def labels():
    return torch.from_numpy(np.stack([blocks(30, 41, seed, side=13) for seed in (0, 1)]))


def test_losses_by_a_loop_over_pixels(prediction, labels):
    losses = direction_losses(prediction, labels, ignore_label=IGNORED, align_corners=True)
    targets = DirectionTargets.from_labels(labels, ignore_label=IGNORED)
    pixels = [tuple(i) for i in np.ndindex(*labels.shape)]
    bordered = {p: int(targets.boundary[p]) for p in pixels if labels[p] != IGNORED}
    share = sum(bordered.values()) / len(bordered)
    total = weight = 0.0
    for (b, y, x), target in bordered.items():
        p = 1 / (1 + math.exp(-prediction.boundary[b, 0, y, x].item()))
        w = 1 - share if target else share
        total, weight = total - w * math.log(p if target else 1 - p), weight + w
    assert losses["boundary"].item() == pytest.approx(total / weight, rel=1e-4)
    chosen = {p: int(targets.index[p]) for p in pixels if targets.directed[p]}
    shares = np.bincount(list(chosen.values()), minlength=8) / len(chosen)
    total = weight = 0.0
    for (b, y, x), target in chosen.items():
        exponentials = np.exp(prediction.direction[b, :, y, x].detach().numpy().astype(float))
        w = 1 - shares[target]
        total, weight = total - w * math.log(exponentials[target] / exponentials.sum()), weight + w
    assert losses["direction"].item() == pytest.approx(total / weight, rel=1e-4)


def test_pixels_without_a_target_get_no_gradient(prediction, labels):
    sum(direction_losses(prediction, labels, ignore_label=IGNORED, align_corners=True).values()).backward()
    targets = DirectionTargets.from_labels(labels, ignore_label=IGNORED)
    assert torch.equal(prediction.direction.grad.abs().sum(dim=1) > 0, targets.directed)
    assert torch.equal(prediction.boundary.grad[:, 0] != 0, targets.valid)


@pytest.mark.parametrize("value", [IGNORED, 2])
def test_labels_without_a_border_give_zero_with_a_gradient(prediction, value):
    losses = direction_losses(prediction, torch.full((2, 30, 41), value), ignore_label=IGNORED, align_corners=True)
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]
    assert not prediction.boundary.grad.any()


def test_offsets_towards_the_interior(labels):
    """Offsets of four pixels along the targets, against them, and none: 1 - 4 / √17, 1 + 4 / √17 and 1."""
    targets = DirectionTargets.from_labels(labels, ignore_label=IGNORED)
    pixel = torch.tensor([2 / 40, 2 / 29]).view(1, 2, 1, 1)
    for steps, expected in ((4, 1 - 4 / math.sqrt(17)), (-4, 1 + 4 / math.sqrt(17)), (0, 1)):
        offset = (steps * targets.direction * pixel).requires_grad_()
        total, count = interior_loss(offset, labels, ignore_label=IGNORED)
        assert count == targets.directed.sum()
        assert (total / count).item() == pytest.approx(expected, rel=1e-4)
    (total / count).backward()
    pull = -(offset.grad * targets.direction).sum(dim=1)  # at zero, towards the interior
    assert (pull[targets.directed] > 0).all()
    assert not offset.grad.movedim(1, -1)[~targets.directed].any()


def test_the_criterion_adds_the_losses(prediction, labels):
    generator = torch.Generator().manual_seed(2)
    scores = (torch.randn(2, 4, 15, 21, generator=generator),)
    criterion = SegmentationCriterion(ignore_label=IGNORED)
    plain = criterion(OVeNetOutput(scores, (), scores), labels)
    both = criterion(OVeNetOutput(scores, (), scores, directions=prediction), labels)
    assert set(both.terms) == {"fused", "boundary", "direction"}
    torch.testing.assert_close(both.total, plain.total + both.terms["boundary"] + both.terms["direction"])


def test_the_criterion_turns_offsets_towards_the_interior(labels):
    scores = (torch.zeros(2, 4, 15, 21),)
    offset = torch.zeros(2, 2, 15, 21, requires_grad=True)
    output = OVeNetOutput(scores, scores, scores, offset, torch.full((2, 1, 15, 21), 0.5))
    settings = LossSettings(interior=0.5)
    losses = SegmentationCriterion(settings, ignore_label=IGNORED)(output, labels)
    assert losses.terms["offset"] == pytest.approx(1)
    losses.total.backward()
    assert offset.grad.any()
