"""Batches of one size as one launch, with graphs that are recorded on the CPU; the card's own are marked."""

import logging

import numpy as np
import pytest
import torch
from tests.inference.test_backend import StridedModel
from tests.recorded_graph import RecordedGraph

from ovenet.builders import build_model
from ovenet.builders.inference import build_predictor, inference_model
from ovenet.config import load_config
from ovenet.geometry import SRM
from ovenet.inference.backend import CpuBackend
from ovenet.inference.forward import MAX_GRAPHS, Forward
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.models.displacement import Displacement

CPU = torch.device("cpu")
SETTINGS = InferenceSettings(60, (32, 40), (0.5, 1.0, 1.5), flip=True, flip_pairs=((1, 2),), batch_size=4)


def images(count, size=(40, 60)):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for _ in range(count)]


def predictor(model, graph):
    made = SlidingWindowInferencer(model, SETTINGS, CPU)
    made.forward = Forward(
        model, CPU, flip=True, flip_pairs=SETTINGS.flip_pairs, output_index=-1, precision="fp32", allow_tf32=False,
        new_graph=graph,
    )  # fmt: skip
    return made


def assert_same(a, b):
    assert a.labels.keys() == b.labels.keys()
    for name, labels in a.labels.items():
        assert torch.equal(b.labels[name], labels)
    for name, scores in a.scores.items():
        assert torch.equal(b.scores[name], scores)
    assert torch.equal(a.offset, b.offset)


def test_predictions_with_graphs_are_those_without():
    """The third image of a size has graphs, one for each size of a batch; one result does not spoil another."""
    model = StridedModel()
    eager, graphed = predictor(model, None), predictor(model, RecordedGraph)
    for number, image in enumerate(images(4)):
        a, b = (p.predict(image, seeds=True, score_side=30) for p in (eager, graphed))
        assert_same(a, b)
        # Pairs of windows of 32 x 40 pixels: three an image with seeds, two without; the image of 20 x 30 once
        assert graphed.forward.num_graphs == min(number + 1, 3)
    assert eager.forward.num_graphs == 0


def test_other_requests_have_graphs_of_their_own():
    graphed, eager = predictor(StridedModel(), RecordedGraph), predictor(StridedModel(), None)
    for image in images(4):
        for options in ({"names": ("fused",)}, {"seeds": True}):
            a, b = (p.predict(image, **options) for p in (eager, graphed))
            assert a.labels.keys() == b.labels.keys()
            assert torch.equal(a.labels["fused"], b.labels["fused"])
            assert (b.offset is None) == (a.offset is None) == ("names" in options)


def test_images_of_ever_changing_sizes_are_never_captured():
    graphed = predictor(StridedModel(), RecordedGraph)
    graphed.settings = InferenceSettings(None, (200, 200))
    for side in range(30, 60):
        graphed.predict(np.zeros((side, 50, 3), np.uint8))
    assert graphed.forward.num_graphs == 0
    for side in range(30, 60):
        for _ in range(2):
            graphed.predict(np.zeros((side, 50, 3), np.uint8))
    assert graphed.forward.num_graphs == MAX_GRAPHS


