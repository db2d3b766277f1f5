"""Where data come from."""

from ranksearch.tasks.sources.source import SOURCES, load_data

__all__ = ["SOURCES", "load_data"]
