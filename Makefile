# Shortcuts; the README's lines need no make.
.PHONY: install test slow lint types imports format schema

install:
	python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ".[dev]"

test:
	.venv/bin/python -m pytest -q

slow:
	.venv/bin/python -m pytest -q -m slow

lint:
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

types:
	.venv/bin/pyright

imports:
	.venv/bin/lint-imports

format:
	.venv/bin/ruff format . && .venv/bin/ruff check --fix .

schema:
	.venv/bin/python -m ranksearch.space > search_spaces/schema.json
