"""The decompositions of a plan as one writes them with torch.linalg and tensorly: from scratch, for each plan."""

import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import Tensor, nn

from ranksearch.records import LayerChoice, Plan


def decompose_plan(model: nn.Module, plan: Plan) -> list[list[Tensor]]:
    """The factors of every layer of the plan."""
    tensorly.set_backend("pytorch")
    return [decompose(model.get_submodule(name).weight.detach(), choice) for name, choice in plan.items()]


def decompose(weight: Tensor, choice: LayerChoice) -> list[Tensor]:
    """svd, channel_svd, spatial_svd or tucker2 of an ungrouped weight."""
    if choice.method == "tucker2":  # one iteration: the least that tensorly does
        (core, factors), _ = partial_tucker(weight, list(choice.ranks), modes=[0, 1], n_iter_max=1)
        return [core, *factors]
    if choice.method == "spatial_svd":
        weight = weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
    U, S, Vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    (rank,) = choice.ranks
    return [U[:, :rank] * S[:rank].sqrt(), S[:rank, None].sqrt() * Vh[:rank]]
