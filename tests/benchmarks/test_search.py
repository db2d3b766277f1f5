"""What the benchmark of searches makes of runs: laws of its figures, on runs written down by hand."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.search.bars import bars, lead_at_equal_trials
from benchmarks.search.figures import by, curve, done_at, fastest, latest_lead, most_ahead, value_at
from benchmarks.search.kept import Kept
from benchmarks.search.race import Run
from benchmarks.search.report import load
from benchmarks.search.searchers import OURS

DENSE = 0.8
numbers = st.floats(0.1, 1.2)
trials = st.lists(st.tuples(numbers, st.floats(0, 1)), min_size=1, max_size=12)


def run_of(points: list[tuple[float, float]], seconds: tuple[float, ...] = ()) -> Run:
    ratios, accuracies = zip(*points, strict=True)
    return Run(
        searcher="some",
        seed=0,
        ratios=ratios,
        accuracies=accuracies,
        seconds=seconds or tuple(float(i + 1) for i in range(len(points))),
    )


@given(trials)
def test_a_curve_begins_at_nothing_and_never_falls(points: list[tuple[float, float]]) -> None:
    found = curve(run_of(points), DENSE)

    assert found[0] == 0
    assert len(found) == len(points) + 1
    assert all(sooner <= later + 1e-12 for sooner, later in itertools.pairwise(found))


def test_a_curve_by_hand() -> None:
    run = run_of([(0.5, 0.6), (0.75, 0.8), (1.1, 0.9), (0.2, 0.3)])  # too slow, too bad: the last two

    assert curve(run, DENSE) == pytest.approx((0, 0.5 * 0.2, 0.1 + 0.25 * 0.2, 0.15, 0.15))


def test_a_search_that_has_ended_stays_where_it_is() -> None:
    assert value_at((0.0, 0.1, 0.3), 2) == value_at((0.0, 0.1, 0.3), 60) == 0.3


@pytest.mark.parametrize(("second", "done"), [(0, 0), (24.9, 0), (25, 1), (26, 1), (29, 2), (1000, 3)])
def test_at_a_second_counts_what_has_ended(second: float, done: int) -> None:
    assert done_at(run_of([(0.5, 0.5)] * 3, seconds=(25.0, 27.0, 30.0)), second) == done


def test_by_seconds_is_the_median_over_seeds() -> None:
    runs = [run_of([(0.5, 0.8)], seconds=(end,)) for end in (10.0, 20.0, 30.0)]
    found = by(runs, DENSE)

    assert [found(second) for second in (15, 20, 40)] == pytest.approx([0.0, 0.2, 0.2])


def test_the_fastest_keeps_what_is_asked() -> None:
    run = run_of([(0.9, 0.80), (0.6, 0.79), (0.5, 0.7)])

    assert fastest(run, 0.785) == 0.6
    assert fastest(run, 0.81) is None


def test_leads_are_a_share_of_ours() -> None:
    pairs = {"even": (float, float), "late": (lambda moment: 0.0 if moment < 8 else 11.0, float)}

    assert most_ahead(range(5, 11), pairs) == pytest.approx((11 / 8 - 1, "late", 8))
    assert latest_lead(range(5, 20), pairs) == 10
    assert latest_lead(range(12, 20), pairs) is None


def test_whoever_leads_while_we_have_nothing_leads_without_bound() -> None:
    assert most_ahead([1], {"some": (lambda _: 0.1, lambda _: 0.0)})[0] == float("inf")


def test_a_lead_is_told_again_by_what_was_measured_again() -> None:
    found = load("vit")
    assert found is not None
    lead, name, num = lead_at_equal_trials(found)
    again = tuple(run.first(num) for run in found.runs if run.searcher in (OURS, name))

    def told(runs: tuple[Run, ...]) -> dict[str, float | None]:
        return {check.test: check.value for check in bars(replace(found, again=runs)) if "again" in check.test}

    (test,) = told(again)
    assert told(()) == {}
    assert told(again) == {test: pytest.approx(lead)}
    slower = tuple(
        replace(run, ratios=tuple(min(1.0, r + 0.1 * (run.searcher == name)) for r in run.ratios)) for run in again
    )
    assert told(slower)[test] < lead


def test_kept_answers_outlive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.jsonl")
    kept.put("a", 1)
    kept.put("b", [2.5])
    file = tmp_path / "kept.jsonl"
    file.write_text(file.read_text()[:-3])

    again = Kept(file)
    assert (again.get("a"), again.get("b")) == (1, None)
    again.put("c", 3)
    assert [Kept(file).get(name) for name in "abc"] == [1, None, 3]
