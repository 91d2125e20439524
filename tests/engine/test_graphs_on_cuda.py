"""Steps as one CUDA graph, on a card: the same training as launched one by one, and no run lost to a capture.

torch's backward passes of bilinear resizing and of sampling add up in any order on a card, so that two eager trainings
may differ in the last bits themselves. The same bits are demanded where those two have them, else the same losses.
"""

import pytest
import torch
from tests.engine.families import TOLERANCE, batch_of, family_config, family_step, losses_of, num_graphs

from ovenet.builders import build_model, build_train_step

CLOSE = 1e-3  # relative, of losses of trainings whose last bits differ


@pytest.fixture
def device(monkeypatch):
    """A card whose convolutions repeat to the bit."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    return torch.device("cuda", torch.cuda.current_device())


def assert_same(own, first, second):
    """Losses and tensors of a training are those of two others, as far as these are the same."""
    repeats = first[0] == second[0] and all(map(torch.equal, first[1], second[1]))
    assert own[0] == pytest.approx(first[0], rel=0 if repeats else CLOSE, abs=0, nan_ok=True)
    assert not repeats or all(map(torch.equal, own[1], first[1]))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("rest", [False, True])
def test_graphs_change_nothing(tiny_cfg, device, precision, rest):
    """Losses, weights, averages, and the random numbers of dropout."""
    extra = ("TRAIN.PRECISION", precision, "TRAIN.EMA", 0.9, "TRAIN.CLIP_GRAD_NORM", 1.0)
    cfg = family_config(tiny_cfg, "hrnet_ocr_fork", *extra, "TRAIN.FREEZE_LAYERS", "conv1")
    outcomes, random_states = [], []
    for graphs in (True, False, False):
        step = family_step(cfg, device, graphs=graphs, num_warmup=3, dropout=True)
        torch.cuda.manual_seed(1)
        results = [step([batch_of(n), batch_of(n + 1)], rest=rest and n % 3 == 0) for n in range(9)]
        losses = [float("nan") if r.loss is None else r.loss.total.item() for r in results]
        outcomes.append(
            (losses, [x.cpu() for x in (*step.model.state_dict().values(), *step.ema.state_dict().values())])
        )
        random_states.append(torch.cuda.get_rng_state())
    assert_same(*outcomes)
    assert all(torch.equal(state, random_states[0]) for state in random_states)


@pytest.mark.gpu
def test_a_resumed_run_goes_on_as_a_whole_one(tiny_cfg, device):
    """Twelve steps, and six and six, of which the second half warms up anew."""
    cfg = family_config(tiny_cfg, "hrnet_ocr_fork", "TRAIN.EMA", 0.9)  # its head draws dropout

    def make():
        torch.manual_seed(0)
        step = build_train_step(build_model(cfg).to(device).train(), cfg, device, [50])
        assert step.settings.cuda_graph == "auto"
        return step

    def train(step, numbers):
        losses = [step([batch_of(number)]).loss.total.item() for number in numbers]
        assert step.passes.graphed.num_graphs == 1
        return losses, [x.cpu() for x in step.model.state_dict().values()]

    def whole():
        torch.cuda.manual_seed(1)
        return train(make(), range(12))

    torch.cuda.manual_seed(1)
    first = make()
    losses, _ = train(first, range(6))
    weights = {name: value.cpu() for name, value in first.model.state_dict().items()}
    state, random = first.state(), torch.cuda.get_rng_state()
    second = make()
    second.model.load_state_dict(weights)
    second.restore(state, 6)
    torch.cuda.set_rng_state(random)
    later, tensors = train(second, range(6, 12))
    assert_same((losses + later, tensors), whole(), whole())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_blocks_go_with_graphs(tiny_cfg, device, precision):
    cfg = family_config(tiny_cfg, "hrnet_fcn", "TRAIN.COMPILE", "blocks", "TRAIN.PRECISION", precision)
    launched, _ = losses_of(cfg, device, num_steps=6, graphs=False)
    captured, step = losses_of(cfg, device, num_steps=6, graphs=True, num_warmup=3)
    assert step.passes.graphed.num_graphs == 1
    assert captured == pytest.approx(launched, rel=TOLERANCE[precision])


def _ask(module, inputs, output):
    assert output.fused[-1].sum().item() < 1e9


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_is_not_lost(tiny_cfg, device):
    """A network that asks for a value: the same training as without graphs, and random numbers go on."""
    cfg = family_config(tiny_cfg, "hrnet_ocr_fork")
    outcomes, random_states = [], []
    for graphs in (True, False, False):
        step = family_step(cfg, device, graphs=graphs, dropout=True)
        step.model.register_forward_hook(_ask)
        torch.cuda.manual_seed(1)
        losses = [step([batch_of(number)]).loss.total.item() for number in range(5)]
        outcomes.append((losses, [x.cpu() for x in step.model.state_dict().values()]))
        random_states.append(torch.cuda.get_rng_state())
        assert num_graphs(step) == 0
    assert_same(*outcomes)
    assert all(torch.equal(state, random_states[0]) for state in random_states)
