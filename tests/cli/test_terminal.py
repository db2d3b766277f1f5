"""What a terminal shows, and what a pipe gets."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from ranksearch.cli import progress
from ranksearch.cli.progress import Lines, LiveView, Tally
from ranksearch.records import TrialRecord, TrialResult, TrialState, key_of
from ranksearch.study.study import Study

PROGRAM = [sys.executable, "-m", "ranksearch"]
STORAGE = "sqlite:///ranksearch.db"


@pytest.fixture
def told(project):
    """(study, its trials as a run tells them: each started, then finished)."""
    from ranksearch.database import Database

    with Database.open(STORAGE) as database:
        trials = database.trials("toy")
    started = [replace(t, state=TrialState.RUNNING, result=None, finished=None) for t in trials]
    return Study.open("toy", STORAGE).record, [t for pair in zip(started, trials, strict=True) for t in pair]


def failed(trial: TrialRecord, *, retryable: bool) -> TrialRecord:
    result = TrialResult(key=key_of(trial.spec), state=TrialState.FAILED, reason="no luck", retryable=retryable)
    return replace(trial, state=TrialState.FAILED, result=result, finished="now")


def test_the_tally_counts_each_trial_once(told):
    study, trials = told
    tally = Tally(study, [], budget=8)
    for i, trial in enumerate(trials):
        tally.add(trial)
        assert tally.num_finished == tally.count(TrialState.COMPLETE) == (i + 1) // 2
        assert tally.count(TrialState.RUNNING) == (i + 1) % 2
    assert tally.seconds_left == 0


def test_a_trial_that_is_repeated_does_not_count(told):
    study, trials = told
    tally = Tally(study, [], budget=8)
    tally.add(failed(trials[1], retryable=True))
    assert (tally.num_finished, tally.count(TrialState.FAILED)) == (0, 0)
    tally.add(failed(trials[1], retryable=False))
    assert (tally.num_finished, tally.count(TrialState.FAILED)) == (1, 1)


def test_lines_one_a_trial(told, capsys):
    study, trials = told
    view = Lines(chance=None)
    view.on_start(study, [], 8)
    for trial in [*trials[:4], failed(trials[5], retryable=True), failed(trials[7], retryable=False)]:
        view.on_trial(trial)
    heading, *lines = capsys.readouterr().err.splitlines()
    assert heading.startswith("study toy on ")
    assert heading.endswith("2 layers to search, 8 trials")
    assert [line.split("  ")[0].strip() for line in lines] == ["1/8", "2/8", "2/8", "3/8"]
    assert "no luck; it is repeated" in lines[2]
    assert lines[3].rpartition("  ")[0].endswith("no luck")
    assert all(line.endswith("left") for line in lines)


def test_the_live_view(told, monkeypatch):
    study, trials = told
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    monkeypatch.setattr(progress, "notes_console", lambda: console)
    view = LiveView(chance=None)
    view.on_stage("starting workers")
    console.print(view._render())
    assert "starting workers" in console.file.getvalue()
    view.on_start(study, trials[1:4:2], 8)
    for trial in trials[4:-3]:
        view.on_trial(trial)
    view.on_trial(failed(trials[-3], retryable=False))
    view.on_trial(trials[-2])
    console.print(view._render())
    shown = console.file.getvalue()
    assert "2 of 8 trials are there already" in shown
    assert "7/8 trials" in shown
    assert "6 complete   0 pruned   1 failed   1 running" in shown
    assert "last failure: trial 6: no luck" in shown
    assert "1 point" in shown


@pytest.mark.parametrize("words", [["--version"], ["trials"]])
def test_a_pipe_that_nobody_reads_is_no_error(project, words):
    """Plain output so short that it is written only when the program ends, and a table."""
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([*PROGRAM, *words], stdout=writer, stderr=subprocess.PIPE, env=buffered, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_is_honoured(told, monkeypatch, no_color):
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="256")
    monkeypatch.setattr(progress, "notes_console", lambda: console)
    study, trials = told
    view = LiveView(chance=None)
    view.on_start(study, trials[1::2], 8)
    console.print(view._render())
    colours = re.findall(r"\x1b\[(?:\d;)*(?:3[1-7]|38)", console.file.getvalue())
    assert bool(colours) is not no_color
