"""TT-linear: a linear layer whose matrix is a tensor train over its inputs and outputs, each split into four factors.

    W[m, n] = G1[n1, m1] · G2[n2, m2] · G3[n3, m3] · G4[n4, m4],   C = n1·n2·n3·n4,  N = m1·m2·m3·m4

The factors are as equal as possible and ascend: 8192 = 8·8·8·16, 1536 = 4·6·8·8. Source: Novikov, Podoprikhin, Osokin,
Vetrov 2015 (arXiv 1509.06569), section 4.

Cost: Σ r(k-1)·nk·mk·r(k) parameters (+ N); contracted, Σ m1⋯m(k-1)·n(k+1)⋯n4·(r(k-1)·nk·mk·r(k)) MACs per position.
"""

from ranksearch.factorize.refusal import nothing_to_mix
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.tensor_train import Modes, TensorTrain, balanced_factors

__all__ = ["TTLinear"]


class TTLinear(TensorTrain):
    name = "tt_linear"
    rank_names = ("rank_1", "rank_2", "rank_3")

    def refuses(self, shape: LayerShape) -> str | None:
        if shape.is_convolution:
            return nothing_to_mix(shape) or "it is a convolution; use tt_conv, tucker2 or spatial_svd"
        for side, features in (("input", shape.in_channels), ("output", shape.out_channels)):
            if not balanced_factors(features, 4):
                return f"its {features} {side} features are no product of four numbers above 1; use svd"
        return None

    def modes(self, shape: LayerShape) -> Modes:
        return Modes(inputs=balanced_factors(shape.in_channels, 4), outputs=balanced_factors(shape.out_channels, 4))
