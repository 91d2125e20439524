"""A step: precision, accumulation, clipping, averaged weights, and what must not happen."""

import copy
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.engine.families import num_graphs
from torch.utils._python_dispatch import TorchDispatchMode

from ovenet.builders import build_criterion, build_model, build_optimizer, build_train_step
from ovenet.config import load_config
from ovenet.data.transforms import normalize_images
from ovenet.models.block_compilation import compile_blocks
from ovenet.structures import Batch

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CPU = torch.device("cpu")


def batch_of(seed, size=2):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 255, (size, 3, 32, 48), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 11, (size, 32, 48), generator=generator)
    return Batch(images, labels, tuple("ab"[:size]))


def make_step(tiny_cfg, *overrides, **options):
    cfg = tiny_cfg("TRAIN.LR", 0.05, *overrides, **options)
    torch.manual_seed(0)
    return build_train_step(build_model(cfg), cfg, CPU, [50])


def parameters(step):
    return torch.cat([p.detach().flatten() for p in step.model.parameters()])


def test_accumulated_micro_batches_are_one_batch(tiny_cfg):
    """With as many valid pixels in each, and BatchNorm that does not depend on the batch."""
    whole, parts = (make_step(tiny_cfg, "TRAIN.LR", 0.001) for _ in range(2))  # without BatchNorm's help
    big = batch_of(0, 2)
    small = [Batch(big.images[i : i + 1], big.labels[i : i + 1], (n,)) for i, n in enumerate("ab")]
    for step in (whole, parts):
        step.model.eval()
    for _ in range(3):
        a, b = whole([big]).loss, parts(small).loss
        torch.testing.assert_close(a.total, b.total, atol=1e-6, rtol=1e-6)
        assert set(a.terms) == set(b.terms)
    torch.testing.assert_close(parameters(whole), parameters(parts), atol=2e-5, rtol=0)


