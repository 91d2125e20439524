#!/usr/bin/env python3
"""Compiles the Triton kernels of the loss for many GPUs, on a machine without one: python tools/gpu/compile_kernels.py.

Every kernel for every compute capability, number of classes, layout and kind of scores. What does not compile, spills
registers or asks for more shared memory than a multiprocessor has is listed, and the exit code is 1. GPUs that a
release of Triton does not know, for which a training does without the kernels, are left out, and named. With --triton
the same is done under other releases of Triton, which are installed into a folder of their own for it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))

from ovenet.errors import UserError
from ovenet.utils.cli import run_main

CAPABILITIES = (80, 86, 89, 90, 100, 120)
NUM_CLASSES = (1, 2, 19, 21, 150)
MAX_SPILLED_BYTES = 64  # of a thread: the assembler spills a few registers by itself, so that more blocks run at a time
MAX_SHARED_BYTES = 48 * 2**10  # of a block of threads, on every GPU
NUM_FAILED = 1
_POINTERS = {"labels": "*i64", **dict.fromkeys(("x_low", "y_low", "x_first", "y_first"), "*i32")}
_WHOLE_NUMBERS = re.compile(r"(batch|num_.*|.*height|.*width|reach_x|.*stride_.)")
_DIVISIBLE = re.compile(r".*(height|width|stride_.)")  # what Triton finds divisible by 16 in images of usual sizes
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Variant:
    """A kernel as one network and one GPU need it.

    Attributes:
        capability: of the GPU, 90 for 9.0.
        kernel: name in `ovenet.losses.fused_triton`.
        num_classes: ``K``.
        layout: memory order of the scores, ``nchw`` or ``nhwc``.
        is_logits: False for probabilities.
        is_mined: with online hard example mining.
    """

    capability: int
    kernel: str
    num_classes: int
    layout: str
    is_logits: bool
    is_mined: bool = False


def main() -> None:
    """Compiles all, prints what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", nargs="+", default=[], metavar="VERSION", help="in place of the one installed here")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="keeps those, for the next time (default: none)")
    parser.add_argument("--capability", nargs="+", type=int, default=CAPABILITIES, metavar="N", help="such as 90")
    parser.add_argument("--classes", nargs="+", type=int, default=NUM_CLASSES, metavar="K", help="numbers of classes")
    args = parser.parse_args()
    if args.triton:
        sys.exit(compile_under(args))
    if "TRITON_INTERPRET" in os.environ:
        raise UserError("TRITON_INTERPRET is set, so that kernels are interpreted instead of compiled; unset it")
    try:
        import triton
    except ImportError as error:
        raise UserError("triton is not installed; name a release: --triton 3.6.0") from error
    from ovenet.losses import fused_triton

    left_out = {capability: fused_triton.unsupported(capability) for capability in args.capability}
    for problem in filter(None, left_out.values()):
        print(f"left out: {problem}", flush=True)
    chosen = list(variants([capability for capability in args.capability if not left_out[capability]], args.classes))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            problems = list(filter(None, pool.map(problem_of, chosen)))
    print(*problems, f"Triton {triton.__version__}: {len(chosen)} variants, {len(problems)} with a problem", sep="\n")
    sys.exit(NUM_FAILED if problems else 0)


def compile_under(args: argparse.Namespace) -> int:
    """Runs this script under each release of Triton; the exit code."""
    codes = []
    with tempfile.TemporaryDirectory() as temporary:
        for version in args.triton:
            folder = (args.folder or Path(temporary)) / f"triton-{version}"
            if not (folder / "triton").is_dir():
                install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
                if subprocess.run([*install, f"triton=={version}"]).returncode:
                    raise UserError(f"--triton {version}: pip cannot install that release; see its message above")
            environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            numbers = ["--capability", *map(str, args.capability), "--classes", *map(str, args.classes)]
            command = [sys.executable, __file__, *numbers]
            codes.append(subprocess.run(command, env={**environment, "PYTHONPATH": str(folder)}).returncode)
    return NUM_FAILED if any(codes) else 0


