"""What layers take by themselves."""

from collections.abc import Sequence

from ranksearch.database.rows.cells import Row, choice_cells, choice_of, finite
from ranksearch.records import LayerLatency, Staircase, Timings, key_of

__all__ = ["identity_row", "layer_latency_row", "timings_of"]

_TIMED = ("shape", "latency_ms", "dense_ms", "ratio_deviation")


def identity_row(timings: Timings) -> Row:
    stairs = timings.staircase and timings.staircase.to_json()
    return {"identity_key": key_of(timings.identity), "identity": dict(timings.identity), "staircase": stairs}


def layer_latency_row(identity_key: str, found: LayerLatency, created: str) -> Row:
    """Raises ValueError on a number that is not finite."""
    timed = {name: getattr(found, name) for name in _TIMED}
    return finite({"identity_key": identity_key, "created": created, **choice_cells(found.choice), **timed})


def timings_of(identity: Row, layers: Sequence[Row]) -> Timings:
    return Timings(
        identity=identity["identity"],
        layers=tuple(
            LayerLatency(choice=choice_of(row["method"], row["ranks"]), **{name: row[name] for name in _TIMED})
            for row in layers
        ),
        staircase=identity["staircase"] and Staircase.from_json(identity["staircase"]),
    )
