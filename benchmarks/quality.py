"""Each method's error beside the best known: `python -m benchmarks.quality --data cifar10.npz`.

Twenty 3×3 layers of a ResNet-26 trained on CIFAR-10, at the rank that keeps about a quarter of the parameters. Closed
forms stand beside numpy's singular values; Tucker-2 beside tensorly's iteration, which starts from the same place; the
tensor train beside tensorly's TT-SVD; CP, and rank-1 on the first filters of each layer, beside tensorly's best of ten
random starts. A ratio above 1 is the part by which ours is worse.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import tensorly
import torch
from tensorly.decomposition import parafac, partial_tucker, tensor_train
from torch import Tensor, nn

from benchmarks.cifar import trained_task
from benchmarks.machine import conditions, write
from ranksearch.factorize import METHODS, LayerShape
from ranksearch.factorize.tt_conv import TTConv

NUM_LAYERS, NUM_STARTS, NUM_FILTERS, SHARE = 20, 10, 4, 0.25


def rank_at(method: str, shape: LayerShape) -> tuple[int, ...]:
    """Along the diagonal of the ranks, the one whose parameters are nearest to the share."""
    most = METHODS[method].max_ranks(shape)
    dense = shape.cost().parameters
    grid = {tuple(max(1, round(m * k / max(most))) for m in most) for k in range(1, max(most) + 1)}
    return min(grid, key=lambda ranks: abs(METHODS[method].cost(shape, ranks).parameters / dense - SHARE))


def shape_of(weight: Tensor) -> LayerShape:
    return LayerShape.of(nn.Conv2d(weight.shape[1], weight.shape[0], (3, 3), bias=False))


def ours(method: str, weight: Tensor, ranks: tuple[int, ...]) -> float:
    return METHODS[method].error(METHODS[method].decompose(weight, shape_of(weight), ranks), ranks)


def by_singular_values(weight: Tensor, ranks: tuple[int, ...], order: tuple[int, ...]) -> float:
    matrix = weight.double().permute(order).reshape(weight.shape[order[0]] * weight.shape[order[1]], -1).numpy()
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(np.sqrt((values[ranks[0] :] ** 2).sum() / (values**2).sum()))


def channel_svd(weight: Tensor, ranks: tuple[int, ...]) -> float:
    return by_singular_values(weight.flatten(1)[:, None, :, None], ranks, (0, 1, 2, 3))


def spatial_svd(weight: Tensor, ranks: tuple[int, ...]) -> float:
    return by_singular_values(weight, ranks, (1, 2, 0, 3))


def separable(weight: Tensor, ranks: tuple[int, ...]) -> float:
    values = np.linalg.svd(weight.double().flatten(2).transpose(0, 1).numpy(), compute_uv=False)
    return float(np.sqrt((values[:, ranks[0] :] ** 2).sum() / (values**2).sum()))


def tucker2(weight: Tensor, ranks: tuple[int, ...]) -> float:
    tensor = weight.double().numpy()
    (core, factors), _ = partial_tucker(tensor, list(ranks), modes=[0, 1], n_iter_max=200, tol=1e-8)
    return relative(tensor, tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1]))


def tt_conv(weight: Tensor, ranks: tuple[int, ...]) -> float:
    tensor = TTConv().modes(shape_of(weight)).interleave(weight.double()).numpy()
    return relative(tensor, tensorly.tt_to_tensor(tensor_train(tensor, [1, *ranks, 1])))


def cp(weight: Tensor, ranks: tuple[int, ...]) -> float:
    return best_of_starts(weight.double().numpy(), *ranks)


def best_of_starts(tensor: np.ndarray, rank: int) -> float:
    return min(
        relative(
            tensor,
            tensorly.cp_to_tensor(parafac(tensor, rank, n_iter_max=300, init="random", tol=1e-8, random_state=seed)),
        )
        for seed in range(NUM_STARTS)
    )


def relative(tensor: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(tensor - found) / np.linalg.norm(tensor))


PEERS: dict[str, Callable[[Tensor, tuple[int, ...]], float]] = {
    "channel_svd": channel_svd,
    "spatial_svd": spatial_svd,
    "separable": separable,
    "tucker2": tucker2,
    "tt_conv": tt_conv,
    "cp": cp,
}


def rank1(weight: Tensor) -> tuple[float, float]:
    """(ours, tensorly's) for two terms, over the first filters alone: each filter is a tensor by itself."""
    few = weight[:NUM_FILTERS]
    tensors = few.double().numpy()
    squares = [(best_of_starts(tensor, 2) * np.linalg.norm(tensor)) ** 2 for tensor in tensors]
    return ours("rank1", few, (2,)), float(np.sqrt(sum(squares)) / np.linalg.norm(tensors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    where = conditions()
    model = trained_task(parser.parse_args().data, "resnet26").model
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 3 and m.kernel_size == (3, 3)]
    ratios: dict[str, list[float]] = {}
    for conv in convs[-NUM_LAYERS:]:
        weight = conv.weight.detach()
        for method, peer in PEERS.items():
            ranks = rank_at(method, shape_of(weight))
            ratios.setdefault(method, []).append(ours(method, weight, ranks) / peer(weight, ranks))
        found, best = rank1(weight)
        ratios.setdefault("rank1", []).append(found / best)
        print(f"{shape_of(weight)}: " + ", ".join(f"{method} {r[-1]:.4f}" for method, r in ratios.items()), flush=True)
    torch_seeded = {"seed": 0, "num_layers": NUM_LAYERS, "share_of_parameters": SHARE, "starts": NUM_STARTS}
    summary = {m: {"median": median(r), "least": min(r), "most": max(r)} for m, r in ratios.items()}
    write("quality", where | torch_seeded | {"error_beside_the_best_known": summary, "target_most": 1.01})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
