"""The row of the benchmark that counts crops by loading processes."""

import json
import subprocess
import sys

from tests.tools.conftest import ROOT

ROW = "crops by loading processes 1"


def test_crops_from_files_and_from_the_cache_are_compared_and_counted(tmp_path):
    command = [sys.executable, "tools/benchmark.py", "--quick", "--runs", "2", "--device", "cpu", "--no-memory"]
    done = subprocess.run(
        [*command, "--no-growth", "--rows", ROW, "--output", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert row["name"] == "crops by 1 loading process(es), Cityscapes, the cache against decoding"
    assert row["ratio"] > 0
    assert "images/s" in done.stdout
