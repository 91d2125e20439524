"""Resizing, whole and by rows, against torch's own resize of the whole."""

import pytest
import torch
import torch.nn.functional as F

from ovenet.geometry import add_resized_rows_gradient, resize_features, resize_rows, source_rows
from ovenet.geometry.resize import _Upsampled, _weights


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("in_size", "out_size"),
    [
        ((7, 90), (31, 400)),
        ((7, 400), (31, 90)),
        ((7, 9), (31, 20)),
        ((31, 20), (7, 9)),
        ((1, 1), (5, 3)),
        ((9, 6), (9, 13)),
        ((5, 4), (1, 1)),
    ],
)
@pytest.mark.parametrize("num_rows", [1, 4, 100])
def test_bands_make_up_the_resized_map(align_corners, in_size, out_size, num_rows):
    values = torch.randn(3, *in_size, dtype=torch.float64)
    expected = F.interpolate(values[None], size=out_size, mode="bilinear", align_corners=align_corners)
    bands = [
        resize_rows(
            values.permute(1, 0, 2),
            out_size,
            range(first, min(first + num_rows, out_size[0])),
            align_corners=align_corners,
        )
        for first in range(0, out_size[0], num_rows)
    ]
    torch.testing.assert_close(torch.cat(bands).permute(1, 0, 2), expected[0])


@pytest.mark.parametrize("align_corners", [True, False])
def test_the_rows_that_it_names_are_enough(align_corners):
    values = torch.randn(13, 2, 8)
    rows = range(17, 23)
    first, last = source_rows(13, 40, rows, align_corners=align_corners)
    whole = resize_rows(values, (40, 21), rows, align_corners=align_corners)
    part = resize_rows(
        values[first : last + 1], (40, 21), rows, align_corners=align_corners, in_height=13, first_row=first
    )
    assert torch.equal(part, whole)
    assert last - first < 6


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("in_size", "out_size"), [((7, 90), (31, 200)), ((31, 90), (7, 40)), ((9, 6), (9, 13)), ((5, 4), (9, 4))]
)
def test_the_gradient_is_that_of_torch(align_corners, in_size, out_size):
    values = torch.randn(1, 3, *in_size, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(1, 3, *out_size, dtype=torch.float64)
    F.interpolate(values, size=out_size, mode="bilinear", align_corners=align_corners).backward(gradient)
    total = torch.zeros(in_size[0], 3, in_size[1], dtype=torch.float64)
    for first in range(0, out_size[0], 4):
        rows = range(first, min(first + 4, out_size[0]))
        part = gradient[0, :, rows.start : rows.stop].permute(1, 0, 2).contiguous()
        add_resized_rows_gradient(part, total, out_size[0], rows, align_corners=align_corners)
    torch.testing.assert_close(total.permute(1, 0, 2), values.grad[0])


ENLARGEMENTS = [((3, 5), (12, 20)), ((4, 6), (9, 6)), ((1, 1), (3, 4)), ((7, 5), (13, 11)), ((16, 2), (128, 16))]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("in_size", "out_size"), ENLARGEMENTS)
def test_the_gradient_by_matrix_products_is_that_of_torch(in_size, out_size, memory_format, align_corners):
    values = torch.randn(2, 3, *in_size, dtype=torch.float64).to(memory_format=memory_format)
    weights = torch.randn(2, 3, *out_size, dtype=torch.float64)
    weights = weights.to(memory_format=memory_format)
    ours, expected = (values.clone().requires_grad_() for _ in range(2))
    resized = _Upsampled.apply(ours, out_size, align_corners)
    wanted = F.interpolate(expected, size=out_size, mode="bilinear", align_corners=align_corners)
    assert torch.equal(resized, wanted)
    (resized * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(ours.grad, expected.grad)


def test_features_keep_their_16_bits_under_autocast():
    values = torch.randn(2, 3, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = resize_features(values.bfloat16(), (8, 10), align_corners=True)
        full = resize_features(values, (8, 10), align_corners=True)
    assert (reduced.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    expected = F.interpolate(values.bfloat16().double(), size=(8, 10), mode="bilinear", align_corners=True)
    torch.testing.assert_close(reduced.double(), expected, rtol=2**-8, atol=0.01)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("in_size", "out_size"), [(16, 128), (64, 128), (7, 13), (135, 270), (1, 4), (5, 5)])
def test_the_weights_of_16_bits_give_all_of_a_pixels_gradient_away(in_size, out_size, dtype, align_corners):
    weights = _weights(in_size, out_size, align_corners, dtype, torch.device("cpu")).double()
    exact = _weights(in_size, out_size, align_corners, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(weights, exact, rtol=0, atol=torch.finfo(dtype).eps / 4)  # half a step below 1
    assert torch.equal(weights.sum(0), torch.ones(out_size, dtype=torch.float64))


@pytest.mark.parametrize("align_corners", [True, False])
def test_a_gradient_of_16_bits_adds_up_to_that_of_the_output(align_corners):
    values = torch.zeros(1, 4, 128, 128, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.rand(1, 4, 256, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    (gradient,) = torch.autograd.grad(_Upsampled.apply(values, (256, 256), align_corners), values, weights)
    assert float(gradient.double().sum() / weights.double().sum()) == pytest.approx(1, abs=2**-9)


def test_features_without_data_are_resized():
    values = torch.empty(2, 3, 4, 5, dtype=torch.bfloat16, device="meta")
    resized = resize_features(values, (8, 10), align_corners=True)
    assert (resized.shape, resized.dtype) == ((2, 3, 8, 10), torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(("in_size", "out_size"), ENLARGEMENTS)
def test_a_gradient_on_cuda_is_that_of_the_cpu_every_time(in_size, out_size, dtype, tolerance, align_corners):
    values, weights = torch.randn(2, 3, *in_size), torch.randn(2, 3, *out_size)
    gradients = []
    for device, kind in (("cpu", torch.float64), ("cuda", dtype), ("cuda", dtype)):
        own = values.to(dtype).to(device, kind).requires_grad_()
        resized = resize_features(own, out_size, align_corners=align_corners)
        (gradient,) = torch.autograd.grad(resized, own, weights.to(dtype).to(device, kind))
        assert gradient.dtype == kind
        gradients.append(gradient.double().cpu())
    expected, first, second = gradients
    assert torch.equal(first, second)
    torch.testing.assert_close(first, expected, rtol=0, atol=tolerance * expected.abs().max().item())
