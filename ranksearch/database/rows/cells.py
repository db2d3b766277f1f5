"""What rows of several tables hold."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ranksearch.records import Cost, LayerChoice, Plan

__all__ = ["Row", "choice_cells", "choice_of", "cost_of", "finite", "plan_of", "plan_text", "ranks_text"]

Row = Mapping[Any, Any]  # column name -> value


def plan_text(plan: Plan) -> str:
    """Compact JSON, `{"layer":"method:ranks"}`, layers in order of their names."""
    return json.dumps(plan.to_json(), separators=(",", ":"), ensure_ascii=False)


def plan_of(text: str) -> Plan:
    return Plan({layer: _choice_of(choice) for layer, choice in json.loads(text).items()})


@lru_cache(maxsize=65536)  # a study has few different choices and very many trials
def _choice_of(text: str) -> LayerChoice:
    return LayerChoice.parse(text)


def ranks_text(choice: LayerChoice) -> str:
    return "x".join(map(str, choice.ranks))


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError on a NaN or an infinity, which SQLite would turn into NULL and others refuse."""
    for column, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{column} is {value}; only a finite number can be stored")
    return row


def cost_of(row: Row) -> Cost:
    return Cost(parameters=row["parameters"], macs=row["macs"])


def choice_of(method: str, ranks: str) -> LayerChoice:
    return _choice_of(f"{method}:{ranks}")


def choice_cells(choice: LayerChoice) -> dict[str, str]:
    return {"method": choice.method, "ranks": ranks_text(choice)}
