"""Every family of models trains: what a capture needs, checked without a card, and a card's losses beside the CPU's."""

import math
import traceback
from itertools import product

import pytest
import torch
from tests.engine.families import FAMILIES, HEIGHT, RIVALS, TOLERANCE, WIDTH, family_config, losses_of, num_graphs
from tests.recorded_graph import RecordedGraph
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ovenet.builders import build_model, build_train_step
from ovenet.data.transforms import _mean_and_std
from ovenet.losses import fused
from ovenet.structures import Batch
from ovenet.utils.environment import tf32
from ovenet.utils.meta import meta_device

CPU = torch.device("cpu")
_LOSSES_ON_CPU = {}
WITHOUT_GRAPHS = {"srm_crm"}  # its contrast draws as many pixels as there are
COSTLY = ("offseg", "srm_crm")  # of many small operations


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


SEED_OPTIONS = (
    "MODEL.SEED.CORRECTION", True, "MODEL.SEED.CORRECT_FIRST", True, "MODEL.SEED.NUM_PASSES", 2,
    "MODEL.SEED.NUM_SEEDS", 3, "MODEL.SEED.SEED_WEIGHTS", "features", "MODEL.SEED.SEES_SCORES", True,
    "MODEL.SEED.UPSAMPLING", 2,
)  # fmt: skip


def random_batch(device):
    images = torch.empty(2, HEIGHT, WIDTH, 3, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    labels = torch.empty(2, HEIGHT, WIDTH, dtype=torch.int16, device=device)
    return Batch(images, labels, (), changes=torch.empty(2, 7, device=device))


def without_values(tiny_cfg, family, *overrides):
    """A config and its model on the meta device."""
    cfg = family_config(tiny_cfg, family, "LOSS.BACKEND", "plain", "LOSS.USE_OHEM", True, *overrides)
    with meta_device():
        return cfg, build_model(cfg).train()


def of_ci(family, *rest):
    return pytest.param(family, *rest, marks=pytest.mark.ci)


@pytest.mark.parametrize("family", [of_ci(family) if family in COSTLY else family for family in FAMILIES])
def test_passes_neither_wait_nor_copy_from_the_cpu(tiny_cfg, family):
    """On the meta device, which has no values: forward, loss and backward."""
    device = torch.device("meta")
    cfg, model = without_values(tiny_cfg, family)
    step = build_train_step(model, cfg, device, [50])
    batch = random_batch(device)
    step.passes.run_eager(*batch.tensors)  # tables are made
    with _Crossings() as crossings:
        step.passes.run_eager(*batch.tensors)
    assert crossings.num_operations > 500
    assert crossings.found == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tables that are kept for the card would have no values")
@pytest.mark.skipif(torch.__version__ < "2.9", reason="tensors that say they were on a card look for it")
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        *(of_ci(family, ()) if family in COSTLY else (family, ()) for family in FAMILIES),
        of_ci("hrnet_ocr_fork", ("LOSS.INTERIOR", 0.1)),
        of_ci("hrnet_ocr_fork", ("LOSS.CONFIDENCE_TARGET", "better_scores")),
        of_ci("hrnet_ocr_fork", ("LOSS.BOUNDARY_WEIGHT", 2.0)),
        ("timm_neck", SEED_OPTIONS),
        *((rival, ()) for rival in RIVALS),
    ],
)
def test_forward_passes_on_cuda_neither_wait_nor_copy(tiny_cfg, family, overrides):
    """On tensors that say they were on a card, whose values are copied there; backward passes look for the card."""
    device = torch.device("cuda:0")
    cfg, model = without_values(tiny_cfg, family, *overrides)
    _mean_and_std.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = build_train_step(model.to_empty(device=device), cfg, device, [50])
        batch = random_batch(device)
        step.passes.forward(batch)
        with _Crossings() as crossings:
            loss = step.passes.forward(batch)
    _mean_and_std.cache_clear()
    assert loss.total.device == device
    assert crossings.num_operations > 500
    assert crossings.found == set()


@pytest.mark.skipif(torch.__version__ < "2.9", reason="tensors that say they were on a card look for it")
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
    assert num_graphs(step) == (family not in WITHOUT_GRAPHS)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("family", "precision", "graphs"),
    [
        *((family, *rest) for family in FAMILIES for rest in product(("fp32", "bf16", "fp16"), (False, True))),
        *((rival, "bf16", True) for rival in RIVALS if rival != "point_rend"),  # it draws its points
    ],
)
def test_a_family_trains_on_cuda_as_on_the_cpu(tiny_cfg, family, precision, graphs):
    if family not in _LOSSES_ON_CPU:
        _LOSSES_ON_CPU[family] = losses_of(family_config(tiny_cfg, family), CPU, graphs=False)[0]
    expected = _LOSSES_ON_CPU[family]
    cfg = family_config(tiny_cfg, family, "TRAIN.PRECISION", precision)
    with tf32(False):
        losses, step = losses_of(cfg, torch.device("cuda", torch.cuda.current_device()), graphs=graphs)
    assert num_graphs(step) == (graphs and family not in WITHOUT_GRAPHS)
    for own, loss in zip(losses, expected, strict=True):
        if own is not None:  # float16 may scale down first
            assert own == pytest.approx(loss, rel=TOLERANCE[precision])
    assert precision == "fp16" or None not in losses
    assert not fused._failed  # the kernels' loss, not the blocked one
