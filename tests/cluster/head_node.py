"""A Ray head of its own for a test: loopback, free ports, its own folder and token; ended with all its processes."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadNode:
    address: str
    folder: Path
    environment: dict[str, str]  # with the token, for whoever talks to it

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.folder.rglob("*.log"))


@contextmanager
def head_node() -> Iterator[HeadNode]:
    folder = Path(tempfile.mkdtemp(prefix="rs-head-", dir="/tmp"))  # short, for the sockets in it
    dashboard, client = _free_ports(2)
    node = HeadNode(address=f"http://127.0.0.1:{dashboard}", folder=folder, environment=_environment())
    options = [
        *("--head", "--block", "--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={folder}"),
        *("--node-ip-address=127.0.0.1", "--port=0", "--min-worker-port=0", "--max-worker-port=0"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *("--dashboard-agent-listen-port=0", "--disable-usage-stats"),
    ]
    with (folder / "start.log").open("w") as log:
        process = psutil.Popen(
            [Path(sys.executable).with_name("ray"), "start", *options],
            env=node.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for(node, process)
        yield node
    finally:
        _end(process)
        shutil.rmtree(folder)


def _environment() -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RANKSEARCH_", "OPTUNA_"))
    }
    return kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


def _free_ports(number: int) -> list[int]:
    """Free a moment ago. The system gives from 32768 on, where Ray gives none by itself."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for(node: HeadNode, process: psutil.Popen) -> None:
    token = {"Authorization": f"Bearer {node.environment['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{node.address}/api/version", headers=token)
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None, (node.folder / "start.log").read_text()
            assert time.monotonic() < deadline, "no Ray head within 60 s"
            time.sleep(0.2)


def _end(process: psutil.Popen) -> None:
    """Politely, then for good; by process, since `ray stop` would end every Ray on this machine."""
    family = [process, *process.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=20)
    for each in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(alive, timeout=10)
