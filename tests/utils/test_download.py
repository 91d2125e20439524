"""Downloads from a server on this machine that breaks off, refuses and changes what it serves."""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.file_server import FileServer, file_server

from ovenet.errors import UserError
from ovenet.utils.download import begins_with, download

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LIB = Path(__file__).parents[2] / "lib"


@pytest.fixture
def server():
    with file_server() as server:
        server.files["/a.pth"] = CONTENT
        yield server


def fetch(server, path, sha256=SHA256[:8]):
    download(f"{server.address}/a.pth", path, sha256)


def refused(server, path, *words, sha256=SHA256[:8]):
    with pytest.raises(UserError) as error:
        fetch(server, path, sha256)
    assert "\n" not in str(error.value)
    for word in (str(path), *words):
        assert word in str(error.value)
    assert not path.exists()


def test_a_file_is_fetched_once_and_whole(server, tmp_path, capsys):
    path = tmp_path / "new" / "a.pth"
    download(f"{server.address}/a.pth", path, SHA256[:8], notice="a line about it")
    assert capsys.readouterr().err == "a line about it\n"
    fetch(server, path)
    assert path.read_bytes() == CONTENT
    assert server.requests == [None]
    assert {other.name for other in path.parent.iterdir()} <= {path.name, ".a.pth.lock"}
    assert begins_with(path, SHA256)
    assert not begins_with(path, "0")


@pytest.mark.parametrize("cuts", [[100_000], [100_000, 100_000], [0x1000] * 20])
def test_a_cut_connection_is_resumed(server, tmp_path, cuts):
    server.cuts = list(cuts)
    fetch(server, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert server.requests == [None, *(f"bytes={sum(cuts[: n + 1])}-" for n in range(len(cuts)))]


def test_what_arrived_is_kept_for_the_next_call(server, tmp_path):
    server.cuts = [200_000, 0]
    refused(server, tmp_path / "a.pth", "cut off", "0.2 MB are kept")
    server.status = 503
    refused(server, tmp_path / "a.pth", "HTTP 503 Service Unavailable", "0.2 MB are kept")
    server.status = 0
    fetch(server, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert server.requests == [None, *["bytes=200000-"] * 3]


def test_a_server_without_ranges_begins_anew(server, tmp_path):
    server.cuts, server.has_ranges = [100_000], False
    fetch(server, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
def test_a_whole_part_is_used_and_one_that_is_too_long_is_not(server, tmp_path, part):
    (tmp_path / ".a.pth.part").write_bytes(part)
    fetch(server, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert len(server.requests) == (0 if part == CONTENT else 2)


def test_another_file_is_not_kept(server, tmp_path):
    refused(server, tmp_path / "a.pth", "sha256", SHA256[:8], "01234567", sha256="01234567")
    assert not (tmp_path / ".a.pth.part").exists()
    (tmp_path / ".a.pth.part").write_bytes(b"begun by another")
    refused(server, tmp_path / "a.pth", "sha256")
    fetch(server, tmp_path / "a.pth")


def test_what_cannot_be_had_is_named(server, tmp_path):
    server.files.clear()
    refused(server, tmp_path / "a.pth", f"{server.address}/a.pth", "HTTP 404 Not Found", "elsewhere")
    with FileServer() as closed:
        pass
    refused(closed, tmp_path / "a.pth", "Connection refused", "without a network", "elsewhere")
    with pytest.raises(UserError, match=r"file:///a: .*http://"):
        download("file:///a", tmp_path / "a", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_named(server, tmp_path):
    (tmp_path / ".a.pth.part").symlink_to("/dev/full")
    refused(server, tmp_path / "a.pth", "No space left on device", "0.3 MB", "TORCH_HOME")
    assert not (tmp_path / ".a.pth.part").is_symlink()


def test_a_folder_that_is_none_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    refused(server, tmp_path / "file" / "a.pth", "File exists")


def test_two_processes_fetch_once(server, tmp_path):
    server.pause_s = 0.5
    code = "import sys; from ovenet.utils.download import download; from pathlib import Path; " \
        "download(sys.argv[1], Path(sys.argv[2]), sys.argv[3], notice='begins')"  # fmt: skip
    command = [sys.executable, "-c", code, f"{server.address}/a.pth", str(tmp_path / "a.pth"), SHA256[:8]]
    environment = {**os.environ, "PYTHONPATH": str(LIB)}
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said[1] == "begins\n"
    assert said[0] in ("", "a.pth: another process downloads it; waiting\n")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert server.requests == [None]
