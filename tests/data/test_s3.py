"""A dataset in S3, by moto's server on 127.0.0.1, directly and through a proxy that cuts connections."""

import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.conftest import tiny_settings

ROOT = Path(__file__).parents[2]
SECRET = "a-long-secret-of-this-test"

pytestmark = pytest.mark.slow


class CuttingProxy:
    """Passes connections to a server; every third one is cut in the middle of the second part that the server sends.

    Args:
        port: where to.
    """

    def __init__(self, port: int):
        self.to, self.num_cuts = port, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        for number in itertools.count(1):
            client, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(client, number % 3 == 0), daemon=True).start()

    def _serve(self, client: socket.socket, is_cut: bool) -> None:
        server = socket.create_connection(("127.0.0.1", self.to))
        threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
        number = 0
        while chunk := server.recv(1 << 16):
            number += 1
            if is_cut and number == 2:
                client.sendall(chunk[: len(chunk) // 2])
                self.num_cuts += 1
                break
            client.sendall(chunk)
        for end in (client, server):
            end.shutdown(socket.SHUT_RDWR)  # the other thread waits for one of them
            end.close()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        try:
            while chunk := source.recv(1 << 16):
                target.sendall(chunk)
        except OSError:  # the other direction was cut
            pass


@pytest.fixture
def bucket(tiny_data):
    """The port of a server with ``DATASET.ROOT`` at ``s3://bucket/some data``."""
    s3fs = pytest.importorskip("s3fs", reason="ovenet[s3] is not installed")
    program = shutil.which("moto_server", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("moto[server] is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        files = s3fs.S3FileSystem(key="me", secret=SECRET, endpoint_url=f"http://127.0.0.1:{port}")
        files.mkdir("bucket")
        files.put(str(tiny_data), "bucket/some data", recursive=True)
        yield port
    finally:
        server.terminate()
        server.wait()


def run(tmp_path, *command, **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    environment |= {"OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "lib"), **variables}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_a_training_from_s3_is_that_of_a_disk(bucket, tiny_data, tmp_path, write_config):
    proxy = CuttingProxy(bucket)
    weights = []
    for number, root in enumerate((str(tiny_data), "s3://bucket/some data")):
        settings = tiny_settings()
        settings["DATASET"]["ROOT"], settings["WORKERS"] = root, 2
        file = write_config(settings, f"run{number}.yaml")
        done = run(
            tmp_path, "-m", "torch.distributed.run", "--nproc_per_node=2", "tools/train.py", "--cfg", file,
            "OUTPUT_DIR", tmp_path / "output", "TRAIN.BATCH_SIZE_PER_GPU", "1", "DATASET.CACHE", "disk",
            "DATASET.CACHE_DIR", tmp_path / f"cache{number}", AWS_ACCESS_KEY_ID="me", AWS_SECRET_ACCESS_KEY=SECRET,
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert SECRET not in done.stdout + done.stderr
        final = tmp_path / "output" / "camvid" / file.stem / "final_state.pth"
        weights.append(torch.load(final, weights_only=True)["model"])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert proxy.num_cuts > 5
    assert done.stderr.count("of 8 follows") > 5
    assert len(list((tmp_path / "cache1").rglob("*.npy"))) == 2 * 9
    files = [path for path in (tmp_path / "output").rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize(("address", "says"), [("s3://bucket/some data", "NoCredentials"), ("s3://", "no address")])
def test_without_credentials_there_is_one_line(bucket, tmp_path, write_config, address, says):
    file = write_config(tiny_settings())
    started = time.monotonic()
    done = run(
        tmp_path, "tools/audit_data.py", "--cfg", file, "DATASET.ROOT", address,
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{bucket}", AWS_EC2_METADATA_DISABLED="true",
    )  # fmt: skip
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert time.monotonic() - started < 60
