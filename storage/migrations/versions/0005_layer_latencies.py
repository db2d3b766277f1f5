"""Layers by themselves: what was timed of them, shared by all studies under one identity."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

EXACT_TEXT = {
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}


def upgrade() -> None:
    op.add_column("rs_profile", sa.Column("layer_ms", sa.Double()))
    op.add_column(
        "rs_profile", sa.Column("is_latency_measured", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    op.create_table(
        "rs_identity",
        sa.Column("identity_key", sa.String(length=16), nullable=False),
        sa.Column("identity", sa.JSON(), nullable=False),
        sa.Column("staircase", sa.JSON(none_as_null=True)),
        sa.PrimaryKeyConstraint("identity_key", name="pk_rs_identity"),
        **EXACT_TEXT,
    )
    op.create_table(
        "rs_layer_latency",
        sa.Column("identity_key", sa.String(length=16), nullable=False),
        sa.Column("shape", sa.String(length=255), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("ranks", sa.String(length=64), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("dense_ms", sa.Double(), nullable=False),
        sa.Column("ratio_deviation", sa.Double(), nullable=False),
        sa.Column("created", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(
            ["identity_key"], ["rs_identity.identity_key"], name="fk_rs_layer_latency_identity_key"
        ),
        sa.PrimaryKeyConstraint("identity_key", "shape", "method", "ranks", name="pk_rs_layer_latency"),
        **EXACT_TEXT,
    )
