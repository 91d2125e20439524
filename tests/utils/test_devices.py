"""The choice of a device, and what is known of mps and xpu without one: nothing here runs on them."""

import inspect
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchgen
from tests.conftest import tiny_settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ovenet.builders import build_criterion, build_model, training
from ovenet.commands import plan
from ovenet.config import load_config
from ovenet.engine.averaging import MovingAverage
from ovenet.engine.buffer_guard import BufferGuard
from ovenet.engine.step import TrainStep
from ovenet.errors import UserError
from ovenet.evaluation.class_counts import count_rows
from ovenet.evaluation.metrics import confusion_counts
from ovenet.geometry import separable
from ovenet.inference.backend import CudaBackend
from ovenet.utils import distributed, seeding
from ovenet.utils.distributed import choose_device
from ovenet.utils.environment import describe_environment


@pytest.fixture
def found(monkeypatch):
    """A function that makes torch report devices that are not there."""

    def report(kind: str | None, count: int = 1, version: str = "2.13.0") -> None:
        set_index = []
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch.accelerator, "set_device_index", set_index.append)
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))

    return report


@pytest.mark.parametrize(
    ("kind", "taken", "reason"),
    [
        (None, "cpu", "no CUDA device"),
        ("cuda", "cuda:0", "a CUDA device"),
        ("mps", "cpu", "DEVICE mps"),
        ("xpu", "cpu", "DEVICE xpu"),
        ("mtia", "cpu", "no CUDA device"),
    ],
)
def test_auto_takes_what_was_run_and_says_why(found, caplog, kind, taken, reason):
    found(kind)
    with caplog.at_level("INFO", "ovenet"):
        assert choose_device("auto") == torch.device(taken)
    assert reason in caplog.text


def test_what_was_never_run_is_taken_by_name_with_a_warning(found, caplog):
    for kind in ("mps", "xpu"):
        found(kind)
        assert choose_device(kind) == torch.device(kind, 0)
        assert f"DEVICE {kind} was never run" in caplog.text
    found("cuda")
    caplog.clear()
    assert choose_device("cuda") == torch.device("cuda", 0)
    assert not caplog.text


@pytest.mark.parametrize("asked", ["cuda", "mps", "xpu"])
def test_a_device_that_is_not_there_is_named(found, asked):
    found(None)
    with pytest.raises(UserError, match=rf"DEVICE is {asked}, .*no {asked.upper()} device; set DEVICE cpu"):
        choose_device(asked)
    other = "xpu" if asked == "cuda" else "cuda"
    found(other)
    with pytest.raises(UserError, match=rf"no {asked.upper()} device; set DEVICE {other} or cpu"):
        choose_device(asked)
    assert choose_device("cpu") == torch.device("cpu")


def test_each_process_takes_its_own_device(found, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    found("xpu", count=2)
    assert choose_device("xpu") == torch.device("xpu", 1)
    found("xpu", count=1)
    with pytest.raises(UserError, match=r"process 1 .*XPU.* 1 .*fewer processes"):
        choose_device("xpu")
    found("mps")
    with pytest.raises(UserError, match=r"DEVICE is mps.*one process"):
        choose_device("mps")
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: False)
    with (
        pytest.raises(UserError, match=r"no xccl.* xpu.*one process"),
        distributed.process_group(torch.device("xpu", 1)),
    ):
        pass


@pytest.mark.parametrize(("version", "is_new"), [("2.6.0", False), ("2.12.1", False), ("2.13.0", True), ("3.0", True)])
def test_mps_needs_a_torch_that_has_the_gradient_of_seeds(found, version, is_new):
    found("mps", version=version)
    with nullcontext() if is_new else pytest.raises(UserError, match=rf"mps.*{re.escape(version)}.*2\.13"):
        assert choose_device("mps").type == "mps"


def test_the_description_of_the_machine_names_its_devices(found, monkeypatch):
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda index: f"card {index}")
    for kind, count, names in ((None, 0, []), ("mps", 1, ["mps"]), ("xpu", 2, ["card 0", "card 1"])):
        found(kind, count)
        assert describe_environment(Path())["devices"] == names


def test_random_states_are_read_as_each_device_has_them():
    for kind, num_places in (("mps", 0), ("xpu", 1), ("cuda", 1)):
        module, places = torch.get_device_module(kind), seeding._place(torch.device(kind, 0))
        assert len(places) == num_places
        inspect.signature(module.get_rng_state).bind(*places)
        inspect.signature(module.set_rng_state).bind(torch.get_rng_state(), *places)


