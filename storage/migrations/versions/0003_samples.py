"""The raw samples of a measurement."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"

BYTES = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
EXACT_TEXT = {
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}


def upgrade() -> None:
    op.create_table(
        "rs_samples",
        sa.Column("measurement_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("packed", BYTES, nullable=False),
        sa.ForeignKeyConstraint(["measurement_id"], ["rs_measurement.id"], name="fk_rs_samples_measurement_id"),
        sa.PrimaryKeyConstraint("measurement_id", name="pk_rs_samples"),
        **EXACT_TEXT,
    )
