"""FactorCache: decompositions, computed once and kept in memory and on disk.

An entry is named by all that decides it: the method, the code of this folder, the weight's values, the layer's kind
and groups, the metric where the method takes one, and the ranks where one decomposition does not serve them all.
Decompositions run on the CPU, so that an
entry does not depend on which device asked for it first.
"""

import hashlib
import os
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import cast

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ranksearch.errors import ModelError
from ranksearch.factorize.chain import Chain
from ranksearch.factorize.method import Factors, Method
from ranksearch.factorize.metric import Metric
from ranksearch.factorize.shape import LayerShape

__all__ = ["FactorCache"]

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (safetensors is not annotated)

_INTEGER_OF_BYTES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class FactorCache:
    """Memory first, then `directory` where one is given, then the decomposition itself.

    `max_bytes` bounds the memory and the directory, each; what was used least recently goes first. Processes may
    share a directory: what several of them ask for at once is computed once. A damaged entry is computed again. A
    directory that cannot be written is given up with a RuntimeWarning.
    """

    def __init__(self, directory: Path | None = None, max_bytes: int = 4 * 2**30) -> None:
        self.max_bytes = max_bytes
        self._directory = None if directory is None else _Directory(directory, max_bytes)
        self._memory: OrderedDict[tuple[str, torch.device], Factors] = OrderedDict()
        self._digests = WeakTensorKeyDictionary()  # weight -> (what tells that it changed, its digest)

    @property
    def bytes_in_memory(self) -> int:
        return sum(factor.nbytes for factors in self._memory.values() for factor in factors.values())

    def factors(
        self,
        method: Method,
        weight: Tensor,
        shape: LayerShape,
        ranks: tuple[int, ...],
        metric: Metric | None = None,
    ) -> Factors:
        """`method.decompose` of a weight as the layer stores it, on its device, contiguous. Not to be written to.

        In the metric where one is given and the method takes it. Raises ModelError where the weight is not finite.
        """
        metric = metric if method.takes_metric else None
        name = self._name(method, weight, shape, ranks, metric)
        key = (name, weight.device)
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        on_cpu = self._stored(name, lambda: _decompose(method, weight, shape, ranks, metric))
        found = self._memory[key] = {part: factor.to(weight.device) for part, factor in on_cpu.items()}
        while self.bytes_in_memory > self.max_bytes:
            self._memory.popitem(last=False)
        return found

    def _stored(self, name: str, compute: Callable[[], Factors]) -> Factors:
        if self._directory is None:
            return compute()
        try:
            return self._directory.load_or_save(name, compute)
        except (OSError, SafetensorError) as error:  # safetensors says so when a disk is full
            warnings.warn(f"factors are kept in memory only: {error}", RuntimeWarning, stacklevel=4)
            self._directory = None
            return compute()

    def _name(
        self, method: Method, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...], metric: Metric | None
    ) -> str:
        which = () if method.is_sliced else ranks
        layer = f"{shape.kind} {tuple(weight.shape)} {shape.groups}"
        what = f"{method.name} {which} {_code_digest()} {weight.dtype} {layer} "
        measured = b"" if metric is None else metric.digest
        return hashlib.sha256(what.encode() + self._digest(weight) + measured).hexdigest()[:32]

    def _digest(self, weight: Tensor) -> bytes:
        """SHA-256 of the weight's values; not read again while version and checksum say that it did not change."""
        state = _state(weight)
        known: tuple[tuple[int, int], bytes] | None = self._digests.get(weight)
        if known is None or known[0] != state:
            known = self._digests[weight] = (state, hashlib.sha256(_bytes(weight)).digest())
        return known[1]


def _decompose(
    method: Method, weight: Tensor, shape: LayerShape, ranks: tuple[int, ...], metric: Metric | None
) -> Factors:
    if not weight.isfinite().all():
        raise ModelError("its weight has NaN or infinite values; check where it was loaded from")
    canonical = shape.canonical(weight.detach().cpu())
    if metric is None:
        factors = method.decompose(canonical, shape, ranks)
    else:
        factors = metric.decompose(cast("Chain", method), canonical, shape, ranks)
    return {part: factor.contiguous() for part, factor in factors.items()}


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().flatten().view(torch.uint8).numpy().data


def _state(weight: Tensor) -> tuple[int, int]:
    """In-place changes raise the version, except those through `.data`: the checksum, at memory speed, sees them."""
    integer = _INTEGER_OF_BYTES[weight.element_size()]
    checksum = weight.detach().view(integer).sum(dtype=integer)  # wraps around
    return 0 if weight.is_inference() else weight._version, int(checksum)


@cache
def _code_digest() -> str:
    """Changes with any file of this folder, so that no entry outlives the code that made it."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


class _Directory:
    """One safetensors file an entry, last used at its modification time."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes

    def load_or_save(self, name: str, compute: Callable[[], Factors]) -> Factors:
        """Raises OSError or SafetensorError where the directory cannot be read or written."""
        entry = self.path / f"{name}.safetensors"
        locks = self.path / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / name[:2]):  # few and never removed: removing a lock file is a race
            if found := _load(entry):
                return found
            factors = compute()
            _save(entry, factors)
        self._evict()
        return factors

    def _evict(self) -> None:
        """Removes the entries used least recently. Another process may be doing the same: what is gone is gone."""
        files: list[tuple[int, int, Path]] = []
        for entry in self.path.glob("*.*"):  # unfinished ones of killed processes too
            with suppress(FileNotFoundError):
                stat = entry.stat()
                files.append((stat.st_mtime_ns, stat.st_size, entry))
        excess = sum(size for _, size, _ in files) - self.max_bytes
        for _, size, entry in sorted(files):
            if excess <= 0:
                break
            entry.unlink(missing_ok=True)
            excess -= size


def _load(entry: Path) -> Factors | None:
    """None where there is no such entry, or a damaged one."""
    try:
        with safe_open(entry, framework="pt") as file:
            factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            intact = (file.metadata() or {}).get("crc32") == _crc32(factors)
        os.utime(entry)
    except (FileNotFoundError, SafetensorError):
        return None
    return factors if intact else None


def _save(entry: Path, factors: Factors) -> None:
    unfinished = entry.with_suffix(".tmp")
    save_file(dict(factors), unfinished, metadata={"crc32": _crc32(factors)})
    unfinished.replace(entry)


def _crc32(factors: Factors) -> str:
    crc = 0
    for name in sorted(factors):
        crc = zlib.crc32(_bytes(factors[name]), crc)
    return str(crc)
