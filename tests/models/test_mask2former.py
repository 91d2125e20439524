"""Mask2Former with and without offset learning: its parts by their formulas, and what goes to which query."""

import sys

import pytest
import torch
import torch.nn.functional as F
from tests.models.conformance import random_maps

from ovenet.errors import UserError
from ovenet.models import build_segmentor
from ovenet.models.heads.mask2former import Mask2FormerHead, MaskPredictor, semantic_scores
from ovenet.utils.meta import meta_device

SMALL = {"channels": 32, "num_queries": 6, "num_layers": 3, "num_pixel_layers": 1}


@pytest.fixture
def head():
    torch.manual_seed(0)
    return Mask2FormerHead((8, 16, 24, 32), (4, 8, 16, 32), 5, **SMALL).eval()


@pytest.mark.parametrize(("offset_learning", "expected"), [(True, 47_570_705), (False, 47_439_633)])
def test_published_size(offset_learning, expected):
    """47.6 and 47.4 million; offset learning has two maps of 256 x 256."""
    with meta_device():
        options = {"num_classes": 150, "head": "mask2former", "head_args": {"offset_learning": offset_learning}}
        model = build_segmentor("swin_t", **options)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_semantic_scores_are_the_sum_over_the_queries():
    torch.manual_seed(0)
    classes, masks = torch.randn(2, 4, 6).double(), torch.randn(2, 4, 3, 5).double()
    scores = semantic_scores(classes, masks)
    for image, k, y, x in [(0, 0, 0, 0), (1, 4, 2, 3), (0, 2, 1, 4)]:
        expected = sum(
            classes[image, q].softmax(0)[k] / (1 + (-masks[image, q, y, x]).exp()) for q in range(classes.shape[1])
        )
        torch.testing.assert_close(scores[image, k, y, x], expected)
    assert scores.shape == (2, 5, 3, 5)


def test_masks_are_products_of_what_offset_learning_moves():
    torch.manual_seed(0)
    predictor = MaskPredictor(32, offset_learning=True).double()
    states, pixels = torch.randn(6, 2, 32).double(), torch.randn(2, 32, 7, 9).double()
    with torch.no_grad():
        masks, outside = predictor(states, pixels, (3, 4))
        for image in range(2):
            queries, flat = predictor.embed(states[:, image]), pixels[image].flatten(1).T
            affinity = queries @ flat.T
            moved = queries + predictor.offsets.of_classes(affinity.softmax(dim=1) @ flat)
            moved_pixels = flat + predictor.offsets.of_pixels(affinity.softmax(dim=0).T @ queries)
            expected = (moved @ moved_pixels.T).unflatten(1, (7, 9))
            torch.testing.assert_close(masks[image], expected)
            small = F.interpolate(expected[None], (3, 4), mode="bilinear", align_corners=False)[0]
            for attention_head in range(8):
                assert torch.equal(outside[image * 8 + attention_head], small.flatten(1) < 0)


def test_every_layer_moves_the_original_pixels(head):
    """Offsets would add up otherwise; classes are read off queries that have not moved."""
    seen = []
    head.transformer.decoder.mask_predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    maps = random_maps()
    with torch.no_grad():
        pixels = head.pixel_decoder(maps).mask_features
        output = head(maps)
    assert len(seen) == SMALL["num_layers"] + 1
    assert all(torch.equal(pixels_here, pixels) for _, pixels_here, _ in seen)
    states = seen[-1][0].transpose(0, 1)
    masks, _ = head.transformer.decoder.mask_predictor(seen[-1][0], pixels, (2, 2))
    with torch.no_grad():
        expected = semantic_scores(head.classifier(states), masks)
    assert torch.equal(output.scores[0], expected)


@pytest.mark.parametrize("offset_learning", [True, False])
def test_the_order_of_the_images_does_not_matter(offset_learning):
    torch.manual_seed(0)
    model = build_segmentor(
        "convnext_atto", num_classes=5, head="mask2former", head_args={**SMALL, "offset_learning": offset_learning}
    )
    images = torch.randn(3, 3, 64, 96)
    order = [2, 0, 1]
    model.train()
    for module in model.modules():
        if "DropPath" in type(module).__name__:
            module.eval()
    with torch.no_grad():
        straight, shuffled = model(images), model(images[order])
    for name in ("classes", "masks"):
        for a, b in zip(getattr(straight.queries, name), getattr(shuffled.queries, name), strict=True):
            torch.testing.assert_close(a[order], b, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(straight.fused[-1][order], shuffled.fused[-1], atol=1e-5, rtol=1e-4)


def test_queries_are_predicted_while_training_alone(head):
    maps = random_maps()
    with torch.no_grad():
        assert head(maps).queries is None
    queries = head.train()(maps).queries
    assert [tuple(x.shape) for x in queries.classes] == [(2, 6, 6)] * 4
    assert [tuple(x.shape) for x in queries.masks] == [(2, 6, 16, 24)] * 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"channels": 48}, r"MODEL\.HEAD\.CHANNELS is 48.*multiple of 32"),
        ({"num_queries": 0}, r"MODEL\.HEAD\.NUM_QUERIES is 0.*at least 1"),
        ({"num_layers": 0}, r"MODEL\.HEAD\.NUM_LAYERS is 0.*at least 1"),
    ],
)
def test_settings_that_cannot_be(args, message):
    with pytest.raises(UserError, match=message):
        Mask2FormerHead((8, 16, 24, 32), (4, 8, 16, 32), 5, **{**SMALL, **args})


def test_another_number_of_maps_is_refused():
    with pytest.raises(UserError, match=r"mask2former.* 4 .* 1\b.*MODEL\.NECK\.NAME none"):
        build_segmentor("swin_t", num_classes=3, head="mask2former", neck="concat")


@pytest.mark.parametrize(("backbone", "head"), [("swin_t", "fcn"), ("convnext_atto", "mask2former")])
def test_without_the_extra_the_error_names_it(monkeypatch, backbone, head):
    for name in [name for name in sys.modules if name.startswith("transformers.models.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"transformers.*pip install -e \"\.\[mask2former\]"):
        build_segmentor(backbone, num_classes=3, head=head)