@pytest.mark.parametrize(("kind", "is_bad", "num_steps"), [("mps", 1, 0), ("mps", 0, 1), ("xpu", 1, 1), ("cpu", 1, 1)])
def test_the_host_leaves_a_bad_step_out_where_the_optimizer_cannot(kind, is_bad, num_steps):
    steps = []
    step = SimpleNamespace(
        device=torch.device(kind),
        optimizer=SimpleNamespace(step=lambda: steps.append(1)),
        scaler=SimpleNamespace(update=lambda: None),
        _guard=SimpleNamespace(rollback_if=lambda is_bad: None),
        ema=None,
    )
    TrainStep._update(step, torch.tensor([is_bad, 0, 0, 0, 0], dtype=torch.int32))
    assert len(steps) == num_steps


def test_settings_that_a_device_cannot_do_are_named_before_the_run(write_config, monkeypatch):
    path = write_config(tiny_settings())
    with pytest.raises(UserError, match=r"LOSS\.BACKEND is triton.*CUDA.*xpu"):
        training.check_device(load_config(path, ["LOSS.BACKEND", "triton"]), torch.device("xpu"))
    compiled, mps = load_config(path, ["TRAIN.COMPILE", "default"]), torch.device("mps")
    monkeypatch.setattr(training, "compiler_problem", lambda device: "" if device.type == "xpu" else "no backend")
    training.check_device(compiled, torch.device("xpu"))
    with pytest.raises(UserError, match=r"TRAIN\.COMPILE is default.*mps.*no backend"):
        training.check_device(compiled, mps)
    training.check_device(load_config(path, ["TRAIN.COMPILE", "blocks"]), mps)
    monkeypatch.setattr(plan, "choose_device", lambda name: mps)
    monkeypatch.setattr(sys, "argv", ["ovenet plan", "--cfg", str(path)])
    with pytest.raises(UserError, match=r"DEVICE is mps.*cpu and cuda"):
        plan.main()


class Operators(TorchDispatchMode):
    """Notes the operators that give a tensor on the meta device, which takes the same ways as mps and xpu."""

    def __init__(self):
        super().__init__()
        self.names, self.in_float64 = set(), set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        output = operator(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.device.type == "meta"]
        if tensors:
            self.names.add(operator.name().removeprefix("aten::"))
        if any(x.dtype == torch.float64 for x in tensors):
            self.in_float64.add(str(operator))
        return output


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    """Operators of a training step and of counting a prediction, on a device that is neither CPU nor CUDA."""
    path = tmp_path_factory.mktemp("devices") / "config.yaml"
    path.write_text(str(tiny_settings()))
    cfg, noted = load_config(path, ["MODEL.HEAD.NAME", "ocr"]), Operators()
    model, criterion = build_model(cfg).to("meta").train(), build_criterion(cfg).to("meta")
    with pytest.MonkeyPatch.context() as patch, noted:
        patch.setattr(separable, "_full_precision", lambda device: nullcontext())  # meta has no autocast
        guard, average, is_bad = BufferGuard(model), MovingAverage(model, 0.9), torch.zeros((), device="meta") > 0
        guard.snapshot()
        labels = torch.zeros(2, 32, 48, device="meta", dtype=torch.int64)
        criterion(model(torch.rand(2, 3, 32, 48, device="meta")), labels, iteration=0).total.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), 1.0, torch.nn.utils.get_total_norm(gradients))
        guard.rollback_if(is_bad)
        for _ in range(2):
            average.update(is_bad)
        with torch.inference_mode():
            backend, maps = CudaBackend(), torch.rand(8, 5, 9, device="meta")
            rows = backend.resize_rows(maps, (32, 40), range(3, 20), align_corners=True)
            shares = backend.softmax(rows).contiguous()
            best = backend.best_class(shares)
            count_rows(shares, best, shares.amax(dim=1), best.clone())
            confusion_counts(best, best.clone(), 5, ignore_label=255)
    noted.names |= {"_fused_sgd_", "_fused_adamw_"}  # which meta lacks
    return noted


def test_nothing_is_computed_in_float64_which_mps_lacks(operators):
    assert not operators.in_float64


@pytest.mark.skipif(torch.__version__ < distributed._OLDEST_TORCH_FOR_MPS, reason="mps is refused with this torch")
def test_torch_lists_a_kernel_of_mps_for_every_operator(operators):
    entries = kernels()
    assert len(operators.names) > 80
    assert not {name for name in operators.names if not has_mps(name, entries)}
    assert not has_mps("_fused_adagrad_", entries)  # one that it lacks


def kernels() -> dict[str, str]:
    """What torch says of each operator in `native_functions.yaml`, which comes with it."""
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = path.read_text(encoding="utf-8").split("\n- func: ")[1:]
    return {entry.split("(")[0]: re.sub(r"#.*", "", entry) for entry in entries}


def has_mps(name: str, entries: dict[str, str]) -> bool:
    """Whether an operator has a kernel of mps, or is made of others."""
    entry = entries[name]
    delegate = re.search(r"structured_delegate: (\S+)", entry)
    if delegate:
        return has_mps(delegate[1], entries)
    _, _, dispatch = entry.partition("\n  dispatch:")
    return not dispatch or bool(re.search(r"\b(MPS|Composite\w+)\b.*:", dispatch))
