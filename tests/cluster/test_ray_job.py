"""A Ray Job as it would be sent: golden files, quoting, names, and what travels in the environment."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings

from ranksearch.cluster import RayJob, RunCommand, environment_to_send, follow, ray_client, send
from ranksearch.errors import ConfigError
from tests.cluster.argv import ARGUMENTS, arguments_in, write_echo

GOLDEN = Path(__file__).with_name("golden")
PASSWORD_URL = "postgresql+psycopg://ada:hunter2@db/ranksearch"


def job(*flags: str, **settings: Any) -> RayJob:
    return RayJob(
        **{"command": RunCommand(flags=flags), "working_dir": "/", "python": "/opt/venv/bin/python"} | settings
    )


# --- what would be sent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("golden", "shown"),
    [
        ("ray_here.json", job("--budget", "200", "--model", "net.py:make net")),
        (
            "ray_copied.json",
            job(
                *("--budget", "200"),
                copies_working_dir=True,
                address="https://ray.example.org:8265",
                submission_id="nightly",
                entrypoint_cpus=0.5,
                env_vars={"RANKSEARCH_STORAGE": PASSWORD_URL, "RANKSEARCH_BUDGET": "50"},
                storage=PASSWORD_URL,
            ),
        ),
    ],
)
def test_the_job_is_the_golden_one(golden: str, shown: RayJob) -> None:
    assert json.dumps(shown.shown(), indent=2) + "\n" == (GOLDEN / golden).read_text()


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin") / "a folder; exit"
    folder.mkdir()
    return write_echo(folder / "py thon")


@given(flags=ARGUMENTS)
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("copied", [False, True])
def test_a_shell_hands_the_run_exactly_its_flags(echo: Path, copied: bool, flags: list[str]) -> None:
    """In a folder, with an interpreter, and with flags that a shell would take apart."""
    command = RunCommand(flags=(*flags, "--address", "here"))
    sent = RayJob(command=command, working_dir=str(echo.parent), python=str(echo), copies_working_dir=copied)
    done = subprocess.run(sent.entrypoint, shell=True, executable="/bin/sh", capture_output=True, check=True)
    assert arguments_in(done.stdout) == ["-m", "ranksearch", "run", *flags, "--address", "here"]


@pytest.mark.parametrize(
    ("flags", "address"), [((), "auto"), (("--address", "h:1"), "h:1"), (("--address=h:1",), "h:1")]
)
def test_the_run_is_told_of_its_cluster_unless_it_names_one(flags: tuple[str, ...], address: str) -> None:
    assert RunCommand(flags=tuple(job(*flags).entrypoint.split())).value_of("--address") == address


@pytest.mark.parametrize(
    ("storage", "kept"),
    [
        ("sqlite:///study.db", "sqlite:////w d/study.db"),
        ("sqlite+pysqlite:///sub/study.db", "sqlite+pysqlite:////w d/sub/study.db"),
        ("sqlite:////data/study.db", None),
        ("postgresql://ada@db/ranksearch", None),
    ],
)
def test_a_database_outlives_the_copy_of_the_folder(tmp_path: Path, echo: Path, storage: str, kept: str | None) -> None:
    folder = tmp_path / "w d"
    folder.mkdir()
    sent = RayJob(
        command=RunCommand(), working_dir=str(folder), copies_working_dir=True, storage=storage, python=str(echo)
    )
    arguments = arguments_in(subprocess.run(sent.entrypoint, shell=True, capture_output=True, check=True).stdout)
    expected = kept and kept.replace("/w d", str(folder))
    assert RunCommand(flags=tuple(arguments)).value_of("--storage") == expected


@pytest.mark.parametrize("clusters_own", [None, "postgresql://ada@db/ranksearch"])
def test_without_a_database_the_clusters_own_is_used_before_the_default(
    tmp_path: Path, clusters_own: str | None
) -> None:
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$RANKSEARCH_STORAGE"\n')
    program.chmod(0o755)
    sent = RayJob(command=RunCommand(), working_dir=str(tmp_path), copies_working_dir=True, python=str(program))
    environment = {"RANKSEARCH_STORAGE": clusters_own} if clusters_own else {}
    done = subprocess.run(sent.entrypoint, shell=True, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (clusters_own or f"sqlite:///{tmp_path}/ranksearch.db")


def test_the_name_is_the_content() -> None:
    assert job("--budget", "3").default_id == job("--budget", "3").default_id
    different = [
        job("--budget", "3"),
        job("--budget", "4"),
        job("--budget", "3", working_dir="/tmp"),
        job("--budget", "3", copies_working_dir=True),
        job("--budget", "3", env_vars={"RANKSEARCH_STUDY": "a"}),
    ]
    assert len({each.default_id for each in different}) == len(different)
    # A name that a password went into would let it be guessed.
    secrets = [job(env_vars={"RANKSEARCH_STORAGE": PASSWORD_URL.replace("hunter2", p)}) for p in ("a", "b")]
    assert secrets[0].default_id == secrets[1].default_id


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"address": "auto"}, "address is 'auto'"),
        ({"address": "http://ada:hunter2@ray:8265"}, r"address is '\*\*\*'"),
        ({"submission_id": "a b"}, "submission id is 'a b'"),
        ({"submission_id": "../x"}, "submission id"),
        ({"entrypoint_cpus": -1}, "entrypoint cpus is -1"),
        ({"working_dir": "/nowhere"}, "working dir is '/nowhere'"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        job(**settings)
    assert "\n" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


# --- the environment -------------------------------------------------------------------------------------------------


def test_only_our_variables_are_sent() -> None:
    ours = {"RANKSEARCH_STORAGE": "postgresql://ada@db/x", "RANKSEARCH_FINETUNE__STEPS": "3", "OPTUNA_STORAGE": "y"}
    others = {"HOME": "/root", "RAY_AUTH_TOKEN": "t", "RAY_ADDRESS": "auto", "AWS_SECRET_ACCESS_KEY": "s"}
    assert environment_to_send(ours | others) == ours


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANKSEARCH_STORAGE", PASSWORD_URL), ("OPTUNA_STORAGE", PASSWORD_URL), ("RANKSEARCH_API_TOKEN", "hunter2")],
)
def test_a_secret_is_sent_only_when_told_to_and_never_shown(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} holds a password.*--send-secrets"):
        environment_to_send({name: value})
    sent = job(env_vars=environment_to_send({name: value}, send_secrets=True), storage=value)
    assert sent.request()["runtime_env"]["env_vars"] == {name: value}
    assert sent.shown()["runtime_env"]["env_vars"] == {name: "***"}
    assert "hunter2" not in json.dumps(sent.shown()) + repr(sent)


# --- sending and following, against a cluster of words ---------------------------------------------------------------


class Cluster:
    """Stands in for Ray's client: jobs by name, with a state each."""

    def __init__(self, **jobs: str) -> None:
        self.jobs = {name.replace("_", "-"): state for name, state in jobs.items()}
        self.sent: dict[str, Any] = {}
        self.refusal: str | None = None
        self.endings: Iterator[Any] = iter(())

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=name, status=status(state)) for name, state in self.jobs.items()]

    def submit_job(self, submission_id: str, **request: Any) -> str:
        if self.refusal:
            raise RuntimeError(self.refusal)
        self.sent = request
        return submission_id

    async def tail_job_logs(self, _: str) -> Any:
        for text in ("one\n", "two\n"):
            yield text

    def get_job_info(self, _: str) -> Any:
        return next(self.endings)


