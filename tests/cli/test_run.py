"""`run`, `export`, `doctor`: from the first trial to a model in hand."""

import json
import os
import shutil
import signal
import sys

import pytest
from safetensors.torch import save_file

import ranksearch as rs
from ranksearch.cli import main
from ranksearch.errors import TooManyFailuresError
from ranksearch.evaluate import evaluate
from ranksearch.settings import Settings
from ranksearch.study.study import Study
from tests.cli.conftest import FINISHED_BUDGET
from tests.cli.project import dense_net, listing

STORAGE = "sqlite:///ranksearch.db"


def lines(text: str, word: str) -> list[str]:
    return [line for line in text.splitlines() if word in line]


def test_the_same_command_again_runs_nothing_and_shows_the_same(project, ranksearch):
    before = Study.open("toy", STORAGE).trials()
    code, out, err = ranksearch("run")
    assert code == 0
    assert f"{FINISHED_BUDGET} of {FINISHED_BUDGET} trials are there already" in err
    assert lines(err, "complete") == []
    assert Study.open("toy", STORAGE).trials().equals(before)
    assert ranksearch("run")[1] == out


def test_a_larger_budget_extends_with_one_line_a_trial(project, ranksearch):
    code, _, err = ranksearch("run", "--budget", str(FINISHED_BUDGET + 2))
    assert code == 0
    told = lines(err, " complete ")
    assert [line.split()[0] for line in told] == ["9/10", "10/10"]
    assert [line.split()[2] for line in told] == ["8", "9"]
    assert len(Study.open("toy", STORAGE).trials()) == FINISHED_BUDGET + 2


def test_ends_with_the_front_dense_first(project, ranksearch):
    _, out, err = ranksearch("run", "--format", "json")
    rows, front = json.loads(out), Study.open("toy", STORAGE).pareto()
    assert rows[0]["origin"] == "dense"
    assert [row["trial"] for row in rows[1:]] == [n for n in front.index if n != 0]
    assert all(row["test_accuracy"] is not None for row in rows)
    assert "ranksearch.db" in err
    table = ranksearch("run")[1].splitlines()
    assert table[2].split()[0] == "0"
    assert {"accuracy", "test", "speed-up", "methods"} <= set(table[0].split())


def test_the_commands_to_paste_work(project, ranksearch):
    _, _, err = ranksearch("run")
    pasted = [line.partition("ranksearch ")[2].split() for line in lines(err, " ranksearch ")]
    assert [words[0] for words in pasted] == ["pareto", "show", "export"]
    for words in pasted:
        assert ranksearch(*words)[0] == 0
    assert (project / pasted[2][3] / "model.safetensors").is_file()


@pytest.mark.parametrize("flag", ["--storage", "environment"])
def test_the_commands_to_paste_name_a_storage_that_was_a_flag(project, ranksearch, monkeypatch, flag):
    url = f"sqlite:///{project}/ranksearch.db"
    if flag == "environment":
        monkeypatch.setenv("OPTUNA_STORAGE", url)
    _, _, err = ranksearch("run", *(["--storage", url] if flag == "--storage" else []))
    assert (f"--storage {url}" in err) is (flag == "--storage")


def test_constraints_that_no_trial_meets_end_with_3(project, ranksearch):
    code, out, err = ranksearch("run", "--min-speedup", "1000", "--format", "json")
    assert code == 3
    assert len(json.loads(out)) > 0
    assert "nearest is trial" in err.splitlines()[-1]


def test_constraints_that_a_trial_meets(project, ranksearch):
    fastest = float(Study.open("toy", STORAGE).pareto().speedup.max())
    code, out, _ = ranksearch("run", "--min-speedup", str(fastest), "--format", "json")
    assert code == 0
    assert [row["speedup"] for row in json.loads(out)[1:]] == [fastest] != [1]


def test_dry_run_shows_the_space_and_writes_nothing(fresh, ranksearch):
    before = listing(fresh)
    code, out, err = ranksearch("run", "--dry-run", "--format", "json")
    rows = {row["layer"]: row for row in json.loads(out)}
    assert code == 0
    assert listing(fresh) == before
    assert list(rows) == ["0", "3", "5", "9"]
    assert rows["0"]["num_options"] == rows["9"]["num_options"] == 0
    assert rows["0"]["skipped"]
    assert rows["5"]["num_options"] == len(rows["5"]["options"]) > 2
    assert rows["5"]["options"][-1] == "dense"
    assert "2 of 4 layers are searched" in err
    assert "budget: 8 trials" in err
    assert "a trial" in lines(err, "time:")[0]


