"""Where the network's time goes, layer by layer, and how much of it low-rank layers save: bars of text."""

from collections.abc import Iterator
from itertools import groupby

from ranksearch.records import OptionProfile, Profile

__all__ = ["LOSS", "layer_bars"]

LOSS = 0.03  # nats that the option shown of a layer loses at most
WIDTH = 36  # characters of the longest bar
CERTAIN = 2.0  # standard errors


def layer_bars(profile: Profile) -> list[str]:
    """A line a layer, `█` what stays of its time and `░` what its fastest option at a small loss saves, as shares of
    the network's latency; and a line for all else. Empty where layers' own times are not known."""
    layers = {name: list(options) for name, options in groupby(profile.options, key=lambda option: option.layer)}
    shares = {layer: ms / profile.dense_ms for layer, ms in profile.layer_ms.items()}
    if not shares or len(shares) < len(layers):
        return []
    rest = max(0.0, 1 - sum(shares.values()))
    width, scale = max(map(len, (*layers, "all else"))), WIDTH / max(*shares.values(), rest)
    saved_where = "at a loss of at most " + f"{LOSS:g} nats" if _has_losses(profile) else "whatever it loses"
    return [
        f"share of the latency; ░ what the fastest option saves, {saved_where}:",
        *(f"{layer:<{width}}  {text}" for layer, text in _bars(layers, shares, scale)),
        f"{'all else':<{width}}  {_bar(rest, 0.0, scale)}{100 * rest:5.1f} %",
    ]


def _bars(layers: dict[str, list[OptionProfile]], shares: dict[str, float], scale: float) -> Iterator[tuple[str, str]]:
    for layer, options in layers.items():
        share, best = shares[layer], _best(options)
        saved = min(share, -best.latency) if best else 0.0
        text = f"{_bar(share - saved, saved, scale)}{100 * share:5.1f} %"
        yield layer, text + (f", −{100 * saved:.1f} by {best.choice}" if best else "")


def _best(options: list[OptionProfile]) -> OptionProfile | None:
    """The fastest that loses little, where it certainly saves time."""
    fit = [o for o in options if not o.choice.is_dense and (o.loss is None or o.loss <= LOSS)]
    best = min(fit, key=lambda option: option.latency, default=None)
    return best if best and best.latency < -CERTAIN * best.latency_deviation else None


def _bar(kept: float, saved: float, scale: float) -> str:
    whole, dark = round((kept + saved) * scale), round(kept * scale)
    return ("█" * dark + "░" * (whole - dark)).ljust(WIDTH)


def _has_losses(profile: Profile) -> bool:
    return all(option.loss is not None for option in profile.options)
