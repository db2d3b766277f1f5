"""Several ways of training in a study, and trials that go on from another's model."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("rs_seed", sa.Column("recipe", sa.String(length=64)))
    op.add_column("rs_trial", sa.Column("recipe", sa.String(length=64)))
    op.add_column("rs_trial", sa.Column("finetune", sa.JSON(none_as_null=True)))
    op.add_column("rs_trial", sa.Column("parent_key", sa.String(length=16)))
    connection = op.get_bind()
    study = sa.table("rs_study", sa.column("id", sa.Integer), sa.column("finetune", sa.JSON))
    for row in connection.execute(sa.select(study)).all():
        recipes = [{"name": "default", "finetune": row.finetune}]
        connection.execute(sa.update(study).where(study.c.id == row.id).values(finetune=recipes))
    trial = sa.table("rs_trial", sa.column("recipe", sa.String))
    connection.execute(sa.update(trial).values(recipe="default"))
