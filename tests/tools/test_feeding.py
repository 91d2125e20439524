"""The row of the benchmark that counts crops by loading processes."""

import json

ROW = "crops by loading processes 1"


def test_crops_from_files_and_from_the_cache_are_compared_and_counted(run_fork, tmp_path):
    command = ("tools/benchmark.py", "--quick", "--runs", "2", "--device", "cpu", "--no-memory")
    done = run_fork(*command, "--no-growth", "--rows", ROW, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert row["name"] == "crops by 1 loading process(es), Cityscapes, the cache against decoding"
    assert row["ratio"] > 0
    assert "images/s" in done.stdout
