"""The loss of masks and classes: closed forms where every point of a mask is like the others, but for a narrow border
beyond which there is nothing, as published. There points are drawn more often, for they are less sure.
"""

import math

import pytest
import torch

from ovenet.losses import QueryLoss, SegmentationCriterion
from ovenet.structures import OVeNetOutput, QueryOutput

IGNORED = 255
SIZE = (64, 64)
BORDER = 0.1  # relative: what points at the border may change


def two_halves(num_images=1):
    """Class 0 on the left, class 2 on the right."""
    labels = torch.zeros(num_images, *SIZE, dtype=torch.int64)
    labels[:, :, SIZE[1] // 2 :] = 2
    return labels


def everywhere(*logits):
    """Masks of one image that are the same everywhere."""
    return torch.tensor(logits).view(1, -1, 1, 1).expand(1, -1, *SIZE)


def loss(classes, masks, labels, num_points=4096):
    torch.manual_seed(0)
    queries = QueryOutput(tuple(classes), tuple(masks))
    return QueryLoss(3, ignore_label=IGNORED, num_points=num_points)(queries, labels)


ONES = torch.ones(1, *SIZE, dtype=torch.int64)


def test_one_class_everywhere_by_hand():
    """The first query is taken, whose mask fits best, since all classes are equally likely."""
    terms = loss([torch.zeros(1, 3, 4)], [everywhere(0.5, -1.0, -2.0)], ONES)
    p, n = 1 / (1 + math.exp(-0.5)), 4096
    assert terms["mask"].item() == pytest.approx(5 * -math.log(p), rel=BORDER)
    assert terms["dice"].item() == pytest.approx(5 * (1 - (2 * n * p + 1) / (n * p + n + 1)), rel=BORDER)
    assert terms["class"].item() == pytest.approx(2 * math.log(4), rel=1e-5)


def test_a_mask_that_does_not_know_costs_a_bit_per_point():
    assert loss([torch.zeros(1, 1, 4)], [everywhere(0.0)], ONES)["mask"].item() == pytest.approx(5 * math.log(2))


def test_queries_that_got_nothing_count_a_tenth():
    classes = torch.zeros(1, 3, 4)
    classes[0, 0, 1], classes[0, 1:, 3] = 2.0, 1.0
    terms = loss([classes], [everywhere(3.0, -3.0, -3.0)], ONES)
    taken = math.log(math.exp(2) + 3) - 2
    left = math.log(math.e + 3) - 1
    assert terms["class"].item() == pytest.approx(2 * (taken + 2 * 0.1 * left) / 1.2, rel=1e-5)


def test_layers_are_added():
    torch.manual_seed(1)
    classes, masks = torch.randn(1, 3, 4), everywhere(0.3, -0.2, 2.0)
    one, three = loss([classes], [masks], ONES), loss([classes] * 3, [masks] * 3, ONES)
    for name in one:
        assert three[name].item() == pytest.approx(3 * one[name].item(), rel=BORDER)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_right_masks_cost_little_whatever_query_has_them(order):
    masks, classes = torch.full((2, 3, *SIZE), -4.0), torch.zeros(2, 3, 4)
    half = SIZE[1] // 2
    masks[:, order[0], :, :half], masks[:, order[1], :, half:] = 4.0, 4.0
    for query, label in zip(order, (0, 2, 3), strict=True):
        classes[:, query, label] = 9.0
    right = loss([classes], [masks], two_halves(2))
    assert right["class"] < 0.01
    assert right["mask"] < 5 * 0.15  # sure points cost 0.02
    assert right["dice"] < 5 * 0.1
    assert loss([classes], [masks], two_halves(2).flip(2))["class"] > 5  # the masks are those of the other class


def test_the_order_of_the_images_does_not_matter():
    torch.manual_seed(1)
    labels = torch.tensor([0, 2, 1]).view(3, 1, 1).expand(3, *SIZE).contiguous()
    masks, classes = torch.randn(3, 4, 1, 1).expand(3, 4, *SIZE), 3 * torch.randn(3, 4, 4)
    straight, turned = loss([classes], [masks], labels), loss([classes.flip(0)], [masks.flip(0)], labels.flip(0))
    assert straight["class"].item() == pytest.approx(turned["class"].item(), rel=1e-5)
    for name in ("mask", "dice"):
        assert straight[name].item() == pytest.approx(turned[name].item(), rel=BORDER)


def test_an_image_without_labels_gives_no_mask_a_loss():
    masks = torch.randn(2, 3, 4, 4, requires_grad=True)
    classes = torch.randn(2, 3, 4, requires_grad=True)
    labels = torch.full((2, 8, 8), IGNORED)
    terms = loss([classes], [masks], labels)
    assert terms["mask"] == terms["dice"] == 0
    sum(terms.values()).backward()
    assert masks.grad.abs().sum() == 0
    nothing = torch.nn.functional.cross_entropy(classes.detach().flatten(0, 1), torch.full((6,), 3))
    assert terms["class"].item() == pytest.approx(2 * nothing.item(), rel=1e-5)


def test_it_repeats_under_a_seed():
    torch.manual_seed(2)
    classes, masks = torch.randn(2, 5, 4), torch.randn(2, 5, 8, 8)
    first, second = (loss([classes], [masks], two_halves(2)) for _ in range(2))
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}


def output(scores, seed, fused, queries, offset):
    confidence = torch.full((1, 1, 4, 4), 0.5)
    return OVeNetOutput((scores,), (seed,), (fused,), offset, confidence, "unnormalized", queries=queries)


def test_seed_and_fused_scores_are_supervised_by_the_log_of_their_share():
    """Scores 2, 1, 1 mean one half; those of the initial map are left to the queries."""
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    scores = torch.tensor([2.0, 1.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    seed = torch.tensor([0.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4) + torch.tensor(1e-3)
    masks = torch.full((1, 2, 4, 4), 2.0)
    queries = QueryOutput((torch.zeros(1, 2, 4),), (masks,))
    criterion = SegmentationCriterion(ignore_label=IGNORED, queries=QueryLoss(3, ignore_label=IGNORED, num_points=64))
    terms = criterion(output(scores, seed, scores, queries, torch.zeros(1, 2, 4, 4)), labels)
    assert terms.terms["fused"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert terms.terms["seed"].item() == pytest.approx(math.log(0.503 / 0.001), rel=1e-4)
    assert "initial" not in terms.terms
    of_queries = sum(terms.terms[name] for name in ("class", "mask", "dice"))
    expected = of_queries + terms.terms["fused"] + 0.5 * terms.terms["seed"] + terms.terms["confidence"]
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_class_that_no_query_has_costs_a_finite_amount():
    scores = torch.zeros(1, 3, 4, 4, requires_grad=True)
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    queries = QueryOutput((torch.zeros(1, 2, 4),), (torch.zeros(1, 2, 4, 4),))
    criterion = SegmentationCriterion(ignore_label=IGNORED, queries=QueryLoss(3, ignore_label=IGNORED, num_points=64))
    terms = criterion(output(scores, scores, scores, queries, torch.zeros(1, 2, 4, 4)), labels)
    terms.total.backward()
    assert torch.isfinite(terms.total)
    assert torch.isfinite(scores.grad).all()
