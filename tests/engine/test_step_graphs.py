"""A step whose passes are one graph: the same training, to the bit, as launched one by one."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from tests.engine.test_step import CPU, batch_of, make_step, parameters
from tests.recorded_graph import RecordedGraph

from ovenet.engine.step import TrainStep
from ovenet.losses import SegmentationCriterion
from ovenet.structures import Batch

NUM_WARMUP = 3
OCR = ("MODEL.NECK.NAME", "concat", "MODEL.HEAD.NAME", "ocr")  # draws dropout


def with_graphs(step, new_graph=RecordedGraph, **settings):
    """The same step, of the same model, whose passes are captured."""
    settings = replace(step.settings, cuda_graph="auto", **settings)
    return TrainStep(
        step.model, step.criterion, step.optimizer, step.schedule, CPU, settings, resting_parts=step.resting_parts,
        new_graph=new_graph,
    )  # fmt: skip


def pair_of_steps(make_cfg, *overrides, **options):
    """One that is launched eagerly, one with graphs, which begin alike."""
    overrides = ("LOSS.BACKEND", "plain", *overrides)
    eager, graphed = (make_step(make_cfg, *overrides, **options) for _ in range(2))
    graphed = with_graphs(graphed)
    for step in (eager, graphed):
        step.model.train()
    return eager, graphed


def assert_same(eager, graphed):
    ours, theirs = graphed.model.state_dict(), eager.model.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    ours, theirs = graphed.optimizer.state_dict()["state"], eager.optimizer.state_dict()["state"]
    for key, state in ours.items():
        assert all(torch.equal(value, theirs[key][name]) for name, value in state.items())
    if eager.ema is not None:
        ours, theirs = graphed.ema.state_dict(), eager.ema.state_dict()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def run_both(eager, graphed, groups, **options):
    """Steps of both on the same batches and random numbers; their losses agree to the bit, read a step later."""
    results = []
    for step in (eager, graphed):
        torch.manual_seed(7)
        results.append([step(batches, **options) for batches in groups])
    for own, expected in zip(*reversed(results), strict=True):
        if expected.loss is None:
            assert own.loss is None
            continue
        assert torch.equal(own.loss.total, expected.loss.total)
        assert own.loss.terms.keys() == expected.loss.terms.keys()
        assert all(torch.equal(own.loss.terms[name], value) for name, value in expected.loss.terms.items())


@pytest.mark.parametrize("name", [pytest.param("branched_seg_hrnet", marks=pytest.mark.ci), "seg_hrnet_ocr"])
def test_graphs_change_no_bit(tiny_cfg, name):
    extra = ("TRAIN.EMA", 0.9, "TRAIN.CLIP_GRAD_NORM", 0.5, "LOSS.USE_OHEM", True, "TRAIN.ACCUMULATE", 2)
    eager, graphed = pair_of_steps(tiny_cfg, *extra, name=name)
    run_both(eager, graphed, [[batch_of(2 * i), batch_of(2 * i + 1)] for i in range(10)])
    assert graphed.passes.graphed.num_graphs == 1
    assert_same(eager, graphed)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_captured_too(small_cfg, precision):
    eager, graphed = pair_of_steps(small_cfg, "TRAIN.PRECISION", precision)
    for step in (eager, graphed):
        step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 2.0**20})
    run_both(eager, graphed, [[batch_of(i)] for i in range(8)])
    assert graphed.passes.graphed.num_graphs == 1
    assert graphed.scaler.get_scale() == eager.scaler.get_scale()
    assert_same(eager, graphed)


def test_the_scale_of_float16_is_read_anew_by_every_replay(small_cfg):
    eager, graphed = pair_of_steps(small_cfg, "TRAIN.PRECISION", "fp16")
    for step in (eager, graphed):
        step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 2.0**10, "growth_interval": 2})
    groups = [[batch_of(i)] for i in range(9)]
    run_both(eager, graphed, groups)
    assert graphed.scaler.get_scale() == eager.scaler.get_scale() > 2.0**12
    for step in (eager, graphed):
        step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 2.0**60})  # overflows
        assert step([batch_of(0)]).flags.is_rescaled
    assert_same(eager, graphed)


def test_a_bad_batch_changes_nothing(small_cfg):
    """Loss, gradients and BatchNorm's statistics are not finite."""
    eager, graphed = pair_of_steps(small_cfg, "TRAIN.EMA", 0.9)
    batches = [replace(batch_of(i), images=batch_of(i).images.float()) for i in range(9)]
    run_both(eager, graphed, [[batch] for batch in batches[:6]])
    batches[6].images[0, 0, 3, 3] = float("nan")
    for step in (eager, graphed):
        before = copy.deepcopy(step.model.state_dict())
        assert step([batches[6]]).loss is None
        assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    run_both(eager, graphed, [[batch] for batch in batches[7:]])
    assert graphed.passes.graphed.num_graphs == 1
    assert_same(eager, graphed)


