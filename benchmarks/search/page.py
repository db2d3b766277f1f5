"""What was found as a section of docs/search.md, between two comments, and as the figures beside it in JSON."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.hypervolume import hypervolume
from benchmarks.latency.page import cells, line
from benchmarks.search import plot
from benchmarks.search.bars import bars, on_test
from benchmarks.search.figures import DROPS, curve, done_at, fastest, value_at
from benchmarks.search.nets import NETS
from benchmarks.search.race import Run
from benchmarks.search.report import Found, Front, load
from benchmarks.search.searchers import OURS

__all__ = ["figures", "net_section", "put"]

PAGE = Path(__file__).parents[2] / "docs" / "search.md"
BEGIN = "<!-- from here to the end mark: written by `python -m benchmarks.search --page`; do not edit -->"
END = "<!-- end of what `python -m benchmarks.search --page` writes -->"
AFTER = (5, 15, 30, 60, 200)  # trials
EARLY = 15
PLOTTED = "resnet9"


def put() -> None:
    found = {name: part for name in NETS if (part := load(name))}
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    text = "\n".join([INTRODUCTION, *(net_section(name, part) for name, part in found.items())])
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")
    if PLOTTED in found:
        plot.draw(found[PLOTTED], PAGE.with_name(f"search_{PLOTTED}.svg"))


INTRODUCTION = """## Against other searches

Found by `python -m benchmarks.search --data cifar10.npz`, one net after the other in one process on two cores;
latencies eager at batch 8 on one thread.
Every searcher proposes plans for the same net, and every plan is a trial of the default space's recipes on the same
batches; a plan that two searchers propose is evaluated once and its seconds are counted for both.

- **ranksearch**: the profile, what it leaves of the options, the seeds, then `--sampler additive`. Its seconds begin
  with the profile.
- **uniform, energy, EVBMF, ALDS-style, log-energy**: closed-form rules with spatial and channel SVD in turns, at most
  twelve plans each.
- **random, nsga2, tpe, gp**: Optuna's samplers over method and ranks of every layer, the ends dense. Each begins by
  knowing the dense model. With **our options**, they search what the profile leaves and pay for it.

