"""A pretended world for the sampler: effects that add up, a link, noise that the plan decides."""

import numpy as np

from ranksearch.records.profile import OptionProfile, Profile
from ranksearch.space import SearchSpace
from ranksearch.study.additive.link import Link
from tests.study.conftest import layer

OBJECTIVES = ("latency", "accuracy")
LINK = Link(plateau=0.005, midpoint=2.5, power=1.45)


class World:
    def __init__(self, num_layers: int = 4, recipes: tuple[str, ...] = ("a",), noise: float = 0.0, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.space = SearchSpace(tuple(layer(f"layer{i}") for i in range(num_layers)), recipes)
        self.noise, shape = noise, (num_layers, 10)
        self.latency = -rng.uniform(0.2, 0.9, shape) / num_layers
        self.damage = rng.uniform(0.0, 2.0, shape) / num_layers
        self.recipe = np.arange(len(recipes)) * -0.25  # later recipes are better

    def values(self, params, rng=None) -> tuple[float, float]:
        codes = [params[name] for name in self.space.sizes]
        changed = [(i, code) for i, code in enumerate(codes) if code < 10]
        if not changed:
            return 1.0, 0.9
        damage = sum(self.damage[at] for at in changed)
        damage += self.recipe[self.space.recipes.index(params.get("@recipe", self.space.recipes[0]))]
        noise = self.noise * rng.standard_normal() if rng else 0.0
        lost = float(LINK(np.array(damage)))
        return 1 + sum(self.latency[at] for at in changed), 0.9 * (1 - lost) + noise

    def profile(self, spread: float = 0.2, seed: int = 1, with_losses: bool = True) -> Profile:
        rng = np.random.default_rng(seed)
        options = [
            OptionProfile(
                layer=each.name,
                choice=option.choice,
                cost=option.cost,
                latency=self.latency[i, o] * (1 + spread * rng.standard_normal()),
                error=self.damage[i, o] / (3 + i),  # each layer has its own units
                loss=self.damage[i, o] * np.exp(spread * rng.standard_normal()) if with_losses else None,
            )
            for i, each in enumerate(self.space.layers)
            for o, option in enumerate(each.options[:-1])
        ]
        return Profile(identity={}, dense_ms=1.0, options=tuple(options))
