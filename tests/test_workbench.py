"""What a worker keeps between trials."""

import torch

from ranksearch import workbench
from ranksearch.layers import activation_bytes
from ranksearch.records import FinetuneConfig
from ranksearch.workbench import Workbench
from tests.toy import toy_task


def test_metrics_are_gathered_from_as_many_examples_at_a_time_as_memory_bears(monkeypatch):
    sizes = []

    def gather(model, layers, batches, loss):
        sizes.extend(len(targets) for _, targets in batches)
        return {}

    monkeypatch.setattr(workbench, "gather_metrics", gather)
    bench = Workbench(toy_task(), torch.device("cpu"))
    config = FinetuneConfig(factors="fisher", calibration_examples=24)
    bench.metrics(config)
    assert sizes == [24]
    for room, expected in ((8.5, [8] * 3), (0.1, [1] * 24)):
        sizes.clear()
        size = activation_bytes(bench.dense, bench.example)
        monkeypatch.setattr(workbench, "BACKWARD_BYTES", int(room * size))
        Workbench(bench.task, torch.device("cpu")).metrics(config)
        assert sizes == expected


def test_metrics_of_a_large_net_are_gathered_from_fewer_examples(monkeypatch):
    seen = []
    monkeypatch.setattr(workbench, "gather_metrics", lambda model, layers, batches, loss: seen.extend(batches) or {})
    bench = Workbench(toy_task(), torch.device("cpu"))
    config = FinetuneConfig(factors="fisher", calibration_examples=24)
    monkeypatch.setattr(workbench, "LEAST_METRIC_EXAMPLES", 4)
    for examples, macs in ((24, 30), (10, 10), (4, 1)):  # as many as asked for, as there is time for, and the least
        seen.clear()
        monkeypatch.setattr(workbench, "METRIC_MACS", macs * bench.dense_cost.macs)
        Workbench(bench.task, torch.device("cpu")).metrics(config)
        assert sum(len(targets) for _, targets in seen) == examples
