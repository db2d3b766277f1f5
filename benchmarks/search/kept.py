"""Kept: answers by name, in a file, so that a killed benchmark goes on where it was."""

import json
from pathlib import Path
from typing import Any

__all__ = ["Kept"]


class Kept:
    """What was put here is here after a kill; a line that was cut off by one is lost."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        whole, _, _ = file.read_text().rpartition("\n") if file.exists() else ("", "", "")
        self._found: dict[str, Any] = dict(json.loads(line) for line in whole.splitlines())
        file.write_text(f"{whole}\n" if whole else "")

    def __len__(self) -> int:
        return len(self._found)

    def items(self) -> list[tuple[str, Any]]:
        return list(self._found.items())

    def get(self, name: str) -> Any:
        """None where there is none."""
        return self._found.get(name)

    def put(self, name: str, answer: Any) -> None:
        self._found[name] = answer
        with self._file.open("a") as file:
            file.write(json.dumps([name, answer]) + "\n")
