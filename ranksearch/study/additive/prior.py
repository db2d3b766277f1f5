"""What is believed of every option before any trial: its effect on the latency ratio, and its damage.

With a profile: the measured latency; the measured loss, or the weight's error in the units of the loss where that was
not measured. Without one: the share of the model's MACs that an option saves, and that share times how much of the
layer goes. The errors of such a belief are shared: by all options (a wrong unit), by the options of one layer (a wrong
sensitivity), and each option has its own. So a trial teaches about options that it does not have.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from statistics import median

import numpy as np

from ranksearch.errors import ConfigError
from ranksearch.records import LayerChoice, LayerRecord, Option
from ranksearch.records.profile import OptionProfile, Profile
from ranksearch.space import SearchSpace
from ranksearch.study.additive.coding import Coding, Floats
from ranksearch.study.additive.regression import Effects

__all__ = ["damage_prior", "latency_prior"]

RECIPE_SHARE = 0.2  # a recipe's effect, in damages of a typical plan


@dataclass(frozen=True)
class Doubt:
    """Relative standard deviations of an effect's error: common to all, to a layer, an option's own; and an absolute
    one, in effects of typical size."""

    shared: float
    layer: float
    option: float
    floor: float


# Of 40 random nets the profiled latencies were right within 0.4 %, a profiled loss orders but does not give accuracy.
PROFILED_LATENCY = Doubt(shared=0.03, layer=0.05, option=0.05, floor=0.05)
PROFILED_DAMAGE = Doubt(shared=0.1, layer=0.3, option=0.3, floor=0.05)
GUESSED = Doubt(shared=0.5, layer=0.5, option=0.5, floor=0.2)


def latency_prior(coding: Coding, profile: Profile | None) -> Effects:
    if profile is None:
        return _belief(coding, _by_option(coding, lambda layer, o: -_saved_macs(coding.space, layer, o)), GUESSED)
    found = _profiled(profile)
    return _belief(coding, _by_option(coding, lambda layer, o: _of(found, layer, o).latency), PROFILED_LATENCY)


def damage_prior(coding: Coding, profile: Profile | None) -> Effects:
    if profile is None:
        effects_D, doubt = _by_option(coding, lambda layer, o: _guessed_damage(coding.space, layer, o)), GUESSED
    else:
        losses = _losses(profile)
        found = _profiled(profile)
        effects_D = _by_option(coding, lambda layer, o: losses[_of(found, layer, o)])
        doubt = PROFILED_DAMAGE
    return _with_recipes(coding, _belief(coding, effects_D, doubt))


def _by_option(coding: Coding, effect: Callable[[LayerRecord, Option], float]) -> Floats:
    """An effect for every column: 0 for dense options and recipes."""
    effects = [
        0.0 if option.choice.is_dense else effect(layer, option)
        for layer in coding.space.searched
        for option in layer.options
    ]
    return np.array(effects + [0.0] * (coding.num_columns - len(effects)))


def _belief(coding: Coding, mean_D: Floats, doubt: Doubt) -> Effects:
    """An effect of exactly nothing (dense, recipe) is known; others by what `doubt` says."""
    is_known_D = _by_option(coding, lambda *_: 1.0) == 0
    size = np.abs(mean_D[~is_known_D])
    floor = doubt.floor * float(np.median(size)) if size.any() else doubt.floor
    same_DD = coding.variable[:, None] == coding.variable
    covariance_DD = np.outer(mean_D, mean_D) * (doubt.shared**2 + doubt.layer**2 * same_DD)
    own_D = np.where(is_known_D, 0.0, (doubt.option * mean_D) ** 2 + floor**2)
    return Effects(mean_D, covariance_DD + np.diag(own_D))


def _with_recipes(coding: Coding, belief: Effects) -> Effects:
    """A recipe other than the first adds or saves damage."""
    is_recipe_D = coding.variable >= len(coding.space.sizes)
    typical = sum(
        np.median(np.abs(belief.mean[coding.variable == variable])) for variable in range(len(coding.space.sizes))
    )
    learnt_D = is_recipe_D & (np.arange(coding.num_columns) != coding.offsets_V[-1])
    return Effects(belief.mean, belief.covariance + np.diag(learnt_D * (RECIPE_SHARE * float(typical)) ** 2))


# --- from a profile ---


def _profiled(profile: Profile) -> Mapping[tuple[str, LayerChoice], OptionProfile]:
    return {(option.layer, option.choice): option for option in profile.options}


def _of(found: Mapping[tuple[str, LayerChoice], OptionProfile], layer: LayerRecord, option: Option) -> OptionProfile:
    """Raises ConfigError where the profile is of another space."""
    if (layer.name, option.choice) not in found:
        raise ConfigError(f"the profile lacks {option.choice} of layer {layer.name!r}; profile this space first")
    return found[layer.name, option.choice]


def _losses(profile: Profile) -> dict[OptionProfile, float]:
    """Where a loss was not measured, the error times the usual loss per error of its layer, else of all, else 1."""
    per_error: dict[str, list[float]] = {}
    for option in profile.options:
        if option.loss is not None and option.error > 0:
            per_error.setdefault(option.layer, []).append(option.loss / option.error)
    overall = median(list(chain(*per_error.values()))) if per_error else 1.0
    rates = {layer: median(rates) for layer, rates in per_error.items()}
    return {
        option: option.loss if option.loss is not None else option.error * rates.get(option.layer, overall)
        for option in profile.options
    }


# --- from MACs ---


def _saved_macs(space: SearchSpace, layer: LayerRecord, option: Option) -> float:
    return (layer.cost.macs - option.cost.macs) / sum(each.cost.macs for each in space.layers)


def _guessed_damage(space: SearchSpace, layer: LayerRecord, option: Option) -> float:
    """The layer's share of the MACs times the square of the share of it that goes: MACs, or parameters if more."""
    kept = min(option.cost.macs / layer.cost.macs, option.cost.parameters / layer.cost.parameters)
    return layer.cost.macs / sum(each.cost.macs for each in space.layers) * (1 - kept) ** 2
