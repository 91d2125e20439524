"""The contrast of pixels: numbers worked out by hand, a slow loop, and which pixels are drawn."""

import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from ovenet.builders import build_criterion, build_model
from ovenet.losses import PixelContrast, SegmentationCriterion
from ovenet.losses.contrast import contrast, draw_anchors
from ovenet.structures import OVeNetOutput


def unit(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_published_numbers():
    classes = torch.tensor([0, 0, 1, 1])
    mixed = contrast(unit((1, 0), (0.8, 0.6), (0, 1), (-1, 0)), classes)
    assert mixed.item() == pytest.approx(2.190211, abs=1e-6)
    alike = contrast(unit((1, 0), (1, 0), (1, 0), (1, 0)), classes)
    assert alike.item() == pytest.approx(0.1 / 0.07 * math.log(3), abs=1e-6)
    apart = contrast(unit((1, 0), (1, 0), (-1, 0), (-1, 0)), classes)
    assert abs(apart.item()) < 1e-8


def looped(anchors, classes):
    total = 0.0
    for i in range(len(anchors)):
        likeness = [float(anchors[i] @ other) / 0.1 for other in anchors]
        negatives = sum(math.exp(s) for s, c in zip(likeness, classes, strict=True) if c != classes[i])
        positives = [s for j, (s, c) in enumerate(zip(likeness, classes, strict=True)) if c == classes[i] and j != i]
        total -= 0.1 / 0.07 * sum(s - math.log(math.exp(s) + negatives) for s in positives) / len(positives)
    return total / len(anchors)


def test_it_is_the_slow_loop():
    torch.manual_seed(0)
    anchors = F.normalize(torch.randn(30, 5, dtype=torch.float64), dim=1)
    classes = torch.arange(30) % 4
    assert contrast(anchors, classes).item() == pytest.approx(looped(anchors, classes.tolist()), rel=1e-10)


def test_gradients():
    torch.manual_seed(0)
    anchors = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda x: contrast(F.normalize(x, dim=1), classes), anchors)
    one_class = contrast(anchors, torch.zeros(6, dtype=torch.long))
    one_class.backward()
    assert one_class.item() == 0
    assert not anchors.grad.any()


def test_a_hundred_pixels_of_a_class_are_too_few():
    """Two images with three classes of enough pixels each: 1024 / 6 are 170, of which at most 100 are drawn of each."""
    torch.manual_seed(0)
    labels = torch.full((2, 1000), 255)
    for image in range(2):
        labels[image, :600] = torch.arange(3).repeat_interleave(200)
        labels[image, 600:700] = 3  # exactly 100
    pixels, classes = draw_anchors(labels, labels, ignore_label=255, max_samples=1024, max_views=100)
    assert len(pixels) == len(set(pixels.tolist())) == 600
    assert Counter(classes.tolist()) == {0: 200, 1: 200, 2: 200}
    assert (labels.flatten()[pixels] == classes).all()
    assert Counter((pixels // 1000).tolist()) == {0: 300, 1: 300}


@pytest.mark.parametrize(("num_wrong", "expected"), [(100, 5), (5, 5), (3, 3), (0, 0), (196, 6), (200, 10)])
def test_half_of_them_are_wrong_as_far_as_there_are(num_wrong, expected):
    torch.manual_seed(0)
    labels = torch.zeros(1, 200, dtype=torch.long)
    predicted = torch.zeros(1, 200, dtype=torch.long)
    predicted[0, :num_wrong] = 1
    pixels, _ = draw_anchors(labels, predicted, ignore_label=255, max_samples=10, max_views=100)
    assert len(pixels) == 10
    assert (pixels < num_wrong).sum() == expected


def test_too_many_classes_for_too_few_samples_give_nothing():
    labels = torch.arange(10).repeat_interleave(20)[None]
    pixels, _ = draw_anchors(labels, labels, ignore_label=255, max_samples=19, max_views=10)
    assert len(pixels) == 0


def scene():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (2, 32, 48))
    embedding = F.normalize(torch.randn(2, 4, 16, 24), dim=1).requires_grad_()
    return embedding, torch.randn(2, 3, 16, 24), labels


def test_it_begins_late_and_always_has_a_gradient():
    embedding, scores, labels = scene()
    module = PixelContrast(ignore_label=255, start=10, max_samples=64, max_views=16)
    before = module(embedding, scores, labels, iteration=9)
    before.backward()
    assert before.item() == 0
    assert embedding.grad is not None
    assert not embedding.grad.any()
    assert module(embedding, scores, labels, iteration=10).item() > 0
    ignored = module(embedding, scores, torch.full_like(labels, 255))
    ignored.backward()
    assert ignored.item() == 0


def test_it_repeats_under_a_seed():
    embedding, scores, labels = scene()
    module = PixelContrast(ignore_label=255, max_samples=64, max_views=16)
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(module(embedding, scores, labels).item())
    assert values[0] == values[1] != values[2]


def test_the_criterion_adds_it_with_its_weight():
    embedding, scores, labels = scene()
    output = OVeNetOutput((scores,), (), (scores,), embedding=embedding)
    plain = SegmentationCriterion(ignore_label=255)(output, labels)
    module = PixelContrast(ignore_label=255, max_samples=64, max_views=16)
    criterion = SegmentationCriterion(ignore_label=255, contrast=module, contrast_weight=0.3)
    torch.manual_seed(0)
    loss = criterion(output, labels, iteration=5000)
    assert loss.terms["contrast"].item() > 0
    assert loss.total.item() == pytest.approx(plain.total.item() + 0.3 * loss.terms["contrast"].item(), rel=1e-6)


HEAD = ("MODEL.HEAD.NAME", "conv1x1")


def test_an_embedding_and_its_loss_belong_together(tiny_cfg):
    import ovenet

    with pytest.raises(ovenet.UserError, match=r"LOSS\.CONTRAST\.WEIGHT.*MODEL\.HEAD"):
        build_criterion(tiny_cfg("LOSS.CONTRAST.WEIGHT", 0.1))
    with pytest.raises(ovenet.UserError, match=r"MODEL\.HEAD\.EMBEDDING.*LOSS\.CONTRAST\.WEIGHT"):
        build_criterion(tiny_cfg(*HEAD, "MODEL.HEAD.EMBEDDING", 8))


def test_the_embedding_is_predicted_while_training_alone(tiny_cfg):
    model = build_model(tiny_cfg(*HEAD, "MODEL.HEAD.EMBEDDING", 8, "LOSS.CONTRAST.WEIGHT", 0.1))
    images = torch.randn(2, 3, 64, 64)
    embedding = model.train()(images).embedding
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2, 16, 16))
    with torch.no_grad():
        assert model.eval()(images).embedding is None
