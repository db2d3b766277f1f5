"""Factorization methods: pure tensor maths, one file a method. Adding a method is one file and one word here.

A layer that no method changes is `dense`, which is the absence of one.
"""

from collections.abc import Mapping
from types import MappingProxyType

from ranksearch.errors import SpaceError
from ranksearch.factorize.cache import FactorCache
from ranksearch.factorize.channel_svd import ChannelSVD
from ranksearch.factorize.cp import CP
from ranksearch.factorize.linearconv import LinearConv, LowRankLinearConv, SparseLinearConv
from ranksearch.factorize.method import Factors, Method
from ranksearch.factorize.rank1 import Rank1
from ranksearch.factorize.separable import Separable
from ranksearch.factorize.shape import KINDS, LayerShape, StandardLayer
from ranksearch.factorize.spatial_svd import SpatialSVD
from ranksearch.factorize.svd import SVD
from ranksearch.factorize.tt_conv import TTConv, TTConvNaive
from ranksearch.factorize.tt_linear import TTLinear
from ranksearch.factorize.tucker2 import Tucker2
from ranksearch.records import nearest

__all__ = ["KINDS", "METHODS", "FactorCache", "Factors", "LayerShape", "Method", "StandardLayer", "method_named"]

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        m.name: m
        for m in (
            SVD(),
            SpatialSVD(),
            ChannelSVD(),
            Tucker2(),
            CP(),
            Separable(),
            TTConv(),
            TTConvNaive(),
            TTLinear(),
            Rank1(),
            LinearConv(),
            LowRankLinearConv(),
            SparseLinearConv(),
        )
    }
)


def method_named(name: str) -> Method:
    """Raises SpaceError where no method has this name."""
    if name not in METHODS:
        raise SpaceError(f"method is {name!r}{nearest(name, METHODS)}; choose one of {', '.join(METHODS)}, or dense")
    return METHODS[name]
