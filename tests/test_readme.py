"""The README's first two commands are the ones that `.ci/run` runs, and the Makefile has them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKE = re.compile(r"^ *make ([\w-]+)\b", re.MULTILINE)


def first_commands() -> list[str]:
    """The targets of the README's first block of commands."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"\n\n((?:    .+\n)+)\n", text)
    assert block
    return MAKE.findall(block[1])


def test_the_readme_opens_with_the_demo_and_the_tests():
    assert first_commands() == ["demo", "test"]


def test_ci_runs_the_readmes_commands():
    path = ROOT / ".ci" / "run"
    if not path.is_file():
        pytest.skip("an installed copy has no .ci folder")
    assert set(first_commands()) <= set(MAKE.findall(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("target", ["demo", "test"])
def test_each_command_sets_up_its_environment(target):
    """`$(VENV)/ready` creates the environment and installs the package; a command without it needs one."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}: .*\$\(VENV\)/ready", makefile, re.MULTILINE)
