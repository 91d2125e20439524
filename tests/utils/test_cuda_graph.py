"""Functions that run eagerly, then as a graph."""

import logging

import pytest
import torch
from tests.recorded_graph import RecordedGraph

from ovenet.utils.cuda_graph import GraphedFunction, on_capture_stream

CPU = torch.device("cpu")


def graphed(function, **options):
    options = {"name": "the sum", "switch": "TEST.CUDA_GRAPH off", "num_warmup": 2, **options}
    return GraphedFunction(function, CPU, new_graph=RecordedGraph, **options)


def test_a_graph_gives_what_the_function_gives():
    factor, calls = torch.tensor(3.0), []

    def function(x, y):
        calls.append(1)
        return {"sum": factor * x + y, "parts": (x, [y.square()])}

    run = graphed(function)
    for number in range(6):
        x, y = torch.full((2, 3), float(number)), torch.arange(3.0) + number
        factor.fill_(number)  # a tensor that lives outside is read anew
        result = run(x, y)
        torch.testing.assert_close(result["sum"], number * x + y)
        torch.testing.assert_close(result["parts"][1][0], y.square())
    assert len(calls) == 3  # two to warm up, one to capture
    assert run.num_graphs == 1


def test_each_size_and_key_has_its_own_graph_up_to_a_bound():
    run = graphed(lambda x: 2 * x, num_warmup=1, max_graphs=2)
    for _ in range(3):
        for size, key in ((1, None), (2, None), (2, "other"), (3, None)):
            x = torch.randn(size)
            torch.testing.assert_close(run(x, key=key), 2 * x)
    assert run.num_graphs == 2


def test_another_layout_in_memory_is_another_size():
    run = graphed(lambda x: x.flatten(), num_warmup=0)
    x = torch.arange(6.0).view(2, 3)
    torch.testing.assert_close(run(x), x.flatten())
    torch.testing.assert_close(run(x.t().contiguous().t()), x.flatten())
    assert run.num_graphs == 2


@pytest.fixture
def warnings_of(caplog):
    logging.getLogger("ovenet").propagate = True
    return lambda: [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_what_cannot_be_captured_runs_eagerly_and_says_so_once(warnings_of):
    total = torch.zeros(())

    def function(x):
        total.add_(1)  # is undone, then done
        return x[: int(x.sum().item())]

    run = graphed(function)
    for number in range(1, 7):
        assert run(torch.tensor([1, 1, 0])).tolist() == [1, 1]
        assert total == number
    (message,) = warnings_of()
    assert message == (
        "the sum runs eagerly: RuntimeError: operation not permitted when stream is capturing: _local_scalar_dense; "
        "TEST.CUDA_GRAPH off silences this"
    )


def test_the_first_cause_is_told(warnings_of):
    class Broken(RecordedGraph):
        def capture(self, function):
            try:
                super().capture(function)
            finally:
                raise RuntimeError("capture is invalidated")  # as torch does when it ends one that failed

    run = GraphedFunction(
        lambda x: x.nonzero(), CPU, name="it", switch="X off", num_warmup=0, new_graph=Broken
    )  # fmt: skip
    assert run(torch.ones(2)).shape == (2, 1)
    assert "it runs eagerly: RuntimeError: operation not permitted" in warnings_of()[0]


def test_a_capture_that_failed_elsewhere_is_not_used(warnings_of):
    asked = []
    run = graphed(lambda x: 2 * x, num_warmup=0, agreed=lambda is_fine: bool(asked.append(is_fine)))
    for _ in range(2):
        assert run(torch.ones(())) == 2
    assert asked == [True]  # nobody is asked again
    assert run.num_graphs == 0
    assert "another process could not capture it" in warnings_of()[0]


def test_random_numbers_go_on_as_in_eager_calls():
    run = graphed(lambda x: x + torch.rand(3), num_warmup=1)
    torch.manual_seed(1)
    ours = [run(torch.zeros(3)).clone() for _ in range(4)]
    torch.manual_seed(1)
    for own in ours:
        assert torch.equal(own, torch.rand(3))


def test_nothing_is_left_aside_on_the_cpu():
    with on_capture_stream(CPU):
        assert torch.ones(1).item() == 1


@pytest.mark.gpu
def test_a_function_on_cuda_is_captured_and_survives_a_failure(warnings_of):
    device = torch.device("cuda", torch.cuda.current_device())
    good = GraphedFunction(lambda x: torch.nn.functional.dropout(x.exp()), device, name="good", switch="X off")
    bad = GraphedFunction(lambda x: x * x.sum().item(), device, name="bad", switch="X off")
    x = torch.randn(1000).pin_memory()
    torch.cuda.manual_seed(1)
    expected = [torch.nn.functional.dropout(x.to(device).exp()) for _ in range(12)]
    state = torch.cuda.get_rng_state()
    torch.cuda.manual_seed(1)
    for number in range(12):
        assert torch.equal(good(x), expected[number])
        torch.testing.assert_close(bad(x).cpu(), x * x.sum(), rtol=1e-4, atol=1e-4)
    assert good.num_graphs == 1
    assert bad.num_graphs == 0
    assert len(warnings_of()) == 1
    assert torch.cuda.current_stream(device) == torch.cuda.default_stream(device)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    after = torch.rand(10, device=device)  # eager random numbers still work, and go on from there
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(10, device=device), after)
