"""Upsampling by predicted weights, against a loop over the formula."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovenet.geometry import reassemble


def looped(features, weights, scale):
    batch, channels, height, width = features.shape
    kernel = round(weights.shape[1] ** 0.5)
    out = np.zeros((batch, channels, scale * height, scale * width))
    for n, c, i, j in np.ndindex(out.shape):
        for u in range(kernel):
            for v in range(kernel):
                y, x = i // scale + u - kernel // 2, j // scale + v - kernel // 2
                if 0 <= y < height and 0 <= x < width:
                    out[n, c, i, j] += float(weights[n, u * kernel + v, i, j]) * float(features[n, c, y, x])
    return out


@pytest.mark.parametrize(("kernel", "scale"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_it_is_the_sum_over_the_taps(kernel, scale):
    features = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    weights = torch.randn(2, kernel**2, scale * 4, scale * 5, dtype=torch.float64)
    np.testing.assert_allclose(reassemble(features, weights, scale=scale), looped(features, weights, scale), atol=1e-12)


def test_all_weight_on_the_middle_is_the_nearest_pixel():
    features, weights = torch.randn(1, 3, 4, 5), torch.zeros(1, 25, 8, 10)
    weights[:, 12] = 1.0
    assert torch.equal(reassemble(features, weights, scale=2), F.interpolate(features, scale_factor=2))


def test_it_holds_no_copy_of_the_features_for_each_tap():
    """Results of all taps are as large as 25 maps; what is kept for the gradient are views of the padded map."""
    features = torch.randn(1, 64, 16, 16, requires_grad=True)
    weights = torch.randn(1, 25, 32, 32, requires_grad=True)
    storages = {}

    def remember(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        out = reassemble(features, weights, scale=2)
    assert sum(storages.values()) < 2 * out.numel() * out.element_size()


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("padding_mode", ["constant", "replicate"])
def test_gradients_are_those_of_differences(scale, padding_mode):
    torch.manual_seed(0)
    features = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 9, 3 * scale, 4 * scale, dtype=torch.float64, requires_grad=True)
    for inputs in ((features, weights), (features.detach(), weights), (features, weights.detach())):
        assert torch.autograd.gradcheck(lambda f, w: reassemble(f, w, scale=scale, padding_mode=padding_mode), inputs)
