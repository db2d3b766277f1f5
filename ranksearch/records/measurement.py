"""A latency, where and how it was measured, and the samples it comes from."""

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from ranksearch.records.record import Record, require

__all__ = ["Environment", "Measurement", "Samples"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment(Record):
    """Where a measurement was made. `device_model` and what makes up a latency's identity decide whether two
    measurements may stand in one front; the rest is recorded beside it and decides nothing."""

    device: str  # cpu | cuda
    device_model: str
    host: str
    python: str
    torch: str
    ranksearch: str
    cores: int
    driver: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples(Record):
    """Raw times of both arms of a measurement: milliseconds of one forward pass, block by block, equally many in each.

    They are stored and sent packed: float32, the lowest bytes of all numbers first and the highest, which are much
    alike, last; then zlib.
    """

    dense_ms: tuple[tuple[float, ...], ...]
    candidate_ms: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        sizes = {len(block) for block in (*self.dense_ms, *self.candidate_ms)}
        require(len(sizes) == 1, "samples in a block", sorted(sizes), "as many in every block of both arms")
        blocks = (len(self.dense_ms), len(self.candidate_ms))
        require(blocks[0] == blocks[1], "blocks of dense and candidate", blocks, "as many of both")

    @classmethod
    def of(cls, dense_ms: Sequence[float], candidate_ms: Sequence[float], num_blocks: int) -> Self:
        """From the samples of all blocks one after the other. Raises ValueError where blocks would be unequal."""
        return cls(dense_ms=_cut(dense_ms, num_blocks), candidate_ms=_cut(candidate_ms, num_blocks))

    def pack(self) -> bytes:
        values = [ms for arm in (self.dense_ms, self.candidate_ms) for block in arm for ms in block]
        raw = struct.pack(f"<{len(values)}f", *values)
        return zlib.compress(b"".join(raw[byte::4] for byte in range(4)), 9)

    @classmethod
    def unpack(cls, packed: bytes, num_blocks: int) -> Self:
        planes = zlib.decompress(packed)
        size = len(planes) // 4
        raw = bytes(planes[byte * size + i] for i in range(size) for byte in range(4))
        values = struct.unpack(f"<{size}f", raw)
        return cls.of(values[: size // 2], values[size // 2 :], num_blocks)

    def to_json(self) -> dict[str, Any]:
        return {"num_blocks": len(self.dense_ms), "packed": base64.b64encode(self.pack()).decode()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls.unpack(base64.b64decode(data["packed"]), data["num_blocks"])


def _cut(values: Sequence[float], num_blocks: int) -> tuple[tuple[float, ...], ...]:
    size, rest = divmod(len(values), num_blocks)
    require(rest == 0, "number of samples", len(values), f"a multiple of the {num_blocks} blocks")
    return tuple(tuple(values[block * size : (block + 1) * size]) for block in range(num_blocks))


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement(Record):
    """Latency of a candidate beside the dense model, interleaved in one window.

    `ratio` is the median over blocks of candidate/dense, `ratio_low`, `ratio_high` its 95 % bootstrap interval.
    Percentiles are of one forward pass in milliseconds; None where too few samples were taken to know them.
    """

    protocol: int  # the protocol's version
    identity: Mapping[str, str]  # device model, backend, versions, threads, dtype, layout, batch size
    conditions: Mapping[str, float | str | None]  # host, clocks, load, others: recorded, decide nothing
    batch_size: int
    ratio: float
    ratio_low: float
    ratio_high: float
    dense_p50_ms: float
    p50_ms: float
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    num_blocks: int
    num_samples: int  # of each arm
    num_dropped_blocks: int
    warmup_seconds: float
    seconds: float
    flags: tuple[str, ...] = ()  # noisy, contended, unstable, launch_bound, throttled
    samples: Samples | None = field(default=None, compare=False, repr=False)  # None where read from a database

    def __post_init__(self) -> None:
        require(math.isfinite(self.ratio) and self.ratio > 0, "ratio", self.ratio, "a finite number above 0")
        require(self.ratio_low <= self.ratio <= self.ratio_high, "ratio", self.ratio, "inside its interval")
        if self.samples is not None:
            num_blocks = len(self.samples.dense_ms)
            require(num_blocks == self.num_blocks, "blocks of samples", num_blocks, f"num_blocks, {self.num_blocks}")

    def to_json(self) -> dict[str, Any]:
        found = Record.to_json(self)
        return found if self.samples else {name: value for name, value in found.items() if name != "samples"}
