#!/usr/bin/env python3
"""Converts an exported pt2 file to Core ML: python tools/deployment/to_coreml.py model.pt2 model.mlpackage.

The package is not run, which only macOS can: compare it there before you use it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lib"))

import torch

from ovenet.deployment.formats import read_about
from ovenet.errors import UserError
from ovenet.utils.cli import require_free, run_main

SAMPLING = {"resample", "affine", "crop_resize"}  # operators of Core ML that sample at positions


def main() -> None:
    """Converts the file, checks its operators and lists them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "file", type=Path, metavar="FILE.pt2", help="of: ovenet export --format pt2 --seed-sampling gather"
    )
    parser.add_argument("package", type=Path, metavar="FILE.mlpackage", help="package to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the package")
    args = parser.parse_args()
    if args.file.suffix != ".pt2" or args.package.suffix != ".mlpackage":
        raise UserError(f"{args.file} {args.package}: expected a .pt2 file and the name of an .mlpackage")
    require_free(args.package, overwrite=args.overwrite)
    about = read_about(args.file)
    try:
        import coremltools
    except ImportError as error:
        raise UserError("coremltools is not installed; install it with: pip install coremltools") from error
    _register_operations()
    program = torch.export.load(args.file).run_decompositions({})
    try:
        model = coremltools.convert(
            program,
            convert_to="mlprogram",
            compute_precision=coremltools.precision.FLOAT32,  # float16 would round positions
            minimum_deployment_target=coremltools.target.iOS16,
        )
    except Exception as error:  # the converter raises anything
        reason = " ".join(str(error).split())[-200:]
        raise UserError(f"{args.file}: coremltools {coremltools.__version__} cannot convert it: …{reason}") from error
    found = operators(model.get_spec())
    if wrong := sorted(SAMPLING & found):
        raise UserError(f"{args.file}: becomes the operator {wrong[0]}; export it with --seed-sampling gather")
    model.short_description = f"OVeNet, {about.source}"
    with tempfile.TemporaryDirectory(dir=args.package.absolute().parent) as folder:  # the old package stays till then
        unfinished = Path(folder) / args.package.name
        model.save(str(unfinished))
        if args.package.exists():
            shutil.rmtree(args.package)
        unfinished.rename(args.package)
    print(f"operators:   {' '.join(sorted(found))}")
    print(f"converted:   {args.package}; not run: compare it on macOS before you use it")


def _register_operations() -> None:
    """Teaches coremltools 9.0 two operations of torch: ``alias``, which returns its input, and ``lerp``."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    @register_torch_op(override=True)
    def alias(context: Any, node: Any) -> None:
        context.add(_get_inputs(context, node)[0], torch_name=node.name)

    @register_torch_op(override=True)
    def lerp(context: Any, node: Any) -> None:
        start, end, weight = _get_inputs(context, node, expected=3)
        step = Builder.mul(x=Builder.sub(x=end, y=start), y=weight)
        context.add(Builder.add(x=start, y=step, name=node.name))


def operators(spec: Any) -> set[str]:
    """Operators of an ``mlprogram``, without constants."""
    functions = spec.mlProgram.functions.values()
    blocks = [block for function in functions for block in function.block_specializations.values()]
    return {operation.type for block in blocks for operation in block.operations} - {"const"}


if __name__ == "__main__":
    run_main(main)
