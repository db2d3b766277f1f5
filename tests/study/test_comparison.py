"""Two studies side by side against plain Python that works from the rows one by one."""

from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.errors import FingerprintError
from ranksearch.study.comparison import check_same_model, differences, fastest_of, plans_in_both
from tests.study.conftest import study_record

# Few different values, so that ties are common.
rows = st.fixed_dictionaries(
    {
        "plan": st.sampled_from(["{}", "p", "q", "r"]),
        "state": st.sampled_from(["complete", "complete", "failed"]),
        "accuracy": st.sampled_from([0.5, 0.6, 0.61]),
        "latency_ratio": st.sampled_from([0.25, 0.5, 0.75, 1.0, None]),
        "half_width": st.sampled_from([0.01, 0.2]),
    }
)


def frame(trials) -> pd.DataFrame:
    made = [
        {
            "state": "complete" if number == 0 else trial["state"],
            "origin": "dense" if number == 0 else "sampler",
            "plan": trial["plan"],
            "accuracy": trial["accuracy"],
            "latency_ratio": trial["latency_ratio"] if number else trial["latency_ratio"] or 1.0,
        }
        for number, trial in enumerate(trials)
    ]
    found = pd.DataFrame(made, columns=["state", "origin", "plan", "accuracy", "latency_ratio"])
    found = found.astype({"latency_ratio": "float64", "accuracy": "float64"})
    half = [trial["half_width"] for trial in trials]
    found["latency_ratio_low"], found["latency_ratio_high"] = found.latency_ratio - half, found.latency_ratio + half
    found["speedup"] = 1 / found.latency_ratio
    return found.rename_axis("trial")


def measured(trials) -> list[tuple[int, pd.Series]]:
    return [(n, row) for n, row in trials.iterrows() if row.state == "complete" and row.latency_ratio > 0]


def representative(trials, plan):
    """The first of the most accurate."""
    of_plan = [(n, row) for n, row in measured(trials) if row.plan == plan]
    return max(of_plan, key=lambda found: (found[1].accuracy, -found[0]), default=None)


def overlap(a, b) -> bool:
    return max(a.latency_ratio_low, b.latency_ratio_low) <= min(a.latency_ratio_high, b.latency_ratio_high)


@given(st.lists(rows, min_size=1, max_size=6), st.lists(rows, min_size=1, max_size=6))
def test_plans_that_both_have_measured(rows_a, rows_b):
    a, b = frame(rows_a), frame(rows_b)
    found = plans_in_both(a, b)
    plans = {row.plan for _, row in measured(a)} & {row.plan for _, row in measured(b)}
    assert sorted(found.plan) == sorted(plans)
    assert found.speedup_a.is_monotonic_decreasing
    for row in found.itertuples():
        (number_a, of_a), (number_b, of_b) = representative(a, row.plan), representative(b, row.plan)
        assert (row.trial_a, row.trial_b) == (number_a, number_b)
        assert (row.speedup_low_a, row.speedup_high_a) == (1 / of_a.latency_ratio_high, 1 / of_a.latency_ratio_low)
        assert row.speedup_b == of_b.speedup
        faster = "a" if of_a.latency_ratio < of_b.latency_ratio else "b"
        assert row.faster == ("tie" if overlap(of_a, of_b) else faster)


@pytest.mark.parametrize(("half_width", "faster"), [(0.2, "tie"), (0.1, "fast")])
@pytest.mark.parametrize("fast", ["a", "b"])
def test_neither_is_faster_where_intervals_overlap(half_width, faster, fast):
    row = {"plan": "p", "state": "complete", "accuracy": 0.5, "half_width": half_width}
    quick, slow = (frame([row | {"latency_ratio": ratio}]) for ratio in (0.25, 0.5))
    found = plans_in_both(quick, slow) if fast == "a" else plans_in_both(slow, quick)
    assert found.faster.tolist() == ["tie" if faster == "tie" else fast]


@given(st.lists(rows, min_size=1, max_size=8))
def test_the_fastest_and_its_ties(trials):
    made = frame(trials)
    for best in fastest_of(made, "a", drops=(0.0, 0.05, 0.5)):
        within = [(n, row) for n, row in measured(made) if row.accuracy >= made.accuracy[0] - best.max_drop]
        assert best.speedup == max(row.speedup for _, row in within)
        own = made.loc[best.trial]
        assert best.trial in [n for n, _ in within]
        assert set(best.ties) == {n for n, row in within if n != best.trial and overlap(row, own)}
        assert (best.study, best.accuracy) == ("a", own.accuracy)


def test_without_a_dense_model_nothing_is_within_anything():
    assert fastest_of(frame([]), "a") == []


def of(**fingerprint):
    return replace(study_record(), fingerprint={"model": "m", "weights": "w", **fingerprint})


@pytest.mark.parametrize("part", ["model", "weights"])
def test_studies_of_two_models_are_not_compared(part):
    check_same_model(of(), of(data="other"))
    with pytest.raises(FingerprintError, match=f"the {part} hash is"):
        check_same_model(of(), of(**{part: "x" * 64}))


def test_differences_are_those_of_the_latency_s_identity():
    a = of(data="d", **{"latency threads": "1", "latency backend": "eager"})
    b = of(data="e", **{"latency threads": "2", "latency backend": "eager", "latency dtype": "float32"})
    assert differences(a, b) == {"threads": ("1", "2"), "dtype": ("", "float32")}
    assert differences(a, a) == {}
