"""A trial's objectives, predicted from those of all trials before it.

    latency ratio     = 1 + Σ latency effects                            (learnt)
    share lost        = Link(Σ damage effects)                           (both learnt)
    parameters, bytes, MACs = what the layers cost + what the rest does   (known)

"Share lost" is of the dense model's accuracy, so that noise and reference mean the same for every metric.

The damage of a trial is not seen, only what the link makes of it. So the link is made linear at the current prediction
(Gauss–Newton, one step a round): a trial on the plateau says little of its options, one on the slope says much. Link,
scales and effects are fitted again from all trials whenever their number has grown by an eighth; in between each trial
is a rank-one update. What is known after n trials depends only on these n and their order, not on when it was asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ranksearch.records.profile import Profile
from ranksearch.study.additive.coding import Codes, Coding, Floats
from ranksearch.study.additive.link import Link
from ranksearch.study.additive.prior import damage_prior, latency_prior
from ranksearch.study.additive.regression import Effects, Regression

__all__ = ["Surrogate"]

KNOWN = {"parameters": 1.0, "macs": 1.0, "bytes": 4.0}  # objective -> its units per parameter or MAC, until seen
LATENCY_NOISE = 0.004  # of a ratio, and of what is not additive in it
SEED_NOISE = 0.0026  # of the share lost: 0.23 points of 88
SLOPE_NOISE = 0.1  # the same per share lost: 0.6 points where 6 are lost
ROUNDS = 12  # of fitting the link, then the effects; they converge slowly where there is no profile
SMALL = 24  # trials up to which each is followed by a fit


def _last_fit(num_trials: int) -> int:
    """The number of trials at the last fit before or at `num_trials`."""
    last = min(num_trials, SMALL)
    while last >= SMALL and (following := last + last // 8) <= num_trials:
        last = following
    return last


@dataclass
class _Seen:
    """Finished trials: their columns and values; rows are appended."""

    columns: list[Codes] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)


class Surrogate:
    """Objectives are all to be minimised; `accuracy` is the share lost, latency a ratio."""

    def __init__(self, coding: Coding, objectives: Sequence[str], profile: Profile | None) -> None:
        self.objectives = tuple(objectives)
        self._coding = coding
        self._seen = _Seen()
        self._priors = {"accuracy": damage_prior(coding, profile)}
        if "latency" in objectives:
            self._priors["latency"] = latency_prior(coding, profile)
        self.effects = {name: Effects(p.mean, p.covariance.copy()) for name, p in self._priors.items()}
        self.link = Link()
        self.costs = {name: self._cost(name) for name in objectives if name in KNOWN}
        self._noise_scales = dict.fromkeys(self._priors, 1.0)
        self._fitted = self._used = 0
        self._accuracy_scale = 1.0
        self._dense_accuracy: float | None = None
        self._best_accuracy: float | None = None

    def _cost(self, objective: str) -> Floats:
        name = "macs" if objective == "macs" else "parameters"
        costs = [float(getattr(o.cost, name)) for layer in self._coding.space.searched for o in layer.options]
        return np.array(costs + [0.0] * (self._coding.num_columns - len(costs)))

    # --- what was seen ---

    def observe(self, codes_V: Codes, values: Sequence[float]) -> None:
        """A finished trial, its values as measured."""
        self._seen.columns.append(self._coding.columns(codes_V))
        self._seen.values.append(np.array(values, dtype=float))
        accuracy = values[self.objectives.index("accuracy")]
        self._best_accuracy = max(accuracy, self._best_accuracy if self._best_accuracy is not None else accuracy)
        if self._coding.is_dense(codes_V):
            self._dense_accuracy = accuracy

    @property
    def dense_accuracy(self) -> float | None:
        """The dense model's own; the best seen until that is; None before any."""
        return self._dense_accuracy if self._dense_accuracy is not None else self._best_accuracy

    def seen(self) -> Floats:
        """The objectives of all trials as `predict` gives them."""
        if (dense := self.dense_accuracy) is None:
            return np.empty((0, len(self.objectives)))
        values_NK, axis = np.array(self._seen.values), self.objectives.index("accuracy")
        values_NK[:, axis] = (dense - values_NK[:, axis]) / (abs(dense) or 1.0)
        return values_NK

    def reference(self) -> Floats:
        """Beyond it nothing counts: as slow and as large as the dense model, half of its accuracy lost."""
        mean_1K, _ = self.predict(self._coding.dense[None])
        mean_1K[0, self.objectives.index("accuracy")] = 0.5
        return mean_1K[0]

    # --- what follows from it ---

    def predict(self, codes_NV: Codes) -> tuple[Floats, Floats]:
        """Mean and standard deviation of every objective."""
        columns_NV = self._coding.columns(codes_NV)
        found = [self._predicted(name, columns_NV) for name in self.objectives]
        return np.stack([mean for mean, _ in found], axis=-1), np.stack([sd for _, sd in found], axis=-1)

    def _predicted(self, objective: str, columns_NV: Codes) -> tuple[Floats, Floats]:
        if objective in self.costs:
            rate, rest = self._rate(objective)
            return rest + rate * self.costs[objective][columns_NV].sum(1), np.zeros(len(columns_NV))
        mean_N, sd_N = self.effects[objective].predict(columns_NV)
        if objective == "latency":
            return 1 + mean_N, sd_N
        # The difference rather than the tangent: on the plateau the tangent sees no risk.
        return self.link(mean_N), (self.link(mean_N + sd_N) - self.link(mean_N - sd_N)) / 2

    def _rate(self, objective: str) -> tuple[float, float]:
        """What the model's objective is per unit of its layers' cost, and beside it: from the two ends of what was
        seen."""
        values_N = np.array([v[self.objectives.index(objective)] for v in self._seen.values])
        costs_N = np.array([self.costs[objective][columns].sum() for columns in self._seen.columns])
        rate = KNOWN[objective]
        if not len(values_N):
            return rate, 0.0
        low, high = np.argmin(costs_N), np.argmax(costs_N)
        if costs_N[high] > costs_N[low]:
            rate = float((values_N[high] - values_N[low]) / (costs_N[high] - costs_N[low]))
        return rate, float(values_N[high] - rate * costs_N[high])

    def refresh(self) -> None:
        """Learn from what was observed since."""
        num, scale = len(self._seen.values), abs(self.dense_accuracy or 0.0) or 1.0
        last = _last_fit(num)
        if last != self._fitted or scale != self._accuracy_scale:
            self._fit(last)
            self._fitted = self._used = last
            self._accuracy_scale = scale
        values_NK = self.seen()
        for row in range(self._used, num):
            self._update(self._seen.columns[row], values_NK[row])
        self._used = num

    def _fit(self, num: int) -> None:
        columns_NV, values_NK = np.array(self._seen.columns[:num]), self.seen()[:num]
        # The dense model is not trained and has no effect: it would say that the plateau is at 0.
        is_changed_N = (columns_NV != self._coding.columns(self._coding.dense)).any(-1)
        if not is_changed_N.any():
            return
        columns_NV, values_NK = columns_NV[is_changed_N], values_NK[is_changed_N]
        if "latency" in self._priors:
            self._fit_latency(columns_NV, values_NK[:, self.objectives.index("latency")])
        self._fit_damage(columns_NV, values_NK[:, self.objectives.index("accuracy")])

    def _fit_latency(self, columns_NV: Codes, ratio_N: Floats) -> None:
        regression = Regression(self._priors["latency"], columns_NV)
        saved_N, noise_N = ratio_N - 1, (LATENCY_NOISE * ratio_N) ** 2
        prior, noise = regression.scales(saved_N, noise_N)
        self.effects["latency"] = regression.posterior(saved_N, noise**2 * noise_N, prior)
        self._noise_scales["latency"] = noise

    def _fit_damage(self, columns_NV: Codes, lost_N: Floats) -> None:
        regression = Regression(self._priors["accuracy"], columns_NV)
        mean_D, noise_N = self._priors["accuracy"].mean, _lost_noise(lost_N)
        target_N, spread_N, prior, noise = lost_N, noise_N, 1.0, 1.0
        for step in range(ROUNDS):
            damage_N = mean_D[columns_NV].sum(1)
            self.link = Link.fit(damage_N, lost_N, noise_N)
            slope_N = self.link.slope(damage_N)
            target_N, spread_N = damage_N + (lost_N - self.link(damage_N)) / slope_N, noise_N / slope_N**2
            prior, noise = regression.scales(target_N, spread_N)
            if step < ROUNDS - 1:
                mean_D = regression.mean(target_N, noise**2 * spread_N, prior)
        self.effects["accuracy"] = regression.posterior(target_N, noise**2 * spread_N, prior)
        self._noise_scales["accuracy"] = noise

    def _update(self, columns_V: Codes, values_K: Floats) -> None:
        if (columns_V == self._coding.columns(self._coding.dense)).all():
            return
        if "latency" in self._priors:
            ratio = float(values_K[self.objectives.index("latency")])
            noise = self._noise_scales["latency"] * LATENCY_NOISE * ratio
            self.effects["latency"].update(columns_V, ratio - 1, noise**2)
        damage = self.effects["accuracy"].mean[columns_V].sum()
        lost, slope = values_K[self.objectives.index("accuracy")], float(self.link.slope(damage))
        noise = self._noise_scales["accuracy"] ** 2 * float(_lost_noise(lost)) / slope**2
        self.effects["accuracy"].update(columns_V, float(damage + (lost - self.link(damage)) / slope), noise)


def _lost_noise(lost: Floats) -> Floats:
    """Variance: of the seed, and of what is not additive, which grows with what is lost."""
    return SEED_NOISE**2 + (SLOPE_NOISE * np.maximum(lost, 0)) ** 2
