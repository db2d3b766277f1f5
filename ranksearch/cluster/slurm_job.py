"""A study as a Slurm job: the record, the batch script it prints as, and `sbatch`.

The script's head is written from the record; what follows is one of the bash files in slurm/, as they stand:
`symmetric` (whole nodes, `ray symmetric-run`, Ray 2.49 or later) or `head-worker` (`ray start`; nodes may be shared).

A search leaves before its time limit: Slurm signals the script two minutes before, the script tells `ranksearch run`,
which exits with 75, and the script puts itself back into the queue. The study goes on where it was.
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ranksearch.cluster.command import RunCommand
from ranksearch.errors import ConfigError
from ranksearch.records import Record, nearest

__all__ = ["TEMPLATES", "SlurmJob", "sbatch"]

TEMPLATES = {"symmetric": "symmetric.sh", "head-worker": "head_worker.sh"}
NOTICE_SECONDS = 120
SHORTEST_SECONDS = 600  # a limit within the notice would put the job back into the queue at once, for ever

_FOLDER = Path(__file__).with_name("slurm")


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmJob(Record):
    """One `ranksearch run` on nodes of a Slurm cluster. Raises ConfigError on what Slurm could not run.

    `time` is HH:MM:SS or D-HH:MM:SS; `cpus_per_node` None leaves the number to Slurm. `working_dir` is where the run
    starts, `output_dir` where the script and what it prints go, both absolute; `python` is an interpreter on the nodes.
    """

    command: RunCommand
    working_dir: str
    output_dir: str
    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int | None = None
    time: str = "04:00:00"
    partition: str | None = None
    account: str | None = None
    job_name: str = "ranksearch"
    template: str = "symmetric"
    python: str = sys.executable

    def __post_init__(self) -> None:
        _check_number("nodes", self.nodes, least=1)
        _check_number("gpus per node", self.gpus_per_node, least=0)
        _check_number("cpus per node", self.cpus_per_node, least=1)
        _check_name("partition", self.partition)
        _check_name("account", self.account)
        _check_name("job name", self.job_name)
        _check_path("working dir", self.working_dir)
        _check_path("output dir", self.output_dir)
        _check_time(self.time)
        if self.template not in TEMPLATES:
            hint = nearest(self.template, TEMPLATES)
            raise ConfigError(f"template is {self.template!r}; it must be one of {', '.join(TEMPLATES)}{hint}")
        if self.command.value_of("--address") is not None:
            raise ConfigError("--address cannot be given to a Slurm job; its script starts a Ray cluster of its own")

    @property
    def path(self) -> Path:
        """Where the script is written."""
        return Path(self.output_dir) / f"{self.job_name}.sh"

    def script(self) -> str:
        """The batch script, complete."""
        bodies = ("start.sh", TEMPLATES[self.template], "finish.sh")
        return self._head() + "".join((_FOLDER / name).read_text() for name in bodies)

    def _head(self) -> str:
        options = "".join(f"#SBATCH --{option}\n" for option in self._options())
        run = shlex.join(self.command.argv(self.python))
        return (
            f"#!/bin/bash\n{options}"
            "# From `ranksearch submit slurm`: leaves in time, and comes back until the search is done.\n\n"
            f'export PATH={shlex.quote(str(Path(self.python).parent))}:"$PATH"\n'
            f"run=({run})\n"
            f"num_gpus={self.gpus_per_node}\n"
        )

    def _options(self) -> list[str]:
        optional = {"cpus-per-task": self.cpus_per_node, "partition": self.partition, "account": self.account}
        return [
            f"job-name={self.job_name}",
            f"nodes={self.nodes}",
            "ntasks-per-node=1",
            *([f"gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []),
            *(f"{option}={value}" for option, value in optional.items() if value is not None),
            # `ray symmetric-run` ends with `ray stop`, which ends every Ray of this user on the node.
            *(["exclusive"] if self.template == "symmetric" else []),
            f"time={self.time}",
            f"chdir={_quoted(self.working_dir)}",
            f"output={_quoted(f'{self.output_dir}/%x-%j.out')}",
            "open-mode=append",
            "requeue",
            # B: to this script alone. Without it the signal goes to what srun started, which is Ray, and kills it.
            f"signal=B:USR2@{NOTICE_SECONDS}",
        ]


def _quoted(path: str) -> str:
    """A path as sbatch reads it: only double quotes keep a space or a '#'."""
    return path if re.fullmatch(r"[\w/.,+=@%-]+", path) else f'"{path}"'


def _check_number(what: str, number: int | None, *, least: int) -> None:
    if number is not None and number < least:
        raise ConfigError(f"{what} is {number}; it must be {least} or more")


def _check_name(what: str, name: str | None) -> None:
    if name is not None and not re.fullmatch(r"[A-Za-z0-9._+,-]+", name):
        raise ConfigError(f"{what} is {name!r}; use letters, digits, '.', '_', '+', ',' and '-'")


def _check_path(what: str, path: str) -> None:
    if not re.fullmatch(r"/[^\"'\\%\n]*", path):
        raise ConfigError(f"{what} is {path!r}; it must be absolute, without quotes, '%' and backslashes")


def _check_time(time: str) -> None:
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", time)
    if found is None:
        raise ConfigError(f"time is {time!r}; write HH:MM:SS or D-HH:MM:SS, like 04:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    if ((days * 24 + hours) * 60 + minutes) * 60 + seconds < SHORTEST_SECONDS:
        raise ConfigError(f"time is {time!r}; it must be at least 10 minutes: the last 2 are for leaving")


def sbatch(job: SlurmJob) -> str:
    """Write the script and hand it to Slurm; the job's id. Raises ConfigError where there is no Slurm or it refuses."""
    program = shutil.which("sbatch")
    if program is None:
        raise ConfigError("there is no `sbatch` here; print the script with --dry-run and submit it from a login node")
    try:
        job.path.parent.mkdir(parents=True, exist_ok=True)
        job.path.write_text(job.script())
    except OSError as error:
        raise ConfigError(f"cannot write {str(job.path)!r} ({error.strerror}); give another --output-dir") from error
    command = [program, "--parsable", str(job.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a list, no shell
    if done.returncode:
        raise ConfigError(f"sbatch refused {str(job.path)!r}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]
