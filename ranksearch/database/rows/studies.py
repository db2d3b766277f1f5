"""Studies, their layers with options, seeds and profiles."""

from collections.abc import Sequence
from dataclasses import replace

from ranksearch.database.rows.cells import Row, choice_cells, choice_of, cost_of, finite, plan_of, plan_text
from ranksearch.records import (
    Environment,
    LayerRecord,
    MeasureConfig,
    Option,
    OptionProfile,
    Profile,
    Recipe,
    SeedPlan,
    StudyRecord,
)

__all__ = [
    "layer_of",
    "layer_row",
    "option_row",
    "profile_of",
    "profile_row",
    "recipes_of",
    "seed_of",
    "seed_row",
    "study_of",
    "study_row",
]


def study_row(study: StudyRecord) -> Row:
    return {
        "name": study.name,
        "created": study.created,
        "study_key": study.key,
        "fingerprint": dict(study.fingerprint),
        "objectives": ",".join(study.objectives),
        "finetune": [recipe.to_json() for recipe in study.recipes],
        "measure": study.measure.to_json(),
        "seed": study.seed,
        "environment": study.environment.to_json(),
        "settings": dict(study.settings),
        "profile": study.profile and {k: v for k, v in study.profile.to_json().items() if k != "options"},
    }


def study_of(row: Row, layers: Sequence[LayerRecord], seeds: Sequence[SeedPlan], profile: Sequence[Row]) -> StudyRecord:
    return StudyRecord(
        name=row["name"],
        created=row["created"],
        fingerprint=row["fingerprint"],
        objectives=tuple(row["objectives"].split(",")) if row["objectives"] else (),
        layers=tuple(layers),
        seeds=tuple(seeds),
        recipes=recipes_of(row),
        measure=MeasureConfig.from_json(row["measure"]),
        seed=row["seed"],
        environment=Environment.from_json(row["environment"]),
        settings=row["settings"],
        profile=profile_of(row, profile),
    )


def profile_row(study_id: int, position: int, option: OptionProfile) -> Row:
    """Raises ValueError on a number that is not finite."""
    measured = {name: getattr(option, name) for name in _PROFILED}
    place = {"study_id": study_id, "position": position, "layer": option.layer}
    return finite({**place, **choice_cells(option.choice), **option.cost.to_json(), **measured})


def profile_of(study: Row, options: Sequence[Row]) -> Profile | None:
    """`options` are the rows of the study's profile, in order."""
    if study["profile"] is None:
        return None
    profiled = tuple(
        OptionProfile(
            layer=row["layer"],
            choice=choice_of(row["method"], row["ranks"]),
            cost=cost_of(row),
            **{name: row[name] for name in _PROFILED},
        )
        for row in options
    )
    return replace(Profile.from_json({**study["profile"], "options": []}), options=profiled)


_PROFILED = ("latency", "latency_deviation", "layer_ms", "is_latency_measured", "error", "loss", "is_loss_measured")


def recipes_of(study: Row) -> tuple[Recipe, ...]:
    return tuple(Recipe.from_json(recipe) for recipe in study["finetune"])


def layer_row(study_id: int, position: int, layer: LayerRecord) -> Row:
    return {
        "study_id": study_id,
        "position": position,
        "name": layer.name,
        "kind": layer.kind,
        "shape": layer.shape,
        "parameters": layer.cost.parameters,
        "macs": layer.cost.macs,
        "skipped": layer.skipped,
    }


def layer_of(row: Row, options: Sequence[Row]) -> LayerRecord:
    """`options` are the rows of this layer, in order."""
    return LayerRecord(
        name=row["name"],
        kind=row["kind"],
        shape=row["shape"],
        cost=cost_of(row),
        skipped=row["skipped"],
        options=tuple(
            Option(choice=choice_of(option["method"], option["ranks"]), cost=cost_of(option)) for option in options
        ),
    )


def option_row(layer_id: int, position: int, option: Option) -> Row:
    place = {"layer_id": layer_id, "position": position}
    return {**place, **choice_cells(option.choice), **option.cost.to_json()}


def seed_row(study_id: int, position: int, seed: SeedPlan) -> Row:
    return {
        "study_id": study_id,
        "position": position,
        "origin": seed.origin,
        "plan": plan_text(seed.plan),
        "recipe": seed.recipe,
    }


def seed_of(row: Row) -> SeedPlan:
    return SeedPlan(origin=row["origin"], plan=plan_of(row["plan"]), recipe=row["recipe"])
