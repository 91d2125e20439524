"""Every family of models trains: what a capture needs, checked without a card, and a card's losses beside the CPU's."""

import math
import traceback

import pytest
import torch
from tests.engine.families import FAMILIES, HEIGHT, WIDTH, batch_of, family_config, family_step, losses_of
from tests.recorded_graph import RecordedGraph
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ovenet.builders import build_model, build_train_step
from ovenet.data.transforms import _mean_and_std
from ovenet.engine.trainer import Phase
from ovenet.structures import Batch
from ovenet.utils.environment import tf32

CPU = torch.device("cpu")
TOLERANCE = {"fp32": 2e-3, "bf16": 3e-2, "fp16": 1e-2}  # relative, of a loss after up to two steps
WITHOUT_GRAPHS = {"srm_crm"}  # its contrast draws as many pixels as there are


class _Crossings(TorchDispatchMode):
    """Where something is copied between the CPU and the device, or the CPU asks for a value."""

    def __init__(self):
        super().__init__()
        self.found = set()
        self.num_operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.num_operations += 1
        read, made = (
            {x.device.type for x in tree_leaves(tree) if isinstance(x, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        name = func.overloadpacket.__name__
        copies = name in ("_to_copy", "copy_") and len(read | made) > 1
        if copies or name in ("_local_scalar_dense", "nonzero", "lift_fresh"):
            places = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "/ovenet/" in f.filename]
            self.found.add((name, places[-1] if places else ""))
        return result


def random_batch(device):
    images = torch.empty(2, HEIGHT, WIDTH, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    labels = torch.empty(2, HEIGHT, WIDTH, dtype=torch.int16, device=device)
    return Batch(images, labels, (), changes=torch.empty(2, 7, device=device))


def without_values(tiny_cfg, family, *overrides):
    """A config and its model on the meta device."""
    cfg = family_config(tiny_cfg, family, "LOSS.BACKEND", "plain", "LOSS.USE_OHEM", True, *overrides)
    with torch.device("meta"):
        return cfg, build_model(cfg).train()


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_neither_wait_nor_copy_from_the_cpu(tiny_cfg, family):
    """On the meta device, which has no values: forward, loss and backward."""
    device = torch.device("meta")
    cfg, model = without_values(tiny_cfg, family)
    step = build_train_step(model, cfg, device, [Phase(range(25), None, 2)])
    batch = random_batch(device)
    step._passes(*batch.tensors)  # tables are made
    with _Crossings() as crossings:
        step._passes(*batch.tensors)
    assert crossings.num_operations > 500
    assert crossings.found == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tables that are kept for the card would have no values")
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        *((family, ()) for family in FAMILIES),
        ("hrnet_ocr_fork", ("LOSS.OFFSET", 0.1)),
        ("hrnet_ocr_fork", ("LOSS.OFFSET", 0.1, "LOSS.OFFSET_TARGET", "right_pixel")),
        ("hrnet_ocr_fork", ("LOSS.CONFIDENCE_TARGET", "better_scores")),
    ],
)
def test_forward_passes_on_cuda_neither_wait_nor_copy(tiny_cfg, family, overrides):
    """On tensors that say they were on a card, whose values are copied there; backward passes look for the card."""
    device = torch.device("cuda:0")
    cfg, model = without_values(tiny_cfg, family, *overrides)
    _mean_and_std.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = build_train_step(model.to_empty(device=device), cfg, device, [Phase(range(25), None, 2)])
        batch = random_batch(device)
        step._forward(batch)
        with _Crossings() as crossings:
            loss = step._forward(batch)
    _mean_and_std.cache_clear()
    assert loss.total.device == device
    assert crossings.num_operations > 500
    assert crossings.found == set()


def test_a_crossing_is_seen():
    with FakeTensorMode(), _Crossings() as crossings:
        x = torch.ones(3, device="cuda:0")
        x.new_tensor([1.0, 2.0])
    assert {name for name, _ in crossings.found} == {"lift_fresh", "_to_copy"}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_the_same_with_graphs(tiny_cfg, family):
    cfg = family_config(tiny_cfg, family, "LOSS.BACKEND", "plain")
    eager, _ = losses_of(cfg, CPU, graphs=False)
    graphed, step = losses_of(cfg, CPU, graphs=True, new_graph=RecordedGraph)
    assert graphed == eager
    assert all(math.isfinite(loss) for loss in eager)
    assert step._graphed.num_graphs == (family not in WITHOUT_GRAPHS)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_on_cuda_as_on_the_cpu(tiny_cfg, family, precision, graphs):
    expected, _ = losses_of(family_config(tiny_cfg, family), CPU, graphs=False)
    cfg = family_config(tiny_cfg, family, "TRAIN.PRECISION", precision)
    with tf32(False):
        losses, step = losses_of(cfg, torch.device("cuda", torch.cuda.current_device()), graphs=graphs)
    assert step._graphed.num_graphs == (graphs and family not in WITHOUT_GRAPHS)
    for own, loss in zip(losses, expected, strict=True):
        if own is not None:  # float16 may scale down first
            assert own == pytest.approx(loss, rel=TOLERANCE[precision])
    assert precision == "fp16" or None not in losses


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("freeze", [False, True])
def test_graphs_on_cuda_change_no_bit(tiny_cfg, monkeypatch, precision, freeze):
    """With deterministic convolutions: losses, weights, averages, and the random numbers of dropout."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    extra = ("TRAIN.PRECISION", precision, "TRAIN.EMA", 0.9, "TRAIN.CLIP_GRAD_NORM", 1.0)
    cfg = family_config(tiny_cfg, "hrnet_ocr_fork", *extra, "TRAIN.FREEZE_LAYERS", "conv1")
    device = torch.device("cuda", torch.cuda.current_device())
    outcomes = []
    for graphs in (False, True):
        step = family_step(cfg, device, graphs=graphs, num_warmup=3, dropout=True)
        torch.cuda.manual_seed(1)
        results = [step([batch_of(n), batch_of(n + 1)], freeze=freeze and n % 3 == 0) for n in range(9)]
        losses = [float("nan") if r.loss is None else r.loss.total.item() for r in results]
        tensors = [x.cpu() for x in (*step.model.state_dict().values(), *step.ema.state_dict().values())]
        outcomes.append((losses, tensors, torch.cuda.get_rng_state()))
    (losses, tensors, state), (own_losses, own_tensors, own_state) = outcomes
    assert own_losses == pytest.approx(losses, rel=0, abs=0, nan_ok=True)
    assert all(torch.equal(own, tensor) for own, tensor in zip(own_tensors, tensors, strict=True))
    assert torch.equal(own_state, state)


@pytest.mark.gpu
def test_a_resumed_run_on_cuda_gets_the_same_bits(tiny_cfg, monkeypatch):
    """Twelve steps, and six and six: the second half warms up anew."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    cfg = family_config(tiny_cfg, "hrnet_ocr_fork", "TRAIN.EMA", 0.9)  # its head draws dropout
    device = torch.device("cuda", torch.cuda.current_device())

    def make():
        torch.manual_seed(0)
        step = build_train_step(build_model(cfg).to(device).train(), cfg, device, [Phase(range(25), None, 2)])
        assert step.settings.cuda_graph
        return step

    whole = make()
    torch.cuda.manual_seed(1)
    for number in range(12):
        whole([batch_of(number)])
    first = make()
    torch.cuda.manual_seed(1)
    for number in range(6):
        first([batch_of(number)])
    weights = {name: value.cpu() for name, value in first.model.state_dict().items()}
    state, random = first.state(), torch.cuda.get_rng_state()
    second = make()
    second.model.load_state_dict(weights)
    second.restore(state, 6)
    torch.cuda.set_rng_state(random)
    for number in range(6, 12):
        second([batch_of(number)])
    assert whole._graphed.num_graphs == first._graphed.num_graphs == second._graphed.num_graphs == 1
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_blocks_go_with_graphs(tiny_cfg, precision):
    cfg = family_config(tiny_cfg, "hrnet_fcn", "TRAIN.COMPILE", "blocks", "TRAIN.PRECISION", precision)
    device = torch.device("cuda", torch.cuda.current_device())
    launched, _ = losses_of(cfg, device, num_steps=6, graphs=False)
    captured, step = losses_of(cfg, device, num_steps=6, graphs=True, num_warmup=3)
    assert step._graphed.num_graphs == 1
    assert captured == pytest.approx(launched, rel=TOLERANCE[precision])


def _ask(module, inputs, output):
    assert output.fused[-1].sum().item() < 1e9


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_on_cuda_is_not_lost(tiny_cfg, monkeypatch):
    """A loss that asks for a value: the same training as without graphs, and random numbers go on."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    cfg = family_config(tiny_cfg, "hrnet_ocr_fork")
    device = torch.device("cuda", torch.cuda.current_device())
    outcomes = []
    for graphs in (False, True):
        step = family_step(cfg, device, graphs=graphs, dropout=True)
        step.model.register_forward_hook(_ask)
        torch.cuda.manual_seed(1)
        losses = [step([batch_of(number)]).loss.total.item() for number in range(5)]
        outcomes.append((losses, torch.cuda.get_rng_state()))
        assert step._graphed.num_graphs == 0
    assert outcomes[0][0] == outcomes[1][0]
    assert torch.equal(outcomes[0][1], outcomes[1][1])