def test_a_loss_is_not_overwritten_by_the_next_replay(small_cfg):
    _, graphed = pair_of_steps(small_cfg)
    for i in range(5):
        graphed([batch_of(i)])
    result = graphed([batch_of(0)])
    kept = result.loss.total.clone(), {name: value.clone() for name, value in result.loss.terms.items()}
    graphed([batch_of(1)])
    assert torch.equal(result.loss.total, kept[0])
    assert all(torch.equal(value, kept[1][name]) for name, value in result.loss.terms.items())


def test_layers_rest_and_learn_again(tiny_cfg):
    eager, graphed = pair_of_steps(tiny_cfg, "TRAIN.FREEZE_LAYERS", "conv1,stage2")
    groups = [[batch_of(i)] for i in range(6)]
    run_both(eager, graphed, groups, rest=True)
    at_rest = graphed.model.backbone.conv1.weight.clone()
    run_both(eager, graphed, groups[:2], rest=False)
    assert not torch.equal(graphed.model.backbone.conv1.weight, at_rest)
    run_both(eager, graphed, groups[2:4], rest=True)
    assert graphed.passes.graphed.num_graphs == 1
    assert_same(eager, graphed)


def test_other_sizes_have_graphs_of_their_own(small_cfg):
    eager, graphed = pair_of_steps(small_cfg)
    big, small = batch_of(0), batch_of(1)
    small = Batch(small.images[..., :32].contiguous(), small.labels[..., :32].contiguous(), small.names)
    run_both(eager, graphed, [[big], [big], [small], [big], [big], [small], [big]])
    assert graphed.passes.graphed.num_graphs == 1  # the small one is still warming up
    run_both(eager, graphed, [[small], [big], [small], [small], [big]])
    assert graphed.passes.graphed.num_graphs == 2
    assert_same(eager, graphed)


def test_evaluation_mode_is_another_graph(small_cfg):
    eager, graphed = pair_of_steps(small_cfg)
    run_both(eager, graphed, [[batch_of(i)] for i in range(5)])
    for step in (eager, graphed):
        step.model.eval()
    run_both(eager, graphed, [[batch_of(i)] for i in range(5)])
    assert graphed.passes.graphed.num_graphs == 2
    assert_same(eager, graphed)


def test_changes_of_the_pixels_are_inputs_too(small_cfg):
    eager, graphed = pair_of_steps(small_cfg, "TRAIN.ACCUMULATE", 2)
    batches = [replace(batch_of(i), changes=torch.tensor([[i % 2, 5.0 * i], [1.0, -3.0]])) for i in range(12)]
    run_both(eager, graphed, [batches[i : i + 2] for i in range(0, 12, 2)])
    assert graphed.passes.graphed.num_graphs == 1
    assert_same(eager, graphed)


