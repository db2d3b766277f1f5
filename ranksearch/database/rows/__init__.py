"""Records ⇄ rows. A row is a dict from column name to value; nothing here talks to a database."""

from ranksearch.database.rows.cells import Row, choice_of, plan_text, ranks_text
from ranksearch.database.rows.studies import (
    layer_of,
    layer_row,
    option_row,
    profile_of,
    profile_row,
    recipes_of,
    seed_of,
    seed_row,
    study_of,
    study_row,
)
from ranksearch.database.rows.timings import identity_row, layer_latency_row, timings_of
from ranksearch.database.rows.trials import (
    choice_row,
    finished_row,
    measurement_of,
    measurement_row,
    samples_row,
    score_row,
    specs_of,
    timing_row,
    trial_of,
    trial_row,
)

__all__ = [
    "Row",
    "choice_of",
    "choice_row",
    "finished_row",
    "identity_row",
    "layer_latency_row",
    "layer_of",
    "layer_row",
    "measurement_of",
    "measurement_row",
    "option_row",
    "plan_text",
    "profile_of",
    "profile_row",
    "ranks_text",
    "recipes_of",
    "samples_row",
    "score_row",
    "seed_of",
    "seed_row",
    "specs_of",
    "study_of",
    "study_row",
    "timing_row",
    "timings_of",
    "trial_of",
    "trial_row",
]
