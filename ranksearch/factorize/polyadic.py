"""Canonical polyadic decompositions: tensors as sums of rank-one terms, a batch at a time; what `cp` and `rank1` share.

    T[i, j, k, …] ≈ Σ_r A[i, r] · B[j, r] · C[k, r] ⋯

No closed form exists but for matrices, and the best sum of R terms may not even exist (de Silva and Lim 2008): terms
grow without bound and cancel. So this is alternating least squares (Carroll and Chang 1970; Harshman 1970) that

- climbs: a sum of R terms starts from that of fewer, plus leading terms of what those leave over; hence the error
  never rises with R. Every rank to 16, then every quarter of a power of two is a rung, where all terms are fitted
  again; the ranks between two rungs have the new terms as they were found, mutually orthogonal;
- keeps terms small: it minimises ‖T − Σ terms‖² + ridge · Σ ‖term‖², with a ridge in proportion to the error left.
  Measured on a trained 64→64 3×3 layer at rank 64: the squared norms of the terms add up to 5 times that of the
  weight, without a ridge to 95,000 times, at the same error;
- is bounded: so many sweeps, so many multiplications a rung; and it keeps what it had where it finds nothing better.

At the largest rank every tap is a term, exactly. All is computed in float64; the global random generator is left alone.

Shape letters: B tensors of a batch, D the size of their first mode, the largest, X that of all others together.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

from ranksearch.factorize.truncation import balanced_svd, relative_tail

__all__ = ["largest_rank", "polyadic"]

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch.linalg is not annotated)

RIDGE = 2e-3  # of the squared relative error: terms stay small; the error rises by less than a hundredth of itself
SMALLEST_GAIN = 1e-7  # sweeps end where the squared error falls by a smaller part of itself
WORK_OF_A_RUNG = 2_500_000_000  # multiplications: about a quarter of a second on one core, in float64
WORK_OF_A_CALL = 30_000  # as many multiplications take the time that a sweep of the smallest tensor takes
RANKS_WITH_RESTARTS = 8  # up to here the way up decides which optimum is found, and other starts cost little
MOST_RESTARTS = 9
OVERSAMPLING = 8  # Halko, Martinsson, Tropp 2011, section 4.2


def largest_rank(sizes: Sequence[int]) -> int:
    """As many terms as make any tensor of these sizes exactly."""
    return math.prod(sizes) // max(sizes)


def polyadic(tensor: Tensor, rank: int, sweeps: int) -> tuple[list[Tensor], float]:
    """Factors (B, size, rank) of every mode of tensors (B, *sizes), and ‖T − T̃‖ / ‖T‖ over the batch.

    The norm of every term is spread evenly over its factors. `sweeps` is the most that a rung may take.
    """
    sizes = tensor.shape[1:]
    order = sorted(range(len(sizes)), key=lambda mode: -sizes[mode])
    order = order[: max(2, sum(size > 1 for size in sizes))]  # the others have nothing to say
    ordered = tensor.double().permute(0, *(mode + 1 for mode in order), *_others(order, len(sizes)))
    fitted, error = _fit(ordered.reshape(len(tensor), *(sizes[mode] for mode in order)), rank, sweeps)
    ones = torch.ones(len(tensor), 1, rank, dtype=torch.float64, device=tensor.device)
    factors = [fitted[order.index(mode)] if mode in order else ones for mode in range(len(sizes))]
    return _balanced(factors), error


def _others(order: Sequence[int], num_modes: int) -> Iterator[int]:
    return (mode + 1 for mode in range(num_modes) if mode not in order)


def _fit(tensor_BDx: Tensor, rank: int, sweeps: int) -> tuple[list[Tensor], float]:
    if tensor_BDx.dim() == 3:
        left_BDR, values_BR, right_BRX = balanced_svd(tensor_BDx)
        return [left_BDR[:, :, :rank], right_BRX.mT[:, :, :rank]], relative_tail(values_BR, rank)
    if rank == largest_rank(tensor_BDx.shape[1:]) or not tensor_BDx.any():
        return [factor[:, :, :rank] for factor in _one_term_a_tap(tensor_BDx)], 0.0
    matrix_BDX = tensor_BDx.flatten(2)
    if matrix_BDX.shape[1] <= matrix_BDX.shape[2]:
        fit = _climb(tensor_BDx, rank, sweeps)
        return fit.factors, fit.relative_error(tensor_BDx)
    basis_BDX, small_BXX = torch.linalg.qr(matrix_BDX)  # nothing is lost, and the climb is shorter
    (first, *others), error = _fit(small_BXX.unflatten(2, tensor_BDx.shape[2:]), rank, sweeps)
    return [basis_BDX @ first, *others], error


def _one_term_a_tap(tensor_BDx: Tensor) -> list[Tensor]:
    sizes = tensor_BDx.shape[2:]
    taps = torch.eye(math.prod(sizes), dtype=tensor_BDx.dtype, device=tensor_BDx.device).reshape(*sizes, -1)
    which = [taps.sum([m for m in range(len(sizes)) if m != mode]) for mode in range(len(sizes))]  # (size, X)
    return [tensor_BDx.flatten(2), *(units.expand(len(tensor_BDx), -1, -1) for units in which)]


class _Fit(NamedTuple):
    factors: list[Tensor]  # (B, size, R)
    residual: Tensor  # T − Σ terms

    @property
    def squares(self) -> Tensor:
        """‖T − Σ terms‖² (B,)"""
        return self.residual.square().flatten(1).sum(1)

    def relative_error(self, tensor_BDx: Tensor) -> float:
        return float(self.residual.norm() / tensor_BDx.norm())


def _fitted(tensor_BDx: Tensor, factors: list[Tensor]) -> _Fit:
    first_BDR, *others = factors
    return _Fit(factors, tensor_BDx - (first_BDR @ _khatri_rao(others).mT).reshape(tensor_BDx.shape))


def _rungs(rank: int, most_new: int) -> Iterator[int]:
    """1, 2, … 16, 20, … 32, 40, … 64, 80, … up to the first that is not below `rank`."""
    rung = 0
    while rung < rank:
        quarter = 1 << (rung.bit_length() - 3) if rung >= 16 else 1
        rung += min(quarter, most_new)
        yield rung


def _climb(tensor_BDx: Tensor, rank: int, sweeps: int) -> _Fit:
    generator = torch.Generator().manual_seed(0)
    fit = _Fit([tensor_BDx.new_zeros(len(tensor_BDx), size, 0) for size in tensor_BDx.shape[1:]], tensor_BDx)
    for rung in _rungs(rank, tensor_BDx.shape[1]):
        known = fit.factors[0].shape[2]
        new = [factor[:, :, : rank - known] for factor in _leading_terms(fit.residual, rung - known, generator)]
        fit = _fitted(tensor_BDx, [torch.cat(pair, 2) for pair in zip(fit.factors, new, strict=True)])
        if rung <= rank:
            fit = _refitted(tensor_BDx, fit, sweeps, generator)
    return fit


def _refitted(tensor_BDx: Tensor, fit: _Fit, sweeps: int, generator: torch.Generator) -> _Fit:
    rank = fit.factors[0].shape[2]
    affordable = WORK_OF_A_RUNG // (2 * tensor_BDx.numel() * (rank + 16) + WORK_OF_A_CALL * len(tensor_BDx))
    if not affordable:
        return fit
    num_restarts = min(MOST_RESTARTS, affordable // sweeps) if rank <= RANKS_WITH_RESTARTS else 0
    starts = [_with_random(factor, num_restarts, generator) for factor in fit.factors]
    tensors = tensor_BDx.repeat(1 + num_restarts, *[1] * (tensor_BDx.dim() - 1))
    tried = _fitted(tensors, _swept(tensors, starts, min(sweeps, affordable)))
    return _better(fit, tried)


def _better(fit: _Fit, tried: _Fit) -> _Fit:
    """The closest of all tries, for every tensor of the batch; what there was where none is closer."""
    all_squares = torch.cat([fit.squares, tried.squares]).nan_to_num(torch.inf)  # NaN where one diverged
    size = len(fit.squares)
    which_B = all_squares.reshape(-1, size).argmin(0) * size + torch.arange(size, device=all_squares.device)
    factors = [torch.cat(pair)[which_B] for pair in zip(fit.factors, tried.factors, strict=True)]
    return _Fit(factors, torch.cat([fit.residual, tried.residual])[which_B])


def _with_random(factor_BDR: Tensor, times: int, generator: torch.Generator) -> Tensor:
    """((1 + times)·B, D, R)"""
    size, *rest = factor_BDR.shape
    return torch.cat([factor_BDR, _random((times * size, *rest), factor_BDR, generator)])


def _random(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """The same numbers on every device."""
    return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)


def _leading_terms(tensor_BDx: Tensor, number: int, generator: torch.Generator) -> list[Tensor]:
    """Mutually orthogonal terms, each the projection of the tensor onto it, so that any of them lower the error.

    For every leading direction of the first mode, the leading term of what the tensor has in that direction.
    """
    matrix_BDX = tensor_BDx.flatten(2)
    left_BDR = _leading_directions(matrix_BDX, number, generator)
    rows_BRx = (left_BDR.mT @ matrix_BDX).unflatten(2, tensor_BDx.shape[2:])
    others = [factor.unflatten(0, rows_BRx.shape[:2]).mT for factor in _truncated(rows_BRx.flatten(0, 1))]
    return _balanced([left_BDR, *others])


def _leading_directions(matrix_BDX: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """(B, D, number), the first of them first: subspace iteration, exact where D is small."""
    size = matrix_BDX.shape[1]
    shape = (len(matrix_BDX), size, min(size, number + OVERSAMPLING))
    basis_BDQ = _random(shape, matrix_BDX, generator)
    for _ in range(2):
        basis_BDQ = torch.linalg.qr(matrix_BDX @ (matrix_BDX.mT @ basis_BDQ)).Q
    rows_BQX = basis_BDQ.mT @ matrix_BDX
    vectors_BQQ = torch.linalg.eigh(rows_BQX @ rows_BQX.mT).eigenvectors
    return basis_BDQ @ vectors_BQQ.flip(2)[:, :, :number]


def _truncated(tensor_Bx: Tensor) -> Iterable[Tensor]:
    """One term near each tensor (B, *sizes), vectors (B, size): modes are split off one after the other by SVD."""
    while tensor_Bx.dim() > 2:
        left, values, right = torch.linalg.svd(tensor_Bx.flatten(2), full_matrices=False)
        yield left[:, :, 0]
        tensor_Bx = (values[:, 0, None] * right[:, 0]).unflatten(1, tensor_Bx.shape[2:])
    yield tensor_Bx


def _swept(tensor_BDx: Tensor, factors: list[Tensor], sweeps: int) -> list[Tensor]:
    """Alternating least squares. Two products with the tensor a sweep: what A leaves of it serves all other modes."""
    totals_B = tensor_BDx.square().flatten(1).sum(1).clamp_min(torch.finfo(tensor_BDx.dtype).tiny)
    squares_B = _fitted(tensor_BDx, factors).squares
    for _ in range(sweeps):
        before = squares_B.sum()
        ridge_B = RIDGE * (squares_B / totals_B).clamp(0, 1)
        factors, squares_B = _sweep(tensor_BDx, factors, ridge_B, totals_B)
        if not squares_B.sum() < before * (1 - SMALLEST_GAIN):
            break
    return factors


def _sweep(tensor_BDx: Tensor, factors: list[Tensor], ridge_B: Tensor, totals_B: Tensor) -> tuple[list[Tensor], Tensor]:
    matrix_BDX = tensor_BDx.flatten(2)
    first, *others = factors
    left_BxR = (matrix_BDX.mT @ first).unflatten(1, tensor_BDx.shape[2:])
    for mode in range(len(others)):
        rest = [*others[:mode], *others[mode + 1 :]]
        others[mode] = _solved(_contracted(left_BxR, others, mode), _gram([first, *rest]), ridge_B)
    product_BDR, gram_BRR = matrix_BDX @ _khatri_rao(others), _gram(others)
    first = _solved(product_BDR, gram_BRR, ridge_B)
    norms_B = (gram_BRR * _gram([first])).sum((1, 2))
    squares_B = totals_B - 2 * (product_BDR * first).sum((1, 2)) + norms_B
    return _balanced([first, *others]), squares_B


def _contracted(left_BxR: Tensor, factors: list[Tensor], kept: int) -> Tensor:
    """(B, size, R) from (B, *sizes, R): all modes but one multiplied with their factors and summed."""
    for mode in reversed(range(len(factors))):
        if mode != kept:
            shape = [len(left_BxR), *[1] * len(factors), left_BxR.shape[-1]]
            shape[mode + 1] = -1
            left_BxR = (left_BxR * factors[mode].reshape(shape)).sum(mode + 1, keepdim=True)
    return left_BxR.flatten(1, -2)


def _solved(product_BDR: Tensor, gram_BRR: Tensor, ridge_B: Tensor) -> Tensor:
    """Least squares with ridge · Σ ‖term‖²: a term's squared norm is its factor's times the diagonal of the Gram."""
    diagonal_BR = gram_BRR.diagonal(dim1=1, dim2=2)
    damped_BRR = gram_BRR + torch.diag_embed(ridge_B[:, None] * diagonal_BR)
    floor = torch.finfo(gram_BRR.dtype)
    damped_BRR.diagonal(dim1=1, dim2=2).add_(floor.eps * diagonal_BR.mean(1, keepdim=True) + floor.tiny)
    lower_BRR = torch.linalg.cholesky_ex(damped_BRR).L
    return torch.cholesky_solve(product_BDR.mT, lower_BRR).mT


def _gram(factors: list[Tensor]) -> Tensor:
    """(B, R, R), the scalar products of terms of these factors."""
    return reduce(mul, (factor.mT @ factor for factor in factors))


def _khatri_rao(factors: list[Tensor]) -> Tensor:
    """(B, X, R), the terms of these factors."""
    return reduce(lambda a, b: (a[:, :, None] * b[:, None]).flatten(1, 2), factors)


def _balanced(factors: list[Tensor]) -> list[Tensor]:
    """The same terms, the norm of each spread evenly over its factors, so that these train at one pace."""
    norms = [factor.norm(dim=1, keepdim=True) for factor in factors]
    root = reduce(mul, norms) ** (1 / len(factors))
    return [factor * torch.where(root > 0, root / norm, 0) for factor, norm in zip(factors, norms, strict=True)]
