"""Numbers as people read them: `97.35 % [96.6, 98.0]`, `1.84× [1.82, 1.86]`, `2.31 ms`, `0.12 M`."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = [
    "accuracy",
    "accuracy_of",
    "device",
    "drop",
    "duration",
    "is_known",
    "latency",
    "macs",
    "methods",
    "parameters",
    "size",
    "speedup",
]

NONE = "–"


def is_known(value: Any) -> bool:
    """Whether a cell of a frame holds a value: not None, NaN or NA."""
    return value is not None and not (isinstance(value, float) and math.isnan(value)) and str(value) != "<NA>"


def accuracy(value: Any, *, percent: bool) -> str:
    if not is_known(value):
        return NONE
    return f"{100 * value:.2f} %" if percent else f"{value:.4f}"


def accuracy_of(row: Mapping[str, Any], *, percent: bool, prefix: str = "accuracy") -> str:
    """With its interval. `prefix`: the columns' name, `accuracy` or `test_accuracy`."""
    low, high = row[f"{prefix}_low"], row[f"{prefix}_high"]
    text = accuracy(row[prefix], percent=percent)
    if not (is_known(low) and is_known(high)):
        return text
    return f"{text} [{100 * low:.1f}, {100 * high:.1f}]" if percent else f"{text} [{low:.3f}, {high:.3f}]"


def drop(size: float, *, percent: bool) -> str:
    """A loss of accuracy: `1 point`, `2 points`; of another metric `0.01`."""
    if not percent:
        return f"{size:g}"
    return f"{100 * size:g} point{'' if size == 0.01 else 's'}"


def speedup(row: Mapping[str, Any]) -> str:
    """Dense latency over this one's, with the interval of the ratio that was measured."""
    low, high = row["latency_ratio_low"], row["latency_ratio_high"]
    if not is_known(row["speedup"]):
        return NONE
    return f"{row['speedup']:.2f}× [{1 / high:.2f}, {1 / low:.2f}]"


def latency(milliseconds: Any) -> str:
    if not is_known(milliseconds):
        return NONE
    digits = 2 if milliseconds >= 1 else 3
    return f"{milliseconds:.{digits}f} ms"


def parameters(count: Any) -> str:
    return _scaled(count, digits=2, smallest_mega=1e5)


def macs(count: Any) -> str:
    return _scaled(count, digits=1, smallest_mega=1e5)


def _scaled(count: Any, *, digits: int, smallest_mega: float) -> str:
    if not is_known(count):
        return NONE
    if count >= 1e9:
        return f"{count / 1e9:.2f} G"
    return f"{count / 1e6:.{digits}f} M" if count >= smallest_mega else f"{count / 1e3:.1f} k"


def size(num_bytes: Any) -> str:
    if not is_known(num_bytes):
        return NONE
    unit, divisor = next(
        (u, d) for u, d in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if num_bytes >= d or d == 2**10
    )
    return f"{num_bytes / divisor:.1f} {unit}"


def device(model: str) -> str:
    """A device's name without the instruction sets that tell its generations apart."""
    return model.partition(" (")[0]


def duration(seconds: float) -> str:
    """`0.08 s`, `4.2 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if not math.isfinite(seconds):
        return NONE
    if seconds < 60:
        digits = 2 if seconds < 1 else int(seconds < 10)
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def methods(plan: str | Mapping[str, str]) -> str:
    """How many layers got which method: `spatial_svd×4 svd×1`; `dense` where none did."""
    choices = json.loads(plan) if isinstance(plan, str) else plan
    counts = Counter(str(choice).partition(":")[0] for choice in choices.values())
    return " ".join(f"{method}×{count}" for method, count in counts.most_common()) or "dense"