def test_the_gradient_is_clipped_to_its_length(tiny_cfg):
    free, clipped = make_step(tiny_cfg), make_step(tiny_cfg, "TRAIN.CLIP_GRAD_NORM", 0.25)
    for step in (free, clipped):
        step.model.train()
        step([batch_of(0)])
    gradients = [torch.cat([p.grad.flatten() for p in step.model.parameters()]) for step in (free, clipped)]
    norms = [g.norm().item() for g in gradients]
    assert norms[0] > 0.3
    assert norms[1] == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(gradients[1], gradients[0] * (0.25 / norms[0]), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_like_float32(tiny_cfg, precision):
    exact, fast = make_step(tiny_cfg), make_step(tiny_cfg, "TRAIN.PRECISION", precision)
    losses = [[step([batch_of(0)]).loss for _ in range(12)] for step in (exact, fast)]
    assert losses[1][0].total.dtype == torch.float32
    totals = [[x.total.item() for x in row if x is not None] for row in losses]
    assert totals[1][0] == pytest.approx(totals[0][0], rel=0.02)
    assert totals[1][-1] < totals[1][0]
    assert all(p.dtype == torch.float32 for p in fast.model.parameters())


def test_averaged_weights_follow_the_formula(tiny_cfg):
    step = make_step(tiny_cfg, "TRAIN.EMA", 0.9)
    step.model.train()
    step([batch_of(0)])
    expected = {n: v.clone() for n, v in step.model.state_dict().items()}  # the first average is the first model
    for seed in (1, 2):
        step([batch_of(seed)])
        for name, value in step.model.state_dict().items():
            if value.is_floating_point():
                expected[name] = 0.9 * expected[name] + 0.1 * value
    for name, value in step.ema.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def test_a_skipped_step_leaves_the_average(tiny_cfg):
    step = make_step(tiny_cfg, "TRAIN.EMA", 0.9)
    step([batch_of(0)])
    before = copy.deepcopy(step.ema.state_dict())
    step.criterion.settings = replace(step.criterion.settings, lambda_=float("nan"))
    assert step([batch_of(1)]).loss is None
    after = step.ema.state_dict()
    assert {name for name, value in after.items() if not torch.equal(value, before[name])} <= {"n_averaged"}


def test_a_skipped_step_leaves_the_statistics_and_the_momentum(tiny_cfg):
    """Also when it is the very first one."""
    step = make_step(tiny_cfg)
    step.model.train()
    expected = make_step(tiny_cfg)
    expected.model.train()
    for group in (*step.optimizer.param_groups, *expected.optimizer.param_groups):
        group["lr"] = 0.01
    for each in (step, expected):
        each.schedule.step = lambda: None
    for seed in range(3):
        before = copy.deepcopy(step.model.state_dict())
        settings = step.criterion.settings
        step.criterion.settings = replace(settings, lambda_=float("nan"))
        assert step([batch_of(9)]).loss is None
        step.criterion.settings = settings
        assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
        step([batch_of(seed)])
        expected([batch_of(seed)])
    states = [s.optimizer.state_dict()["state"] for s in (step, expected)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[1].items():
        assert torch.equal(states[0][key]["momentum_buffer"], state["momentum_buffer"])
    assert torch.equal(parameters(step), parameters(expected))


def test_statistics_that_are_not_finite_are_undone(tiny_cfg):
    step = make_step(tiny_cfg)
    step.model.train()
    step([batch_of(0)])
    before = copy.deepcopy(step.model.state_dict())
    with torch.no_grad():
        weight = step.model.backbone.conv1.weight
        kept = weight[0].clone()
        weight[0] = float("nan")  # BatchNorm's statistics become NaN in the forward pass
    assert step([batch_of(1)]).loss is None
    assert step.model.backbone.bn1.running_mean.isfinite().all()
    with torch.no_grad():
        weight[0] = kept
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())


class _WaitCounter(TorchDispatchMode):
    """Counts operations whose result, or its shape, has to come from the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        with_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.WAITING or with_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["branched_seg_hrnet", "seg_hrnet_ocr"])
def test_a_step_never_waits_for_the_device(tiny_cfg, name):
    """The blocked loss alone may look at a count, for its second pass; the plain one stands for Triton's here."""
    extra = ("TRAIN.CLIP_GRAD_NORM", 1.0, "LOSS.USE_OHEM", True, "LOSS.BACKEND", "plain")
    step = make_step(tiny_cfg, *extra, name=name)
    step.model.train()
    with _WaitCounter() as waits:
        result = step([batch_of(0), batch_of(1)])
    assert waits.found == []
    with _WaitCounter() as waits:
        assert result._counts.sum().item() == 0
    assert waits.found == ["_local_scalar_dense"]  # the counter counts


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["auto", "off"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_on_cuda_never_waits(tiny_cfg, precision, graph):
    extra = ("TRAIN.PRECISION", precision, "TRAIN.CUDA_GRAPH", graph)
    cfg = tiny_cfg("TRAIN.EMA", 0.9, "TRAIN.CLIP_GRAD_NORM", 1.0, "LOSS.USE_OHEM", True, *extra)
    device = torch.device("cuda")
    step = build_train_step(build_model(cfg).to(device), cfg, device, [50])
    step.model.train()
    batches = [Batch(b.images.pin_memory(), b.labels.pin_memory(), b.names) for b in map(batch_of, range(3))]
    for _ in range(4 if graph == "auto" else 1):
        assert step(batches[:1]).loss is not None  # tables are made, kernels compiled, graphs captured
    assert num_graphs(step) == (graph == "auto")
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = [step([batch]) for batch in batches[1:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(result.loss is not None for result in results)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param("seg_hrnet_ocr", "eager", marks=pytest.mark.ci),  # finds every break; the slower makes both graphs
        pytest.param("seg_hrnet_ocr", "aot_eager", marks=pytest.mark.slow),
        pytest.param("branched_seg_hrnet", "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_model_and_plain_loss_compile_without_graph_breaks(tiny_cfg, name, backend):
    cfg = tiny_cfg("LOSS.USE_OHEM", True, "LOSS.BACKEND", "plain", name=name)
    model, criterion = build_model(cfg).train(), build_criterion(cfg)
    batch = batch_of(0)

    def loss(images, labels):
        return criterion(model(images), labels).total

    images = normalize_images(batch.images)
    expected = loss(images, batch.labels)
    compiled = torch.compile(loss, backend=backend, fullgraph=True, dynamic=False)(images, batch.labels)
    compiled.backward()
    torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-4)  # dropout is drawn anew


def test_a_gradient_that_is_not_finite_skips_a_step_with_a_finite_loss(tiny_cfg):
    step = make_step(tiny_cfg)
    step([batch_of(0)])
    before = parameters(step).clone()
    handle = step.model.backbone.conv1.weight.register_hook(lambda gradient: gradient * float("inf"))
    assert step([batch_of(1)]).loss is None
    assert torch.equal(parameters(step), before)
    handle.remove()
    assert step([batch_of(1)]).loss is not None
    assert not torch.equal(parameters(step), before)


def test_float16_gradients_that_overflow_are_scaled_down_and_not_counted(tiny_cfg):
    step = make_step(tiny_cfg, "TRAIN.PRECISION", "fp16")
    step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 2.0**60})
    before = parameters(step).clone()
    result = step([batch_of(0)])
    assert result.loss is None
    assert result.flags.is_rescaled
    assert step.scaler.get_scale() == 2.0**59
    assert torch.equal(parameters(step), before)
    step.criterion.settings = replace(step.criterion.settings, lambda_=float("nan"))
    assert not step([batch_of(0)]).flags.is_rescaled  # that is no matter of scale
    assert not make_step(tiny_cfg)([batch_of(0)]).flags.is_rescaled


def test_layers_rest_while_they_are_frozen(tiny_cfg):
    step = make_step(tiny_cfg, "TRAIN.FREEZE_LAYERS", "conv1,stage2")
    before = {n: p.detach().clone() for n, p in step.model.named_parameters()}
    step([batch_of(0)], rest=True)
    changed = {n for n, p in step.model.named_parameters() if not torch.equal(p, before[n])}
    frozen = {n for n in before if n.startswith(("backbone.conv1.", "backbone.stage2."))}
    assert changed
    assert frozen
    assert not changed & frozen
    step([batch_of(1)])
    assert any(not torch.equal(p, before[n]) for n, p in step.model.named_parameters() if n in frozen)
    with pytest.raises(ValueError, match=r"TRAIN\.FREEZE_LAYERS: 'stage9'.*'backbone\.stage9'"):
        make_step(tiny_cfg, "TRAIN.FREEZE_LAYERS", "stage9")


def test_norm_and_bias_may_be_spared_the_weight_decay(tiny_cfg):
    cfg = tiny_cfg("TRAIN.NO_DECAY_ON_NORM", True, "TRAIN.WD", 0.25)
    model = build_model(cfg)
    groups = {group["weight_decay"]: group["params"] for group in build_optimizer(model, cfg).param_groups}
    assert set(groups) == {0.0, 0.25}
    assert {p.ndim for p in groups[0.0]} == {1}
    assert {p.ndim for p in groups[0.25]} == {4}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_the_learning_rate_warms_up(tiny_cfg):
    step = make_step(tiny_cfg, "TRAIN.WARMUP", 4)
    rates = []
    for _ in range(7):
        rates.append(step.optimizer.param_groups[0]["lr"])
        step.optimizer.step()
        step.schedule.step()
    expected = [0.05 * min(1, (i + 1) / 5) * (1 - i / 50) ** 0.9 for i in range(7)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("name", ["branched_seg_hrnet", "seg_hrnet_ocr"])
def test_recomputed_activations_change_no_bit(tiny_cfg, name):
    """Dropout lies in the head, outside of what is computed twice."""
    kept, again = (make_step(tiny_cfg, "TRAIN.CHECKPOINT_ACTIVATIONS", flag, name=name) for flag in (False, True))
    for seed in range(3):
        for step in (kept, again):
            step.model.train()
            torch.manual_seed(seed)
            step([batch_of(seed)])
    ours, theirs = again.model.state_dict(), kept.model.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())  # BatchNorm's statistics among them


def test_recomputing_needs_less_memory():
    """Bytes that autograd keeps between forward and backward, of HRNet-W18-small-v2's backbone."""

    def saved_bytes(flag):
        overrides = ["TRAIN.CHECKPOINT_ACTIVATIONS", str(flag)]
        backbone = build_model(load_config(EXPERIMENTS / "camvid/hrnet_w18_small_v2.yaml", overrides)).backbone.train()
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            backbone(torch.randn(1, 3, 64, 64))
        return total

    assert saved_bytes(True) < 0.5 * saved_bytes(False)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_blocks_train_as_eager_ones(tiny_cfg, monkeypatch, checkpointed):
    """Without the compiler itself, which takes minutes for shapes that nobody trains."""
    monkeypatch.setattr("ovenet.engine.parallel.compile_blocks", partial(compile_blocks, backend="aot_eager"))
    monkeypatch.setattr("ovenet.engine.parallel.compiler_problem", lambda device: "")
    extra = ("TRAIN.EMA", 0.5, "TRAIN.LR", 0.01, "TRAIN.CHECKPOINT_ACTIVATIONS", checkpointed)
    eager, compiled = make_step(tiny_cfg, *extra), make_step(tiny_cfg, *extra, "TRAIN.COMPILE", "blocks")
    for step in (eager, compiled):
        step.model.train()
    for seed in range(3):
        expected, loss = (step([batch_of(seed)]).loss.total for step in (eager, compiled))
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-4)
    theirs = eager.ema.state_dict()
    for name, value in compiled.ema.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-3)


def test_compiling_blocks_where_there_are_none_is_told(tiny_cfg, caplog, monkeypatch):
    logging.getLogger("ovenet").propagate = True
    monkeypatch.setattr("ovenet.engine.parallel.compile_blocks", lambda model: 0)
    monkeypatch.setattr("ovenet.engine.parallel.compiler_problem", lambda device: "")
    make_step(tiny_cfg, "TRAIN.COMPILE", "blocks")
    assert "TRAIN.COMPILE is blocks" in caplog.text


def test_the_average_is_updated_without_a_look_at_the_device(tiny_cfg):
    step = make_step(tiny_cfg, "TRAIN.EMA", 0.9)
    step([batch_of(0)])
    is_bad = torch.tensor(False)

    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Names() as names:
        step.ema.update(is_bad)
    assert "_foreach_add_" in names.found
    assert not names.found & {"_to_copy", "_local_scalar_dense", "is_nonzero", "copy_"}
    assert step.ema.n_averaged.device.type == "cpu"
    assert step.ema.n_averaged == 2