@pytest.fixture
def logged():
    """Messages of the package, whatever other tests did to its logger."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("ovenet").addHandler(handler)
    yield messages
    logging.getLogger("ovenet").removeHandler(handler)


def test_a_network_that_waits_runs_eagerly_and_says_so_once(logged):
    class Waiting(StridedModel):
        def forward(self, images):
            return super().forward(images + 0 * images.nonzero().sum())

    model = Waiting()
    eager, graphed = predictor(model, None), predictor(model, RecordedGraph)
    for image in images(4):
        assert torch.equal(eager.predict(image).labels["fused"], graphed.predict(image).labels["fused"])
    (warning,) = logged
    assert warning.startswith("the network runs eagerly: RuntimeError")
    assert "TEST.CUDA_GRAPH off" in warning


def test_displacements_are_seen_though_there_are_graphs():
    class Sliding(StridedModel):
        def __init__(self):
            super().__init__()
            self.displacement = Displacement("slide", SRM)

        def forward(self, images):
            self.displacement(torch.ones(len(images), 2, *(n // 2 for n in images.shape[2:])))
            return super().forward(images)

    graphed = predictor(Sliding(), RecordedGraph)
    for image in images(4):
        graphed.predict(image)
        assert list(graphed.predict(image, score_side=30).fields) == ["slide, stride 2"]


@pytest.mark.parametrize(
    ("overrides", "single_scale", "expected"),
    [
        ((), False, True),
        (("TEST.CUDA_GRAPH", "off"), False, False),
        (("TEST.COMPILE", "reduce-overhead"), False, False),
        ((), True, False),
    ],
)
def test_when_there_are_graphs(tiny_cfg, overrides, single_scale, expected):
    cfg = tiny_cfg(*overrides)
    assert build_predictor(build_model(cfg), cfg, CPU, single_scale=single_scale).settings.cuda_graph is expected


def _on_card(config, *overrides, graph):
    cfg = load_config(config, ["MODEL.BACKBONE.PRETRAINED", "", "MODEL.SEED.PRETRAINED", "", *overrides])
    torch.manual_seed(0)
    device = torch.device("cuda", 0)
    model = inference_model(build_model(cfg), cfg, device)
    settings = InferenceSettings(
        768, (256, 512), (0.5, 1.0, 1.25), flip=True, tf32=cfg.TEST.TF32, precision=cfg.TEST.PRECISION, cuda_graph=graph
    )
    return SlidingWindowInferencer(model, settings, device)


CONFIG = "experiments/cityscapes/ovenet_w18s_ocr.yaml"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictions_with_graphs_are_those_without_on_cuda(precision):
    eager, graphed = (_on_card(CONFIG, "TEST.PRECISION", precision, graph=graph) for graph in (False, True))
    for image in images(4, (384, 768)):
        a, b = (p.predict(image, seeds=True, score_side=64) for p in (eager, graphed))
        for name, labels in a.labels.items():
            assert (labels == b.labels[name]).float().mean() > 0.999
            torch.testing.assert_close(a.scores[name], b.scores[name], atol=1e-3, rtol=0)
    assert graphed.forward.num_graphs == 2  # half the size; the eight windows of the others
    assert torch.cuda.memory_allocated() > 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        {"window_size": (256, 512)},
        {"window_size": (256, 512), "scales": (0.5, 1.0, 1.75), "flip": True},
        {"window_size": (128, 200), "stride": (100, 150), "scales": (0.75, 1.0)},
        {"window_size": (128, 200), "base_box": (512, 200), "flip": True, "flip_pairs": ((0, 1),)},
    ],
    ids=["whole", "scales", "stride", "box"],
)
def test_cuda_predicts_what_the_cpu_does(options):
    """In full float32; the scores of this network are within ±1, and so are their roundings of some 1e-6."""
    model, settings = StridedModel(), InferenceSettings(512, **options, cuda_graph=True)
    card = torch.device("cuda", 0)
    cpu = SlidingWindowInferencer(model, settings, CPU, CpuBackend())
    cuda = SlidingWindowInferencer(StridedModel().to(card), settings, card)
    for image in images(3, (240, 500)):
        a, b = (p.predict(image, seeds=True, score_side=128) for p in (cpu, cuda))
        b = b.start_copy()()
        for name, labels in a.labels.items():
            assert b.labels[name].device == CPU
            assert (labels == b.labels[name]).float().mean() > 0.999
            torch.testing.assert_close(b.scores[name], a.scores[name], atol=1e-4, rtol=0)
        torch.testing.assert_close(b.offset, a.offset, atol=1e-4, rtol=0)


@pytest.mark.gpu
def test_what_tf32_and_bf16_change_on_cuda(capsys):
    """Of an untrained network, whose scores lie closer together than those of a trained one."""
    ways = {"TF32": ("TEST.TF32", "True"), "bf16": ("TEST.PRECISION", "bf16")}
    (image,) = images(1, (384, 768))
    exact = _on_card(CONFIG, "TEST.TF32", "False", graph=False).predict(image).labels["fused"]
    for name, overrides in ways.items():
        changed = (_on_card(CONFIG, *overrides, graph=True).predict(image).labels["fused"] != exact).float().mean()
        with capsys.disabled():
            print(f"\n{name} changes the class of {100 * changed:.3f} % of the pixels of an untrained network")
        assert changed < 0.2


@pytest.mark.gpu
def test_predicting_on_cuda_never_waits():
    predictor = _on_card(CONFIG, graph=True)
    for image in images(3, (384, 768)):
        scaled = predictor.scaled_images(image)
        predictor.predict(image, scaled=scaled, seeds=True)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        predictor.predict(image, scaled=scaled, seeds=True).start_copy()
    finally:
        torch.cuda.set_sync_debug_mode("default")
