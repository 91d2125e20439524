"""tools/gpu/compile_kernels.py: the kernels compile for a GPU that is not here."""

import os
import re

import pytest
from tests import forking

pytest.importorskip("triton")


def compile_kernels(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return forking.run(["tools/gpu/compile_kernels.py", *arguments], env={**inherited, **environment})


@pytest.mark.ci
def test_the_kernels_compile_under_the_installed_triton():
    done = compile_kernels("--capability", "90", "--classes", "19", "150")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 variants, 0 with a problem" in done.stdout


BROKEN = """
import sys

import triton
import triton.language as tl

sys.path[:0] = ["tools/gpu", "lib"]
import compile_kernels
from ovenet.losses import fused_triton

variant = next(compile_kernels.variants([90], [19]))
compile_kernels.MAX_SHARED_BYTES = 0
print(compile_kernels.problem_of(variant))
compile_kernels.MAX_SPILLED_BYTES = -1
print(compile_kernels.problem_of(variant))


@triton.jit
def broken(scores, IS_LOGITS: tl.constexpr, SMALLEST: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_X: tl.constexpr):
    tl.store(scores, missing)


fused_triton._pixel_loss_kernel = broken
print(compile_kernels.problem_of(variant))
"""


def test_gpus_that_are_not_supported_are_left_out():
    done = compile_kernels("--capability", "75", "--classes", "19")
    assert done.returncode == 0
    assert re.search(r"left out: .* 7\.5\b", done.stdout)
    assert ": 0 variants, 0 with a problem" in done.stdout


def test_what_is_wrong_is_said_in_a_line(tmp_path):
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = forking.run([script], env=inherited)
    shared, spilled, broken = done.stdout.splitlines()
    assert shared.startswith("Variant(capability=90, kernel='_pixel_loss_kernel', num_classes=19, layout='nchw'")
    assert shared.endswith("bytes of shared memory, of 0 that every GPU has")
    assert "bytes of registers spill to memory" in spilled
    assert "missing is not defined" in broken


def test_bad_input_is_one_line():
    interpreted = compile_kernels("--classes", "19", TRITON_INTERPRET="1")
    assert interpreted.returncode == 2
    assert interpreted.stderr.startswith("error: TRITON_INTERPRET is set")
    unknown = compile_kernels("--triton", "0.0.1")
    assert unknown.returncode == 2
    assert "error: --triton 0.0.1: pip " in unknown.stderr
