"""Trials on Ray: what one does never touches the next, and two nodes run one study."""

import os
from collections import deque
from dataclasses import replace

import pytest

from ranksearch.errors import ConfigError, DataError
from ranksearch.records import FinetuneConfig, LayerChoice, MeasureConfig, Plan, TrialResult, TrialSpec, TrialState
from ranksearch.workbench import Workbench
from ranksearch.workers.executor import ClusterConfig, Job, WorkerSetup
from ranksearch.workers.inline import InlineExecutor
from ranksearch.workers.tune import TuneExecutor, check_room
from tests.treachery import EXITS, HANGS, HOLDS_THE_INTERPRETER, NANS, RAISES, treacherous_task
from tests.workers.made import KNOWN

FINETUNE = FinetuneConfig(steps=2, precision="float32", layout="contiguous", threads=1, calibration_examples=64)
MEASURE = MeasureConfig(batch_size=2, max_seconds=0.05, min_blocks=2, iterations_per_block=2)
WELL = 8


def spec(rank: int) -> TrialSpec:
    plan = Plan({"conv1": LayerChoice(method="spatial_svd", ranks=(rank,))})
    return TrialSpec(study="s", plan=plan, seed=1, finetune=FINETUNE, measure=MEASURE)


class ListSource:
    """Jobs from a list; a lost one is not repeated."""

    def __init__(self, specs: list[TrialSpec]) -> None:
        self.waiting = deque(Job(n, s) for n, s in enumerate(specs))
        self.running: set[int] = set()
        self.results: dict[int, TrialResult] = {}

    def suggest(self) -> Job | None:
        if not self.waiting:
            return None
        job = self.waiting.popleft()
        self.running.add(job.number)
        return job

    @property
    def exhausted(self) -> bool:
        return not self.waiting and not self.running

    def complete(self, job: Job, result: TrialResult) -> None:
        self.running.remove(job.number)
        self.results[job.number] = result


@pytest.fixture(scope="module")
def executor(tmp_path_factory):
    files = tmp_path_factory.mktemp("files")
    setup = WorkerSetup(treacherous_task(), "cpu", files, trial_timeout_seconds=12.0)
    with pytest.MonkeyPatch.context() as patch:
        # Where workers find the device's lock: nobody else's measurement is waited for, within the trial's time.
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("locks")))
        executor = TuneExecutor(setup, ClusterConfig(cpus_per_trial=1, max_concurrent=1))
        yield executor
        executor.close()


def test_a_known_latency_travels_to_the_worker_and_a_new_one_back_with_its_samples(executor):
    source = ListSource([spec(4), spec(8)])
    source.waiting[0] = replace(source.waiting[0], measurement=KNOWN)
    executor.run(source)
    known, new = source.results[0], source.results[1]
    assert known.measurement == KNOWN
    assert "measure" not in known.seconds
    assert len(new.measurement.samples.dense_ms) == new.measurement.num_blocks


def node_of(bench: Workbench) -> tuple[int, str]:
    return os.getpid(), bench.device.type


def refuse(bench: Workbench) -> None:
    raise DataError("no such thing")


def test_one_bad_trial_never_touches_the_next(executor):
    ranks = [WELL, RAISES, WELL, EXITS, WELL, NANS, WELL, HANGS, WELL, HOLDS_THE_INTERPRETER, WELL]
    source = ListSource([spec(rank) for rank in ranks])
    executor.run(source)
    results = [source.results[n] for n in range(len(ranks))]
    good = [r for r, rank in zip(results, ranks, strict=True) if rank == WELL]
    assert all(r.state is TrialState.COMPLETE for r in good)
    assert len({r.score for r in good}) == 1
    bad = {rank: r for r, rank in zip(results, ranks, strict=True) if rank != WELL}
    assert all(r.state is TrialState.FAILED for r in bad.values())
    assert "treachery" in bad[RAISES].reason
    assert "NonFinite" in bad[NANS].reason
    assert "worker was lost" in bad[EXITS].reason
    assert "--trial-timeout" in bad[HANGS].reason
    assert {rank: r.retryable for rank, r in bad.items()} == {
        RAISES: False, NANS: False, EXITS: True, HANGS: False, HOLDS_THE_INTERPRETER: True,
    }  # fmt: skip


def test_ray_and_inline_give_the_same_accuracies(executor, tmp_path):
    specs = [spec(rank) for rank in (4, 8, 16)]
    there, here = ListSource(specs), ListSource(specs)
    executor.run(there)
    InlineExecutor(WorkerSetup(treacherous_task(), "cpu", tmp_path)).run(here)
    for n in range(3):
        assert there.results[n].score == here.results[n].score
        assert there.results[n].parameters == here.results[n].parameters


def test_a_function_runs_in_another_process_and_its_error_comes_back_as_itself(executor):
    pid, device = executor.call(node_of)
    assert pid != os.getpid()
    assert device == "cpu"
    with pytest.raises(DataError, match="no such thing"):
        executor.call(refuse)


class Broken(ListSource):
    def complete(self, job: Job, result: TrialResult) -> None:
        raise DataError("the disk is full")


def test_an_error_of_the_study_ends_the_run_and_reaches_the_caller(executor):
    with pytest.raises(DataError, match="disk is full"):
        executor.run(Broken([spec(WELL), spec(4)]))


def test_a_trial_that_fits_no_node_is_an_error_not_a_wait(executor):
    with pytest.raises(
        ConfigError, match=r"asks for 999 CPUs and 0 GPUs; the cluster.s nodes have .* lower --cpus-per"
    ):
        check_room(999, 0)
