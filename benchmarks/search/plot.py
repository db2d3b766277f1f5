"""Hypervolume against trials and against seconds, one line a searcher."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.search.figures import curve, done_at, value_at
from benchmarks.search.report import Found
from benchmarks.search.searchers import OURS, RULES, UNIFORM

__all__ = ["draw"]

LINES = {"random": "#9a9a9a", "nsga2": "#c98500", "tpe": "#008a5c", "gp": "#b04a9d"}
OUR_COLOUR, RULE_COLOUR = "#0059b3", "#444444"


def draw(found: Found, file: Path) -> None:
    """Medians over seeds, of ours the range as well; uniform and the best of the other rules. Text stays text."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "search", "font.size": 9}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True, layout="constrained")
        _lines(left, found, list(range(1, found.budget + 1)), by_seconds=False)
        _lines(right, found, _seconds(found), by_seconds=True)
        left.set(xlabel="trials", ylabel="hypervolume", xlim=(0, found.budget))
        right.set(xlabel="seconds, with the profile and the proposals", xlim=(0, None))
        right.axvline(found.profile_seconds, color=OUR_COLOUR, linewidth=0.6, linestyle="--", label="our profile ends")
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#e6e6e6", linewidth=0.6)
        left.set_ylim(bottom=_floor(found))
        figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)


def _seconds(found: Found) -> list[float]:
    last = max(run.first(found.budget).seconds[-1] for run in found.runs)
    return [last * step / 400 for step in range(401)]


def _floor(found: Found) -> float:
    """Where the weakest rule ends, so that the lines that matter are apart."""
    return min(_end(found, name) for name in found.searchers) * 0.85


def _end(found: Found, name: str) -> float:
    return median(curve(run, found.dense["validation"])[-1] for run in found.of(name))


def _shown(found: Found) -> list[str]:
    rules = [name for name in found.searchers if name in RULES and name != UNIFORM]
    best = max(rules, key=lambda name: _end(found, name), default=None)
    return [name for name in found.searchers if name not in rules or name == best]


def _style(name: str) -> dict[str, object]:
    """The same sampler over our options has its colour, dashed."""
    if name == OURS:
        return {"color": OUR_COLOUR, "linewidth": 2.2}
    if name in RULES:
        return {"color": RULE_COLOUR, "linestyle": ":" if name == UNIFORM else "-."}
    sampler, *is_pruned = name.split(",")
    return {"color": LINES[sampler], "linestyle": "--" if is_pruned else "-", "linewidth": 1.2}


def _lines(axes: object, found: Found, places: Sequence[float], *, by_seconds: bool) -> None:
    for name in _shown(found):
        values = _values(found, name, by_seconds=by_seconds)
        axes.plot(places, [median(values(place)) for place in places], label=name, **_style(name))  # type: ignore[attr-defined]
        if name == OURS:
            low, high = zip(*((min(values(place)), max(values(place))) for place in places), strict=True)
            axes.fill_between(places, low, high, color=OUR_COLOUR, alpha=0.15, linewidth=0)  # type: ignore[attr-defined]


def _values(found: Found, name: str, *, by_seconds: bool) -> Callable[[float], list[float]]:
    """Of all seeds at a place."""
    runs = [run.first(found.budget) for run in found.of(name)]
    curves = [curve(run, found.dense["validation"]) for run in runs]
    pairs = list(zip(runs, curves, strict=True))
    return lambda place: [value_at(c, done_at(run, place) if by_seconds else int(place)) for run, c in pairs]
