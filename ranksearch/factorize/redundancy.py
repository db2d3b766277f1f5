"""FilterBank: how the filters of a layer follow linearly from a few of them, the primary ones.

    W (O, Q), rows reordered, ≈ [I; A] · B · W,   B (P, O) mixes the primary filters, A (S, P) the others from them

The primary filters are free, not P of the given ones: whatever has rank P is of this form, if the P rows that are named
primary span it. So with all of A the closest is the truncated SVD (Eckart and Young 1936), and for a given A it is
B = (I + AᵀA)⁻¹ [I, Aᵀ]. Rows are named primary in the order in which LU with partial pivoting of the left singular
vectors takes them, which does not depend on P and keeps the entries of A small.

Shape letters: Q inputs times taps of a filter, T = min(O, Q), P primary filters, S = O − P others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ranksearch.factorize.truncation import balanced_svd

__all__ = ["FilterBank", "Redundancy"]

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch.linalg is not annotated)

SWEEPS = 8  # of the low-rank A; the first ones bring most
KEPT_IN_STEP = 0.6  # of the sparse A; finer steps gain little
CG_STEPS = 20  # after each of them; about as good as solving exactly
ROUNDING = 1e-13  # relative; a row with no more residual than this is solved


@dataclass(frozen=True, slots=True)
class Redundancy:
    """A solution: A as what is stored of it, the mixing B of the primary filters, and ‖W − W̃‖²."""

    coefficients: tuple[Tensor, ...]  # A; or column and row; or A and which of it is kept
    mixing: Tensor  # (P, O)
    squared_error: float


class FilterBank:
    """The filters (O, Q) of one group; in float64, as coordinates in the space that they span."""

    def __init__(self, weight_OQ: Tensor) -> None:
        triangular_TO = torch.linalg.qr(weight_OQ.mT, mode="r").R.double()
        left_OT, self._values_T, _ = torch.linalg.svd(triangular_TO.mT, full_matrices=False)
        permutation_OO, self._lower_OT, _ = torch.linalg.lu(left_OT)
        self.order: Tensor = permutation_OO.argmax(0)  # the row of the weight that comes first, second, …
        self._filters_OT = triangular_TO.mT[self.order]

    def full(self, primary: int) -> Redundancy:
        """All of A, A = L₂ L₁⁻¹ from the LU of the singular vectors: the optimum. More than T filters add nothing."""
        spanning = min(primary, len(self._values_T))
        top_RR, bottom_SR = self._lower_OT[:spanning, :spanning], self._lower_OT[primary:, :spanning]
        matrix_SR = torch.linalg.solve_triangular(top_RR, bottom_SR, upper=False, left=False, unitriangular=True)
        matrix_SP = functional.pad(matrix_SR, (0, primary - spanning))
        return Redundancy((matrix_SP,), _mixing(matrix_SP), float(self._values_T[primary:].square().sum()))

    def low_rank(self, primary: int, rank: int) -> Redundancy:
        """A = column · row. Two exact steps in turn, from a truncated SVD of all but the first P − R filters.

        R combinations of the primary filters (rows of `combined`) carry the other filters; the P − R orthogonal to
        them are as given. For given combinations they and the others together are best approximated by their SVD; for
        a given span of that, the best combinations are those that leave it least.
        """
        if rank >= min(primary, len(self.order) - primary, len(self._values_T)):
            solution = self.full(primary)
            column_GSR, _, row_GRP = balanced_svd(solution.coefficients[0][None])
            factors = column_GSR[0, :, :rank], row_GRP[0, :rank]
            return Redundancy(factors, solution.mixing, solution.squared_error)
        given_PT, others_ST = self._filters_OT[:primary], self._filters_OT[primary:]
        left_XR, span_TR = _leading(self._filters_OT[primary - rank :], rank)
        combined_RP = torch.eye(primary, dtype=torch.float64, device=given_PT.device)[primary - rank :]
        for _ in range(SWEEPS):
            outside_PT = given_PT - given_PT @ span_TR @ span_TR.mT
            combined_RP = torch.linalg.eigh(outside_PT @ outside_PT.mT).eigenvectors[:, :rank].mT
            left_XR, span_TR = _leading(torch.cat((combined_RP @ given_PT, others_ST)), rank)
        column_GSR, _, row_GRR = balanced_svd((left_XR[rank:] @ torch.linalg.pinv(left_XR[:rank]))[None])
        column_SR, row_RP = column_GSR[0], row_GRR[0] @ combined_RP
        return self._solution(column_SR @ row_RP, (column_SR, row_RP))

    def sparse(self, primary: int, nonzeros: int) -> Redundancy:
        """A with few nonzeros: all of it, pruned by magnitude in steps, after each of which both are refitted.

        The steps but for the last do not depend on `nonzeros`.
        """
        solution = self.full(primary)
        (matrix_SP,), mixing_PO = solution.coefficients, solution.mixing
        kept_SP, count = torch.ones_like(matrix_SP, dtype=torch.bool), matrix_SP.numel()
        if nonzeros >= count:
            return Redundancy((matrix_SP, kept_SP), mixing_PO, solution.squared_error)
        while count > nonzeros:
            count = max(nonzeros, int(count * KEPT_IN_STEP))
            primary_PT = mixing_PO @ self._filters_OT
            kept_SP = _largest(matrix_SP.abs() * primary_PT.norm(dim=1), count)
            matrix_SP = _least_squares(primary_PT, self._filters_OT[primary:], matrix_SP, kept_SP)
            mixing_PO = _mixing(matrix_SP)
        return self._solution(matrix_SP, (matrix_SP, kept_SP))

    def _solution(self, matrix_SP: Tensor, coefficients: tuple[Tensor, ...]) -> Redundancy:
        mixing_PO = _mixing(matrix_SP)
        primary_PT = mixing_PO @ self._filters_OT
        left = self._filters_OT - torch.cat((primary_PT, matrix_SP @ primary_PT))
        return Redundancy(coefficients, mixing_PO, float(left.square().sum()))


def _mixing(matrix_SP: Tensor) -> Tensor:
    """(P, O): the primary filters that are best for these coefficients, from all filters in order."""
    identity = torch.eye(matrix_SP.shape[1], dtype=matrix_SP.dtype, device=matrix_SP.device)
    return torch.cholesky_solve(
        torch.cat((identity, matrix_SP.mT), 1), torch.linalg.cholesky(identity + matrix_SP.mT @ matrix_SP)
    )


def _leading(matrix_XT: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The left singular vectors (X, R) of the largest singular values, and the span (T, R) of the right ones."""
    left_XR = torch.linalg.eigh(matrix_XT @ matrix_XT.mT).eigenvectors[:, -rank:]
    return left_XR, torch.linalg.qr(matrix_XT.mT @ left_XR).Q


