"""PointRend against loops over points and pixels; what it gives in training and in evaluation."""

import math
import re

import numpy as np
import onnxruntime
import pytest
import torch
from tests.four_convolutions import FourConvolutions

from ovenet.builders import prediction_names
from ovenet.config.loading import load_config_text
from ovenet.deployment import ExportableNetwork
from ovenet.deployment.formats import write_onnx
from ovenet.errors import UserError
from ovenet.geometry import resize_bilinear
from ovenet.losses import SegmentationCriterion
from ovenet.models import Segmentor, build_segmentor
from ovenet.models.cost import count_multiply_adds, count_parameters
from ovenet.models.heads.fcn import FCNHead
from ovenet.models.interfaces import SegOutput
from ovenet.models.necks import ConcatNeck
from ovenet.models.seeds.ovenet import OVeNet
from ovenet.models.seeds.point_rend import PointHead, PointRend, uncertainty
from ovenet.structures import OVeNetOutput, PointOutput

K = 3
SMALL = {"num_channels": 5, "num_points": 40, "subdivision_num_points": 30}


def noisy(part):
    """Weights that give scores far from zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(std=0.4, generator=generator)
    return part


def build(head="fcn", **settings):
    torch.manual_seed(0)
    settings = {**SMALL, **settings}
    return build_segmentor("hrnet_w18_small_v1", num_classes=K, head=head, seed="point_rend", seed_args=settings)


def four_convolutions(num_classes, **settings):
    torch.manual_seed(0)
    backbone = FourConvolutions()
    neck = ConcatNeck(backbone.channels, backbone.strides)
    head = FCNHead(neck.channels, neck.strides, num_classes)
    return OVeNet(
        backbone, neck, head, PointRend(backbone.channels, backbone.strides, num_classes=num_classes, **settings)
    )


@pytest.fixture
def images():
    return torch.randn(2, 3, 63, 95, generator=torch.Generator().manual_seed(1))


def point_logits(head, fine, coarse):
    """The point head at one point, in numpy: each layer reads the coarse scores after its input."""
    hidden = np.asarray(fine)
    for layer in head.layers:
        weight, bias = layer.weight[:, :, 0, 0].numpy(), layer.bias.numpy()
        hidden = np.maximum(weight @ np.concatenate([hidden, coarse]) + bias, 0)
    weight, bias = head.predictor.weight[:, :, 0, 0].numpy(), head.predictor.bias.numpy()
    return weight @ np.concatenate([hidden, coarse]) + bias


def source(index, size, old_size, align_corners):
    """The coordinate in a map of another size, in its pixels, of a pixel along one axis."""
    if align_corners:
        return index * (old_size - 1) / (size - 1)
    return min(max((index + 0.5) * old_size / size - 0.5, 0), old_size - 1)


def bilinear(values, y, x):
    """``(C,)`` of a map ``(C, h, w)`` at pixel coordinates."""
    top, left = math.floor(y), math.floor(x)
    total = np.zeros(len(values))
    for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if share_y * share_x > 0:
                total += share_y * share_x * values[:, row, column]
    return total


def at_pixel(values, place, size, align_corners):
    y, x = (source(i, n, old, align_corners) for i, n, old in zip(place, size, values.shape[1:], strict=True))
    return bilinear(values, y, x)


def refined_by_loops(head, maps, scores, num_steps, num_points, align_corners):
    refined = scores
    for _ in range(num_steps):
        size = 2 * refined.shape[1], 2 * refined.shape[2]
        places = [(y, x) for y in range(size[0]) for x in range(size[1])]
        finer = np.empty((len(scores), *size))
        for place in places:
            finer[(slice(None), *place)] = at_pixel(refined, place, size, align_corners)
        margins = {place: np.diff(np.sort(finer[(slice(None), *place)])[-2:])[0] for place in places}
        for place in sorted(places, key=margins.get)[:num_points]:
            fine = np.concatenate([at_pixel(values, place, size, align_corners) for values in maps])
            coarse = at_pixel(scores, place, size, align_corners)
            finer[(slice(None), *place)] = point_logits(head, fine, coarse)
        refined = finer
    return refined


@pytest.mark.parametrize("align_corners", [False, True])
def test_refinement_equals_loops(align_corners):
    """From 3x4 to 12x16; of 48 and then 192 pixels, 30 are predicted anew."""
    part = PointRend((4, 2), (2, 4), num_classes=K, align_corners=align_corners, in_index=(1, 0), **SMALL)
    noisy(part.double()).eval()
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(2, K, 3, 4, dtype=torch.float64, generator=generator)
    coarse_map, fine_map = (
        torch.randn(2, c, *size, dtype=torch.float64, generator=generator) for c, size in ((2, (3, 4)), (4, (6, 8)))
    )
    with torch.no_grad():
        refined = part.refine([coarse_map, fine_map], scores)
        for image in range(2):
            maps = [coarse_map[image].numpy(), fine_map[image].numpy()]
            expected = refined_by_loops(part.point_head, maps, scores[image].numpy(), 2, 30, align_corners)
            np.testing.assert_allclose(refined[image], expected, atol=1e-10)


def test_a_map_with_no_more_pixels_than_points_is_predicted_anew_as_a_whole():
    part = noisy(PointRend((4,), (4,), num_classes=K, **{**SMALL, "subdivision_num_points": 48})).eval()
    with torch.no_grad():
        part.subdivision_steps = 1
        refined = part.refine([torch.zeros(1, 4, 3, 4)], torch.zeros(1, K, 3, 4))
        expected = point_logits(part.point_head, np.zeros(4), np.zeros(K))
    np.testing.assert_allclose(refined[0].flatten(1).T, np.tile(expected, (48, 1)), atol=1e-6)


def test_the_point_head_equals_a_loop():
    head = noisy(PointHead(4, K, num_channels=5, num_layers=3)).eval()
    fine, coarse = torch.randn(2, 4, 7, 1), torch.randn(2, K, 7, 1)
    with torch.no_grad():
        logits = head(fine, coarse)
        for b in range(2):
            for p in range(7):
                expected = point_logits(head, fine[b, :, p, 0].numpy(), coarse[b, :, p, 0].numpy())
                np.testing.assert_allclose(logits[b, :, p, 0], expected, atol=1e-5)


def test_uncertainty_by_hand():
    """Second best minus best: 2 - 3, 5 - 5, and 0 - 0.5."""
    scores = torch.tensor([[[3.0, 5.0, 0.0], [1.0, 5.0, -1.0], [2.0, 5.0, 0.5]]])
    np.testing.assert_allclose(uncertainty(scores), [[-1.0, 0.0, -0.5]])


def test_three_quarters_of_the_points_are_the_most_uncertain_of_three_times_as_many():
    part = PointRend((4,), (4,), num_classes=K, num_points=40)
    scores = torch.randn(2, K, 5, 6, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    position = part.sample_positions(scores)
    torch.manual_seed(3)
    candidates = 2 * torch.rand(2, 2, 120) - 1
    assert position.shape == (2, 2, 40)
    assert position.abs().max() <= 1
    for b in range(2):
        margins = []
        for x, y in candidates[b].T.tolist():
            best = np.sort(bilinear(scores[b].double().numpy(), (y + 1) / 2 * 4, (x + 1) / 2 * 5))
            margins.append(best[-1] - best[-2])
        expected = {tuple(candidates[b, :, i].tolist()) for i in np.argsort(margins)[:30]}
        assert {tuple(p) for p in position[b, :, :30].T.tolist()} == expected
        assert not expected & {tuple(p) for p in position[b, :, 30:].T.tolist()}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("weights", [None, (1.0, 2.5, 0.5)])
def test_the_loss_equals_a_loop(align_corners, weights):
    """Cross-entropy at the points, weighted by class, over those whose nearest pixel is labelled."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, K, (2, 5, 8), generator=generator)
    labels[:, 2] = 255
    logits = torch.randn(2, K, 50, generator=generator, requires_grad=True)
    position = 2 * torch.rand(2, 2, 50, generator=generator) - 1
    scores = (torch.randn(2, K, 3, 4, generator=generator),)
    criterion = SegmentationCriterion(ignore_label=255, class_weights=weights, align_corners=align_corners)
    loss = criterion(OVeNetOutput(scores, (), scores, points=PointOutput(logits, position)), labels)
    total = weight = 0.0
    for b in range(2):
        for p in range(50):
            x, y = position[b, :, p].tolist()
            if align_corners:
                row, column = round((y + 1) / 2 * 4), round((x + 1) / 2 * 7)
            else:  # the pixel that the point lies in
                row, column = min(math.floor((y + 1) / 2 * 5), 4), min(math.floor((x + 1) / 2 * 8), 7)
            label = labels[b, row, column].item()
            if label != 255:
                own = 1.0 if weights is None else weights[label]
                total -= own * logits[b, :, p].log_softmax(0)[label].item()
                weight += own
    assert weight > 0
    assert loss.terms["points"].item() == pytest.approx(total / weight, rel=1e-5)
    assert loss.total.item() == pytest.approx(loss.terms["fused"].item() + total / weight, rel=1e-5)


