"""What a user keeps in the repository's folders breaks none of its tests."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.shipped import EXPERIMENTS, shipped

TESTS = Path(__file__).parent


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_file_that_git_does_not_know_is_not_shipped(tmp_path):
    folder = tmp_path / "experiments"
    (folder / "folder").mkdir(parents=True)
    for name in ("a.yaml", "é b.yaml"):
        (folder / "folder" / name).write_text("{}")
    everything = shipped("**/*.yaml", folder)  # of an unpacked archive
    assert [path.name for path in everything] == ["a.yaml", "é b.yaml"]
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    (folder / "folder/cracks.yaml").write_text("{}")
    assert shipped("**/*.yaml", folder) == everything


def test_tests_go_over_shipped_experiments_alone():
    """One that looks at all files fails on a user's own."""
    assert len(shipped("*/*.yaml")) > 100
    assert all(path.is_relative_to(EXPERIMENTS) for path in shipped("*/*.yaml"))
    over_all = re.compile(r"(EXPERIMENTS|[\"']experiments[\"']).*\.(r?glob|iterdir)\(")
    found = [path.name for path in TESTS.rglob("*.py") if path != Path(__file__) and over_all.search(path.read_text())]
    assert not found
