"""Offset learning: the published code's numbers, and the formula written out."""

import pytest
import torch
import torch.nn.functional as F
from tests.models.waves import tensor, wave

from ovenet.models import build_segmentor
from ovenet.models.heads import offset_learning
from ovenet.models.heads.offset_learning import OffsetLearning, Offsets

CLOSE = {"atol": 2e-6, "rtol": 0}  # as many digits as are published


@pytest.fixture
def published():
    classifier = OffsetLearning(4, 5).double()
    classifier.classes.data = wave((1, 5, 4), 0.7, 0.1)
    classifier.offsets.of_classes.weight.data = wave((4, 4), 0.3, 0.2, 0.5)
    classifier.offsets.of_pixels.weight.data = wave((4, 4), 0.9, 0.4, 0.5)
    return classifier


def test_published_numbers(published):
    with torch.no_grad():
        scores = published(wave((1, 4, 2, 3), 0.5, 0.3))
    first = tensor(1.106877, -0.338342, -0.295679, 1.076028, -1.548883)
    last = tensor(-0.509533, 1.092818, -0.970758, 1.318128, -0.930654)
    torch.testing.assert_close(scores[0, :, 0, 0], first, **CLOSE)
    torch.testing.assert_close(scores[0, :, 1, 2], last, **CLOSE)
    torch.testing.assert_close(scores.abs().sum(), tensor(28.196031).sum(), **CLOSE)


def test_published_numbers_of_the_mask_variant(published):
    pixels = wave((1, 4, 2, 3), 0.5, 0.3).flatten(2).transpose(1, 2)
    with torch.no_grad():
        queries, moved = published.offsets(published.classes, pixels)
    torch.testing.assert_close(queries[0, 0], tensor(-0.016619, 0.789886, 1.166511, 0.858455), **CLOSE)
    torch.testing.assert_close(moved[0, 0], tensor(0.341683, -0.160369, -0.024645, 0.201434), **CLOSE)


@pytest.mark.parametrize(
    ("num_classes", "channels", "expected"),
    [(150, 256, 169_772), (19, 256, 135_974), (171, 256, 175_190), (59, 256, 146_294), (150, 512, 601_388)],
)
def test_parameters(num_classes, channels, expected):
    assert sum(p.numel() for p in OffsetLearning(channels, num_classes).parameters()) == expected
    assert sum(p.numel() for p in Offsets(256).parameters()) == 131_072


def written_out(classifier, features):
    """The paper's formulas for one image, tables of classes by pixels and all."""
    classes, pixels = classifier.classes[0], features[0].flatten(1).T
    affinity = classes @ pixels.T
    of_classes, of_pixels = classifier.offsets.of_classes.weight, classifier.offsets.of_pixels.weight
    moved_classes = classes + (affinity.softmax(dim=1) @ pixels) @ of_classes.T
    moved_pixels = pixels + (affinity.softmax(dim=0).T @ classes) @ of_pixels.T
    scores = moved_pixels @ moved_classes.T
    scores = (scores - scores.mean(1, keepdim=True)) / (scores.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    scores = scores * classifier.norm.weight + classifier.norm.bias
    return scores.T.unflatten(1, features.shape[-2:])[None]


def test_it_is_the_formula_with_its_gradients():
    torch.manual_seed(0)
    classifier = OffsetLearning(16, 7).double()
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    features = torch.randn(1, 16, 5, 6, dtype=torch.float64)
    results = []
    for function in (classifier, lambda x: written_out(classifier, x)):
        classifier.zero_grad()
        inputs = features.clone().requires_grad_()
        scores = function(inputs)
        (scores * torch.linspace(0, 1, scores.numel(), dtype=torch.float64).view_as(scores)).sum().backward()
        results.append([scores.detach(), inputs.grad, *(p.grad.clone() for p in classifier.parameters())])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-8)


def test_without_offsets_it_is_the_normalised_product():
    classifier = OffsetLearning(16, 7)
    for projection in (classifier.offsets.of_classes, classifier.offsets.of_pixels):
        torch.nn.init.zeros_(projection.weight)
    torch.nn.init.normal_(classifier.classes)
    features = torch.randn(2, 16, 5, 6)
    scores = classifier(features)
    product = torch.einsum("kc,bchw->bhwk", classifier.classes[0], features)
    torch.testing.assert_close(scores.permute(0, 2, 3, 1), F.layer_norm(product, (7,)), atol=1e-5, rtol=1e-5)
    assert scores.mean(dim=1).abs().max() < 1e-5
    assert (scores.var(dim=1, correction=0) - 1).abs().max() < 1e-2


def test_softmaxes_under_autocast_are_float32():
    """Shares of bfloat16 numbers are off by 0.4 %; sums over thousands of pixels would be by more."""
    torch.manual_seed(0)
    offsets = Offsets(16)
    torch.nn.init.eye_(offsets.of_classes.weight)
    torch.nn.init.eye_(offsets.of_pixels.weight)
    classes, pixels = torch.randn(1, 7, 16).bfloat16().float(), torch.randn(1, 4096, 16).bfloat16().float()
    exact = offsets(classes, pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        rough = offsets(classes, pixels)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b.float()).norm() < 0.006 * a.norm()


@pytest.mark.parametrize("size", [1, 50, 100])
def test_blocks_of_pixels_give_the_same(published, monkeypatch, size):
    features = wave((2, 4, 5, 6), 0.5, 0.3)
    features[0, :, 1] *= 30  # a block whose pixels have nearly all of the softmax
    expected = published(features)
    monkeypatch.setattr(offset_learning, "BLOCK_SCORES", size)
    torch.testing.assert_close(published(features), expected, atol=1e-10, rtol=0)


def test_two_tables_of_classes_by_pixels_are_held_at_once(monkeypatch):
    """150 classes at 1024x2048: a table is 79 MB; the formulas as they stand hold five."""
    monkeypatch.setattr(offset_learning, "BLOCK_SCORES", 2**16)
    classifier = OffsetLearning(16, 150).eval()
    features = torch.randn(1, 16, 128, 128)
    table = 150 * 128 * 128 * 4
    with torch.profiler.profile(profile_memory=True) as profile, torch.no_grad():
        classifier(features)
    held, highest = 0, 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    assert table < highest < 3.3 * table  # A and the scores, twice while blocks are joined


@pytest.mark.parametrize(("backbone", "head"), [("mit_b0", "segformer"), ("mscan_t", "light_ham")])
def test_the_seed_fuses_what_is_normalised(backbone, head):
    """Bilinear weights add up to 1: seed scores keep the scale of the scores."""
    torch.manual_seed(0)
    args = {"channels": 32, "classifier": "offset_learning"}
    model = build_segmentor(backbone, num_classes=5, head=head, head_args=args, seed="shared").eval()
    torch.nn.init.normal_(model.seed.head.layers[-1].weight)
    with torch.no_grad():
        output = model(torch.randn(1, 3, 64, 96))
    for scores in (*output.initial, *output.seed, *output.fused):
        assert scores.mean(dim=1).abs().max() < 1e-4
    assert not torch.equal(output.seed[-1], output.initial[-1])
