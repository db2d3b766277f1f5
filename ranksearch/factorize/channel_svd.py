"""Channel SVD: a k×k convolution to R channels, then 1×1.

    W (N, C·kh·kw) = U S Vᵀ;   first √S Vᵀ: C → R, kh×kw,   last U √S: R → N, 1×1

The matrix of `svd` with a whole filter as its row, so it is `svd` in all but the layers it takes. Stride, padding and
dilation go to the first factor; each group is split by itself. Source: Zhang, Zou, He, Sun 2016 (Accelerating very
deep convolutional networks for classification and detection), here for the weights rather than for the responses.

Cost: G·R·(I·kh·kw + O) parameters (+ N); as many MACs per output position. At most R = min(O, I·kh·kw).
"""

from ranksearch.factorize.refusal import no_convolution, nothing_to_mix
from ranksearch.factorize.shape import LayerShape
from ranksearch.factorize.svd import SVD

__all__ = ["ChannelSVD"]


class ChannelSVD(SVD):
    name = "channel_svd"

    def refuses(self, shape: LayerShape) -> str | None:
        return no_convolution(shape) or nothing_to_mix(shape)
