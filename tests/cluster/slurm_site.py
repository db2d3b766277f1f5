"""A Slurm site of stand-ins: programs on PATH that write down how they were called, and do what the real ones would.

`python -m ranksearch` behaves as RUN says: `exit N`; `listen N`, to leave with N when USR2 has come; `deaf` to it.
`ray` runs what follows `--` (symmetric-run) or stays (start). `python -`, which waits for Ray's nodes, and `ray
symmetric-run` take as long as START_SECONDS says.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.argv import write_program

_CALLED = 'echo "$(basename "$0") $*" >>"$CALLS"'
_ENVIRONMENT = 'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN ${RAY_ADDRESS-none} $RAY_TMPDIR" >>"$CALLS.environment"'

PROGRAMS = {
    "srun": _CALLED + '\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"',
    "scontrol": _CALLED,
    "hostname": "echo 10.0.0.7 172.17.0.1",
    "ray": f"""{_CALLED}
{_ENVIRONMENT}
if [ "$1" = symmetric-run ]; then
    sleep "$START_SECONDS" & wait $!
    while [ "$1" != -- ]; do shift; done
    shift; "$@"; exit
fi
exec sleep 30""",
    "python": f"""{_CALLED}
{_ENVIRONMENT}
if [ "$1" = - ]; then
    sleep "$START_SECONDS" & wait $!
    until [ "$(grep -c '^ray start' "$CALLS")" -ge $(($3 > 1 ? 2 : 1)) ]; do sleep 0.02; done
    exit "$NODES_CODE"
fi
case $RUN in
    exit*) $RUN ;;
    listen*) trap 'sleep 0.3; echo the run leaves >>"$CALLS"; exit ${RUN#listen }' USR2 ;;
esac
touch "$CALLS.running"
exec 3<> <(:)
while true; do read -rt 0.05 -u 3; done""",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    folder: Path

    @classmethod
    def build(cls, folder: Path) -> "Site":
        for name, program in PROGRAMS.items():
            write_program(folder / name, program)
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
        nodes_code: int = 0,
        job_id: int = 4242,
    ) -> subprocess.Popen[bytes]:
        (self.folder / "job.sh").write_text(script)
        environment = {
            "PATH": os.environ["PATH"],
            "CALLS": str(self.folder / "calls"),
            "RUN": run,
            "START_SECONDS": str(start_seconds),
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

    def wait_for_run(self) -> None:
        _wait_until((self.folder / "calls.running").exists)

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
