"""TT-conv: a convolution whose kernel is a tensor train over its taps and its channels, split into factors.

    tt_conv         W[s, c, x, y] = G0[x, y] · G1[c1, s1] · G2[c2, s2] · G3[c3, s3],   C = C1·C2·C3,  N = S1·S2·S3
    tt_conv_naive   W[s, c, x, y] = G0[x] · G1[y] · G2[c] · G3[s]

Source: Garipov, Podoprikhin, Novikov, Vetrov 2016 (arXiv 1611.03214), section 4; the naive one is the baseline of its
section 6. Channels split into three factors as equal as possible, the largest in the middle: 128 = 4·8·4.

Cost of tt_conv: kh·kw·r0 + r0·C1·S1·r1 + r1·C2·S2·r2 + r2·C3·S3 parameters (+ N); contracted, per output position,
C·kh·kw·r0 + C2·C3·(r0·C1·S1·r1) + S1·C3·(r1·C2·S2·r2) + S1·S2·(r2·C3·S3) MACs.
Cost of tt_conv_naive: kh·r0 + r0·kw·r1 + r1·C·r2 + r2·N parameters (+ N); contracted, C·kh·r0 MACs per position
between the spatial cores and C·r0·kw·r1 + r1·C·r2 + r2·N per output position.
"""

from ranksearch.factorize.refusal import no_convolution, nothing_to_mix
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.tensor_train import Modes, TensorTrain, balanced_factors

__all__ = ["TTConv", "TTConvNaive"]


class TTConv(TensorTrain):
    name = "tt_conv"
    rank_names = ("rank_0", "rank_1", "rank_2")

    def refuses(self, shape: LayerShape) -> str | None:
        if reason := _not_one_convolution(shape):
            return reason
        for side, channels in (("input", shape.in_channels), ("output", shape.out_channels)):
            if not balanced_factors(channels, 3):
                return f"its {channels} {side} channels are no product of three numbers above 1; use tucker2"
        return None

    def modes(self, shape: LayerShape) -> Modes:
        return Modes(spatial=(shape,), inputs=_split(shape.in_channels), outputs=_split(shape.out_channels))


class TTConvNaive(TensorTrain):
    name = "tt_conv_naive"
    rank_names = ("rank_height", "rank_taps", "rank_out")

    def refuses(self, shape: LayerShape) -> str | None:
        if reason := _not_one_convolution(shape):
            return reason
        return "its kernel has one dimension; use tucker2" if len(shape.kernel_size) == 1 else None

    def modes(self, shape: LayerShape) -> Modes:
        spatial = (shape.along(0), shape.along(1))
        return Modes(spatial=spatial, inputs=(shape.in_channels, 1), outputs=(1, shape.out_channels))


def _split(channels: int) -> tuple[int, ...]:
    low, middle, high = balanced_factors(channels, 3)
    return low, high, middle


def _not_one_convolution(shape: LayerShape) -> str | None:
    if reason := no_convolution(shape, "tt_linear or svd") or nothing_to_mix(shape):
        return reason
    return "it has groups; use tucker2" if shape.groups > 1 else None
