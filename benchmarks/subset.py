"""A task of fewer examples, so that a benchmark ends in time. The first of each split: their order is random."""

from dataclasses import replace

from ranksearch.tasks import Split, Task
from ranksearch.tasks.split import Part


def subset(task: Task, *, train: int, validation: int, test: int) -> Task:
    """At most so many of each; the sizes follow from the data where they have fewer."""
    assert task.test is not None
    splits = {
        "train": first(task.train, train),
        "validation": first(task.validation, validation),
        "test": first(task.test, test),
    }
    return replace(task, **splits)


def first(split: Split, number: int) -> Split:
    return Part(split, range(min(number, len(split))))
