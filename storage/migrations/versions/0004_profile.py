"""What every option of every layer does to the whole network, as measured before the first trial."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

EXACT_TEXT = {
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}


def upgrade() -> None:
    op.add_column("rs_study", sa.Column("profile", sa.JSON(none_as_null=True)))
    op.create_table(
        "rs_profile",
        sa.Column("study_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("layer", sa.String(length=255), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("ranks", sa.String(length=64), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("macs", sa.BigInteger(), nullable=False),
        sa.Column("latency", sa.Double(), nullable=False),
        sa.Column("latency_deviation", sa.Double(), nullable=False),
        sa.Column("error", sa.Double(), nullable=False),
        sa.Column("loss", sa.Double()),
        sa.Column("is_loss_measured", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["rs_study.id"], name="fk_rs_profile_study_id"),
        sa.PrimaryKeyConstraint("study_id", "position", name="pk_rs_profile"),
        **EXACT_TEXT,
    )