def variants(capabilities: Sequence[int], num_classes: Sequence[int]) -> Iterator[Variant]:
    """All that networks may need."""
    for each in itertools.product(capabilities, num_classes, ("nchw", "nhwc"), (True, False)):
        capability, *rest = each
        yield Variant(capability, "_pixel_loss_kernel", *rest)
        for is_mined in (False, True):
            yield Variant(capability, "_gradient_kernel", *rest, is_mined)


def problem_of(variant: Variant) -> str | None:
    """What is wrong with it, in a line; None if nothing is."""
    try:
        compiled = compiled_kernel(variant)
        shared, spilled = compiled.metadata.shared, spilled_bytes(compiled.asm["ptx"], variant.capability)
    except Exception as error:  # a compiler raises anything
        return f"{variant}: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
    if spilled > MAX_SPILLED_BYTES:
        return f"{variant}: {spilled} bytes of registers spill to memory, of {MAX_SPILLED_BYTES} that do no harm"
    if shared > MAX_SHARED_BYTES:
        return f"{variant}: {shared} bytes of shared memory, of {MAX_SHARED_BYTES} that every GPU has"
    return None


def compiled_kernel(variant: Variant) -> Any:
    """A kernel with the types and constants with which `ovenet.losses.fused_triton` launches it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ovenet.losses import fused_triton

    kernel = getattr(fused_triton, variant.kernel)
    constants = constants_of(variant, kernel.arg_names)
    types = {name: "constexpr" if name in constants else type_of(name) for name in kernel.arg_names}
    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3):
        aligned = {
            (index,): [["tt.divisibility", 16]]
            for index, (name, kind) in enumerate(types.items())
            if kind.startswith("*") or (kind == "i32" and _DIVISIBLE.fullmatch(name))
        }
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(kernel, types, places, aligned)
    else:
        source = ASTSource(kernel, types, constants)
    return triton.compile(source, target=GPUTarget("cuda", variant.capability, 32))


def constants_of(variant: Variant, names: Sequence[str]) -> dict[str, Any]:
    """Arguments that are known when a kernel is compiled: those that are so by type, and whole numbers that are 1."""
    from ovenet.losses import fused_triton

    num_classes = variant.num_classes
    constants = {"IS_LOGITS": variant.is_logits, "SMALLEST": fused_triton.SMALLEST}
    block_k, block_columns = fused_triton.blocks(num_classes)
    constants["BLOCK_K"] = block_k
    if variant.kernel == "_pixel_loss_kernel":
        constants["BLOCK_X"] = block_columns
    else:
        constants |= {"BLOCK_J": block_columns, "IS_MINED": variant.is_mined}
        if num_classes <= block_k:
            constants["num_blocks_k"] = 1
    if num_classes == 1:
        constants["num_classes"] = 1
    innermost = "w" if variant.layout == "nchw" else "k"
    ones = (name for name in (f"stride_{innermost}", f"out_stride_{innermost}") if name in names)
    return constants | dict.fromkeys(ones, 1)


def type_of(name: str) -> str:
    """Of a kernel's argument."""
    return "i32" if _WHOLE_NUMBERS.fullmatch(name) else _POINTERS.get(name, "*fp32")


def spilled_bytes(ptx: str, capability: int) -> int:
    """Bytes per thread that the assembler stores and loads because registers do not suffice."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        target = re.search(r"^\.target (\S+?),?\s", ptx, re.MULTILINE)
        command = [assembler(capability), "-v", f"--gpu-name={target[1]}", str(source), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ptxas: {done.stderr}")
    return sum(int(stores) + int(loads) for stores, loads in _SPILLS.findall(done.stderr))


def assembler(capability: int) -> str:
    """Path of the assembler that this Triton takes for a GPU."""
    from triton.backends.nvidia import compiler

    if not hasattr(compiler, "get_ptxas"):  # Triton 3.2
        return compiler._path_to_binary("ptxas")[0]
    found = compiler.get_ptxas(capability)
    return found[0] if isinstance(found, tuple) else found.path


if __name__ == "__main__":
    run_main(main)
