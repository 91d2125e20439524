"""What the masks of a folder hold, value by value."""

import numpy as np
import pytest

from ovenet.data.snapping import even_values


@pytest.mark.parametrize("seed", range(40))
def test_even_values_are_those_with_nine_equal_pixels(seed):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 6, rng.integers(1, 20, 2))
    codes = np.kron(blocks, np.ones(rng.integers(1, 5, 2), int))
    height, width = codes.shape
    expected = {
        int(codes[y, x])
        for y in range(1, height - 1)
        for x in range(1, width - 1)
        if (codes[y - 1 : y + 2, x - 1 : x + 2] == codes[y, x]).all()
    }
    assert set(even_values(codes, np.unique(codes)).tolist()) == expected
