"""What is searched: a trained model, its data, its metric."""

from ranksearch.tasks.load import build_task, resolve, task_from
from ranksearch.tasks.sources import load_data
from ranksearch.tasks.split import ArraySplit, DatasetSplit, Split
from ranksearch.tasks.task import Task

__all__ = ["ArraySplit", "DatasetSplit", "Split", "Task", "build_task", "load_data", "resolve", "task_from"]
