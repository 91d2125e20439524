"""What else runs on the machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ovenet.utils import environment
from ovenet.utils.environment import busy_cores, crowding, num_cores, peak_flops


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
