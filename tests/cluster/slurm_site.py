"""A Slurm site of stand-ins: programs on PATH that write down how they were called and do what the real ones would."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STAND_INS = Path(__file__).with_name("stand_ins")


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    folder: Path

    @classmethod
    def build(cls, folder: Path) -> "Site":
        for program in STAND_INS.iterdir():
            shutil.copy(program, folder)
            (folder / program.name).chmod(0o755)
        return cls(folder=folder)

    @property
    def python(self) -> str:
        return str(self.folder / "python")

    def start(
        self,
        script: str,
        *,
        run: str,
        nodes: int = 1,
        start_seconds: float = 0,
        end_seconds: float = 0,
        nodes_code: int = 0,
        job_id: int = 4242,
    ) -> subprocess.Popen[bytes]:
        """The script under way. `run`: `exit N`; `listen N`, to leave with N on USR2; `deaf` to it, so that it kills.

        `start_seconds` is what Ray takes to start, `end_seconds` what `ray symmetric-run` takes to end; `nodes_code` is
        1 when the nodes do not come up.
        """
        (self.folder / "job.sh").write_text(script)
        environment = {
            "PATH": os.environ["PATH"],
            "CALLS": str(self.folder / "calls"),
            "RUN": run,
            "START_SECONDS": str(start_seconds),
            "END_SECONDS": str(end_seconds),
            "NODES_CODE": str(nodes_code),
            "RAY_ADDRESS": "http://another.cluster:8265",
            "SLURM_JOB_ID": str(job_id),
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_CPUS_ON_NODE": "8",
            "SLURMD_NODENAME": "node-1",
        }
        return subprocess.Popen(
            ["bash", str(self.folder / "job.sh")],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_for_call(self, beginning: str) -> None:
        _wait_until(lambda: bool(self.calls(beginning)))

    def wait_for(self, stage: str) -> None:
        """Until the run is `running`, or `over` while Ray is still there."""
        _wait_until((self.folder / f"calls.{stage}").exists)

    def calls(self, beginning: str = "") -> list[str]:
        return [line for line in self._lines("calls") if line.startswith(beginning)]

    def environments(self) -> list[list[str]]:
        """RAY_AUTH_MODE, RAY_AUTH_TOKEN, RAY_ADDRESS, RAY_TMPDIR of each call of `ray` and `python`."""
        return [line.split(" ") for line in self._lines("calls.environment")]

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


def _wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of a job outlives its test."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