def status(state: str) -> Any:
    return SimpleNamespace(value=state, is_terminal=lambda: state in ("SUCCEEDED", "FAILED", "STOPPED"))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(ray_client, "_client", lambda _: made)
    return made


def test_a_job_is_numbered_from_the_second_time_on(cluster: Cluster) -> None:
    name = job().default_id
    assert send(job()) == name
    assert cluster.sent == job().request()
    cluster.jobs = {name: "FAILED", "other": "RUNNING", f"{name}x": "RUNNING"}
    assert send(job()) == f"{name}-2"
    cluster.jobs[f"{name}-2"] = "STOPPED"
    assert send(job()) == f"{name}-3"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
@pytest.mark.parametrize("suffix", ["", "-2"])
def test_the_same_job_is_refused_while_it_runs(cluster: Cluster, state: str, suffix: str) -> None:
    name = job().default_id
    cluster.jobs = {name: "FAILED"} | {f"{name}{suffix}": state}
    with pytest.raises(ConfigError, match=f"'{name}{suffix}' is already at http://127.0.0.1:8265"):
        send(job())
    assert not cluster.sent


def test_a_name_of_ones_own_is_kept_and_refused_the_second_time(cluster: Cluster) -> None:
    assert send(job(submission_id="nightly")) == "nightly"
    cluster.refusal = "Request failed: ValueError: Job with submission_id nightly already exists.\n."
    with pytest.raises(ConfigError, match="'nightly' is already at"):
        send(job(submission_id="nightly"))


def test_what_ray_says_becomes_the_last_line_of_it(cluster: Cluster) -> None:
    cluster.refusal = "Request failed with status code 500: Traceback\n  File x\nValueError: no such thing\n.\n."
    with pytest.raises(ConfigError, match=r"^the Ray cluster at \S+ refused the job: ValueError: no such thing$"):
        send(job())


@pytest.mark.parametrize(
    ("state", "driver", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("SUCCEEDED", None, 0),
        ("FAILED", 3, 3),
        ("FAILED", 75, 75),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_following_ends_as_the_job_did(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, state: str, driver: int | None, expected: int
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    cluster.endings = iter(
        SimpleNamespace(status=status(each), driver_exit_code=driver, message="why\nlogs")
        for each in ("RUNNING", state)
    )
    written: list[str] = []
    assert follow("http://127.0.0.1:8265", "nightly", written.append) == expected
    assert written == ["one\n", "two\n", *([f"job nightly: {state.lower()}: why\n"] if expected else [])]
