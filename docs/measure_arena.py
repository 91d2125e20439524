#!/usr/bin/env python3
"""Cost of each network of the arena: python docs/measure_arena.py experiments/camvid/sweeps/arena.yaml --output FILE.

Parameters, multiply-adds, and the time of one image with BatchNorm fused, all networks in turn, by the functions behind
`ovenet latency`. Weights are random. Runs that differ in their training alone share a network. "BASE: baseline" is the
network of the first run of a base without its refiner, unless there is a run of that name.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.export import parse_size
from ovenet.commands.latency import FUSED, Network, measure, read_network
from ovenet.errors import UserError
from ovenet.evaluation.writers import write_json
from ovenet.models.settings import NO_SEED
from ovenet.sweep.definition import Sweep, SweepRun, read_sweep
from ovenet.utils.cli import require_free, run_main
from ovenet.utils.environment import describe_environment

_TRAINING_ALONE = ("MODEL.BACKBONE.PRETRAINED", "MODEL.SEED.PRETRAINED", "MODEL.PRETRAINED", "MODEL.FROZEN")
Key = tuple[tuple[str, str], ...]


def main() -> None:
    """Measures the networks and writes their costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="YAML file of a sweep")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON")
    parser.add_argument("--size", default="360x480", metavar="HxW", help="size of the image (default: 360x480)")
    parser.add_argument("--runs", type=int, default=11, metavar="N", help="of each network, in turn (default: 11)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of torch (default: 1)")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    if args.runs < 1 or args.threads < 1:
        raise UserError("--runs and --threads are at least 1")
    require_free(args.output, overwrite=args.overwrite)
    size = parse_size(args.size, (360, 480))
    torch.set_num_threads(args.threads)
    costs = measured(read_sweep(args.sweep), size, args.runs)
    environment = describe_environment(Path(__file__).parent)
    about = {key: environment[key] for key in ("packages", "cpu_count")}
    write_json({"size": list(size), "threads": args.threads, "turns": args.runs, **about, "runs": costs}, args.output)
    for name, cost in costs.items():
        print(f"{name}: {cost['parameters']:,} parameters, {cost['gmac']:.2f} GMAC, {cost['milliseconds']:.1f} ms")


def measured(sweep: Sweep, size: tuple[int, int], turns: int) -> dict[str, dict[str, Any]]:
    """Cost of each variant of a sweep, and of the bases without refiners, by name."""
    variants: dict[str, tuple[Key, Path, list[str]]] = {}
    for run in sweep.runs:
        variants.setdefault(run.name, (network_key(run), run.config_file, list(run.overrides)))
    for run in sweep.runs:
        base = f"{run.name.rpartition(': ')[0]}: baseline"
        variants.setdefault(base, (network_key(run, with_seed=False), run.config_file, without_seed(run.overrides)))
    pixels = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    networks: dict[Key, Network] = {}
    for name, (key, config_file, overrides) in variants.items():
        if key not in networks:
            overrides = [*overrides, "MODEL.BACKBONE.PRETRAINED", "", "MODEL.FROZEN", "[]"]
            networks[key] = read_network(str(config_file), name, pixels, [FUSED], overrides)
    taken = measure([network.ways[FUSED] for network in networks.values()], turns)
    costs = {}
    for (key, network), times in zip(networks.items(), taken, strict=True):
        costs[key] = {
            "parameters": network.num_parameters,
            "gmac": network.gmac,
            "milliseconds": 1e3 * statistics.median(times.elapsed_s),
            "processor_milliseconds": 1e3 * statistics.median(times.processor_s),
        }
    return {name: costs[key] for name, (key, _, _) in variants.items()}


def without_seed(overrides: Sequence[str]) -> list[str]:
    """``KEY VALUE …`` of the same network without its refiner."""
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    kept = [word for key, value in pairs if not key.startswith("MODEL.SEED.") for word in (key, value)]
    return [*kept, "MODEL.SEED.NAME", NO_SEED]


def network_key(run: SweepRun, *, with_seed: bool = True) -> Key:
    """The settings of a run that its network depends on, with or without those of its refiner."""
    left_out = _TRAINING_ALONE if with_seed else (*_TRAINING_ALONE, "MODEL.SEED.")
    settings = {k: v for k, v in run.settings.items() if k.startswith("MODEL.") and not k.startswith(left_out)}
    return tuple(sorted((key, repr(value)) for key, value in settings.items()))


if __name__ == "__main__":
    run_main(main)
