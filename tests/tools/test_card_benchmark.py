"""Measuring ways on a card: what fails ends no other, and a trace is summed up rightly."""

import json
import re
import sys
import textwrap

import pytest
import torch

from benchmarks import card, card_rows, output, trace, workers
from benchmarks.card import Bench, Way, Work
from benchmarks.inputs import Options
from ovenet.config import default_config, load_config

WORKER = textwrap.dedent("""
    import json, sys, time
    for line in sys.stdin:
        title = line.strip()
        work, way = title.split(": ")
        if way == "dies":
            sys.exit(3)
        if way == "hangs":
            time.sleep(60)
        print(json.dumps({"work": work, "way": way, "process_is_over": way == "breaks the card"}), flush=True)
""")


def ways(*names):
    return [Way("work", name, lambda options: None) for name in names]


def measured(names, seconds=1e6):
    records = []
    left = workers.measure_all(ways(*names), [sys.executable, "-c", WORKER], seconds, records.append)
    return {record["way"]: record.get("failed") for record in records}, [way.name for way in left]


def test_a_process_that_ends_takes_no_other_way_along():
    records, left = measured(["good", "dies", "breaks the card", "good too"])
    assert records == {
        "good": None,
        "dies": "its process ended with code 3",
        "breaks the card": None,
        "good too": None,
    }
    assert left == []


def test_a_way_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(workers, "WAY_LIMIT_S", 1.0)
    records, left = measured(["hangs", "good"])
    assert records == {"hangs": "not done after 1 s", "good": None}
    assert left == []


def test_what_the_time_does_not_suffice_for_is_told():
    """The way that is at work when the time is over has not failed."""
    assert measured(["good", "hangs", "good too"], seconds=5.5) == ({"good": None}, ["hangs", "good too"])
    assert measured(["good"], seconds=0) == ({}, ["good"])


@pytest.fixture
def bench(tmp_path):
    return Bench(Options(torch.device("cpu"), quick=True), runs=2, results=tmp_path)


def work(result, **settings):
    def same(a, b):
        if a != b:
            raise AssertionError(f"{a} became {b}")

    return Work(lambda: None, lambda: result, same, **settings)