def test_an_ignored_crop_gives_zero_with_a_gradient():
    logits, scores = torch.randn(1, K, 9, requires_grad=True), (torch.randn(1, K, 3, 4),)
    output = OVeNetOutput(scores, (), scores, points=PointOutput(logits, torch.zeros(1, 2, 9)))
    loss = SegmentationCriterion(ignore_label=255)(output, torch.full((1, 5, 8), 255))
    (gradient,) = torch.autograd.grad(loss.total, logits)
    assert loss.total.item() == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("head", ["fcn", "ocr"])
def test_training_leaves_the_scores_and_reaches_every_parameter(head, images):
    model = build(head).train()
    torch.manual_seed(5)
    output = model(images)
    baseline = Segmentor(model.backbone, model.neck, model.head).train()
    torch.manual_seed(5)
    expected = baseline(images).fused
    assert len(output.fused) == (2 if head == "ocr" else 1)
    assert all(torch.equal(a, b) for a, b in zip(output.fused, expected, strict=True))
    assert output.points.logits.shape == (2, K, 40)
    labels = torch.randint(0, K, (2, 63, 95))
    weights = (0.4, 1.0) if head == "ocr" else (1.0,)
    criterion = SegmentationCriterion(ignore_label=255, output_weights=weights)
    criterion(output, labels).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("head", ["fcn", "ocr"])
