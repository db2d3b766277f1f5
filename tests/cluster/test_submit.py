"""`ranksearch submit`, through the program's front door."""

import json
from pathlib import Path

import pytest

from ranksearch.cli import main
from ranksearch.cluster.command import RunCommand


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANKSEARCH_STORAGE", "OPTUNA_STORAGE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["submit", "ray", "--dry-run", *words]) == 0
    printed = capsys.readouterr()
    assert not printed.err
    return json.loads(printed.out)


def test_a_dry_run_prints_the_ray_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = shown(capsys, "--python", "/py", "--entrypoint-cpus", "2", "--", "--budget", "7", "--study", "a b")
    assert job["entrypoint"] == f"cd {tmp_path} && exec /py -m ranksearch run --budget 7 --study 'a b' --address auto"
    assert job["entrypoint_num_cpus"] == 2
    assert job["runtime_env"] == {"env_vars": {}}
    assert job["address"] == "http://127.0.0.1:8265"


def test_a_dry_run_prints_the_slurm_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--nodes", "3", "--gpus-per-node", "2", "--cpus-per-node", "16", "--job-name", "nightly"]
    assert main(["submit", "slurm", "--dry-run", *flags, "--python", "/py", "--", "--budget", "7"]) == 0
    printed = capsys.readouterr()
    options = [line.removeprefix("#SBATCH --") for line in printed.out.splitlines() if line.startswith("#SBATCH")]
    assert {"nodes=3", "gpus-per-node=2", "cpus-per-task=16", "job-name=nightly", f"chdir={tmp_path}"} <= set(options)
    assert f"output={tmp_path}/slurm/%x-%j.out" in options
    assert "\nrun=(/py -m ranksearch run --budget 7)\n" in printed.out
    assert not printed.err
    assert not list(tmp_path.iterdir())


def test_flags_go_before_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://a:1")
    assert shown(capsys)["address"] == "http://a:1"
    assert shown(capsys, "--address", "http://b:2")["address"] == "http://b:2"


@pytest.mark.parametrize(
    ("toml", "variable", "flags", "kept"),
    [
        ("", None, (), None),
        ("", None, ("--storage", "sqlite:///a.db"), "a.db"),
        ("", "sqlite:///b.db", (), "b.db"),
        ("storage = 'sqlite:///c.db'", None, (), "c.db"),
        ("storage = 'sqlite:///c.db'", "sqlite:///b.db", ("--storage", "sqlite:///a.db"), "a.db"),
    ],
)
def test_a_copied_folders_database_stays_where_the_folder_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    toml: str,
    variable: str | None,
    flags: tuple[str, ...],
    kept: str | None,
) -> None:
    """Whoever names it: a flag, the environment, or the settings file of the folder that is sent."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "ranksearch.toml").write_text(toml)
    if variable:
        monkeypatch.setenv("RANKSEARCH_STORAGE", variable)
    job = shown(capsys, "--working-dir", "project", "--", *flags)
    command = RunCommand(flags=tuple(str(job["entrypoint"]).split()))
    if kept is None:
        assert command.value_of("--storage") is None
        assert command.flags[0] == f"RANKSEARCH_STORAGE=${{RANKSEARCH_STORAGE:-sqlite:///{folder}/ranksearch.db}}"
    else:
        assert command.value_of("--storage") == f"sqlite:///{folder}/{kept}"


def test_a_password_in_the_environment_is_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANKSEARCH_STORAGE", "postgresql+psycopg://ada:hunter2@db/ranksearch")
    assert main(["submit", "ray", "--dry-run"]) == 2
    assert main(["submit", "ray", "--dry-run", "--send-secrets"]) == 0
    printed = capsys.readouterr()
    assert "--send-secrets" in printed.err
    assert json.loads(printed.out)["runtime_env"]["env_vars"] == {"RANKSEARCH_STORAGE": "***"}
    assert "hunter2" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ray", "--", "--buget", "3"], "did you mean '--budget'"),
        (["slurm", "--", "--budget", "0"], "--budget is '0'"),
        (["slurm", "--", "--finetune-steps", "-1"], "--finetune-steps is -1"),
        (["ray", "--", "--storage", "postgresql://ada:hunter2@db/x"], "set RANKSEARCH_STORAGE"),
        (["ray", "--working-dir", "nowhere"], "'nowhere' does not exist"),
        (["ray", "--address", "auto"], "address is 'auto'"),
        (["slurm", "--time", "4h"], "time is '4h'"),
        (["slurm", "--nodes", "0"], "nodes is 0"),
        (["slurm", "--template", "symetric"], "did you mean 'symmetric'"),
        (["slurm", "--", "--address", "auto"], "--address cannot be given"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["submit", *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert "hunter2" not in printed.err
    assert not printed.out
    assert not list(tmp_path.iterdir())