def test_a_way_that_fails_says_why(bench):
    def fail(options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 77 GiB")

    assert bench.record(Way("work", "ours", fail)) == {
        "work": "work",
        "way": "ours",
        "failed": "OutOfMemoryError: CUDA out of memory. Tried to allocate 77 GiB",
    }


@pytest.mark.ci
def test_another_result_than_the_plain_way_is_a_failure(bench):
    assert "failed" not in bench.record(Way("work", "plain, TF32", lambda options: work(1.0)))
    assert "failed" not in bench.record(Way("work", "right", lambda options: work(1.0)))
    wrong = bench.record(Way("work", "wrong", lambda options: work(2.0)))
    assert wrong["failed"] == "AssertionError: 1.0 became 2.0"
    assert len(wrong["seconds"]) == 2  # its time is told all the same
    assert "failed" not in bench.record(Way("other work", "right", lambda options: work(2.0)))


def test_the_table_has_the_public_code_beside_and_causes():
    """A step of 100 ms: a third of the plain time, 220 / 100 of the public code's; 4 images of it are 40 a second."""
    step = {"images": 4, "limit_s": 0.02, "start_s": 9.0, "work": card_rows.STEP}
    plain = {**step, "way": "plain, TF32", "median_s": 0.3, "seconds": [0.3, 0.3]}
    ours = {**step, "way": "bf16", "median_s": 0.1, "seconds": [0.1, 0.1], "share_of_peak": 0.25}
    ours |= {"allocated_bytes": 8 * 2**30, "reserved_bytes": 9 * 2**30}
    records = [plain, ours, {"work": card_rows.STEP, "way": "fp16", "failed": "no | room"}]
    lines = output.card_table(records).splitlines()
    assert lines[3] == (
        f"| {card_rows.STEP} | bf16 | 100 (100 to 100) | 40.0 | 3.00 | 2.20 | 8.0 | 9.0 | 25% | 20 | 9 |"
    )
    assert lines[4] == f"| {card_rows.STEP} | fp16 | failed: no / room |"
    assert lines[5].startswith(f"| {card_rows.STEP} | public code*, TF32 | 220 | 18.2 |")
    assert "one NVIDIA H200" in lines[-1]
    assert output.card_figure(records, [], 2) == (
        f"2 measured, 1 failed, 2 not reached; {card_rows.STEP}: bf16 100 ms, 2.20 times the public code"
    )


def test_the_plain_way_stands_first_and_titles_are_names():
    found = card_rows.card_ways()
    assert len({way.title for way in found}) == len(found)
    first = {}
    for way in found:
        first.setdefault(way.work, way.name)
    assert all(name.startswith(card.PLAIN) for name in first.values())
    assert found[0].work == card_rows.STEP


@pytest.mark.skipif("CUDA_GRAPH" not in default_config().TEST, reason="needs TEST.CUDA_GRAPH")
def test_every_setting_of_the_table_exists():
    settings = [*card_rows.TRAINING.values(), *card_rows.LAUNCHES.values(), *card_rows.TESTING.values()]
    for overrides in settings:
        load_config(card_rows.EXPERIMENTS / card_rows.FLAGSHIP, [*card_rows.RANDOM, *overrides])


@pytest.mark.ci
def test_rows_are_measured_and_gone_on_with(run_tool, tmp_path):
    arguments = ("--card", "--quick", "--device", "cpu", "--runs", 2, "--rows", "loss cityscapes", "--output", tmp_path)
    path = tmp_path / "benchmark_card.json"
    done = run_tool("benchmark", *arguments)
    assert done.code == 0, done.err
    content = json.loads(path.read_text())
    assert [row["way"] for row in content["rows"]] == ["plain", "ours"]
    assert content["machine"]["torch"] == torch.__version__
    assert 0 < content["rows"][1]["limit_s"] < content["rows"][1]["median_s"]
    kept = content["rows"][0]
    path.write_text(json.dumps({**content, "rows": [{**kept, "median_s": 7.0}]}))
    again = run_tool("benchmark", *arguments, "--go-on", "--seconds", 1)
    assert again.code == 75
    assert "not reached: loss cityscapes: ours" in again.out
    assert again.out.splitlines()[-1] == "1 measured, 0 failed, 1 not reached; loss cityscapes: plain 7e+03 ms"
    assert json.loads(path.read_text())["rows"] == [{**kept, "median_s": 7.0}]


def test_wrong_rows_of_a_card_are_named(run_tool):
    done = run_tool("benchmark", "--card", "--device", "cpu", "--rows", "speed")
    assert done.code == 2
    assert re.search(r"--rows 'speed': .* card; .*step OVeNet W48\+OCR, Cityscapes,", done.err)


def event(name, category, begin, duration):
    return {"ph": "X", "name": name, "cat": category, "ts": begin, "dur": duration}


def test_a_trace_is_summed_up():
    """Two steps on a card: 30 µs of convolution and 10 of adding, of which 5 run beside it, in 80 µs."""
    events = [
        event("conv", "kernel", 100, 10),
        event("conv", "kernel", 160, 20),
        event("add", "kernel", 105, 10),
        event("cudaLaunchKernel", "cuda_runtime", 90, 5),
        event("cudaGraphLaunch", "cuda_runtime", 95, 5),
        event("cudaMemcpyAsync", "cuda_runtime", 96, 5),
        event("cudaStreamSynchronize", "cuda_runtime", 97, 50),
        event("conv2d", "cpu_op", 0, 500),
        {"ph": "i", "name": "a mark", "ts": 0},
    ]
    found = trace.summarize(events, 2, on_card=True)
    assert found["span_s"] == pytest.approx(40e-6)
    assert found["busy_share"] == pytest.approx(35 / 80)
    assert (found["kernels"], found["launches"], found["graph_launches"]) == (1.5, 1, 0.5)
    assert (found["copies"], found["waits"]) == (0.5, 0.5)
    conv, add = found["top"]
    assert (conv["name"], conv["count"], add["name"]) == ("conv", 1, "add")
    assert conv["share"] == pytest.approx(0.75)
    assert conv["seconds"] == pytest.approx(15e-6)
    on_cpu = trace.summarize(events, 2, on_card=False)
    assert [kernel["name"] for kernel in on_cpu["top"]] == ["conv2d"]
    assert trace.summarize([], 2, on_card=True)["busy_share"] == 0


@pytest.mark.gpu
def test_a_step_and_an_image_are_measured_on_cuda(run_tool, tmp_path):
    row = "forward 1024x2048"  # on_gpu.sh measures all of them
    done = run_tool("benchmark", "--quick", "--runs", 2, "--output", tmp_path, "--device", "cuda", "--rows", row)
    assert done.code == 0, done.out + done.err
    content = json.loads((tmp_path / "benchmark_card.json").read_text())
    assert all(0 < row["allocated_bytes"] <= row["reserved_bytes"] for row in content["rows"])
