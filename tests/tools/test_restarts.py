"""torchrun starts a run again with the command of its first start: it goes on, and no other command may."""

import threading
import time

import pytest
from filelock import FileLock

from ovenet.commands import train
from ovenet.errors import UserError
from ovenet.utils import torchrun
from ovenet.utils.run_lock import run_lock


@pytest.fixture
def run(run_tool, small, tiny_data, write_config, tmp_path):
    """Trains to an epoch, as told with ``TRAIN.RESUME False``."""
    small["DATASET"]["ROOT"] = str(tiny_data)
    arguments = ("--cfg", write_config(small, "small.yaml"), "OUTPUT_DIR", tmp_path / "output", "TRAIN.RESUME", "False")
    return lambda epochs: run_tool("train", *arguments, "TRAIN.END_EPOCH", epochs)


def test_the_launcher_that_began_a_run_goes_on_with_it(run, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert run(1).code == 0
    again = run(2)
    assert again.code == 0, again.err
    assert "resumed from" in again.err
    for variable, change in (("getppid", lambda: 1), ("environ", {})):  # another torchrun, and none
        with monkeypatch.context() as patch:
            patch.setattr(torchrun.os, variable, change)
            refused = run(3)
        assert refused.code == 2
        assert "checkpoint.pth exists" in refused.err
        assert "TRAIN.RESUME" in refused.err
    assert run(3).code == 0  # the refused ones are not taken for launchers of the run


def test_the_start_of_a_launcher_tells_it_from_another_of_its_number(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    (name,) = torchrun.launchers()
    assert torchrun.launchers() == [name]
    torchrun.note_launchers(tmp_path, [name, "7 other 1 2"])
    assert torchrun.have_begun(tmp_path, ["7 other 1 2"])
    assert not torchrun.have_begun(tmp_path, ["7 other 1 3"])
    assert not torchrun.have_begun(tmp_path, [])
    assert not torchrun.have_begun(tmp_path / "none", [name])


def test_a_lock_may_be_waited_for(tmp_path):
    held = FileLock(tmp_path / ".lock", thread_local=False)
    held.acquire()
    with pytest.raises(UserError, match="another run"), run_lock(tmp_path):
        pass
    threading.Timer(0.3, held.release).start()
    started = time.monotonic()
    with run_lock(tmp_path, timeout_s=20):
        assert time.monotonic() - started > 0.2


def test_the_configuration_of_a_restart_is_as_frozen_as_before(tiny_cfg):
    cfg = tiny_cfg()
    resumed = train.with_resume(cfg)
    assert (resumed.TRAIN.RESUME, cfg.TRAIN.RESUME, resumed.is_frozen()) == (True, False, True)
