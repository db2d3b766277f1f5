"""What a profile and a measurement are worth on a CUDA device: `python -m benchmarks.cuda`, two minutes.

additivity  the latency ratio that a profile predicts of a whole plan, 1 + the sum of its effects, beside the one that
            `latency.measure` finds: of every layer's fastest option, and of three random plans, which take each layer
            with a probability of 0.3, 0.6 and 1 and then any of its options, the dense one among them.
twice       a net beside one of twice its layers, the GPU quiet, beside a process that only holds memory there, and
            beside a training loop: the ratio, and what share of the GPU others are found to use.

Random weights and pictures: they change no latency. Eager latencies are the host's as well: keep its cores quiet.
"""

import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from statistics import median
from typing import Any

import torch
import torchvision
from torch import nn

from benchmarks.cifar import resnet9
from benchmarks.machine import conditions, write
from benchmarks.profiles import noise_task
from ranksearch import latency
from ranksearch.compress import compress
from ranksearch.latency.selftest import TRAINING
from ranksearch.profiling import Latencies, measure_latencies
from ranksearch.records import LayerChoice, MeasureConfig, Measurement, Plan
from ranksearch.space import layer_records, load_space
from ranksearch.workbench import Workbench

CUDA = torch.device("cuda")
SEED = 0
RESNET50 = partial(torchvision.models.resnet50, num_classes=10)
NETS = {"resnet50": (RESNET50, 224, 6.0), "resnet9": (resnet9, 32, 3.0)}  # how it is made, pixels, seconds of a profile
SHARES = (0.3, 0.6, 1.0)  # of the layers that a random plan takes
HOLDING = "import time, torch; torch.zeros(9, device='cuda'); print(flush=True); time.sleep(600)"
BESIDE = {"quiet": None, "idle process": HOLDING, "training loop": TRAINING}


def case(net: str, backend: str, batch_size: int, **more: str) -> tuple[str, MeasureConfig]:
    return net, MeasureConfig(backend=backend, batch_size=batch_size, max_seconds=0.5, **more)


CASES = (
    case("resnet50", "eager", 32),
    case("resnet50", "cuda-graph", 32),
    case("resnet50", "cuda-graph", 128, dtype="bfloat16", layout="channels_last"),
    case("resnet9", "eager", 32),
    case("resnet9", "cuda-graph", 256),
)


def additivity(net: str, asked: MeasureConfig) -> dict[str, Any]:
    make, size, seconds = NETS[net]
    bench, config = Workbench(noise_task(net, make, size, 10), CUDA), latency.resolve(asked, CUDA)
    layers = layer_records(load_space("default"), bench.layers)
    profile = measure_latencies(bench, layers, config, seconds=seconds, seed=SEED)
    effects = effects_of(profile)
    chosen = plans(effects)
    found = {name: measured(bench, config, plan) for name, plan in chosen.items()}
    small = {item: effect for item, effect in profile.effects.items() if not item[1].is_dense}
    faster = {layer for (layer, _), effect in small.items() if effect.value < -2 * effect.deviation}
    return {
        "net": net,
        **{name: getattr(config, name) for name in ("backend", "batch_size", "dtype", "layout")},
        "dense_ms_profiled": profile.dense_ms,
        "dense_ms_measured": list(found.values())[-1].dense_p50_ms,
        "rounds": profile.num_rounds,
        "median_deviation": median(effect.deviation for effect in small.values()),
        "layers": len(effects),
        "layers_with_nothing_faster": len(effects.keys() - faster),
        "plans": {name: compared(profile, chosen[name], found[name]) for name in chosen},
    }


def effects_of(profile: Latencies) -> dict[str, dict[LayerChoice, float]]:
    found: dict[str, dict[LayerChoice, float]] = {}
    for (layer, choice), effect in profile.effects.items():
        found.setdefault(layer, {})[choice] = effect.value
    return found


def plans(effects: Mapping[str, Mapping[LayerChoice, float]]) -> dict[str, Plan]:
    chance = random.Random(SEED)
    drawn = {
        f"random {share:g}": Plan({n: chance.choice(list(of)) for n, of in effects.items() if chance.random() < share})
        for share in SHARES
    }
    return {"fastest": Plan({name: min(of, key=of.__getitem__) for name, of in effects.items()}), **drawn}


def measured(bench: Workbench, config: MeasureConfig, plan: Plan) -> Measurement:
    dense, inputs = bench.measuring(config)
    net = latency.prepare(compress(bench.dense, plan, layers=bench.layers, init="random"), config, CUDA)
    return latency.measure(dense, net, inputs, config, device=CUDA, seed=SEED, lock=bench.lock)


def compared(profile: Latencies, plan: Plan, found: Measurement) -> dict[str, Any]:
    guess = 1 + sum(profile.effects[item].value for item in plan.items())
    what = {"factorized": len(plan), "predicted": guess, "measured": found.ratio, "error": guess / found.ratio - 1}
    return what | {"flags": list(found.flags)}


def twice(backend: str) -> dict[str, Any]:
    config = latency.resolve(MeasureConfig(backend=backend, batch_size=32, max_seconds=1.0), CUDA)
    once, both = (latency.prepare(convolutions(depth), config, CUDA) for depth in (6, 12))
    inputs = latency.prepare_inputs(torch.randn(1, 64, 56, 56), config, CUDA)
    lock = latency.DeviceLock(latency.lock_name(CUDA))
    found = latency.measure(once, both, inputs, config, device=CUDA, seed=SEED, lock=lock)
    return {
        "ratio": found.ratio,
        "interval": [found.ratio_low, found.ratio_high],
        "dense_ms": found.dense_p50_ms,
        "flags": list(found.flags),
        **{name: share for name, share in found.conditions.items() if name.startswith("foreign")},
    }


def convolutions(depth: int) -> nn.Sequential:
    torch.manual_seed(SEED)
    return nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(depth))).eval()


@contextmanager
def running(code: str | None) -> Iterator[None]:
    """In a process of its own, from its first line of output on; None is no process."""
    if code is None:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", code, "cuda"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        try:
            if not other.stdout.readline():
                raise SystemExit("the process beside ended before its first step; its error is above")
            yield
        finally:
            other.kill()


def machine() -> dict[str, Any]:
    where = conditions("cuda")
    more = {"torchvision": torchvision.__version__, "cudnn": torch.backends.cudnn.version()}
    return where | {
        "driver": latency.environment(CUDA).driver,
        "host_cpu": latency.environment(torch.device("cpu")).device_model,
        "versions": where["versions"] | more,
        "date": datetime.now(UTC).date().isoformat(),
        "seed": SEED,
        "n": 1,
    }


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.cuda measures a CUDA device and torch finds none; run it where there is one")
    where = machine()
    where["additivity"], where["twice"] = [additivity(*case) for case in CASES], {}
    for when, code in BESIDE.items():
        with running(code):
            where["twice"][when] = {backend: twice(backend) for backend in ("eager", "cuda-graph")}
    write("cuda", where)


if __name__ == "__main__":
    main()
