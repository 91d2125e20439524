"""The card's way of finishing images, on the CPU: the same results, and few launches that wait for nothing."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ovenet.data.info import EvaluationRule
from ovenet.data.transforms import _mean_and_std
from ovenet.evaluation.metrics import confusion_tables, sorted_counts
from ovenet.inference.backend import CpuBackend, CudaBackend
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.structures import OVeNetOutput

CPU = torch.device("cpu")
SIZE = (1024, 2048)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
CUDA_GIVES = 1e-5  # of a probability: positions are rounded to float32 in another order


class StridedModel(torch.nn.Module):
    """Five classes at stride 4, with offsets and confidence, from what is near each pixel."""

    max_offset = 0.3

    def __init__(self, num_classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, num_classes + 3, 7, stride=4, padding=3)

    def forward(self, images):
        x = self.conv(images)
        initial, offset, confidence = x[:, 3:], x[:, :2].tanh(), x[:, 2:3].sigmoid()
        seed = initial.roll(1, 1)
        return OVeNetOutput((initial,), (seed,), (initial + confidence * seed,), 0.3 * offset, confidence)


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (5, 7, 3)), np.ones((19, 17, 1))).astype(np.uint8)  # 95 x 119


OPTIONS = {
    "whole": {"window_size": (200, 200)},
    "scales": {"window_size": (200, 200), "scales": (0.5, 1.0, 1.3, 1.75), "flip": True, "flip_pairs": ((0, 1),)},
    "windows": {"window_size": (40, 56), "scales": (0.5, 0.75, 1.0, 1.75), "flip": True},
    "stride": {"window_size": (40, 56), "stride": (33, 21), "scales": (1.0, 1.5)},
    "box": {"window_size": (40, 56), "base_box": (100, 90), "flip": True},
    "padded": {"window_size": (40, 56), "rule": EvaluationRule("short_side", 32), "scales": (0.75, 1.0)},
    "padded windows": {"window_size": (40, 56), "padded_windows": True, "scales": (0.3, 1.3), "flip": True},
    "two sizes": {"window_size": (40, 56), "first_rule": EvaluationRule("short_side", 32), "scales": (0.5, 1.0)},
    "mmseg": {"window_size": (64, 64), "score": "mmseg", "scales": (0.75, 1.0), "flip": True, "flip_pairs": ((0, 1),)},
    "exp": {"window_size": (64, 64), "score": "exp", "scales": (0.75, 1.0), "align_corners": False},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("band_elements", [5 * 119 * 9, 2**26], ids=["bands", "at once"])
def test_the_way_of_the_card_gives_what_the_cpu_gives(image, name, band_elements):
    settings, model = InferenceSettings(**{"base_size": 119, **OPTIONS[name]}), StridedModel()
    card = CudaBackend(band_elements=band_elements, auto_pixels=5 * 40 * 56)
    ours, theirs = (SlidingWindowInferencer(model, settings, CPU, b) for b in (CpuBackend(), card))
    a, b = ours.predict_scores(image), theirs.predict_scores(image)
    for key in a:
        torch.testing.assert_close(b[key], a[key], atol=CUDA_GIVES, rtol=CUDA_GIVES)
    a, b = (p.predict(image, seeds=True, seed_stride=2, score_side=40) for p in (ours, theirs))
    for key, labels in a.labels.items():
        assert b.labels[key].dtype == labels.dtype
        assert (b.labels[key] == labels).float().mean() > 0.999
        torch.testing.assert_close(b.scores[key], a.scores[key], atol=CUDA_GIVES, rtol=CUDA_GIVES)
    torch.testing.assert_close(b.offset, a.offset, atol=CUDA_GIVES, rtol=0)
    torch.testing.assert_close(b.confidence, a.confidence, atol=CUDA_GIVES, rtol=0)


def test_windows_of_all_scales_share_batches(image):
    """Of 40 x 56 pixels, 3 x 3 at scale 1 and 4 x 4 at 1.5, flipped too; a batch has the pixels of 12 of them."""
    model, seen = StridedModel(), []
    model.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    settings = InferenceSettings(119, (40, 56), (0.3, 1.0, 1.5), flip=True)
    SlidingWindowInferencer(model, settings, CPU, CudaBackend(auto_pixels=12 * 40 * 56)).predict(image)
    windows = [shape[0] for shape in seen if shape[2:] == (40, 56)]
    assert windows == [12, 12, 12, 12, 2]  # 2 x (9 + 16)
    assert [shape for shape in seen if shape[2:] != (40, 56)] == [(2, 3, 29, 36)]  # 36 = round(119 x 0.3)


@pytest.mark.parametrize("flip", [False, True])
def test_the_batch_follows_from_the_size_alone(flip):
    cpu, card = CpuBackend(), CudaBackend()
    assert cpu.batch_size(0, (512, 1024), flip=flip) == 1
    assert card.batch_size(0, (512, 1024), flip=flip) == 8
    assert card.batch_size(0, (4096, 4096), flip=flip) == (2 if flip else 1)
    assert cpu.batch_size(3, (512, 1024), flip=flip) == card.batch_size(3, (512, 1024), flip=flip) == 3


class Launches(TorchDispatchMode):
    """Notes operations that do something, with the devices of what goes in and comes out."""

    NOTHING = frozenset(
        [
            "slice",
            "permute",
            "unsqueeze",
            "select",
            "alias",
            "unbind",
            "expand",
            "view",
            "flatten",
            "detach",
            "device",
            "empty",
        ]
    )

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        given = [x for x in args if isinstance(x, torch.Tensor)]
        is_same = bool(given) and result is given[0] and not name.endswith("_")  # a conversion to what it is
        if name not in self.NOTHING and not is_same:
            self.found.append((name, {x.device.type for x in (*given, result) if isinstance(x, torch.Tensor)}))
        return result


@pytest.fixture
def on_fake_card():
    """Tensors without values: what would need one raises."""
    _mean_and_std.cache_clear()
    with FakeTensorMode(), torch.device("cuda:0"):
        yield torch.device("cuda:0")
    _mean_and_std.cache_clear()


def _launches(device, names, *, seeds, network):
    """Of predicting one image, the second one; without what the network does, or with it."""
    model = StridedModel(19).eval()
    settings = InferenceSettings(2048, SIZE, SCALES, flip=True)
    predictor = SlidingWindowInferencer(model, settings, device)
    log = Launches()
    sizes = [settings.scaled_size(SIZE, scale) for scale in SCALES]
    scaled = [torch.empty(*size, 3, dtype=torch.uint8, device="cpu") for size in sizes]
    image = np.zeros((*SIZE, 3), np.uint8)
    predictor.predict(image, scaled=scaled, names=names, seeds=seeds)
    forward = predictor.forward

    def aside(*args, **options):
        if network:
            return forward(*args, **options)
        found = list(log.found)
        maps = forward(*args, **options)
        log.found = found
        return maps

    aside.kind = forward.kind
    predictor.forward = aside
    with log:
        prediction = predictor.predict(image, scaled=scaled, names=names, seeds=seeds)
    assert prediction.labels["fused"].shape == SIZE
    assert prediction.labels["fused"].device.type == "cuda"
    return log.found


@pytest.mark.skipif(torch.__version__ < "2.9", reason="tensors that say they were on a card look for it")
def test_predicting_waits_for_nothing_and_copies_the_image_alone(on_fake_card):
    """Nine strips: three scales are run whole, and three in two rows of windows."""
    found = _launches(on_fake_card, None, seeds=True, network=True)
    assert len(found) > 100
    copies = [name for name, devices in found if devices == {"cpu", "cuda"}]
    assert len(copies) == 9
    assert not [name for name, devices in found if devices == {"cpu"}]


@pytest.mark.skipif(torch.__version__ < "2.9", reason="tensors that say they were on a card look for it")
@pytest.mark.parametrize(("names", "budget"), [(("fused",), 200), (None, 350)])
def test_finishing_an_image_is_few_launches(on_fake_card, names, budget):
    """Fifteen windows of six scales: to normalise, resize, average and choose, whatever the network does."""
    found = _launches(on_fake_card, names, seeds=False, network=False)
    assert budget / 2 < len(found) <= budget


@pytest.mark.skipif(torch.__version__ < "2.9", reason="tensors that say they were on a card look for it")
def test_counting_waits_for_nothing(on_fake_card):
    labels = torch.empty(SIZE, dtype=torch.int16)
    maps, bands = [torch.empty(SIZE, dtype=torch.uint8)] * 3, torch.empty(SIZE, dtype=torch.uint8)
    for options in ({}, {"bands": bands, "num_bands": 8}):
        tables = confusion_tables(maps, labels, 19, ignore_label=255, **options)
        assert tables.shape == (3, options.get("num_bands", 1), 19, 19)
        assert tables.dtype == torch.int64


def test_counts_by_sorting():
    index = torch.randint(0, 40, (5000,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sorted_counts(index, 30), torch.bincount(index)[:30])  # what is larger is left out
    assert sorted_counts(index[:0], 3).tolist() == [0, 0, 0]
