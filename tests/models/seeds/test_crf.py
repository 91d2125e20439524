"""The refiner `crf` against mean-field inference written as loops over pairs of pixels."""

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tests.four_convolutions import FourConvolutions

from ovenet.deployment import ExportableNetwork
from ovenet.deployment.formats import write_onnx
from ovenet.deployment.runtimes import open_session
from ovenet.errors import UserError
from ovenet.models import build_segmentor
from ovenet.models.interfaces import SegOutput
from ovenet.models.registry import BACKBONES

K = 3
MEAN, STD = (np.array(getattr(FourConvolutions.normalization, name)) for name in ("mean", "std"))
SETTINGS = {"theta_alpha": 4.0, "theta_beta": 40.0, "theta_gamma": 1.5, "appearance_weight": 2.0}


def build(head="fcn", **seed_args):
    torch.manual_seed(0)
    with patch.dict(BACKBONES._builders, four_convolutions=FourConvolutions):
        return build_segmentor("four_convolutions", num_classes=K, head=head, seed="crf", seed_args=seed_args)


def colors_and_images(height, width, seed=1):
    """Colours ``(H, W, 3)`` in 0 to 255 with two regions and noise, and the normalised image of them."""
    rng = np.random.default_rng(seed)
    colors = rng.uniform(0, 60, (height, width, 3))
    colors[:, width // 2 :] += 120
    images = torch.from_numpy((colors / 255 - MEAN) / STD).permute(2, 0, 1)[None].float()
    return colors, images


def kernel_of_all_pairs(height, width, exponent):
    """The symmetrically normalised kernel of all pairs of pixels: ``exponent`` of two pixels, as loops."""
    pixels = [(y, x) for y in range(height) for x in range(width)]
    kernel = [[math.exp(-exponent(a, b)) for b in pixels] for a in pixels]
    sums = [sum(row) for row in kernel]
    return [[kernel[i][j] / math.sqrt(sums[i] * sums[j]) for j in range(len(pixels))] for i in range(len(pixels))]


def softmax(values):
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def dense_mean_field(scores, colors, *, alpha, beta, gamma, weights, num_iterations):
    """Log marginals ``(K, H, W)`` by Krähenbühl and Koltun's update, for all pairs of pixels and the Potts model."""
    num_classes, height, width = scores.shape
    num = height * width

    def distance(a, b):
        return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2

    def appearance(a, b):
        contrast = sum((float(u) - float(v)) ** 2 for u, v in zip(colors[a], colors[b], strict=True))
        return distance(a, b) / (2 * alpha**2) + contrast / (2 * beta**2)

    kernels = [
        kernel_of_all_pairs(height, width, appearance),
        kernel_of_all_pairs(height, width, lambda a, b: distance(a, b) / (2 * gamma**2)),
    ]
    energies = [[-float(scores[k, i // width, i % width]) for k in range(num_classes)] for i in range(num)]
    marginals = [softmax([-e for e in energies[i]]) for i in range(num)]
    for _ in range(num_iterations):
        updated = []
        for i in range(num):
            received = [
                sum(
                    w * kernel[i][j] * marginals[j][k]
                    for w, kernel in zip(weights, kernels, strict=True)
                    for j in range(num)
                )
                for k in range(num_classes)
            ]
            # A label pays for its neighbours' belief in the other labels.
            costs = [sum(received[other] for other in range(num_classes) if other != k) for k in range(num_classes)]
            updated.append(softmax([-energies[i][k] - costs[k] for k in range(num_classes)]))
        marginals = updated
    return np.log(np.array(marginals)).T.reshape(num_classes, height, width)


def test_a_window_over_the_whole_image_is_the_dense_model():
    colors, images = colors_and_images(5, 7)
    scores = torch.randn(1, K, 5, 7, generator=torch.Generator().manual_seed(2))
    seed = build(stride=1, blur=1, window=13, num_iterations=3, smoothness_weight=0.7, **SETTINGS).seed
    with torch.no_grad():
        output = seed(None, SegOutput((scores,), scores), images)
    expected = dense_mean_field(
        scores[0].numpy(), colors, alpha=4.0, beta=40.0, gamma=1.5, weights=(2.0, 0.7), num_iterations=3
    )
    np.testing.assert_allclose(output.fused[-1][0].numpy(), expected, atol=2e-4)
    assert np.abs(expected - scores[0].log_softmax(0).numpy()).max() > 0.5
    assert not output.has_seed
    assert output.initial[-1] is scores


def test_blocks_are_pixels_of_a_smaller_image():
    """One update in blocks of 2x2: that of the dense model of the means, with the distances of the full image."""
    colors, images = colors_and_images(6, 8)
    scores = torch.randn(1, K, 6, 8, generator=torch.Generator().manual_seed(2))
    seed = build(stride=1, blur=2, window=7, num_iterations=1, smoothness_weight=0.7, **SETTINGS).seed
    small = scores.softmax(dim=1)[0].numpy().reshape(K, 3, 2, 4, 2).mean(axis=(2, 4))
    small_colors = colors.reshape(3, 2, 4, 2, 3).mean(axis=(1, 3))
    refined = dense_mean_field(
        np.log(small), small_colors, alpha=2.0, beta=40.0, gamma=0.75, weights=(2.0, 0.7), num_iterations=1
    )
    with torch.no_grad():
        kernels = seed.kernels(images, (6, 8))
        weights = torch.tensor((2.0, 0.7))
        weighted = sum(w * kernel for w, kernel in zip(weights, kernels, strict=True))
        messages = seed.messages(scores.softmax(dim=1), weights, weighted, kernels)[0].numpy()
    # Up to a constant of each pixel the message of a block is the change of its log marginal.
    of_blocks = refined - np.log(small)
    of_blocks -= of_blocks.mean(axis=0)
    messages -= messages.mean(axis=0)
    # A pixel lies a quarter of a block from its block's centre: bilinear weights of 3/4 and 1/4.
    near = 0.75 * of_blocks[:, 1] + 0.25 * of_blocks[:, 0]
    np.testing.assert_allclose(messages[:, 2, 3], 0.75 * near[:, 1] + 0.25 * near[:, 2], atol=1e-5)


def test_no_update_and_no_weight_leave_the_scores():
    _, images = colors_and_images(12, 16)
    scores = torch.randn(1, K, 12, 16)
    for settings in ({"num_iterations": 0}, {"appearance_weight": 1e-9, "smoothness_weight": 1e-9}):
        seed = build(stride=1, **settings).seed
        with torch.no_grad():
            fused = seed(None, SegOutput((scores,), scores), images).fused[-1]
        torch.testing.assert_close(fused, scores.log_softmax(dim=1))


def test_gradients_are_those_of_differences():
    _, images = colors_and_images(3, 5)
    seed = build(stride=1, blur=2, window=3, num_iterations=2, **SETTINGS).seed.double()
    images = images.double()
    scores = torch.randn(1, K, 3, 5, dtype=torch.float64, requires_grad=True)

    def refine(log_weights, scores):
        arguments = (None, SegOutput((scores,), scores), images)
        return torch.func.functional_call(seed, {"log_weights": log_weights}, arguments).fused[-1]

    assert torch.autograd.gradcheck(refine, (seed.log_weights, scores), fast_mode=True)


def test_only_two_weights_are_learned_behind_a_frozen_network():
    model = build().train()
    model.freeze(["backbone", "neck", "head"])
    output = model(torch.randn(2, 3, 63, 95))
    output.fused[-1][:, 0].mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert {n: p.shape for n, p in grads.items()} == {"seed.log_weights": (2,)}
    assert grads["seed.log_weights"].all()


@pytest.mark.parametrize("head", ["fcn", "ocr"])
def test_odd_sizes_and_auxiliary_maps(head):
    model = build(head).train()
    output = model(torch.randn(2, 3, 63, 95))
    assert [tuple(x.shape[-2:]) for x in output.fused] == [(16, 24)] * (len(output.fused) - 1) + [(32, 48)]
    assert all(a is b for a, b in zip(output.fused[:-1], output.initial[:-1], strict=True))
    sum(x.square().mean() for x in output.fused).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_reduced_precision_changes_the_network_alone():
    model = build().eval()
    images = torch.randn(1, 3, 63, 95)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    with torch.no_grad():
        again = model.seed(None, SegOutput(output.initial, output.initial[-1]), images)
    assert output.fused[-1].dtype == torch.float32
    torch.testing.assert_close(output.fused[-1], again.fused[-1], rtol=0, atol=0)


def test_it_can_be_exported(tmp_path):
    network = ExportableNetwork(build(window=3, num_iterations=2).eval(), ("fused",), align_corners=True).eval()
    path = tmp_path / "network.onnx"
    write_onnx(network, torch.randn(1, 3, 63, 95), path, ("fused",), is_dynamic=True)
    images = torch.randn(1, 3, 46, 77)
    (found,) = open_session(path, "onnxruntime")(images.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(found, network(images)[0].numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("theta_beta", 0.0, "more than 0"),
        ("window", 4, "odd number"),
        ("stride", 0, "1"),
        ("appearance_weight", 0.0, "more than 0"),
    ],
)
def test_a_setting_out_of_range_is_one_line(name, value, expected):
    with pytest.raises(UserError, match=rf"^MODEL\.SEED\.{name.upper()} is {value}; expected .*{expected}.*$"):
        build(**{name: value})


def test_embeddings_are_refused():
    seed = build().seed
    scores = torch.randn(1, K, 8, 8)
    with pytest.raises(UserError, match=r"crf does not go with MODEL\.HEAD\.EMBEDDING"):
        seed(None, SegOutput((scores,), scores, embedding=scores), torch.randn(1, 3, 32, 32))
