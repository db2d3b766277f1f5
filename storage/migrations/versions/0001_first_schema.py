"""The first schema: studies with their layers and options, trials with their plans, measurements, timings and scores.

A migration is written down once and never follows the code: ranksearch/database/schema.py may move on, this may not.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

LONG = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
EXACT_TEXT = {
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}


def upgrade() -> None:
    op.create_table(
        "rs_study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("created", sa.String(length=40), nullable=False),
        sa.Column("study_key", sa.String(length=16), nullable=False),
        sa.Column("fingerprint", sa.JSON(), nullable=False),
        sa.Column("objectives", sa.String(length=255), nullable=False),
        sa.Column("finetune", sa.JSON(), nullable=False),
        sa.Column("measure", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_rs_study"),
        sa.UniqueConstraint("name", name="uq_rs_study_name"),
        **EXACT_TEXT,
    )
    op.create_table(
        "rs_layer",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=255), nullable=False),
        sa.Column("shape", sa.String(length=255), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("macs", sa.BigInteger(), nullable=False),
        sa.Column("skipped", LONG),
        sa.ForeignKeyConstraint(["study_id"], ["rs_study.id"], name="fk_rs_layer_study_id"),
        sa.PrimaryKeyConstraint("id", name="pk_rs_layer"),
        sa.UniqueConstraint("study_id", "name", name="uq_rs_layer_study_id_name"),
        sa.UniqueConstraint("study_id", "position", name="uq_rs_layer_study_id_position"),
        **EXACT_TEXT,
    )
    op.create_table(
        "rs_seed",
        sa.Column("study_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("origin", sa.String(length=255), nullable=False),
        sa.Column("plan", LONG, nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["rs_study.id"], name="fk_rs_seed_study_id"),
        sa.PrimaryKeyConstraint("study_id", "position", name="pk_rs_seed"),
        **EXACT_TEXT,
    )
    op.create_table(
        "rs_trial",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("origin", sa.String(length=255), nullable=False),
        sa.Column("state", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("retry_of", sa.Integer()),
        sa.Column("spec_key", sa.String(length=16), nullable=False),
        sa.Column("plan_key", sa.String(length=16), nullable=False),
        sa.Column("plan", LONG, nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("started", sa.String(length=40), nullable=False),
        sa.Column("finished", sa.String(length=40)),
        sa.Column("reason", LONG),
        sa.Column("details", LONG),
        sa.Column("accuracy", sa.Double()),
        sa.Column("accuracy_low", sa.Double()),
        sa.Column("accuracy_high", sa.Double()),
        sa.Column("num_examples", sa.BigInteger()),
        sa.Column("oneshot_accuracy", sa.Double()),
        sa.Column("oneshot_accuracy_low", sa.Double()),
        sa.Column("oneshot_accuracy_high", sa.Double()),
        sa.Column("oneshot_num_examples", sa.BigInteger()),
        sa.Column("parameters", sa.BigInteger()),
        sa.Column("macs", sa.BigInteger()),
        sa.Column("bytes", sa.BigInteger()),
        sa.Column("peak_memory_bytes", sa.BigInteger()),
        sa.Column("retryable", sa.Boolean(), nullable=False),
        sa.Column("environment", sa.JSON(none_as_null=True)),
        sa.ForeignKeyConstraint(
            ["study_id", "retry_of"], ["rs_trial.study_id", "rs_trial.number"], name="fk_rs_trial_study_id_retry_of"
        ),
        sa.ForeignKeyConstraint(["study_id"], ["rs_study.id"], name="fk_rs_trial_study_id"),
        sa.PrimaryKeyConstraint("id", name="pk_rs_trial"),
        sa.UniqueConstraint("study_id", "number", name="uq_rs_trial_study_id_number"),
        sa.UniqueConstraint("study_id", "retry_of", "attempt", name="uq_rs_trial_study_id_retry_of_attempt"),
        **EXACT_TEXT,
    )
    op.create_index("ix_rs_trial_study_id_origin", "rs_trial", ["study_id", "origin"])
    op.create_index("ix_rs_trial_study_id_plan_key", "rs_trial", ["study_id", "plan_key"])
    op.create_table(
        "rs_choice",
        sa.Column("trial_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("layer_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("ranks", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["layer_id"], ["rs_layer.id"], name="fk_rs_choice_layer_id"),
        sa.ForeignKeyConstraint(["trial_id"], ["rs_trial.id"], name="fk_rs_choice_trial_id"),
        sa.PrimaryKeyConstraint("trial_id", "layer_id", name="pk_rs_choice"),
        **EXACT_TEXT,
    )
    op.create_index("ix_rs_choice_layer_id_method_ranks", "rs_choice", ["layer_id", "method", "ranks"])
    op.create_table(
        "rs_measurement",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("trial_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("created", sa.String(length=40), nullable=False),
        sa.Column("protocol", sa.Integer(), nullable=False),
        sa.Column("identity_key", sa.String(length=16), nullable=False),
        sa.Column("identity", sa.JSON(), nullable=False),
        sa.Column("conditions", sa.JSON(), nullable=False),
        sa.Column("batch_size", sa.Integer(), nullable=False),
        sa.Column("ratio", sa.Double(), nullable=False),
        sa.Column("ratio_low", sa.Double(), nullable=False),
        sa.Column("ratio_high", sa.Double(), nullable=False),
        sa.Column("dense_p50_ms", sa.Double(), nullable=False),
        sa.Column("p50_ms", sa.Double(), nullable=False),
        sa.Column("p90_ms", sa.Double()),
        sa.Column("p95_ms", sa.Double()),
        sa.Column("p99_ms", sa.Double()),
        sa.Column("num_blocks", sa.Integer(), nullable=False),
        sa.Column("num_samples", sa.Integer(), nullable=False),
        sa.Column("num_dropped_blocks", sa.Integer(), nullable=False),
        sa.Column("warmup_seconds", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("flags", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["rs_trial.id"], name="fk_rs_measurement_trial_id"),
        sa.PrimaryKeyConstraint("id", name="pk_rs_measurement"),
        **EXACT_TEXT,
    )
    op.create_index("ix_rs_measurement_trial_id_kind", "rs_measurement", ["trial_id", "kind"])
    op.create_table(
        "rs_option",
        sa.Column("layer_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("ranks", sa.String(length=64), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("macs", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["layer_id"], ["rs_layer.id"], name="fk_rs_option_layer_id"),
        sa.PrimaryKeyConstraint("layer_id", "position", name="pk_rs_option"),
        sa.UniqueConstraint("layer_id", "method", "ranks", name="uq_rs_option_layer_id_method_ranks"),
        **EXACT_TEXT,
    )
    op.create_table(
        "rs_score",
        sa.Column("trial_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("split", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("low", sa.Double(), nullable=False),
        sa.Column("high", sa.Double(), nullable=False),
        sa.Column("num_examples", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["rs_trial.id"], name="fk_rs_score_trial_id"),
        sa.PrimaryKeyConstraint("trial_id", "split", name="pk_rs_score"),
        **EXACT_TEXT,
    )
    op.create_table(
        "rs_timing",
        sa.Column("trial_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("phase", sa.String(length=64), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["trial_id"], ["rs_trial.id"], name="fk_rs_timing_trial_id"),
        sa.PrimaryKeyConstraint("trial_id", "phase", name="pk_rs_timing"),
        **EXACT_TEXT,
    )
