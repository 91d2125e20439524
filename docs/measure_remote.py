#!/usr/bin/env python3
"""Training crops from an address and from a disk: python docs/measure_remote.py --cfg FILE ADDRESS ROOT [KEY VALUE …].

Both have the same files. This process reads each crop from four sources, in random order: the files of the disk and of
the address, and the caches of decoded images of both, filled before. Printed are medians of a crop's CPU
time and time, and of the ratios of the disk to the address.
"""

import argparse
import random
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet import builders, load_config
from ovenet.data.dataset import AugmentedDataset
from ovenet.utils.cli import run_main


def main() -> None:
    """Measures, and prints a line for each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", required=True, metavar="FILE", help="experiment file (YAML)")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="crops of each image (default: 3)")
    parser.add_argument("roots", nargs=2, metavar="ROOT", help="DATASET.ROOT: the address, and the folder of its files")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings that win over the file's")
    args = parser.parse_intermixed_args()
    cv2.setNumThreads(0)  # as in a loading process
    with TemporaryDirectory() as cache:
        crops = {}
        for kind, source in (("none", "files"), ("disk", "cache")):
            for place, root in zip(("address", "disk"), args.roots, strict=True):
                settings = ["DATASET.ROOT", root, "DATASET.CACHE", kind, "DATASET.CACHE_DIR", cache, "WORKERS", "0"]
                cfg = load_config(args.cfg, [*args.overrides, *settings])
                crops[f"{source} of the {place}"] = builders.build_train_loader(cfg)[0].dataset
        times = measure(crops, args.epochs)
    for name, own in times.items():
        others = times[name.replace("address", "disk")]
        text = []
        for clock, title in enumerate(("ms of CPU", "ms")):
            ratio = statistics.median(other[clock] / one[clock] for one, other in zip(own, others, strict=True))
            text.append(f"{1e3 * statistics.median(one[clock] for one in own):.2f} {title} ({ratio:.1%})")
        print(f"{name}: {', '.join(text)} a crop")


def measure(crops: dict[str, AugmentedDataset], epochs: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of CPU and seconds of each crop by source, after an epoch that fills the cache of the address."""
    rng = random.Random(0)  # what a processor holds depends on what it has done before
    names, times = list(crops), {name: [] for name in crops}
    for epoch in range(epochs + 1):
        for index in range(len(crops[names[0]])):
            for name in rng.sample(names, len(names)):
                started, cpu_started = time.perf_counter(), time.process_time()
                _ = crops[name][epoch, index]
                if epoch:
                    times[name].append((time.process_time() - cpu_started, time.perf_counter() - started))
    return times


if __name__ == "__main__":
    run_main(main)
