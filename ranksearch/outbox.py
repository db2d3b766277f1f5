"""Files a worker leaves beside the database: a trial's result, and its trained weights.

    <directory>/<key>.json          the TrialResult; synced before it is named, so it is whole or absent
    <directory>/<key>.safetensors   the trial's model

`key` is the hash of the whole TrialSpec. A driver that was killed before it heard of a result finds it here. A worker
on a host that does not see the directory leaves nothing: its trial is then run again.
"""

import json
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ranksearch.errors import StorageError
from ranksearch.records import TrialResult

__all__ = ["Outbox"]


@dataclass(frozen=True, slots=True)
class Outbox:
    directory: Path

    def put_result(self, result: TrialResult) -> None:
        self._write(f"{result.key}.json", lambda path: path.write_text(json.dumps(result.to_json(), allow_nan=False)))

    def result(self, key: str) -> TrialResult | None:
        """The result of that key, or None where there is none that can be read."""
        try:
            return TrialResult.from_json(json.loads((self.directory / f"{key}.json").read_text()))
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def put_weights(self, key: str, model: nn.Module) -> None:
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
        self._write(f"{key}.safetensors", lambda path: save_file(tensors, path))

    def weights(self, key: str) -> dict[str, Tensor] | None:
        try:
            return load_file(self.directory / f"{key}.safetensors")
        except (OSError, SafetensorError):
            return None

    def drop_result(self, key: str) -> None:
        (self.directory / f"{key}.json").unlink(missing_ok=True)

    def has_weights(self, key: str) -> bool:
        return (self.directory / f"{key}.safetensors").is_file()

    def keep_weights(
        self, must: Collection[str], may: Iterable[str] = (), spare: Collection[str] = (), limit_bytes: int = 0
    ) -> int:
        """Drop all but those of `must`, and of `may`, in this order, those that fit beside them under the limit. Those
        of `spare` stay and are not counted. Returns the bytes of what was counted and kept."""
        sizes = {path.stem: path.stat().st_size for path in self.directory.glob("*.safetensors")}
        kept = {key for key in must if key in sizes}
        total = sum(sizes[key] for key in kept)
        for key in may:
            if key in sizes and key not in kept and total + sizes[key] <= limit_bytes:
                kept.add(key)
                total += sizes[key]
        for key in sizes.keys() - kept - set(spare):
            (self.directory / f"{key}.safetensors").unlink(missing_ok=True)
        return total

    def _write(self, name: str, write: object) -> None:
        """Write under another name, sync, rename: a reader sees all of it or nothing."""
        if not self.directory.is_dir():
            return
        partial = self.directory / f".{name}.{os.getpid()}"
        try:
            write(partial)  # type: ignore[operator]
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self.directory / name)
        except OSError as error:
            raise StorageError(f"cannot write {self.directory / name}: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