class FadingIn(SegmentationCriterion):
    """Counts half before the fourth iteration."""

    static_from_iteration = 4

    def forward(self, output, labels, *, iteration=None):
        loss = super().forward(output, labels)
        return replace(loss, total=loss.total * (0.5 if iteration < 4 else 1.0))


def test_a_loss_that_changes_with_the_iteration_is_captured_when_it_has_settled(small_cfg, monkeypatch):
    monkeypatch.setattr("ovenet.builders.losses.SegmentationCriterion", FadingIn)
    eager, graphed = pair_of_steps(small_cfg)
    run_both(eager, graphed, [[batch_of(i)] for i in range(4 + NUM_WARMUP)])
    assert graphed.passes.graphed.num_graphs == 0
    run_both(eager, graphed, [[batch_of(i)] for i in range(3)])
    assert graphed.passes.graphed.num_graphs == 1
    assert_same(eager, graphed)


class Refusing(RecordedGraph):
    """Fails in the middle of the backward pass."""

    def capture(self, function):
        def fails():
            function()
            raise RuntimeError("out of\nmemory")

        return super().capture(fails)


@pytest.fixture
def warnings_of(caplog):
    logging.getLogger("ovenet").propagate = True
    return lambda: [record.getMessage() for record in caplog.records if record.module == "cuda_graph"]


def test_a_step_that_cannot_be_captured_is_not_lost(small_cfg, warnings_of):
    eager, graphed = pair_of_steps(small_cfg, "TRAIN.EMA", 0.9, *OCR)
    graphed = with_graphs(graphed, Refusing)
    run_both(eager, graphed, [[batch_of(i)] for i in range(7)])
    assert_same(eager, graphed)
    (warning,) = warnings_of()
    assert "RuntimeError: out of memory;" in warning
    assert "TRAIN.CUDA_GRAPH off" in warning


@pytest.mark.parametrize(
    ("overrides", "settings", "cause"),
    [
        (("MODEL.HEAD.NAME", "conv1x1", "MODEL.HEAD.EMBEDDING", 8), {}, "LOSS.CONTRAST"),
        ((), {"compile": "max-autotune"}, "TRAIN.COMPILE max-autotune"),
    ],
)
def test_what_is_known_not_to_go_is_not_tried(tiny_cfg, warnings_of, overrides, settings, cause):
    if overrides:
        overrides = (*overrides, "LOSS.CONTRAST.WEIGHT", 0.1, "MODEL.SEED.NAME", "shared")
    step = with_graphs(make_step(tiny_cfg, *overrides), **settings)
    assert step.passes.graphed is None
    (warning,) = warnings_of()
    assert warning.startswith("the step runs eagerly")
    assert cause in warning


def test_a_run_that_was_resumed_gets_the_same_bits(small_cfg):
    """It warms up anew, with steps that count."""
    whole, first = (pair_of_steps(small_cfg, "TRAIN.EMA", 0.9, *OCR)[1] for _ in range(2))
    torch.manual_seed(3)
    for i in range(12):
        whole([batch_of(i)])
    torch.manual_seed(3)
    for i in range(6):
        first([batch_of(i)])
    model, state, random = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.state()), torch.get_rng_state()
    second = pair_of_steps(small_cfg, "TRAIN.EMA", 0.9, *OCR)[1]
    second.model.load_state_dict(model)
    second.restore(state, 6)
    torch.set_rng_state(random)
    for i in range(6, 12):
        second([batch_of(i)])
    assert whole.passes.graphed.num_graphs == second.passes.graphed.num_graphs == 1
    assert_same(whole, second)


def test_gradients_are_those_of_the_graph_until_they_are_taken(small_cfg):
    _, graphed = pair_of_steps(small_cfg)
    for i in range(5):
        graphed([batch_of(i)])
    addresses = [p.grad.data_ptr() for p in graphed.model.parameters()]
    graphed([batch_of(5)])
    assert [p.grad.data_ptr() for p in graphed.model.parameters()] == addresses
    assert parameters(graphed).isfinite().all()
