"""The tables. What a column means, and its unit, stands in storage/README.md.

The migrations in storage/migrations make them; a test holds the two together. Every name begins with `rs_`, so that
the tables can share a database with Optuna's. Timestamps are ISO 8601 strings in UTC, as the records have them: they
sort as text and read back unchanged on every database.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql

__all__ = [
    "METADATA",
    "SCHEMA_VERSION",
    "VERSION_TABLE",
    "VIEWS",
    "choice",
    "identity",
    "layer",
    "layer_latency",
    "measurement",
    "option",
    "profile",
    "samples",
    "score",
    "seed",
    "study",
    "timing",
    "trial",
]

SCHEMA_VERSION = "0005"  # the newest revision in storage/migrations/versions
VERSION_TABLE = "rs_alembic_version"
VIEWS = ("rs_attempts", "rs_trials", "rs_pareto", "rs_layers")  # in the order in which they build on each other

_NAMES: dict[str, Any] = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
METADATA = MetaData(naming_convention=_NAMES)

# MySQL and MariaDB compare text without regard to case unless told otherwise, and layer names differ by case.
_EXACT_TEXT: dict[str, Any] = {
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}

_WORD = String(64)
_NAME = String(255)
_KEY = String(16)
_TIME = String(40)
# A plan of a large model, a traceback and a minute's samples outgrow the 64 KiB of MySQL's TEXT and BLOB.
_LONG = Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
_BYTES = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def _of(table: str) -> Any:
    return ForeignKey(f"rs_{table}.id")


def _option() -> tuple[Any, ...]:
    """What may become of a layer, and what the layer costs then."""
    return (
        Column("method", _WORD, nullable=False),
        Column("ranks", _WORD, nullable=False),
        Column("parameters", BigInteger, nullable=False),
        Column("macs", BigInteger, nullable=False),
    )


study = Table(
    "rs_study",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", _NAME, nullable=False, unique=True),
    Column("created", _TIME, nullable=False),
    Column("study_key", _KEY, nullable=False),
    Column("fingerprint", JSON, nullable=False),
    Column("objectives", _NAME, nullable=False),
    Column("finetune", JSON, nullable=False),  # the recipes, in order
    Column("measure", JSON, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("environment", JSON, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("profile", JSON(none_as_null=True)),  # all of it but the options; NULL where the study has none
    **_EXACT_TEXT,
)

layer = Table(
    "rs_layer",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study_id", Integer, _of("study"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("name", _NAME, nullable=False),
    Column("kind", _NAME, nullable=False),
    Column("shape", _NAME, nullable=False),
    Column("parameters", BigInteger, nullable=False),
    Column("macs", BigInteger, nullable=False),
    Column("skipped", _LONG),
    UniqueConstraint("study_id", "position"),
    UniqueConstraint("study_id", "name"),
    **_EXACT_TEXT,
)

option = Table(
    "rs_option",
    METADATA,
    Column("layer_id", Integer, _of("layer"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    *_option(),
    UniqueConstraint("layer_id", "method", "ranks"),
    **_EXACT_TEXT,
)

# Of all options that were looked at, also those that the search then left out.
profile = Table(
    "rs_profile",
    METADATA,
    Column("study_id", Integer, _of("study"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("layer", _NAME, nullable=False),
    *_option(),
    Column("latency", Double, nullable=False),
    Column("latency_deviation", Double, nullable=False),
    Column("error", Double, nullable=False),
    Column("loss", Double),
    Column("is_loss_measured", Boolean, nullable=False),
    Column("layer_ms", Double),
    Column("is_latency_measured", Boolean, nullable=False),
    **_EXACT_TEXT,
)

# Of no study: what layers take by themselves serves every study that measures under the same identity.
identity = Table(
    "rs_identity",
    METADATA,
    Column("identity_key", _KEY, primary_key=True),
    Column("identity", JSON, nullable=False),
    Column("staircase", JSON(none_as_null=True)),
    **_EXACT_TEXT,
)

layer_latency = Table(
    "rs_layer_latency",
    METADATA,
    Column("identity_key", _KEY, ForeignKey("rs_identity.identity_key"), primary_key=True),
    Column("shape", _NAME, primary_key=True),
    Column("method", _WORD, primary_key=True),
    Column("ranks", _WORD, primary_key=True),
    Column("latency_ms", Double, nullable=False),
    Column("dense_ms", Double, nullable=False),
    Column("ratio_deviation", Double, nullable=False),
    Column("created", _TIME, nullable=False),
    **_EXACT_TEXT,
)

seed = Table(
    "rs_seed",
    METADATA,
    Column("study_id", Integer, _of("study"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("origin", _NAME, nullable=False),
    Column("plan", _LONG, nullable=False),
    Column("recipe", _WORD),
    **_EXACT_TEXT,
)

trial = Table(
    "rs_trial",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("study_id", Integer, _of("study"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("origin", _NAME, nullable=False),
    Column("state", _WORD, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("retry_of", Integer),
    Column("spec_key", _KEY, nullable=False),
    Column("plan_key", _KEY, nullable=False),
    Column("plan", _LONG, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("started", _TIME, nullable=False),
    Column("finished", _TIME),
    Column("reason", _LONG),
    Column("details", _LONG),
    Column("accuracy", Double),
    Column("accuracy_low", Double),
    Column("accuracy_high", Double),
    Column("num_examples", BigInteger),
    Column("oneshot_accuracy", Double),
    Column("oneshot_accuracy_low", Double),
    Column("oneshot_accuracy_high", Double),
    Column("oneshot_num_examples", BigInteger),
    Column("parameters", BigInteger),
    Column("macs", BigInteger),
    Column("bytes", BigInteger),
    Column("peak_memory_bytes", BigInteger),
    Column("retryable", Boolean, nullable=False),
    Column("environment", JSON(none_as_null=True)),
    Column("recipe", _WORD),
    Column("finetune", JSON(none_as_null=True)),  # where the recipe is not one of the study's
    Column("parent_key", _KEY),
    UniqueConstraint("study_id", "number"),
    # The same requeue twice is refused; many rows that are no retry are not.
    UniqueConstraint("study_id", "retry_of", "attempt"),
    ForeignKeyConstraint(["study_id", "retry_of"], ["rs_trial.study_id", "rs_trial.number"]),
    Index(None, "study_id", "plan_key"),
    Index(None, "study_id", "origin"),
    **_EXACT_TEXT,
)

choice = Table(
    "rs_choice",
    METADATA,
    Column("trial_id", Integer, _of("trial"), primary_key=True, autoincrement=False),
    Column("layer_id", Integer, _of("layer"), primary_key=True, autoincrement=False),
    Column("method", _WORD, nullable=False),
    Column("ranks", _WORD, nullable=False),
    Index(None, "layer_id", "method", "ranks"),
    **_EXACT_TEXT,
)

measurement = Table(
    "rs_measurement",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("trial_id", Integer, _of("trial"), nullable=False),
    Column("kind", _WORD, nullable=False),
    Column("created", _TIME, nullable=False),
    Column("protocol", Integer, nullable=False),
    Column("identity_key", _KEY, nullable=False),
    Column("identity", JSON, nullable=False),
    Column("conditions", JSON, nullable=False),
    Column("batch_size", Integer, nullable=False),
    Column("ratio", Double, nullable=False),
    Column("ratio_low", Double, nullable=False),
    Column("ratio_high", Double, nullable=False),
    Column("dense_p50_ms", Double, nullable=False),
    Column("p50_ms", Double, nullable=False),
    Column("p90_ms", Double),
    Column("p95_ms", Double),
    Column("p99_ms", Double),
    Column("num_blocks", Integer, nullable=False),
    Column("num_samples", Integer, nullable=False),
    Column("num_dropped_blocks", Integer, nullable=False),
    Column("warmup_seconds", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("flags", _NAME, nullable=False),
    Index(None, "trial_id", "kind"),
    **_EXACT_TEXT,
)

# In a table of its own: who reads measurements does not read these.
samples = Table(
    "rs_samples",
    METADATA,
    Column("measurement_id", Integer, _of("measurement"), primary_key=True, autoincrement=False),
    Column("packed", _BYTES, nullable=False),
    **_EXACT_TEXT,
)

timing = Table(
    "rs_timing",
    METADATA,
    Column("trial_id", Integer, _of("trial"), primary_key=True, autoincrement=False),
    Column("phase", _WORD, primary_key=True),
    Column("seconds", Double, nullable=False),
    **_EXACT_TEXT,
)

score = Table(
    "rs_score",
    METADATA,
    Column("trial_id", Integer, _of("trial"), primary_key=True, autoincrement=False),
    Column("split", _WORD, primary_key=True),
    Column("value", Double, nullable=False),
    Column("low", Double, nullable=False),
    Column("high", Double, nullable=False),
    Column("num_examples", BigInteger, nullable=False),
    **_EXACT_TEXT,
)
