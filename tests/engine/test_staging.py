"""Copies of a state: complete, apart from the original, and in the same memory again."""

import io
from collections import OrderedDict

import pytest
import torch
from torch import nn

from ovenet.engine.staging import HostCopy


def saved(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.fixture
def state():
    """A network with a tied weight and a transposed layout, its momenta after a step, and what else is saved."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model = model.to(memory_format=torch.channels_last)
    model[3].weight = model[2].weight
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(2, 3, 5, 7)).sum().backward()
    optimizer.step()
    entries = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 7, "config": "LR: 1"}
    return {**entries, "random_states": [{"cpu": torch.get_rng_state()}], "empty": (torch.empty(0), None)}


def test_a_copy_is_saved_as_the_same_bytes(state):
    copied = HostCopy(torch.device("cpu")).take(state)
    assert saved(copied) == saved(state)
    assert type(copied["model"]) is OrderedDict


def test_a_copy_is_not_changed_by_the_steps_after_it_and_its_memory_is_used_again(state):
    copy = HostCopy(torch.device("cpu"))
    before = saved(state)
    copied = copy.take(state)
    for value in state["model"].values():
        value.add_(1)
    assert saved(copied) == before
    place = copied["model"]["0.weight"].data_ptr()
    again = copy.take(state)
    assert again["model"]["0.weight"].data_ptr() == place
    assert saved(again) == saved(state) != before


def test_what_is_gone_or_has_another_shape_is_copied_all_the_same(state):
    copy = HostCopy(torch.device("cpu"))
    copy.take(state)
    other = {"model": {"0.weight": torch.ones(5)}, "expanded": torch.arange(3.0)[:, None].expand(3, 4)}
    copied = copy.take(other)
    assert torch.equal(copied["model"]["0.weight"], torch.ones(5))
    assert torch.equal(copied["expanded"], other["expanded"])


@pytest.mark.gpu
def test_a_copy_from_a_card_is_of_the_moment_and_waits_for_nothing():
    """Large enough to be under way when the next steps change it."""
    device = torch.device("cuda", torch.cuda.current_device())
    state = {"model": {f"{n}": torch.full((1 << 24,), float(n), device=device) for n in range(8)}, "on the CPU": [1.0]}
    state["random_states"] = [{"cpu": torch.arange(5)}]
    copy = HostCopy(device)
    for offset in (0, 100):  # the second time into the same memory
        with torch.cuda.device(device):
            torch.cuda.set_sync_debug_mode("error" if offset else "default")  # page-locking waits, the first time
            try:
                copied = copy.take(state)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        for value in state["model"].values():
            value.add_(100)
        copy.wait()
        for number in range(8):
            assert copied["model"][f"{number}"].is_pinned()
            assert torch.equal(copied["model"][f"{number}"], torch.full((1 << 24,), number + float(offset)))
        assert torch.equal(copied["random_states"][0]["cpu"], torch.arange(5))
    places = {value.data_ptr() for value in copied["model"].values()}
    assert places == {value.data_ptr() for value in copy.take(state)["model"].values()}
