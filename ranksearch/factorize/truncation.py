"""Singular value decompositions, one per group, with the error of cutting them: what the methods share.

For M = U S Vᵀ the best approximation of rank R in the Frobenius norm keeps the R largest singular values, and its
squared error is the sum of the squares of the others (Eckart and Young 1936). √S goes to either side, so that the
two factors have the same norm and train at the same pace.
"""

import torch
from torch import Tensor

__all__ = ["balanced_svd", "left_singular_vectors", "per_group", "relative_tail", "working_precision"]

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch.linalg is not annotated)


def working_precision(weight: Tensor) -> Tensor:
    """The weight's values in the precision decompositions are computed in: float64 if it is that, else float32."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def per_group(tensor: Tensor, groups: int) -> Tensor:
    """(G·X, …) as (G, X, …)."""
    return tensor.reshape(groups, -1, *tensor.shape[1:])


def balanced_svd(matrix_GPQ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U√S (G, P, R), singular values (G, R), √S Vᵀ (G, R, Q)) at full rank R = min(P, Q), one per group."""
    U_GPR, values_GR, Vh_GRQ = torch.linalg.svd(matrix_GPQ, full_matrices=False)
    root_GR = values_GR.sqrt()
    return U_GPR * root_GR[:, None, :], values_GR, root_GR[:, :, None] * Vh_GRQ


def relative_tail(values_GR: Tensor, rank: int) -> float:
    """‖M − M_rank‖ / ‖M‖ over all groups together, from their singular values."""
    squares = values_GR.double().square()
    total = squares.sum()
    return float((squares[:, rank:].sum() / total).sqrt()) if total > 0 else 0.0


def left_singular_vectors(matrix_GPQ: Tensor) -> Tensor:
    """(G, P, min(P, Q)), those of the largest singular values first."""
    triangular_GTP = torch.linalg.qr(matrix_GPQ.mT, mode="r").R  # has the same ones, and is P×P where Q is large
    return torch.linalg.svd(triangular_GTP.mT, full_matrices=False).U
