"""A study as a Ray Job: the record, and the request that it is sent as."""

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ranksearch.cluster.command import RunCommand, holds_password
from ranksearch.errors import ConfigError
from ranksearch.records import Record, key_of

__all__ = ["DEFAULT_ADDRESS", "RayJob", "environment_to_send"]

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
HIDDEN = "***"

# What a folder of work often holds and a job never needs. Ray leaves out what .gitignore names, too.
EXCLUDED = (".git", ".venv", "ranksearch.db*", "ranksearch.files")

# What is sent: these, and all of ours. RAY_AUTH_… a job has from the cluster that it runs in.
_PREFIX = "RANKSEARCH_"
_FOREIGN = ("OPTUNA_STORAGE",)
_SECRET_NAME = re.compile("PASS|PWD|SECRET|TOKEN|KEY", re.IGNORECASE)
_RELATIVE_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^/:].*)")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RayJob(Record):
    """One `ranksearch run` on a Ray cluster. Raises ConfigError on what cannot be sent.

    `address` is the cluster's dashboard and `python` an interpreter on its head. The run starts in `working_dir`, an
    absolute folder that the head sees too, or in a copy of it that Ray brings there and takes away in the end.
    `storage` is the database that the run would use where it is sent from, None where none is named there.
    `entrypoint_cpus` are set aside for the driver, beside those of the trials.
    """

    command: RunCommand
    working_dir: str
    copies_working_dir: bool = False
    storage: str | None = field(default=None, repr=False)
    address: str = DEFAULT_ADDRESS
    python: str = sys.executable
    submission_id: str | None = None
    entrypoint_cpus: float = 0
    env_vars: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^\s/:@]+(:\d+)?/?", self.address):
            raise ConfigError(
                f"address is {_shown(self.address)!r}; it must be the dashboard's, like {DEFAULT_ADDRESS}"
            )
        if self.submission_id is not None and not _ID.fullmatch(self.submission_id):
            raise ConfigError(f"submission id is {self.submission_id!r}; use letters, digits, '.', '_' and '-'")
        if self.entrypoint_cpus < 0:
            raise ConfigError(f"entrypoint cpus is {self.entrypoint_cpus:g}; it must be 0 or more")
        if not Path(self.working_dir).is_dir():
            raise ConfigError(f"working dir is {self.working_dir!r}; it must be a folder that exists")

    @property
    def entrypoint(self) -> str:
        """The command line, quoted for the shell that Ray hands it to."""
        run = shlex.join(self._in_the_cluster().argv(self.python))
        if not self.copies_working_dir:
            return f"cd {shlex.quote(self.working_dir)} && exec {run}"
        if self.storage is not None:
            return run
        default = shlex.quote(f"sqlite:///{self.working_dir}/ranksearch.db")
        return f"RANKSEARCH_STORAGE=${{RANKSEARCH_STORAGE:-{default}}} {run}"

    def _in_the_cluster(self) -> RunCommand:
        """The run, told of the cluster that it is in; and of a database that is not in the copy, which goes away."""
        command = self.command
        if command.value_of("--address") is None:
            command = command.with_flag("--address", "auto")
        relative = _RELATIVE_SQLITE.fullmatch(self.storage or "") if self.copies_working_dir else None
        if relative is None:
            return command
        return command.with_flag("--storage", f"{relative[1]}{self.working_dir}/{relative[2]}")

    @property
    def default_id(self) -> str:
        """Names the job by its content: the same job has the same name, wherever it is sent from."""
        return f"ranksearch-{key_of(self._request(self._shown_variables()))}"

    def request(self) -> dict[str, Any]:
        """The arguments of `JobSubmissionClient.submit_job` but for the submission id. May hold a password."""
        return self._request(self.env_vars)

    def shown(self) -> dict[str, Any]:
        """What would be sent, for people: `***` for whatever holds a password."""
        head = {"address": self.address, "submission_id": self.submission_id or self.default_id}
        return head | self._request(self._shown_variables())

    def _request(self, env_vars: Mapping[str, str]) -> dict[str, Any]:
        runtime_env: dict[str, Any] = {"env_vars": dict(sorted(env_vars.items()))}
        if self.copies_working_dir:
            runtime_env |= {"working_dir": self.working_dir, "excludes": list(EXCLUDED)}
        return {
            "entrypoint": self.entrypoint,
            "entrypoint_num_cpus": self.entrypoint_cpus,
            "runtime_env": runtime_env,
        }

    def _shown_variables(self) -> dict[str, str]:
        return {name: HIDDEN if _is_secret(name, value) else value for name, value in self.env_vars.items()}


def environment_to_send(environ: Mapping[str, str], *, send_secrets: bool = False) -> dict[str, str]:
    """The variables that a job takes along: RANKSEARCH_… and OPTUNA_STORAGE.

    Raises ConfigError where one holds a password and `send_secrets` is not set: Ray writes the variables of a job to
    `runtime_env_agent.log` on every node of the cluster, in plain and readable by all (seen with Ray 2.60).
    """
    sent = {name: value for name, value in environ.items() if name.startswith(_PREFIX) or name in _FOREIGN}
    secrets = sorted(name for name, value in sent.items() if _is_secret(name, value))
    if secrets and not send_secrets:
        raise ConfigError(
            f"{secrets[0]} holds a password, and Ray writes a job's environment to its logs in plain; unset it here "
            "and set it where the cluster starts, or keep the password in ~/.pgpass, or allow it with --send-secrets"
        )
    return sent


def _is_secret(name: str, value: str) -> bool:
    return bool(_SECRET_NAME.search(name)) or holds_password(value)


def _shown(address: str) -> str:
    return HIDDEN if "@" in address else address
