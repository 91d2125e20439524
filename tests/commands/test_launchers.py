"""Workers of a sweep on other engines; tests/tools/test_sweep.py and test_sweep_proof.py start them there."""

import pickle
import re
import sys
from pathlib import Path

import pytest
import yaml

from ovenet.commands.launchers import Task, read_options
from ovenet.errors import UserError

SCALING = (Path(__file__).parents[2] / "docs/scaling.md").read_text(encoding="utf-8")


def test_options_have_types():
    options = read_options(
        ["slurm_partition=gpu", "timeout_min=720", "num_gpus=0.25", "slurm_setup=[module load cuda]"]
    )
    assert options == {
        "slurm_partition": "gpu", "timeout_min": 720, "num_gpus": 0.25, "slurm_setup": ["module load cuda"],
    }  # fmt: skip
    for text in ("gpu", "=gpu", "slurm partition=gpu", "slurm_setup=[module load"):
        with pytest.raises(UserError, match=re.escape(f"{text!r}; expected KEY=VALUE")):
            read_options([text])


def test_a_worker_is_the_command_in_the_directory_it_was_started_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path.cwd())  # and goes back there
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    task = pickle.loads(pickle.dumps(Task(("nothing.yaml", "--worker"), str(tmp_path))))
    assert task() == 2
    assert "nothing.yaml: " in capsys.readouterr().err
    assert Path.cwd() == tmp_path
    assert Task(("--help",), str(tmp_path))() == 0


def test_a_job_whose_time_is_up_is_queued_again():
    pytest.importorskip("submitit")
    task = Task(("study.yaml",), "/")
    assert task.checkpoint().function == task


def test_the_files_of_the_docs_start_workers():
    """They are YAML, and each container or machine runs the command."""
    job, task = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", SCALING, flags=re.DOTALL))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert " ".join(container["command"]).startswith("ovenet sweep study.yaml --worker")
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    assert "ovenet sweep study.yaml --worker" in task["run"]
    assert task["num_nodes"] > 1