The tables have the hypervolume of (latency ratio, validation accuracy) beyond ratio 1.0 and half of the dense
accuracy: after so many trials, and at the seconds when ours has made as many, profile and proposals counted. Then the
seconds of a trial with its proposal, and the latency ratio of the fastest within 1, 2 and 5 points of the dense
accuracy after 15 trials and after all (1.00: none but the dense model). Of several seeds it is the median, with the
least and the greatest in brackets; they share the latencies of equal plans, and a peer that has fewer seeds is compared
with ours of the same ones. Where a peer is ahead after five trials or more, its trials and ours until then are measured
again, each in a fresh process. At last the trials of our front and of that of the best peer are trained once more and
scored on the test split.
"""


def net_section(name: str, found: Found) -> str:
    picture = [f"![hypervolume against trials and seconds](search_{PLOTTED}.svg)", ""] if name == PLOTTED else []
    return "\n".join(
        [
            f"### {found.title}",
            "",
            conditions(found),
            "",
            *picture,
            *_table(["asked", "found", "bar", "", "seeds", "beside it"], [cells(check, {}) for check in bars(found)]),
            *_table(_header(found), [_row(found, searcher) for searcher in found.searchers]),
            *_test_table(found),
        ]
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [line(list(header)), "|" + "---|" * len(header), *(line(list(row)) for row in rows), ""]


def conditions(found: Found) -> str:
    where, versions = found.conditions, found.conditions["versions"]
    names = ", ".join(f"{name} {versions[name]}" for name in ("ranksearch", "torch", "optuna"))
    seeds = len(found.of(OURS))
    recipes = "; ".join(
        f"{recipe.name}: {recipe.finetune.steps} steps, {recipe.finetune.factors} factors" for recipe in found.recipes
    )
    kept = f", {found.num_kept} of its trials having been made before" if found.num_kept else ""
    return (
        f"{found.macs / 1e6:.1f} million MACs, {found.parameters / 1e6:.2f} million parameters, accuracy "
        f"{found.dense['validation']:.3f} on {found.num_validation} validation and {found.dense['test']:.3f} on "
        f"{found.num_test} test images. {found.num_options} options of {found.num_layers} layers, of which the profile "
        f"({found.profile_seconds:.0f} s) leaves {found.num_our_options}. Recipes: {recipes}. Seeds 0 to {seeds - 1}. "
        f"{found.date[:10]}, {found.minutes:.0f} minutes{kept}, load before {where['load_before']:.1f}: "
        f"{where['device']}, {where['cores']} cores, Python {where['python']}, {names}."
    )


# --- what searchers come to ------------------------------------------------------------------------------------------


def _marks(found: Found) -> list[int]:
    return [num for num in AFTER if num <= found.long_budget]


def _header(found: Found) -> list[str]:
    marks = [f"after {num}" for num in _marks(found)]
    moments = [f"at {second:.0f} s" for second in _moments(found)]
    drops = [f"−{100 * drop:.0f}" for drop in DROPS]
    return ["searcher", "seeds", *marks, *moments, "s a trial", *drops]


def _moments(found: Found) -> list[float]:
    """When ours has had so many trials."""
    ours = found.of(OURS)
    return [median(run.seconds[num - 1] for run in ours) for num in _marks(found) if num <= found.budget]


def _row(found: Found, searcher: str) -> list[str]:
    runs = found.of(searcher)
    curves = {run.seed: curve(run, found.dense["validation"]) for run in runs}
    after = [_median([value_at(curves[run.seed], num) for run in _as_far(runs, num, found)]) for num in _marks(found)]
    by = [
        _median([value_at(curves[run.seed], done_at(run.first(found.budget), second)) for run in runs])
        for second in _moments(found)
    ]
    return [searcher, str(len(runs)), *after, *by, f"{median(map(_seconds_a_trial, runs)):.1f}", *_fastest(found, runs)]


def _as_far(runs: Sequence[Run], num: int, found: Found) -> list[Run]:
    """Beyond the budget those that went on. A rule that has ended stays where it is."""
    return [run for run in runs if num <= max(found.budget, len(run.ratios))]


def _seconds_a_trial(run: Run) -> float:
    """With its proposal, without the first, whose profile it would hold."""
    gaps = [later - sooner for sooner, later in zip(run.seconds, run.seconds[1:], strict=False)]
    return median(gaps) if gaps else 0.0


def _fastest(found: Found, runs: Sequence[Run]) -> list[str]:
    """Latency ratios after some of the trials and after all that all searchers have."""
    dense = found.dense["validation"]
    texts = []
    for drop in DROPS:
        pair = [
            median(ratio if (ratio := fastest(run.first(num), dense - drop)) is not None else 1.0 for run in runs)
            for num in (min(EARLY, found.budget), found.budget)
        ]
        texts.append(f"{pair[0]:.2f}, {pair[1]:.2f}")
    return texts


def _median(values: Sequence[float]) -> str:
    if not values:
        return ""
    text = f"{median(values):.4f}"
    return text if len(values) == 1 else f"{text} ({min(values):.3f}–{max(values):.3f})"


# --- fronts on the test split ----------------------------------------------------------------------------------------


def _test_table(found: Found) -> list[str]:
    if not found.fronts:
        return []
    header = ["front", "seed", "trials", "on validation", "on test", *(["fresh"] if found.is_unseen else [])]
    return _table(header, [_front_row(front, found) for front in found.fronts])


def _front_row(front: Front, found: Found) -> list[str]:
    searched = hypervolume(zip(front.ratios, front.accuracies, strict=True), found.dense["validation"])
    tested = hypervolume(zip(front.ratios, front.test_accuracies, strict=True), found.dense["test"])
    fresh = [f"{on_test(front, found):.4f}"] if found.is_unseen else []
    return [front.searcher, str(front.seed), str(len(front.ratios)), f"{searched:.4f}", f"{tested:.4f}", *fresh]


# --- the same as data ------------------------------------------------------------------------------------------------


def figures(found: Found) -> dict[str, Any]:
    checks = bars(found)
    rows: Callable[[str], dict[str, str]] = lambda name: dict(zip(_header(found), _row(found, name), strict=True))  # noqa: E731
    return {
        "missed": [check.test for check in checks if not check.passed],
        "bars": [check.to_json() for check in checks],
        "searchers": [rows(name) for name in found.searchers],
    }
