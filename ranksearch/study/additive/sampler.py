"""The sampler for Optuna: of many candidates the one with the largest expected hypervolume improvement.

Where accuracy or speed is constrained, the improvement is multiplied by the probability of meeting the constraints
(Gardner et al., Bayesian optimization with inequality constraints, ICML 2014); a trial that breaks them stays in the
front, as all that it dominates breaks them too. Running trials join the front where they are predicted, so that the
next proposal looks elsewhere (Ginsbourger et al., 2010, the kriging believer).

A trial's values are the objectives in the order given: latency as a ratio to the dense model's, accuracy, parameters,
bytes, MACs of the whole model. Its parameters are one integer a layer, as `distributions` says, and the recipe.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ranksearch.errors import ConfigError
from ranksearch.records.profile import Profile
from ranksearch.space import SearchSpace
from ranksearch.study.additive.candidates import crossings, knapsacks, steps
from ranksearch.study.additive.coding import Codes, Coding, Floats
from ranksearch.study.additive.improvement import cdf, expected_improvement, non_dominated
from ranksearch.study.additive.surrogate import Surrogate
from ranksearch.study.mirror import EXPECTED, distributions

__all__ = ["AdditiveSampler", "need_latency"]

NUM_STEPS, NUM_CROSSINGS, NUM_DRAWS = 160, 64, 6
CLIMBS, NUM_CLIMBERS, NUM_CLIMBING = 3, 4, 96  # rounds of steps from the best candidates so far
SMALL = 1024  # proposals in a space that is looked at as a whole


def need_latency(min_speedup: float | None, objectives: Sequence[str]) -> None:
    """Raises ConfigError where a speed-up is asked for and latency is not measured."""
    if min_speedup is not None and "latency" not in objectives:
        raise ConfigError(
            f"min speedup is {min_speedup:g}, but the objectives are {', '.join(objectives)}; add latency to them"
        )


class AdditiveSampler(BaseSampler):
    """`max_drop`: of the accuracy, below the dense model's. `min_speedup`: dense latency over the trial's.

    Of equal studies, equal seeds give equal proposals. Never proposes what a trial of the study has, be it running,
    failed or pruned, until the space holds no more. Raises ConfigError where `min_speedup` has no latency to go by.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[str],
        *,
        profile: Profile | None = None,
        seed: int = 0,
        max_drop: float | None = None,
        min_speedup: float | None = None,
    ) -> None:
        need_latency(min_speedup, objectives)
        self._space, self._objectives, self._profile = space, tuple(objectives), profile
        self._seed, self._max_drop, self._min_speedup = seed, max_drop, min_speedup
        self._coding = Coding(space)
        self._elsewhere = RandomSampler(seed=seed)
        self._forget("")

    def _forget(self, study: str) -> None:
        self._study = study
        self._surrogate = Surrogate(self._coding, self._objectives, self._profile)
        self._codes: list[Codes] = []  # of complete trials, and of pruned ones, as they were expected to end
        self._finished: set[int] = set()  # numbers of trials that will not change
        self._tried: set[bytes] = set()

    # --- Optuna's side ---

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return distributions(self._space)

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],  # noqa: ARG002
    ) -> dict[str, Any]:
        if study.study_name != self._study:
            self._forget(study.study_name)
        pending = self._read(study.get_trials(deepcopy=False), trial.number)
        self._surrogate.refresh()
        rng = np.random.default_rng((self._seed, trial.number))
        return self._coding.decode(self._best(pending, rng))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that is not of the space: at random."""
        return self._elsewhere.sample_independent(study, trial, param_name, param_distribution)

    def _read(self, trials: Iterable[FrozenTrial], current: int) -> list[Codes]:
        """Observe what has finished since the last time. Returns what is running."""
        pending = []
        for trial in trials:
            if trial.number in self._finished or trial.number == current:
                continue
            if trial.state.is_finished():
                self._finished.add(trial.number)
            if (codes_V := self._coding.encode(trial.params)) is None:
                continue
            self._tried.add(codes_V.tobytes())
            if values := trial.values or trial.user_attrs.get(EXPECTED):  # of a pruned trial
                self._codes.append(codes_V)
                self._surrogate.observe(codes_V, values)
            elif trial.state is TrialState.RUNNING:
                pending.append(codes_V)
        return pending

    # --- a proposal ---

    def _best(self, pending: list[Codes], rng: np.random.Generator) -> Codes:
        dense_V = self._coding.dense
        if not self._codes and dense_V.tobytes() not in self._tried:
            return dense_V  # what all others are compared with
        score = self._scorer(pending, rng)
        if self._space.num_proposals <= SMALL:
            found = self._untried(self._coding.everything())
            return found[np.argmax(score(found))] if len(found) else dense_V
        found = self._untried(self._candidates(rng))
        scores = score(found)
        for _ in range(CLIMBS):
            best = found[np.argsort(-scores, kind="stable")[:NUM_CLIMBERS]]
            near = self._untried(steps(self._coding, best if len(best) else dense_V[None], NUM_CLIMBING, rng))
            found, scores = np.concatenate([found, near]), np.concatenate([scores, score(near)])
        return found[np.argmax(scores)] if len(found) else self._drawn(rng)

    def _candidates(self, rng: np.random.Generator) -> Codes:
        parents_PV = self._parents()
        effects, costs = self._surrogate.effects, self._surrogate.costs
        known = [effects[name] if name in effects else costs[name] for name in self._objectives if name != "accuracy"]
        return np.concatenate([
            knapsacks(self._coding, known, effects["accuracy"], NUM_DRAWS, rng),
            steps(self._coding, parents_PV, NUM_STEPS, rng),
            crossings(parents_PV, NUM_CROSSINGS, rng),
        ])  # fmt: skip

    def _parents(self) -> Codes:
        """The front of what was seen, the dense model before that."""
        if not self._codes:
            return self._coding.dense[None]
        return np.array(self._codes)[non_dominated(self._surrogate.seen())]

    def _untried(self, codes_NV: Codes) -> Codes:
        codes_NV = self._coding.canonical(codes_NV)
        return codes_NV[[codes_V.tobytes() not in self._tried for codes_V in codes_NV]]

    def _drawn(self, rng: np.random.Generator) -> Codes:
        """At random: all that was looked at is tried already."""
        return self._coding.canonical(rng.integers(self._coding.sizes_V))

    # --- what a candidate is worth ---

    def _scorer(self, pending: list[Codes], rng: np.random.Generator) -> Callable[[Codes], Floats]:
        surrogate, reference_K = self._surrogate, self._surrogate.reference()
        front_FK = surrogate.seen()
        if pending:
            front_FK = np.concatenate([front_FK, surrogate.predict(np.array(pending))[0]])
        front_FK = front_FK[non_dominated(front_FK)]
        seed = int(rng.integers(2**32))  # the same draws for all candidates

        def score(codes_NV: Codes) -> Floats:
            mean_NK, sd_NK = surrogate.predict(codes_NV)
            draws = np.random.default_rng(seed)
            gain_N = expected_improvement(mean_NK, sd_NK, front_FK, reference_K, draws)
            return gain_N * self._feasibility(mean_NK, sd_NK)

        return score

    def _limits(self) -> Iterable[tuple[int, float]]:
        """Objective's index, and the most it may be."""
        if self._max_drop is not None:
            scale = abs(self._surrogate.dense_accuracy or 0.0) or 1.0
            yield self._objectives.index("accuracy"), self._max_drop / scale
        if self._min_speedup is not None:
            yield self._objectives.index("latency"), 1 / self._min_speedup

    def _feasibility(self, mean_NK: Floats, sd_NK: Floats) -> Floats:
        probability_N = np.ones(len(mean_NK))
        for axis, limit in self._limits():
            probability_N *= cdf((limit - mean_NK[:, axis]) / np.maximum(sd_NK[:, axis], 1e-12))
        return probability_N
