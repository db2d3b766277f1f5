"""A driver to be killed: `python -m tests.study.drive DATABASE BUDGET EXECUTOR`."""

import sys
import time

from ranksearch.records import FinetuneConfig, MeasureConfig
from ranksearch.study.search import SearchConfig, run_search
from ranksearch.tasks import Task
from ranksearch.workers.executor import ClusterConfig
from tests.toy import toy_task


def slow_task() -> Task:
    """Evaluation takes a while, so that a kill finds a trial at work."""
    task = toy_task()
    metric = task.metric

    def slowly(outputs, targets):
        time.sleep(0.02)
        return metric(outputs, targets)

    task.metric = slowly
    return task


def main(database: str, budget: str, executor: str) -> None:
    run_search(
        slow_task(),
        SearchConfig(
            budget=int(budget),
            study="killed",
            storage=f"sqlite:///{database}",
            executor=executor,
            profile_seconds=0,
            cluster=ClusterConfig(cpus_per_trial=1, max_concurrent=2),
            finetune=FinetuneConfig(steps=2, precision="float32", layout="contiguous", threads=1),
            measure=MeasureConfig(batch_size=2, max_seconds=0.05, min_blocks=2, iterations_per_block=2),
        ),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
