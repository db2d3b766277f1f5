"""Sending a Ray Job, and following one to its end."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ranksearch.cluster.ray_job import RayJob
from ranksearch.errors import ConfigError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

__all__ = ["follow", "send"]

_KILLED = 128  # a shell's exit code for a process that a signal ended: this and the signal
_STOPPED = _KILLED + 15
_NOT_INSTALLED = 'sending jobs needs ray[default]; run: pip install "ranksearch[cluster]"'


def send(job: RayJob) -> str:
    """The submission id of the job, which runs now or waits in the cluster's queue.

    Without an id of its own the job is named by its content, and a number from the second time on. Raises ConfigError
    where no cluster answers, where it refuses, and where the same job is still running.
    """
    with _one_line(job.address):
        client = _client(job.address)
        submission_id = job.submission_id or _next_id(client, job)
        try:
            return client.submit_job(submission_id=submission_id, **job.request())
        except RuntimeError as error:
            if "already exists" in str(error):
                raise _taken(submission_id, job.address) from error
            raise


def follow(address: str, submission_id: str, write: Callable[[str], object]) -> int:
    """Hand what the job prints to `write` until it ends; its exit code, 143 for a job that was stopped.

    Raises ConfigError where the cluster no longer answers; the job itself goes on then.
    """
    with _one_line(address):
        client = _client(address)
        asyncio.run(_tail(client, submission_id, write))
        while not (details := client.get_job_info(submission_id)).status.is_terminal():
            time.sleep(0.5)
    code = _exit_code(details)
    if code:
        reason = (details.message or "no reason given").splitlines()[0]
        write(f"job {submission_id}: {details.status.value.lower()}: {reason}\n")
    return code


async def _tail(client: "JobSubmissionClient", submission_id: str, write: Callable[[str], object]) -> None:
    async for text in client.tail_job_logs(submission_id):
        write(text)


def _exit_code(details: "JobDetails") -> int:
    code = details.driver_exit_code
    if code is None:
        return {"SUCCEEDED": 0, "STOPPED": _STOPPED}.get(details.status.value, 1)
    return code if code >= 0 else _KILLED - code


def _client(address: str) -> "JobSubmissionClient":
    from ray.job_submission import JobSubmissionClient

    # Ray lets the environment overrule the address it is given, and says so of this variable alone.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    for module in ("job.sdk", "dashboard_sdk"):  # how its sockets close is nobody's concern
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    return JobSubmissionClient(address)


def _next_id(client: "JobSubmissionClient", job: RayJob) -> str:
    """The job's default name, numbered, as Ray never takes a name twice: running a command again resumes its study."""
    named = re.compile(re.escape(job.default_id) + r"(-\d+)?")
    earlier = [other for other in client.list_jobs() if named.fullmatch(other.submission_id or "")]
    for other in earlier:
        if not other.status.is_terminal():
            raise _taken(str(other.submission_id), job.address)
    return f"{job.default_id}-{len(earlier) + 1}" if earlier else job.default_id


def _taken(submission_id: str, address: str) -> ConfigError:
    return ConfigError(
        f"job {submission_id!r} is already at {address}; follow it with `ray job logs --follow {submission_id}`, "
        f"stop it with `ray job stop {submission_id}`, or give this one another --submission-id"
    )


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    """What Ray raises, as one line with advice."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{_NOT_INSTALLED} ({error})") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(_advice(address, str(error))) from error
    except Exception as error:
        from ray.exceptions import AuthenticationError

        if not isinstance(error, AuthenticationError):
            raise
        raise ConfigError(
            f"the Ray cluster at {address} wants its token; set RAY_AUTH_MODE=token, "
            "and RAY_AUTH_TOKEN or the file ~/.ray/auth_token"
        ) from error


def _advice(address: str, reason: str) -> str:
    if "ray[default]" in reason:
        return _NOT_INSTALLED
    if "Failed to connect" in reason:
        return f"no Ray cluster answers at {address}; start one with `ray start --head`, or give another --address"
    return f"the Ray cluster at {address} refused the job: {_last_line(reason)}"


def _last_line(text: str) -> str:
    """Ray answers with whole tracebacks; what went wrong stands last."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    return lines[-1][:300] if lines else "no reason given"