def test_a_model_that_knows_nothing_is_doubted_at_once(fresh, ranksearch):
    save_file(dense_net(fresh).state_dict(), "untrained.safetensors")
    code, _, err = ranksearch("run", "--weights", "untrained.safetensors", "--budget", "2")
    assert code == 0
    dense, doubt = lines(err, "trial 0")[0], lines(err, "no better than always naming the most frequent class")[0]
    assert err.index(dense) < err.index(doubt) < err.index("trial 1 ")


def test_a_trained_model_is_not_doubted(project, ranksearch):
    assert "warning" not in ranksearch("run")[2]


def test_a_failed_trial_is_told_with_its_reason(fresh, ranksearch, monkeypatch):
    from ranksearch import trial

    measure = trial._measure

    def sometimes(candidate, spec, bench):
        if len(spec.plan) == 2:
            raise RuntimeError("no luck")
        return measure(candidate, spec, bench)

    monkeypatch.setattr(trial, "_measure", sometimes)
    code, out, err = ranksearch("run", "--budget", "3", "--format", "json")
    assert code == 0
    assert "trial 1   failed: RuntimeError: no luck" in err
    assert "2 failed, the first one trial 1: RuntimeError: no luck" in err
    assert [row["trial"] for row in json.loads(out)] == [0]
    failed = ranksearch("trials", "--state", "failed")[1]
    assert failed.count("RuntimeError: no luck") == 2


# --- errors and signals ----------------------------------------------------------------------------------------------


@pytest.fixture
def search_does(monkeypatch):
    """Puts something in the place of the search."""

    def put(action) -> None:
        monkeypatch.setattr("ranksearch.study.search.run_search", lambda *_: action())

    return put


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "run the same command again"),
        (signal.SIGTERM, 143, "run the same command again"),
        (signal.SIGUSR2, 75, "preempted; run the same command again"),
    ],
)
def test_signals(fresh, ranksearch, search_does, number, code, said):
    taken_for_errors = []

    def isolated() -> None:
        try:
            os.kill(os.getpid(), number)
        except Exception as error:
            taken_for_errors.append(error)
            raise

    search_does(isolated)
    got, out, err = ranksearch("run")
    assert (got, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1
    assert taken_for_errors == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 75)])
def test_a_signal_that_compiled_code_wrapped(fresh, ranksearch, search_does, number, code):
    def wrapped() -> None:
        try:
            os.kill(os.getpid(), number)
        except BaseException as told:
            raise SystemError("returned a result with an exception set") from told

    search_does(wrapped)
    got, _, err = ranksearch("run")
    assert got == code
    assert "run the same command again" in err


def test_sigterm_in_the_moment_when_ray_has_it(fresh, ranksearch, search_does):
    search_does(lambda: sys.exit(signal.SIGTERM))
    assert ranksearch("run")[0] == 143


def test_signals_are_listened_to_again_after_ray_took_them(fresh, ranksearch, monkeypatch):
    def search(task, config, view):
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("Ray's handler"))
        view.on_stage("workers are there")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("ranksearch.study.search.run_search", search)
    assert ranksearch("run")[0] == 143


def test_handlers_are_put_back(fresh, ranksearch, search_does):
    before = signal.getsignal(signal.SIGTERM)
    search_does(lambda: os.kill(os.getpid(), signal.SIGTERM))
    ranksearch("run")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_of_ours_keeps_its_exit_code(fresh, ranksearch, search_does):
    def fail() -> None:
        raise TooManyFailuresError("11 trials\nfailed")

    search_does(fail)
    assert ranksearch("run") == (5, "", "error: 11 trials failed\n")


def test_an_unexpected_error_is_one_line_and_a_traceback_only_for_debug(fresh, ranksearch, search_does):
    search_does(lambda: {}["missing"])
    assert ranksearch("run") == (1, "", "error: KeyError: 'missing'; run with --debug to see where\n")
    for words in (["--debug", "run"], ["run", "--debug"]):
        code, _, err = ranksearch(*words)
        assert code == 1
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("error: KeyError")


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ranksearch {rs.__version__}\n"
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown
    assert main([]) == 2
    assert "pareto" in capsys.readouterr().out


# --- a model in hand -------------------------------------------------------------------------------------------------


@pytest.fixture
def small(project, ranksearch):
    """(trial number, folder) of an export."""
    front = Study.open("toy", STORAGE).pareto().query("origin != 'dense'")
    number = int(front.index[0])
    code, out, err = ranksearch("export", str(number), "--output", "small")
    assert (code, out) == (0, "small\n")
    assert "warning" not in err
    return number, project / "small"


