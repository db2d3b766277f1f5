"""Weights that a trial takes over from another: those of all layers that are the same in both plans.

    layer has the same choice in both plans            the parent's trained factors
    layer has another choice, or is dense in one       from the dense model, as without a parent
    everything outside the plans                       the parent's: normalisation, biases, layers dense in both

Where the plans are equal the child starts as the parent's model.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from ranksearch.records import Plan

__all__ = ["different_layers", "inherit"]


def different_layers(a: Plan, b: Plan) -> set[str]:
    return {layer for layer in {*a, *b} if a.get(layer) != b.get(layer)}


def inherit(child: nn.Module, weights: Mapping[str, Tensor], parent: Plan, plan: Plan) -> None:
    """Take over, in place. `child` has `plan`; `weights` is the state of the model that has `parent`."""
    own, prefixes = child.state_dict(), [f"{layer}." for layer in different_layers(parent, plan)]
    child.load_state_dict({
        name: weight
        for name, weight in weights.items()
        if not any(name.startswith(prefix) for prefix in prefixes)
        and name in own  # an attention's projections are packed where none of them is in the plan
        and own[name].shape == weight.shape
    }, strict=False)  # fmt: skip
