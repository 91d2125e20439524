"""What else runs on the machine."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ovenet.utils import environment
from ovenet.utils.environment import (
    busy_cores,
    crowding,
    device_memory_used,
    num_cores,
    peak_flops,
    release_unused,
)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux says it there")
def test_a_busy_process_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(0.2)
        used = busy_cores(0.5)
        process.kill()
    assert 0.5 < used <= os.cpu_count() + 0.1


def test_a_crowd_is_told(monkeypatch):
    monkeypatch.setattr(environment.os, "getloadavg", lambda: (num_cores() + 3.5, 0, 0))
    assert f"load {num_cores() + 3.5:.1f} on {num_cores()} core(s)" in crowding(4)
    assert "4 loading process(es)" in crowding(4)
    monkeypatch.setattr(environment.os, "getloadavg", lambda: (float(num_cores()), 0, 0))
    assert crowding(4) == ""


@pytest.mark.ci
def test_the_peak_is_not_that_of_the_process_that_started_it():
    """Which the system counts in, from before the new program took its place."""
    child = "from ovenet.utils.environment import peak_memory_bytes; print(peak_memory_bytes())"
    parent = f"""
import subprocess, sys
held = bytearray(b"x") * 2**30
print(subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 2**26 < int(done.stdout) < 2**30


def test_a_cpu_has_no_memory_of_a_card():
    release_unused(torch.device("cpu"))
    assert device_memory_used(torch.device("cpu")) == ""


@pytest.mark.gpu
def test_memory_that_is_not_used_is_given_back():
    device = torch.device("cuda:0")
    torch.empty(2**30, dtype=torch.uint8, device=device)
    release_unused(device)
    assert torch.cuda.max_memory_reserved(device) < 2**30
    kept = torch.empty(2**30, dtype=torch.uint8, device=device)
    used, reserved = (float(n) for n in re.findall(r"[\d.]+(?= GiB)|[\d.]+(?= reserved)", device_memory_used(device)))
    assert 1.0 <= used <= reserved
    assert kept.is_cuda


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_peak_of_a_card(name, tflops):
    assert peak_flops(name) == (None if tflops is None else tflops * 1e12)


@pytest.mark.parametrize(
    ("precision", "capability", "is_said"), [("bf16", (7, 5), True), ("bf16", (8, 0), False), ("fp16", (7, 5), False)]
)
def test_a_precision_without_units_is_told(monkeypatch, caplog, precision, capability, is_said):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    environment.warn_of_emulation("TRAIN.PRECISION", precision, torch.device("cuda", 0))
    environment.warn_of_emulation("TRAIN.PRECISION", precision, torch.device("cpu"))
    text = "TRAIN.PRECISION is bf16, for which Tesla T4 (compute capability 7.5, below 8.0) has no units"
    assert [text in record.getMessage() for record in caplog.records] == [True] * is_said
