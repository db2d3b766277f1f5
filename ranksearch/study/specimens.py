"""What the self-test measures: a task's model, and nets of many latencies made of it."""

import random

import torch

from ranksearch.compress import compress, plan_cost
from ranksearch.latency.selftest import Subject
from ranksearch.records import LayerRecord, Plan
from ranksearch.space import layer_records, load_space
from ranksearch.tasks import Task
from ranksearch.workbench import Workbench

__all__ = ["NUM_NETS", "specimens"]

NUM_NETS = 50
EVEN = 0.5  # power of the place: by places alone, nearly half of the nets would be among the fastest tenth of latencies
SPREAD = 0.15  # of a layer's options: how far its choice strays from the net's


def specimens(task: Task, *, num: int = NUM_NETS, seed: int = 0) -> Subject:
    """`num` different plans of the default space, spread over the latencies from the cheapest to the dense model's
    neighbours, layers and methods mixed. The nets' weights are random: latency does not depend on them."""
    bench = Workbench(task, torch.device("cpu"))
    layers = [record for record in layer_records(load_space("default"), bench.layers) if record.options]
    rng = random.Random(seed)
    plans: dict[Plan, None] = {}
    while len(plans) < num:
        plans.setdefault(_plan(layers, (len(plans) / num) ** EVEN, rng))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = [compress(bench.dense, plan, layers=bench.layers, init="random") for plan in plans]
    macs = [plan_cost(bench.layers, plan, bench.dense_cost).macs for plan in plans]
    return Subject(dense=bench.dense, nets=nets, macs=macs, example=bench.example)


def _plan(layers: list[LayerRecord], share: float, rng: random.Random) -> Plan:
    """Each layer's option at about that share of its options, which are ordered by cost."""
    return Plan({layer.name: layer.options[_place(len(layer.options), share, rng)].choice for layer in layers})


def _place(count: int, share: float, rng: random.Random) -> int:
    return min(count - 1, max(0, round(rng.gauss(share, SPREAD) * (count - 1))))