def test_evaluation_gives_finer_scores_of_the_final_map_alone(head, images):
    model = build(head).eval()
    noisy(model.seed)
    state = torch.get_rng_state()
    with torch.no_grad():
        output, again = model(images), model(images)
        expected = Segmentor(model.backbone, model.neck, model.head).eval()(images).fused
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(output.fused[-1], again.fused[-1])
    assert output.fused[-1].shape == (2, K, 64, 96)  # 4 times the rounded up 63 / 4 and 95 / 4
    assert all(torch.equal(a, b) for a, b in zip(output.initial, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(output.fused[:-1], expected[:-1], strict=True))
    assert list(output.predictions()) == ["fused"]
    assert output.points is None
    plain = expected[-1]
    for size in ((32, 48), (64, 96)):
        plain = resize_bilinear(plain, size, align_corners=model.seed.align_corners)
    changed = (output.fused[-1] - plain).abs().amax(dim=1) > 1e-4
    assert 30 <= changed[0].sum() < 0.1 * 64 * 96


def test_it_learns_beside_a_network_at_rest(images):
    model = build()
    model.freeze(["backbone", "neck", "head"])
    output = model.train()(images)
    SegmentationCriterion(ignore_label=255)(output, torch.zeros(2, 63, 95)).total.backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"seed"}
    assert all(p.grad.any() for p in model.seed.parameters())


