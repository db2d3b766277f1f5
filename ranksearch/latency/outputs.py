"""Whether a candidate's output can stand in for the dense model's: finite, and of the same structure and shapes."""

from collections.abc import Iterator, Mapping

import torch

from ranksearch.errors import MeasurementError, NonFiniteError

__all__ = ["check_outputs"]


def check_outputs(dense: object, candidate: object) -> None:
    """Compares two outputs: tensors, or tuples, lists and dicts of them.

    Raises MeasurementError on other structure or shapes, or where there is no tensor at all, NonFiniteError on a NaN
    or infinity in either.
    """
    expected, got = dict(_leaves(dense, "output")), dict(_leaves(candidate, "output"))
    if not any(isinstance(leaf, torch.Tensor) for leaf in expected.values()):
        raise MeasurementError(f"the dense model returns a {type(dense).__name__} without a tensor to compare by")
    for name in expected | got:
        _compare(name, _describe(expected, name), _describe(got, name))
    _require_finite("dense model", expected)
    _require_finite("candidate", got)


def _leaves(output: object, name: str) -> Iterator[tuple[str, object]]:
    """Each leaf with the expression that reaches it: `output['logits'][0]`."""
    if isinstance(output, Mapping):
        for key, value in output.items():
            yield from _leaves(value, f"{name}[{key!r}]")
    elif isinstance(output, tuple | list):
        for index, value in enumerate(output):
            yield from _leaves(value, f"{name}[{index}]")
    else:
        yield name, output


def _describe(leaves: Mapping[str, object], name: str) -> str:
    if name not in leaves:
        return "missing"
    leaf = leaves[name]
    return f"of shape {tuple(leaf.shape)}" if isinstance(leaf, torch.Tensor) else f"a {type(leaf).__name__}"


def _compare(name: str, expected: str, got: str) -> None:
    if got != expected:
        raise MeasurementError(f"the candidate's {name} is {got}, the dense model's {expected}; they must be alike")


def _require_finite(whose: str, leaves: Mapping[str, object]) -> None:
    for name, leaf in leaves.items():
        if isinstance(leaf, torch.Tensor) and not leaf.isfinite().all():
            raise NonFiniteError(f"the {whose}'s {name} holds NaN or infinity ({leaf.dtype}); it cannot be measured")
