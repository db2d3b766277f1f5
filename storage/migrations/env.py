"""What Alembic runs for every migration; the connection comes from ranksearch."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table="rs_alembic_version")
context.run_migrations()
