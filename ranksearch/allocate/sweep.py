"""Sweep: the plans of one rule over its parameter, as seeds."""

from collections.abc import Iterable

from ranksearch.records import Plan, SeedPlan

__all__ = ["sweep"]


def sweep(named: Iterable[tuple[str, Plan]]) -> tuple[SeedPlan, ...]:
    """`seed:NAME` for every plan. Equal plans appear once, by their first name; the dense one does not."""
    seeds: dict[Plan, SeedPlan] = {}
    for name, plan in named:
        seeds.setdefault(plan, SeedPlan(origin=f"seed:{name}", plan=plan))
    return tuple(seed for plan, seed in seeds.items() if plan)
