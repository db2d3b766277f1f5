"""Two Ray nodes on one machine run one study, of a model that only the driver can import."""

import inspect
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from torch import nn

from ranksearch.records import FinetuneConfig, MeasureConfig
from ranksearch.study.search import SearchConfig, run_search
from ranksearch.tasks import resolve
from ranksearch.workers.executor import ClusterConfig
from tests import toy
from tests.toy import toy_task


def model_of_a_file(folder: Path) -> nn.Module:
    """From a file that is gone once it was read: a worker gets the code or nothing."""
    file = folder / "mine.py"
    file.write_text(inspect.getsource(toy).replace("ToyNet", "Mine"))
    model = resolve(f"{file}:trained_net")()
    file.unlink()
    assert type(model).__name__ == "Mine"
    return model


def test_two_nodes_run_one_study(tmp_path):
    nodes_seen = tmp_path / "nodes"
    nodes_seen.mkdir()
    task = toy_task(model_of_a_file(tmp_path))
    metric = task.metric

    def noting_the_node(outputs, targets):
        if ray.is_initialized():
            (nodes_seen / ray.get_runtime_context().get_node_id()).touch()
        return metric(outputs, targets)

    task.metric = noting_the_node
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        study = run_search(
            task,
            SearchConfig(
                budget=6,
                profile_seconds=0,
                storage=f"sqlite:///{tmp_path / 'nodes.db'}",
                cluster=ClusterConfig(address=cluster.address),
                finetune=FinetuneConfig(steps=2, precision="float32", layout="contiguous", threads=1),
                measure=MeasureConfig(batch_size=2, max_seconds=0.05, min_blocks=2, iterations_per_block=2),
            ),
        )
    finally:
        ray.shutdown()
        cluster.shutdown()
    trials = study.trials()
    assert list(trials.state) == ["complete"] * 6
    assert len(list(nodes_seen.iterdir())) == 2
