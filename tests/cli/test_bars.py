from ranksearch.cli.bars import LOSS, layer_bars
from ranksearch.records import DENSE, Cost, LayerChoice, OptionProfile, Profile


def option(layer, rank, layer_ms, loss=0.0, latency=0.0):
    choice = LayerChoice(method="svd", ranks=(rank,)) if rank else DENSE
    return OptionProfile(
        layer=layer, choice=choice, cost=Cost(parameters=1, macs=1), latency=latency, latency_deviation=0.001,
        layer_ms=layer_ms, loss=loss, error=0.0,
    )  # fmt: skip


OPTIONS = (
    option("wide", 1, 1.0, 2 * LOSS, -0.5), option("wide", 2, 3.0, LOSS, -0.3), option("wide", 4, 5.0, 0.0, -0.1),
    option("wide", 0, 6.0),
    option("thin", 1, 0.995, 0.0, -0.0005), option("thin", 0, 1.0),
)  # fmt: skip


def test_by_hand():
    head, wide, thin, rest = layer_bars(Profile(identity={}, dense_ms=10.0, options=OPTIONS))
    assert "0.03 nats" in head
    assert wide == "wide      " + "█" * 18 + "░" * 18 + " 60.0 %, −30.0 by svd:2"  # svd:1 loses too much
    assert thin == "thin      " + ("█" * 6).ljust(36) + " 10.0 %"  # what svd:1 saves is noise
    assert rest == "all else  " + ("█" * 18).ljust(36) + " 30.0 %"


def test_without_losses_and_without_times():
    unknown = [OptionProfile.from_json(o.to_json() | {"loss": None}) for o in OPTIONS]
    head, wide, *_ = layer_bars(Profile(identity={}, dense_ms=10.0, options=tuple(unknown)))
    assert "whatever it loses" in head
    assert wide.endswith("−50.0 by svd:1")
    old = [OptionProfile.from_json(o.to_json() | {"layer_ms": None}) for o in OPTIONS]
    assert layer_bars(Profile(identity={}, dense_ms=10.0, options=tuple(old))) == []
