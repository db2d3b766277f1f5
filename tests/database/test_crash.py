"""What a killed writer leaves, and what others see while it writes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from ranksearch.database import Database
from ranksearch.records import TrialState

from .made import make_plan, make_result, make_study, make_trial

# Starts and finishes trials for ever, and says of each that it is finished once `finish_trial` has returned.
WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from database.made import make_plan, make_result, make_study, make_trial
from ranksearch.database import Database
database, study = Database.open(sys.argv[1]), make_study()
first = len(database.trials("study"))
for number in range(first, 10**6):
    trial = make_trial(study, number, make_plan(1, 2, 4))
    database.start_trial("study", trial)
    database.finish_trial("study", number, make_result(trial), "2026-01-02T00:00:00+00:00")
    print(number, flush=True)
"""


def start_writer(url):
    tests = str(Path(__file__).parent.parent)
    return subprocess.Popen([sys.executable, "-c", WRITER, url, tests], stdout=subprocess.PIPE, text=True)


def test_sigkill_leaves_every_finished_trial_whole(url):
    study, rng = make_study(), random.Random(0)
    with Database.open(url) as database:
        database.save_study(study)
    for _ in range(3):
        process = start_writer(url)
        said = [process.stdout.readline()]
        assert said[0], "the writer has begun"
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        said += process.communicate()[0].splitlines()
        with Database.open(url) as database:
            trials = database.trials("study")
            assert database.check() == []
            assert [trial.number for trial in trials] == list(range(len(trials)))
            finished = {trial.number for trial in trials if trial.state is TrialState.COMPLETE}
            assert {int(number) for number in said} <= finished, "what was said to be finished is"
            assert all(t.result == (make_result(t) if t.finished else None) for t in trials), "all or nothing"
            assert len(finished) >= len(trials) - 3, "only the trials at hand were lost"
            assert database.trials_frame("study").plan.eq('{"layer0":"svd:1","layer1":"svd:2","layer2":"svd:4"}').all()


def test_a_reader_sees_one_moment_while_another_writes(url):
    study = make_study()
    with Database.open(url) as database:
        database.save_study(study)
        process = start_writer(url)
        try:
            process.stdout.readline()
            seen = [_look(database) for _ in range(20)]
            patience = time.monotonic() + 30  # for a writer that hardly got a turn
            while seen[-1] == seen[0] and time.monotonic() < patience:
                seen.append(_look(database))
        finally:
            process.kill()
            process.communicate()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0], "the writer went on while it was read"


def _look(database):
    trials = database.trials("study")
    for trial in trials:
        whole = make_result(make_trial(make_study(), trial.number, make_plan(1, 2, 4)))
        assert trial.result == (whole if trial.state is TrialState.COMPLETE else None)
    running = [trial.number for trial in trials if trial.state is TrialState.RUNNING]
    assert running in ([], [len(trials) - 1])
    frame = database.trials_frame("study")
    assert frame.accuracy.notna().eq(frame.state.eq("complete")).all()
    return len(trials)
