"""What a seed can do beyond the paper, each off by default."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ovenet.errors import UserError
from ovenet.models import SeedFusion, build_segmentor
from ovenet.models.seeds.fusion import agreement
from ovenet.models.seeds.offset_head import OffsetHead

ALL = {
    "initial_confidence": 0.1,
    "num_seeds": 3,
    "upsampling": 2,
    "correction": True,
    "correct_first": True,
    "num_passes": 2,
    "seed_weights": "features",
    "sees_scores": True,
}


def build(seed="neck", head="fcn", **options):
    torch.manual_seed(0)
    return build_segmentor("hrnet_w18_small_v1", num_classes=4, head=head, seed=seed, seed_args=options)


@pytest.fixture
def images():
    return torch.randn(2, 3, 61, 90, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seed", ["fork", "shared", "neck"])
def test_all_of_them_train_with_any_seed(seed, images):
    model = build(seed, **ALL).train()
    output = model(images)
    height, width = output.fused[-1].shape[-2:]
    assert (height, width) == (2 * math.ceil(61 / 4), 2 * math.ceil(90 / 4))
    assert output.offset.shape == (2, 2, height, width)
    assert output.confidence.shape == (2, 1, height, width)
    (output.fused[-1].square().mean() + output.confidence.square().mean()).backward()
    for name, parameter in model.seed.named_parameters():
        assert parameter.grad is not None, name


def test_the_defaults_add_no_parameter():
    own = {name for name, _ in build().seed.named_parameters() if not name.startswith("neck.")}
    assert own == {f"head.layers.{i}.{name}" for i in (0, 1, 3) for name in ("weight", "bias")}


@pytest.mark.parametrize(
    "setting",
    [
        {"initial_confidence": 1.0},
        {"num_seeds": 0},
        {"upsampling": 0},
        {"max_offset": 0.0},
        {"num_passes": 0},
        {"correct_first": True},
        {"seed_weights": "features"},
    ],
)
def test_a_setting_out_of_its_range_is_named(setting):
    (name,) = setting
    with pytest.raises(UserError, match=name.upper()):
        build(**setting)


def test_training_begins_with_the_confidence_that_is_asked_for(images):
    with torch.no_grad():
        confidence = build(initial_confidence=0.12).train()(images).confidence
    np.testing.assert_allclose(confidence, 0.12, atol=0.01)


def test_several_seeds_by_hand():
    """Pixels 2 units apart at most: the seeds of the left pixel are the right one (weight 3/4) and itself (1/4)."""
    scores = torch.tensor([[[[0.0, 8.0]]]])
    offset = torch.zeros(1, 4, 1, 2)
    offset[0, 0, 0, 0] = 2.0
    weights = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    output = SeedFusion()([scores], offset, torch.full((1, 1, 1, 2), 0.5), weights)
    np.testing.assert_allclose(output.seed[0][0, 0, 0], [6.0, 8.0])
    np.testing.assert_allclose(output.fused[0][0, 0, 0], [3.0, 8.0])
    np.testing.assert_allclose(output.offset[0, :, 0], [[2.0, 0.0], [0.0, 0.0]])  # that of the heavier


def test_the_heaviest_seed_is_chosen_pixel_by_pixel():
    offset = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1).expand(1, 4, 1, 2)
    weights = torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]])
    output = SeedFusion()([torch.zeros(1, 3, 1, 2)], offset, torch.zeros(1, 1, 1, 2), weights)
    np.testing.assert_allclose(output.offset[0, :, 0], [[0.1, 0.3], [0.2, 0.4]], rtol=1e-6)


def test_several_seeds_do_not_begin_at_one_place():
    prediction = OffsetHead(8, num_seeds=4).eval()(torch.zeros(1, 8, 3, 5))
    places = prediction.offset[0, :, 0, 0].view(4, 2)
    distances = torch.cdist(places, places) + torch.eye(4)
    assert distances.min() > 0.01
    np.testing.assert_allclose(prediction.weights.detach(), 0.25)


def test_a_correction_by_hand():
    """What is fetched from the seed, 8 for the left pixel, and the correction of the pixel itself."""
    scores = torch.tensor([[[[0.0, 8.0]]]])
    offset = torch.zeros(1, 2, 1, 2)
    offset[0, 0, 0, 0] = 2.0
    correction = torch.tensor([[[[-3.0, 1.0]]]])
    output = SeedFusion()([scores], offset, torch.full((1, 1, 1, 2), 0.5), correction=correction)
    np.testing.assert_allclose(output.initial[0][0, 0, 0], [0.0, 8.0])
    np.testing.assert_allclose(output.seed[0][0, 0, 0], [5.0, 9.0])
    np.testing.assert_allclose(output.fused[0][0, 0, 0], [2.5, 8.5])


def test_two_passes_by_hand():
    """Three pixels in a row, each seed one to the right, confidence 1/2: the second pass samples the fused scores."""
    scores = torch.tensor([[[[0.0, 4.0, 8.0]]]])
    offset = torch.zeros(1, 2, 1, 3)
    offset[0, 0] = 1.0
    output = SeedFusion(num_passes=2)([scores], offset, torch.full((1, 1, 1, 3), 0.5))
    np.testing.assert_allclose(output.initial[0][0, 0, 0], [0.0, 4.0, 8.0])
    np.testing.assert_allclose(output.seed[0][0, 0, 0], [6.0, 8.0, 8.0])  # the first pass fuses 2, 6, 8
    np.testing.assert_allclose(output.fused[0][0, 0, 0], [3.0, 6.0, 8.0])


@pytest.mark.parametrize("correct_first", [False, True])
def test_passes_equal_loops(correct_first):
    """On whole-pixel offsets, where sampling is a look-up, pass by pass and pixel by pixel."""
    generator = torch.Generator().manual_seed(3)
    scores, correction = torch.randn(2, 1, 3, 4, 5, generator=generator).double()
    confidence = torch.rand(1, 1, 4, 5, generator=generator).double()
    column, row = (torch.randint(0, n, (4, 5), generator=generator) for n in (5, 4))
    own_row, own_column = torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij")
    offset = torch.stack(((column - own_column).double() / 2, (row - own_row).double() / 1.5))[None]
    fusion = SeedFusion(num_passes=3, correct_first=correct_first)
    output = fusion([scores], offset, confidence, correction=correction)
    own = scores + correction if correct_first else scores
    now = own.clone()
    for _ in range(3):
        before, seed = now.clone(), torch.zeros_like(now)
        for i, j in itertools.product(range(4), range(5)):
            seed[..., i, j] = before[..., row[i, j], column[i, j]]
            if not correct_first:
                seed[..., i, j] += correction[..., i, j]
            f = confidence[0, 0, i, j]
            now[..., i, j] = (1 - f) * own[..., i, j] + f * seed[..., i, j]
    torch.testing.assert_close(output.initial[0], scores)
    torch.testing.assert_close(output.seed[0], seed)
    torch.testing.assert_close(output.fused[0], now)


def test_a_correction_of_the_scores_before_the_seed_by_hand():
    """The right pixel has 8 + 1, and the left one, which was 0 - 3, takes half of that."""
    scores = torch.tensor([[[[0.0, 8.0]]]])
    offset = torch.zeros(1, 2, 1, 2)
    offset[0, 0, 0, 0] = 2.0
    correction = torch.tensor([[[[-3.0, 1.0]]]])
    fusion = SeedFusion(correct_first=True)
    output = fusion([scores], offset, torch.full((1, 1, 1, 2), 0.5), correction=correction)
    np.testing.assert_allclose(output.initial[0][0, 0, 0], [0.0, 8.0])
    np.testing.assert_allclose(output.seed[0][0, 0, 0], [9.0, 9.0])
    np.testing.assert_allclose(output.fused[0][0, 0, 0], [3.0, 9.0])


def test_a_pixel_that_keeps_its_scores_is_corrected_too():
    """With a confidence of 0 the correction of the seed has no effect, and that of the scores has all."""
    scores, correction = torch.randn(2, 1, 3, 4, 5)
    offset, never = torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 4, 5)
    at_seed = SeedFusion()([scores], offset, never, correction=correction)
    first = SeedFusion(correct_first=True)([scores], offset, never, correction=correction)
    torch.testing.assert_close(at_seed.fused[0], scores)
    torch.testing.assert_close(first.fused[0], scores + correction)


def test_a_correction_beside_several_seeds():
    """The channels of the last convolution: offsets, confidence, weights, correction."""
    head = OffsetHead(8, num_seeds=2, num_corrected=3).eval()
    with torch.no_grad():
        head.layers[-1].weight.zero_()
        head.layers[-1].bias.copy_(torch.arange(10.0))
        prediction = head(torch.zeros(1, 8, 1, 1))
    np.testing.assert_allclose(prediction.offset.flatten(), 0.5 * np.tanh([0, 1, 2, 3]), rtol=1e-5)
    np.testing.assert_allclose(prediction.confidence.item(), 1 / (1 + math.exp(-4)), rtol=1e-5)
    np.testing.assert_allclose(prediction.weights.flatten(), [1 / (1 + math.e), math.e / (1 + math.e)], rtol=1e-5)
    np.testing.assert_allclose(prediction.correction.flatten(), [7, 8, 9])


def test_a_correction_needs_logits(images):
    model = build(correction=True, fuse_logits=False)
    with pytest.raises(UserError, match=r"MODEL\.SEED.*logits.*probabilities"):
        model(images)


def test_a_finer_seed_sees_the_image():
    """An edge that the features (all zero) do not know reaches the offsets through the stem."""
    model = build(upsampling=2).eval()
    nn.init.normal_(model.seed.head.layers[-1].weight, std=0.1)
    features = torch.zeros(1, model.seed.finer.reduce[0].in_channels, 16, 24)
    images = torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        flat = model.seed.head(model.seed.finer(features, images, (32, 48))).offset
        images[..., 47:] = 3.0
        edge = model.seed.head(model.seed.finer(features, images, (32, 48))).offset
    changed = (flat != edge).any(dim=1)[0].any(dim=0)
    assert changed[24:].all()
    assert not changed[:22].any()


def test_a_finer_seed_and_an_embedding_do_not_go_together(images):
    model = build_segmentor(
        "hrnet_w18_small_v1",
        num_classes=4,
        head="conv1x1",
        head_args={"embedding": 8},
        seed="shared",
        seed_args={"upsampling": 2},
    )
    with pytest.raises(UserError, match=r"UPSAMPLING.*EMBEDDING"):
        model(images)


def test_a_seed_on_features_is_a_seed_on_scores():
    """Why there is no such option: a 1x1 convolution and bilinear fetching may change places, and fusing logits too."""
    features, classifier = torch.randn(1, 6, 7, 9).double(), nn.Conv2d(6, 4, 1).double()
    offset, confidence = (torch.rand(1, 2, 7, 9).double() - 0.5), torch.rand(1, 1, 7, 9).double()
    with torch.no_grad():
        on_scores = SeedFusion()([classifier(features)], offset, confidence).fused[0]
        on_features = classifier(SeedFusion()([features], offset, confidence).fused[0])
    torch.testing.assert_close(on_scores, on_features, rtol=0, atol=1e-12)


def test_weights_from_features_equal_loops():
    """Softmax of ten times the cosines between a pixel's embedding and that at each seed, with look-ups as seeds."""
    generator = torch.Generator().manual_seed(4)
    embedding = torch.randn(2, 6, 4, 5, generator=generator).double()
    places = torch.randint(0, 20, (3, 2, 4, 5), generator=generator)  # three seeds: index of a pixel
    positions = [torch.stack((n % 5 / 2.0 - 1, n // 5 / 1.5 - 1), dim=1).double() for n in places]
    weights = agreement(embedding, positions)
    for b, i, j in itertools.product(range(2), range(4), range(5)):
        own, cosines = embedding[b, :, i, j].numpy(), []
        for seed in places:
            row, column = divmod(seed[b, i, j].item(), 5)
            other = embedding[b, :, row, column].numpy()
            cosines.append(own @ other / math.sqrt(own @ own) / math.sqrt(other @ other))
        expected = np.exp(10 * np.array(cosines))
        np.testing.assert_allclose(weights[b, :, i, j], expected / expected.sum(), rtol=1e-5)


def test_seeds_that_agree_have_the_weight_by_hand():
    """The left pixel's seeds: itself, cosine 1, and the right pixel, cosine 0: e^10 to 1."""
    scores = torch.tensor([[[[8.0, 0.0]]]])
    embedding = torch.tensor([[[[3.0, 0.0]], [[0.0, 0.5]]]])
    offset = torch.zeros(1, 4, 1, 2)
    offset[0, 2, 0, 0] = 2.0
    output = SeedFusion()([scores], offset, torch.ones(1, 1, 1, 2), embedding=embedding)
    np.testing.assert_allclose(output.seed[0][0, 0, 0, 0], 8 * math.exp(10) / (math.exp(10) + 1), rtol=1e-6)
    np.testing.assert_allclose(output.offset[0, :, 0, 0], [0.0, 0.0])


def test_the_embedding_learns_which_seed_to_take():
    """Of a pixel's neighbours at both sides one is of its kind: weighed alike their scores would be a tie."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.randint(0, 2, (1, 1, 16, 32), generator=generator)
    hints = F.one_hot(kind[:, 0], 2).movedim(-1, 1) + 0.1 * torch.randn(1, 2, 16, 32, generator=generator)
    scores = 4.0 * F.one_hot(kind[:, 0], 2).movedim(-1, 1).float()
    offset = torch.zeros(1, 4, 16, 32)
    offset[:, 0], offset[:, 2] = 2 / 31, -2 / 31
    torch.manual_seed(0)
    embed = nn.Conv2d(2, 4, 1)
    optimizer = torch.optim.Adam(embed.parameters(), lr=0.05)
    for _ in range(60):
        output = SeedFusion()([scores], offset, torch.ones(1, 1, 16, 32), embedding=embed(hints))
        loss = F.cross_entropy(output.seed[0], kind[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kind, gap = kind[0, 0], output.seed[0][0].diff(dim=0)[0]
    one_agrees = kind[:, :-2] != kind[:, 2:]
    assert one_agrees.float().mean() > 0.4
    assert (gap.sign() == 2 * kind - 1)[:, 1:-1][one_agrees].all()


def test_features_that_weigh_seeds_replace_the_weights(images):
    model = build(num_seeds=3, seed_weights="features").train()
    assert model.seed.head.layers[-1].out_channels == 2 * 3 + 1 + 16
    prediction = model.seed.head(torch.rand(1, model.seed.head.layers[0].in_channels, 3, 5))
    assert prediction.weights is None
    assert prediction.embedding.shape == (1, 16, 3, 5)
    model(images).fused[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.seed.parameters())


@pytest.mark.parametrize("upsampling", [1, 2])
@pytest.mark.parametrize("head", ["fcn", "ocr"])
def test_offsets_that_see_the_scores(upsampling, head, images):
    """Of images without content only the scores differ, and they reach the offsets without a gradient."""
    model = build(head=head, sees_scores=True, upsampling=upsampling).eval()
    nn.init.normal_(model.seed.head.layers[-1].weight, std=0.1)
    maps, seed_maps = model.seed.run_backbone(model.backbone, model.pad(images))
    decoded = model.seed.upsample(model.decode(maps, images), images)
    scores = [torch.randn_like(s).requires_grad_() for s in decoded.scores]
    features = model.seed.features(seed_maps, decoded)

    def offset(scores):
        return model.seed.predict(features, replace(decoded, scores=tuple(scores)), images).offset

    seen = offset(scores)
    assert (seen != offset([torch.zeros_like(s) for s in scores])).any()
    torch.testing.assert_close(seen, offset([s + 3 for s in scores]))  # as probabilities
    seen.sum().backward()
    assert all(s.grad is None for s in scores)
