"""Database → DataFrames: what the SQL views show, and the front."""

from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Connection, func, select, table, text
from sqlalchemy import column as sql_column

from ranksearch.database import schema
from ranksearch.database.lookup import require_study
from ranksearch.database.store import Store
from ranksearch.records import OBJECTIVES

__all__ = ["TRIAL_COLUMNS", "Frames", "front"]

_INTEGERS = ("parameters", "macs", "bytes", "attempt", "retry_of", "parent")
_TEXTS = ("state", "origin", "recipe", "reason", "plan")
# the columns of a trials frame, in order; `seconds_<phase>` and `seconds_total` follow
TRIAL_COLUMNS = (
    *("state", "accuracy", "accuracy_low", "accuracy_high"),
    *("latency_ms", "latency_ratio", "latency_ratio_low", "latency_ratio_high", "speedup"),
    *("parameters", "macs", "bytes", "test_accuracy", "test_accuracy_low", "test_accuracy_high"),
    *("origin", "recipe", "parent", "attempt", "retry_of", "reason", "plan"),
)
_OBJECTIVE_COLUMNS = {"latency": "latency_ratio"}  # the others are columns by their own name


class Frames(Store):
    def studies_frame(self) -> pd.DataFrame:
        """One row a study, the oldest first: `study` (its name), `created`, `objectives`, `device`, `device_model`, and
        its logical trials counted by state: `num_complete`, `num_pruned`, `num_failed`, `num_running`."""
        with self.reading() as connection:
            studies = connection.execute(select(schema.study).order_by(schema.study.c.created, schema.study.c.id))
            shown = [_study_shown(dict(row)) for row in studies.mappings()]
            counts = _counts(connection)
        frame = pd.DataFrame(shown, columns=["study", "created", "objectives", "device", "device_model"])
        for state in ("complete", "pruned", "failed", "running"):
            frame[f"num_{state}"] = [counts.get((study, state), 0) for study in frame["study"]]
        return frame

    def trials_frame(self, study: str, *, all_rows: bool = False) -> pd.DataFrame:
        """One row a logical trial, index `trial`, columns TRIAL_COLUMNS, `seconds_<phase>` of every phase,
        `seconds_total`. With `all_rows` also the failures that a retry replaced. Raises NotFoundError.

        Latency is a ratio to the dense model and, in milliseconds, that ratio × the dense model's median. It is the
        newest fresh measurement under the study's identity where there is one, else the search's own.
        """
        with self.reading() as connection:
            study_id = require_study(connection, study)["id"]
            frame = _view_frame(connection, "rs_attempts" if all_rows else "rs_trials", study)
            phases = _phases(connection, study_id)
        total = frame.pop("seconds_total")
        return frame.join(phases).assign(seconds_total=total)

    def pareto_frame(self, study: str, *, latency_slack: float = 0.0) -> pd.DataFrame:
        """The rows of `trials_frame` that no other complete trial beats under the study's own objectives, and those
        that none would beat if their latency were smaller, as `(1 + latency_slack)` to 1."""
        with self.reading() as connection:
            objectives = require_study(connection, study)["objectives"].split(",")
        frame = self.trials_frame(study)
        points = _points(frame, objectives)
        eased = points.copy()
        if "latency" in objectives:
            eased[:, objectives.index("latency")] /= 1 + latency_slack
        return frame.loc[_unbeaten(eased, points[front(points)])]


def _study_shown(row: dict[str, Any]) -> dict[str, Any]:
    environment = row["environment"]
    return {
        "study": row["name"],
        "created": row["created"],
        "objectives": row["objectives"],
        "device": environment["device"],
        "device_model": environment["device_model"],
    }


def _counts(connection: Connection) -> dict[tuple[str, str], int]:
    view = table("rs_trials", sql_column("study"), sql_column("state"))
    counted = select(view.c.study, view.c.state, func.count()).group_by(view.c.study, view.c.state)
    return {(study, state): count for study, state, count in connection.execute(counted)}


def _view_frame(connection: Connection, view: str, study: str) -> pd.DataFrame:
    columns = ("trial", *TRIAL_COLUMNS, "seconds_total")
    query = text(f"SELECT {', '.join(columns)} FROM {view} WHERE study = :study ORDER BY trial")  # noqa: S608
    found = connection.execute(query, {"study": study}).all()
    frame = pd.DataFrame(found, columns=list(columns))
    return frame.astype({name: _dtype(name) for name in columns}).set_index("trial")


def _dtype(column: str) -> str:
    if column == "trial":
        return "int64"
    if column in _INTEGERS:
        return "Int64"
    return "str" if column in _TEXTS else "float64"


def _phases(connection: Connection, study_id: int) -> pd.DataFrame:
    """Seconds per trial (rows) and phase (columns `seconds_<phase>`, in alphabetical order)."""
    timing, trial = schema.timing, schema.trial
    query = (
        select(trial.c.number, timing.c.phase, timing.c.seconds)
        .join(trial, timing.c.trial_id == trial.c.id)
        .where(trial.c.study_id == study_id)
    )
    found = pd.DataFrame(connection.execute(query).all(), columns=["trial", "phase", "seconds"])
    wide = found.astype({"trial": "int64"}).pivot(index="trial", columns="phase", values="seconds")
    return wide.rename(columns="seconds_{}".format)


def _points(frame: pd.DataFrame, objectives: list[str]) -> np.ndarray:
    """(trials, objectives), smaller is better; NaN for a trial that is not complete or lacks an objective."""
    points = np.empty((len(frame), len(objectives)))
    for i, objective in enumerate(objectives):
        values = frame[_OBJECTIVE_COLUMNS.get(objective, objective)].to_numpy(dtype="float64", na_value=np.nan)
        points[:, i] = values if OBJECTIVES[objective] else -values
    points[frame["state"].to_numpy() != "complete"] = np.nan
    return points


def _unbeaten(points: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Which rows of `points` are finite and dominated by no row of `best`, as booleans."""
    beaten = [bool(((best <= p).all(axis=1) & (best < p).any(axis=1)).any()) for p in points]
    return np.isfinite(points).all(axis=1) & ~np.array(beaten, dtype=bool)


def front(points: np.ndarray) -> np.ndarray:
    """Which rows of `points` (n, objectives), smaller is better, no other row dominates, as n booleans.

    Equal rows do not dominate each other. A row that is not finite is never on the front and dominates none.
    """
    on_front = np.all(np.isfinite(points), axis=1)
    # In lexicographic order a row can only be dominated by one before it, and what is kept is on the front.
    rest = np.flatnonzero(on_front)[np.lexsort(points[on_front].T)]
    while len(rest):
        best = points[rest[0]]
        dominated = (points[rest] >= best).all(axis=1) & (points[rest] > best).any(axis=1)
        on_front[rest[dominated]] = False
        rest = rest[~dominated][1:]
    return on_front