def _largest(scores: Tensor, count: int) -> Tensor:
    """A mask of the largest scores."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    kept[scores.flatten().topk(count).indices] = True
    return kept.view_as(scores)


def _least_squares(primary_PT: Tensor, others_ST: Tensor, start_SP: Tensor, kept_SP: Tensor) -> Tensor:
    """A (S, P), zero where not kept, with the smallest ‖others − A · primary‖, by conjugate gradients on all rows."""
    gram_PP = primary_PT @ primary_PT.mT
    target_SP = others_ST @ primary_PT.mT * kept_SP
    scale_P = gram_PP.diagonal().clamp(min=torch.finfo(gram_PP.dtype).tiny)
    solved_S1 = ROUNDING**2 * (target_SP.square() / scale_P).sum(1, keepdim=True)
    matrix_SP = start_SP * kept_SP
    residual_SP = target_SP - (matrix_SP @ gram_PP) * kept_SP
    direction_SP = residual_SP / scale_P
    slope_S1 = (residual_SP * direction_SP).sum(1, keepdim=True)
    for _ in range(CG_STEPS):
        change_SP = (direction_SP @ gram_PP) * kept_SP
        curvature_S1 = (direction_SP * change_SP).sum(1, keepdim=True)
        step_S1 = torch.where(slope_S1 > solved_S1, slope_S1 / curvature_S1, 0)
        matrix_SP = matrix_SP + step_S1 * direction_SP
        residual_SP = residual_SP - step_S1 * change_SP
        steepest_SP, last_S1 = residual_SP / scale_P, slope_S1
        slope_S1 = (residual_SP * steepest_SP).sum(1, keepdim=True)
        direction_SP = steepest_SP + torch.where(last_S1 > solved_S1, slope_S1 / last_S1, 0) * direction_SP
    return matrix_SP
