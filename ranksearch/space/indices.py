"""The options of a study's layers as integers: what a sampler moves, and the plans that they stand for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ranksearch.errors import SpaceError
from ranksearch.recipes import DEFAULT
from ranksearch.records import DENSE, LayerChoice, LayerRecord, Plan, Proposal, StudyRecord

__all__ = ["SearchSpace"]


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Layers with options, as one ordered integer each: the option's index. And the names of the recipes."""

    layers: tuple[LayerRecord, ...]
    recipes: tuple[str, ...] = (DEFAULT,)

    @classmethod
    def of(cls, study: StudyRecord) -> "SearchSpace":
        return cls(study.layers, tuple(recipe.name for recipe in study.recipes))

    @property
    def searched(self) -> tuple[LayerRecord, ...]:
        return tuple(layer for layer in self.layers if layer.options)

    @property
    def sizes(self) -> dict[str, int]:
        """Layer name → number of options."""
        return {layer.name: len(layer.options) for layer in self.searched}

    @property
    def num_proposals(self) -> int:
        """The dense model is one, whatever the recipe: it is not trained."""
        num_plans = math.prod(self.sizes.values())
        return 1 + (num_plans - 1) * len(self.recipes)

    def proposal(self, plan: Plan, recipe: str) -> Proposal:
        return Proposal(plan=plan, recipe=recipe if plan else self.recipes[0])

    def plan(self, indices: Mapping[str, int]) -> Plan:
        return Plan({layer.name: layer.options[indices[layer.name]].choice for layer in self.searched})

    def indices(self, plan: Plan) -> dict[str, int]:
        """Raises SpaceError on a choice that is not among its layer's options."""
        return {layer.name: self._index(layer, plan.get(layer.name, DENSE)) for layer in self.searched}

    def _index(self, layer: LayerRecord, choice: LayerChoice) -> int:
        for index, option in enumerate(layer.options):
            if option.choice == choice:
                return index
        offered = ", ".join(str(option.choice) for option in layer.options)
        raise SpaceError(f"{choice} is not an option of layer {layer.name!r}; it has {offered}")
