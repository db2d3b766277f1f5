"""Command lines as people and programs write them, and a program that says what it was given."""

from pathlib import Path

from hypothesis import strategies as st

from ranksearch.cluster.command import holds_password

# Whatever a process can be given: no NUL, no lone surrogates; with all that a shell would take for its own.
_TEXT = st.text(st.one_of(st.sampled_from("$`\"'\\!*?~#&;|<>(){}[] \t\n=-%"), st.characters(exclude_categories=["Cs"])))
ARGUMENTS = st.lists(_TEXT.filter(lambda text: "\0" not in text and not holds_password(text)), max_size=6)


def write_program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path


def write_echo(path: Path) -> Path:
    """A program that prints its arguments, each ended by NUL."""
    return write_program(path, """[ $# -gt 0 ] && printf '%s\\0' "$@" """)


def arguments_in(output: bytes) -> list[str]:
    return output.decode().split("\0")[:-1]
