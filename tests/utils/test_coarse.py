"""Coarse parallelism: one thread inside each piece, and the same bits for any number of threads."""

import threading

import numpy as np
import pytest
import torch

from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.losses import blocked
from ovenet.losses.targets import Targets
from ovenet.structures import OVeNetOutput
from ovenet.utils.coarse import coarse_threads


@pytest.fixture
def threads():
    """A function that sets torch's threads; afterwards there are as many as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_one_thread_inside_and_all_afterwards(threads):
    threads(3)
    together = threading.Barrier(3)

    def look(_):
        together.wait(timeout=20)  # all three at the same time
        return torch.get_num_threads(), torch.is_grad_enabled()

    with coarse_threads() as pool:
        assert list(pool.map(look, range(3))) == [(1, False)] * 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(RuntimeError), coarse_threads():
        raise RuntimeError
    assert torch.get_num_threads() == 3


def test_losses_and_gradients_have_the_same_bits_on_any_number_of_threads(threads):
    torch.manual_seed(0)
    scores = torch.randn(3, 19, 40, 50)
    targets = Targets.from_labels(torch.randint(0, 19, (3, 160, 200)), ignore_label=0)
    results = []
    for number in (1, 2, 5):
        threads(number)
        loss, gradient = blocked.loss_and_gradient(
            scores, targets, "logits", None, align_corners=True, with_gradient=True
        )
        results.append((loss.nll, gradient))
    for nll, gradient in results[1:]:
        assert torch.equal(nll, results[0][0])
        assert torch.equal(gradient, results[0][1])


class Fixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = torch.randn(1, 40, 75, 100, generator=torch.Generator().manual_seed(0))

    def forward(self, images):
        return OVeNetOutput((self.scores,), (), (self.scores,))


def test_predictions_have_the_same_bits_on_any_number_of_threads(threads):
    predictor = SlidingWindowInferencer(Fixed(), InferenceSettings(400, (300, 400)), torch.device("cpu"))
    image = np.zeros((300, 400, 3), np.uint8)
    maps = []
    for number in (1, 2, 5):
        threads(number)
        maps.append(predictor.predict_scores(image)["fused"])
    assert torch.equal(maps[1], maps[0])
    assert torch.equal(maps[2], maps[0])
