import shutil
import tempfile
from pathlib import Path

import pytest

from ranksearch.cli import main
from tests.cli.project import make_project

FINISHED_BUDGET = 8


@pytest.fixture(scope="package", autouse=True)
def _quick_measurements(tmp_path_factory):
    """Nobody looks at these latencies: a short warm-up will do, and nobody else's measurement is waited for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="package")
def finished(tmp_path_factory):
    """A project whose study is finished. Only to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run"]) == 0
    return folder


@pytest.fixture
def project(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the finished project, which is the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder)
    return _enter(folder, monkeypatch)


@pytest.fixture
def fresh(finished, tmp_path, monkeypatch) -> Path:
    """The project before its first run."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    for name in ("nets.py", "data.npz", "net.safetensors", "ranksearch.toml"):
        shutil.copy2(finished / name, folder / name)
    return _enter(folder, monkeypatch)


def _enter(folder: Path, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    for variable in ("RANKSEARCH_STORAGE", "OPTUNA_STORAGE", "RAY_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    return folder


@pytest.fixture
def ranksearch(capsys):
    """Runs a command line; gives (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