def test_it_learns_what_the_coarse_scores_do_not_know():
    """The fine features are the labels, the coarse scores say nothing."""
    part = PointRend((1,), (1,), num_classes=2, num_channels=8, num_points=64, subdivision_steps=1).train()
    labels = torch.randint(0, 2, (4, 8, 8), generator=torch.Generator().manual_seed(6))
    coarse = SegOutput((torch.zeros(4, 2, 4, 4),), torch.zeros(4, 1, 4, 4))
    fine, images = labels.unsqueeze(1).float(), torch.zeros(4, 3, 8, 8)
    optimizer = torch.optim.Adam(part.parameters(), lr=0.03)
    criterion = SegmentationCriterion(ignore_label=255)
    torch.manual_seed(0)
    for _ in range(50):
        optimizer.zero_grad()
        criterion(part([fine], coarse, images), labels).total.backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(part.eval()([fine], coarse, images).fused[-1].argmax(dim=1), labels)


def test_bfloat16_scores_are_float32_and_close(images):
    model = build(subdivision_num_points=100_000).eval()
    noisy(model.seed)
    with torch.no_grad():
        exact = model(images).fused[-1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(images).fused[-1]
            points = model.train()(images).points
    assert rough.dtype == points.logits.dtype == points.position.dtype == torch.float32
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_nothing_depends_on_values_and_the_cost_is_that_of_the_points():
    """On the meta device there are no values. The layers read 8 or 256 channels and 11 scores; 2 times 8192 points."""
    with torch.device("meta"):
        model = four_convolutions(11).eval()
    baseline = Segmentor(model.backbone, model.neck, model.head).eval()
    products = (19 + 267 + 267) * 256 + 267 * 11
    assert count_parameters(model) - count_parameters(baseline) == products + 3 * 256 + 11
    added = count_multiply_adds(model, 360, 480) - count_multiply_adds(baseline, 360, 480)
    assert added == 2 * 8192 * products
    assert model.train()(torch.empty(2, 3, 240, 240, device="meta")).points.logits.shape == (2, 11, 2048)


@pytest.mark.parametrize(
    "setting",
    [
        {"in_index": [4]},
        {"in_index": []},
        {"num_channels": 0},
        {"num_layers": 0},
        {"num_points": 0},
        {"oversample_ratio": 0.5},
        {"importance_sample_ratio": 1.5},
        {"subdivision_steps": 0},
        {"subdivision_num_points": 0},
    ],
)
def test_a_setting_out_of_its_range_is_named(setting):
    ((name, value),) = setting.items()
    with pytest.raises(UserError, match=rf"MODEL\.SEED\.{name.upper()} is {re.escape(str(value))}; expected"):
        build(**setting)


def test_only_logits_are_refined():
    part = PointRend((4,), (4,), num_classes=K)
    decoded = SegOutput((torch.rand(1, K, 3, 4),), torch.zeros(1, 4, 3, 4), score_kind="probabilities")
    with pytest.raises(UserError, match=r"MODEL\.SEED\.NAME point_rend refines logits, .* probabilities"):
        part([torch.zeros(1, 4, 3, 4)], decoded, torch.zeros(1, 3, 12, 16))


def test_the_refined_scores_alone_are_evaluated():
    cfg = load_config_text("MODEL: {SEED: {NAME: point_rend}}", "test")
    assert prediction_names(cfg) == ("fused",)


@pytest.mark.parametrize("num_points", [500, 100_000])
def test_a_file_of_any_size_gives_what_torch_gives(num_points, tmp_path):
    """Of smaller maps all pixels are predicted anew; 33x47 and 64x96 have 432 and 1536 of them in the first step."""
    model = four_convolutions(K, subdivision_num_points=num_points).eval()
    noisy(model.seed)
    path = tmp_path / "any.onnx"
    network = ExportableNetwork(model, ("fused",), align_corners=True).eval()
    write_onnx(network, torch.zeros(1, 3, 128, 160), path, ("fused",), is_dynamic=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in ((33, 47), (64, 96)):
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
        with torch.no_grad():
            expected = model(images).fused[-1]
        (given,) = session.run(None, {"images": images.numpy()})
        differs = np.abs(given - expected.numpy()).max(axis=1) > 1e-3 * expected.abs().max().item()
        assert differs.mean() <= (0 if num_points > 1000 else 1e-3)  # rounding may swap equally uncertain pixels