def test_an_export_gives_the_stored_accuracy_to_the_last_example(project, small):
    number, folder = small
    task, stored = Settings.read({}).task(), Study.open("toy", STORAGE).trials().loc[number]
    model = rs.load(folder, model=dense_net(project))
    validation, test = (evaluate(model, split, task.metric) for split in (task.validation, task.test))
    assert validation.value == stored.accuracy
    assert test.value == stored.test_accuracy
    written = json.loads((folder / "plan.json").read_text())
    assert written["scores"] == {"validation": validation.to_json(), "test": test.to_json()}


def test_an_export_needs_nothing_but_the_study(project, small, ranksearch, monkeypatch, tmp_path):
    """Neither the working directory nor a ranksearch.toml: the study says what the model is."""
    number, folder = small
    monkeypatch.chdir(tmp_path)
    code, _, err = ranksearch(
        "export", str(number), "--output", "again", "--storage", f"sqlite:///{project}/ranksearch.db"
    )
    assert code == 0
    assert "warning" not in err
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_an_export_makes_a_model_again_whose_weights_are_gone(project, small, ranksearch):
    number, folder = small
    shutil.rmtree("ranksearch.files")
    assert ranksearch("export", str(number), "--output", "again")[0] == 0
    assert (project / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_an_export_of_another_model_is_refused(project, ranksearch):
    code, _, err = ranksearch("export", "1", "--output", "out", "--model", "nets.py:strided")
    assert code == 2
    assert "another model" in err
    assert not (project / "out").exists()


def test_force_replaces_an_export(project, small, ranksearch):
    number, folder = small
    (folder / "README.md").write_text("old")
    assert ranksearch("export", str(number), "--output", "small")[0] == 2
    assert (folder / "README.md").read_text() == "old"
    assert ranksearch("export", str(number), "--output", "small", "--force")[0] == 0
    assert (folder / "README.md").read_text() != "old"
    assert sorted(path.name for path in project.glob(".small*")) == []


def test_doctor(project, ranksearch):
    code, out, _ = ranksearch("doctor", "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert found["machine"]["database"] == f"{STORAGE}, 1 studies"
    convolutions = ["spatial_svd", "channel_svd", "tucker2", "cp", "separable", "tt_conv_naive", "rank1"]
    linearconv = ["linearconv", "linearconv_lowrank", "linearconv_sparse"]
    many_channels = sorted([*convolutions, "tt_conv", *linearconv])
    assert {row["layer"]: sorted(row["methods"]) for row in found["layers"]} == {
        "0": sorted([*convolutions, *linearconv]),
        "3": many_channels,
        "5": many_channels,
        "9": sorted(["svd", *linearconv]),
    }
    text = ranksearch("doctor")[1]
    assert "16→96 3×3/2" in text


def test_doctor_without_a_model_looks_at_the_machine(tmp_path, monkeypatch, ranksearch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = ranksearch("doctor", "--format", "json")
    assert code == 0
    assert json.loads(out)["layers"] is None
    assert list(tmp_path.iterdir()) == []


# --- finetune --------------------------------------------------------------------------------------------------------


def test_finetune_prints_the_trial_and_its_child_and_what_comes_next(project, ranksearch):
    code, out, err = ranksearch("finetune", "3", "--epochs", "0.5", "--learning-rate", "0.001", "--format", "json")
    assert code == 0
    parent, child = json.loads(out)
    assert (parent["trial"], child["trial"], child["parent"], child["origin"]) == (3, 8, 3, "finetune:3")
    assert "training trial 3 on: 100 %" in err
    assert "ranksearch export 8 --output trial-8" in err
    assert ranksearch("export", "8", "--output", "kept")[0] == 0
    shown = ranksearch("show", "8")[1]
    assert "finetune:3" in shown
    assert ranksearch("run", "--budget", "9")[0] == 0
    rows = json.loads(ranksearch("trials", "--format", "json")[1])
    assert [row["trial"] for row in rows] == list(range(10))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["3"], "how long to train is not given; say --epochs, --steps or --seconds"),
        (["3", "--epochs", "-1"], "--epochs is -1.0; it must be 0 (no bound) or more"),
        (["0", "--epochs", "1"], "trial 0 is the dense model; choose a complete trial with a smaller model"),
        (["99", "--epochs", "1"], "trial 99 is not in study 'toy'; `ranksearch trials --study toy` lists them"),
    ],
)
def test_a_finetune_that_cannot_be_is_one_line(project, ranksearch, words, said):
    assert ranksearch("finetune", *words) == (2, "", f"error: {said}\n")
