"""Samplers after the same seeds, on nets that are pretended: `python -m benchmarks.proposals`, no training.

A pretended net has effects on latency that add up, damages that add up but for interactions, a link from damage to
accuracy that no sampler is told the form of, and noise as measured on real short trainings: 0.6 points below ratio
0.45, 0.23 above, 0.4 % of the latency. `additive` gets what a profile would give, which is off by a fifth an option and
a quarter a layer; without a profile it is listed as `additive, no profile`. Every net's seeds are the same for all
samplers: the dense model and knapsacks on the profile, spread along the range, mildest first.
Hypervolumes are of what was measured, medians over nets; and once more of the true values, without the noise.
"""

import argparse
import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.hypervolume import hypervolume
from benchmarks.machine import conditions
from ranksearch.recipes import DEFAULT
from ranksearch.records import (
    DENSE,
    Cost,
    FinetuneConfig,
    LayerChoice,
    LayerRecord,
    MeasureConfig,
    Measurement,
    Option,
    Plan,
    Proposal,
    Score,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TrialState,
)
from ranksearch.records.profile import OptionProfile, Profile
from ranksearch.space import SearchSpace
from ranksearch.study.sampler import make_sampler

DENSE_ACCURACY = 0.882
OBJECTIVES = ("latency", "accuracy")
BUDGETS = (5, 15, 30, 60, 200)
NUM_SEEDS = 12
SAMPLERS = ("additive", "additive, no profile", "tpe", "nsga2", "gp", "random")


