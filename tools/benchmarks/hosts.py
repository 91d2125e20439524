"""Two hosts on one machine: network namespaces with a virtual link between them. Needs root and iproute2."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PORT = 29533
_PERIOD_S = 0.1


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Hosts:
    """Two namespaces with the addresses 10.77.0.1 and 10.77.0.2."""

    def __init__(self, name: str):
        self.names = (f"{name}a", f"{name}b")
        for namespace in self.names:
            ip("netns", "add", namespace)
        first, second = self.names
        ip("link", "add", "link0", "netns", first, "type", "veth", "peer", "name", "link0", "netns", second)
        for number, namespace in enumerate(self.names, start=1):
            ip("-n", namespace, "addr", "add", f"10.77.0.{number}/24", "dev", "link0")
            for device in ("lo", "link0"):
                ip("-n", namespace, "link", "set", device, "up")

    def start(self, number: int, tool: str, *arguments: object) -> subprocess.Popen:
        """Starts a tool on a host, one process there, under torchrun."""
        launcher = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--node_rank", number, "--nproc_per_node", 1,
            "--master_addr", "10.77.0.1", "--master_port", PORT, f"tools/{tool}.py", *arguments,
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "link0"}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], *map(str, launcher)],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip

    def kill(self, number: int) -> None:
        """Ends all processes of a host at once."""
        self._send(number, signal.SIGKILL)

    def slow_down(self, number: int, share: float, is_over: threading.Event) -> None:
        """Holds all processes of a host for a share of the time, until the event is set."""
        while not is_over.wait(_PERIOD_S * (1 - share)):
            self._send(number, signal.SIGSTOP)
            is_over.wait(_PERIOD_S * share)
            self._send(number, signal.SIGCONT)

    def _send(self, number: int, sent: signal.Signals) -> None:
        found = subprocess.run(["ip", "netns", "pids", self.names[number]], capture_output=True, text=True)
        for pid in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), sent)

    def cut(self) -> None:
        """Takes the link away; no host is told."""
        ip("-n", self.names[1], "link", "set", "link0", "down")

    def remove(self) -> None:
        for number, namespace in enumerate(self.names):
            self.kill(number)
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)

    def limit(self, megabits: float) -> None:
        """Lets no more than so many megabits a second through, each way."""
        for namespace in self.names:
            subprocess.run(
                ["tc", "-n", namespace, "qdisc", "replace", "dev", "link0", "root", "tbf", "rate", f"{megabits:g}mbit",
                 "burst", "256kb", "latency", "100ms"],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
