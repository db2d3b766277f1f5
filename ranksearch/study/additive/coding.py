"""A proposal as a vector of integers: per layer the option's index, and the recipe's where there are several.

Every option of every variable has a column of its own in a design matrix; a proposal has a 1 in one column a variable.
Shapes: N proposals, V variables, D columns (options of all variables together).
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ranksearch.space import SearchSpace
from ranksearch.study.mirror import RECIPE

__all__ = ["Codes", "Coding", "Floats"]

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]


class Coding:
    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.has_recipes = len(space.recipes) > 1
        self.names = [*space.sizes] + [RECIPE] * self.has_recipes
        self.sizes_V = np.array([*space.sizes.values()] + [len(space.recipes)] * self.has_recipes)
        self.offsets_V = np.concatenate([[0], np.cumsum(self.sizes_V)[:-1]])
        self.num_columns = int(self.sizes_V.sum())

    @cached_property
    def dense(self) -> Codes:
        """The dense model: the last option of every layer; it is not trained, so its recipe is the first."""
        dense = self.sizes_V - 1
        dense[len(self.space.sizes) :] = 0
        return dense

    @cached_property
    def variable(self) -> Codes:
        return np.repeat(np.arange(len(self.sizes_V)), self.sizes_V)

    def columns(self, codes_NV: Codes) -> Codes:
        return codes_NV + self.offsets_V

    def is_dense(self, codes_NV: Codes) -> NDArray[np.bool_]:
        num_layers = len(self.space.sizes)
        return (codes_NV[..., :num_layers] == self.dense[:num_layers]).all(-1)

    def canonical(self, codes_NV: Codes) -> Codes:
        return np.where(self.is_dense(codes_NV)[..., None], self.dense, codes_NV)

    def encode(self, params: Mapping[str, Any]) -> Codes | None:
        """None where the trial is not of this space, or was trained by a recipe of its own."""
        if any(name not in params for name in self.names):
            return None
        recipe = [self.space.recipes.index(params[RECIPE])] if self.has_recipes else []
        return self.canonical(np.array([params[name] for name in self.space.sizes] + recipe))

    def decode(self, codes_V: Codes) -> dict[str, Any]:
        found: dict[str, Any] = dict(zip(self.names, codes_V.tolist(), strict=True))
        return found | ({RECIPE: self.space.recipes[codes_V[-1]]} if self.has_recipes else {})

    def everything(self) -> Codes:
        """All proposals of the space, each once but for the dense model's recipes."""
        return np.stack(np.unravel_index(np.arange(int(np.prod(self.sizes_V))), tuple(self.sizes_V)), axis=-1)