class Net:
    """`num_layers` layers with `num_options` options each, dense included."""

    def __init__(self, num_layers: int, num_options: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._rng = rng
        weight_L = rng.dirichlet(np.full(num_layers, 2.0))  # shares of the dense latency
        kept_LO = np.sort(rng.uniform(0.08, 0.9, (num_layers, num_options - 1)), axis=1)
        overhead_LO = rng.uniform(0.0, 0.15, kept_LO.shape)
        sensitivity_L = weight_L * rng.lognormal(0.0, 0.7, num_layers)
        better_LO = rng.lognormal(0.0, 0.35, kept_LO.shape)  # of methods at equal cost
        self.latency = -weight_L[:, None] * (1 - kept_LO - overhead_LO)
        self.damage = 1.5 * sensitivity_L[:, None] * better_LO * (1 - kept_LO) ** 2 / kept_LO**0.5
        pairs = rng.normal(0, 0.15, (num_layers, num_layers)) / num_layers**0.5
        self._pairs = np.triu(pairs, 1)
        self.space = SearchSpace(tuple(self._layer(i, weight_L[i], kept_LO[i]) for i in range(num_layers)))
        self.profile = self._profile(rng)

    def _layer(self, index: int, weight: float, kept_O: np.ndarray) -> LayerRecord:
        dense = Cost(parameters=int(1e6 * weight) + 1, macs=int(1e9 * weight) + 1)
        options = [
            Option(
                choice=LayerChoice(method="spatial_svd", ranks=(rank + 1,)),
                cost=Cost(parameters=int(dense.parameters * kept), macs=int(dense.macs * kept)),
            )
            for rank, kept in enumerate(kept_O)
        ]
        name = f"layer{index:02d}"
        options = (*options, Option(choice=DENSE, cost=dense))
        return LayerRecord(name=name, kind="Conv2d", shape="", cost=dense, options=options)

    def _profile(self, rng: np.random.Generator) -> Profile:
        of_layer_L1 = rng.lognormal(0, 0.25, (len(self.damage), 1))
        losses = self.damage * of_layer_L1 * rng.lognormal(0, 0.2, self.damage.shape)
        latencies = self.latency * rng.normal(1, 0.05, self.latency.shape)
        options = [
            OptionProfile(
                layer=layer.name,
                choice=option.choice,
                cost=option.cost,
                latency=latencies[i, o],
                error=0.0,
                loss=losses[i, o],
            )
            for i, layer in enumerate(self.space.layers)
            for o, option in enumerate(layer.options[:-1])
        ]
        return Profile(identity={}, dense_ms=1.0, options=tuple(options))

    def truth(self, plan: Plan) -> tuple[float, float]:
        """Latency ratio and accuracy without noise."""
        return self._truth(np.array([*self.space.indices(plan).values()]))

    def _truth(self, codes_L: np.ndarray) -> tuple[float, float]:
        layers = np.flatnonzero(codes_L < self.latency.shape[1])
        ratio = 1 + self.latency[layers, codes_L[layers]].sum()
        each_L = np.zeros(len(codes_L))
        each_L[layers] = self.damage[layers, codes_L[layers]]
        roots_L = np.sqrt(each_L)
        damage = each_L.sum() + roots_L @ self._pairs @ roots_L
        plateau = 0.004 if len(layers) else 0.0
        return ratio, DENSE_ACCURACY - plateau - 0.78 * (1 - np.exp(-((max(damage, 0) / 2.5) ** 1.5)))

    def run(self, number: int, proposal: Proposal, origin: str = "sampler") -> TrialRecord:
        """The same plan has the same outcome, as a trial's seed is its study's."""
        ratio, accuracy = self.truth(proposal.plan)
        rng = np.random.default_rng(abs(hash(tuple(self.space.indices(proposal.plan).values()))))
        accuracy += rng.normal(0, 0.006 if ratio < 0.45 else 0.0023) if proposal.plan else 0.0
        ratio *= rng.normal(1, 0.004) if proposal.plan else 1.0
        return record(number, proposal, origin, ratio, accuracy)

    def seeds(self) -> list[Proposal]:
        """Lagrangian knapsacks on the profile, in the order that spreads them over the range."""
        index = {(o.layer, o.choice): o for o in self.profile.options}
        plans = {Plan(): None}
        for price in np.logspace(-3, 1, 400):
            best = {}
            for layer in self.space.layers:
                found = [index.get((layer.name, option.choice)) for option in layer.options]
                prices = [o.latency + price * (o.loss or 0) if o else 0.0 for o in found]
                best[layer.name] = layer.options[int(np.argmin(prices))].choice
            plans.setdefault(Plan(best))
        ordered = list(plans)
        picks = np.linspace(0, len(ordered) - 1, NUM_SEEDS).round().astype(int)
        return [Proposal(plan=ordered[pick], recipe=DEFAULT) for pick in dict.fromkeys([0, *picks[::2], *picks[1::2]])]


def record(number: int, proposal: Proposal, origin: str, ratio: float, accuracy: float) -> TrialRecord:
    spec = TrialSpec(study="", plan=proposal.plan, seed=0, finetune=FinetuneConfig(), measure=MeasureConfig())
    measured = Measurement(
        protocol=1,
        identity={},
        conditions={},
        batch_size=1,
        ratio=ratio,
        ratio_low=ratio,
        ratio_high=ratio,
        dense_p50_ms=1.0,
        p50_ms=ratio,
        p90_ms=None,
        p95_ms=None,
        p99_ms=None,
        num_blocks=1,
        num_samples=1,
        num_dropped_blocks=0,
        warmup_seconds=0.0,
        seconds=0.0,
    )
    score = Score(value=accuracy, low=accuracy, high=accuracy, num_examples=1)
    result = TrialResult(key="", state=TrialState.COMPLETE, score=score, measurement=measured)
    return TrialRecord(
        number=number,
        origin=origin,
        spec=spec,
        recipe=proposal.recipe,
        state=TrialState.COMPLETE,
        started="",
        result=result,
    )


def search(net: Net, name: str, budget: int, seed: int) -> tuple[list[TrialRecord], list[float]]:
    """All trials, and the milliseconds of each proposal, what was learnt for it included."""
    records, milliseconds = [], []
    sampler = sampler_of(net, name, seed, [])
    for proposal in net.seeds()[:budget]:
        records.append(net.run(len(records), proposal, "seed"))
        sampler.observe(records[-1])
    while len(records) < budget:
        start = perf_counter()
        proposal = sampler.propose()
        milliseconds.append(1000 * (perf_counter() - start))
        assert proposal is not None
        records.append(net.run(len(records), proposal))
        start = perf_counter()
        sampler.observe(records[-1])
        milliseconds[-1] += 1000 * (perf_counter() - start)
    return records, milliseconds


def sampler_of(net: Net, name: str, seed: int, history: list[TrialRecord]):
    profile = net.profile if name == "additive" else None
    return make_sampler(
        name.split(",", maxsplit=1)[0], net.space, OBJECTIVES, seed=seed, history=history, profile=profile
    )


def measured(_net: Net, trial: TrialRecord) -> tuple[float, float]:
    assert trial.result is not None
    return trial.result.value_of("latency"), trial.result.value_of("accuracy")


def true(net: Net, trial: TrialRecord) -> tuple[float, float]:
    return net.truth(trial.spec.plan)


def curve(net: Net, trials: list[TrialRecord], of: Callable[[Net, TrialRecord], tuple[float, float]]) -> list[float]:
    return [hypervolume([of(net, t) for t in trials[:n]], DENSE_ACCURACY) for n in BUDGETS if n <= len(trials)]


def compare(num_layers: int, num_options: int, num_nets: int, gp_budget: int) -> None:
    print(f"\n{num_layers} layers × {num_options} options, {num_nets} nets, hypervolume measured (true)\n")
    print("| sampler | " + " | ".join(f"@{n}" for n in BUDGETS) + " | ms a proposal |")
    print("|---|" + "---|" * (len(BUDGETS) + 1))
    for name in SAMPLERS:
        curves, truths, times = [], [], []
        for seed in range(num_nets):
            net = Net(num_layers, num_options, seed)
            budget = gp_budget if name == "gp" else max(BUDGETS)
            trials, milliseconds = search(net, name, budget, seed)
            curves.append(curve(net, trials, measured))
            truths.append(curve(net, trials, true))
            times += milliseconds
        pairs = zip(np.median(curves, axis=0), np.median(truths, axis=0), strict=True)
        cells = [f"{seen:.4f} ({real:.4f})" for seen, real in pairs]
        cells += [""] * (len(BUDGETS) - len(cells))
        print(f"| {name} | " + " | ".join(cells) + f" | {median(times):.1f} |", flush=True)


def pace(num_layers: int, num_options: int, num_trials: int, num_proposals: int = 25) -> None:
    """Milliseconds of a proposal in a study of `num_trials`, each followed by an observation."""
    net = Net(num_layers, num_options, 0)
    rng = np.random.default_rng(0)
    sizes = [*net.space.sizes.items()]
    plans = [net.space.plan({name: int(rng.integers(size)) for name, size in sizes}) for _ in range(num_trials - 1)]
    history = [
        net.run(i, Proposal(plan=plan, recipe=DEFAULT)) for i, plan in enumerate([Plan(), *dict.fromkeys(plans)])
    ]
    start = perf_counter()
    sampler = sampler_of(net, "additive", 0, history)
    sampler.propose()
    resumed, times = _ms(start), []
    for _ in range(num_proposals):
        start = perf_counter()
        proposal = sampler.propose()
        assert proposal is not None
        sampler.observe(net.run(len(history) + len(times) + 1, proposal))
        times.append(_ms(start))
    print(f"\n{num_layers} layers × {num_options} options, {len(history)} trials: resumed in {resumed:.0f} ms;")
    print(f"a proposal in {median(times):.1f} ms (median of {num_proposals}, most {max(times):.0f})")


def _ms(start: float) -> float:
    return 1000 * (perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nets", type=int, default=5)
    parser.add_argument("--gp-budget", type=int, default=30, help="gp takes about a second a proposal")
    arguments = parser.parse_args()
    print(conditions(), file=sys.stderr)
    for num_layers, num_options in ((10, 20), (20, 15)):
        compare(num_layers, num_options, arguments.nets, arguments.gp_budget)
    pace(60, 20, 1000)


if __name__ == "__main__":
    main()
