"""A profile drawn: the front that it predicts of the whole network, its staircase, and every layer's options.

matplotlib is imported here alone, and only to draw.
"""

import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ranksearch.allocate.knapsack import knapsack
from ranksearch.errors import ConfigError
from ranksearch.records import OptionProfile, Profile, Staircase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "check_output", "draw_profile"]

SUFFIXES = (".png", ".svg", ".pdf", ".html")
COLUMNS = 4  # panels of layers in a row
WIDTH, TOP_HEIGHT, ROW_HEIGHT = 13.0, 3.9, 2.5  # inches
DOTS_PER_INCH = 130
GREY, FRONT = "#8a8f98", "#c2362b"
COLORS = ("#3465a4", "#2e8b57", "#d98c1f", "#7b4fa3", "#1a9ba8", "#a0522d", "#6b7a1f", "#c25aa0")  # of methods, in turn
CERTAIN = 2.0  # standard errors: what saves less is as fast as the dense layer
LEAST = 1e-6  # losses below it are drawn there: the axis is logarithmic


def check_output(output: Path) -> None:
    """Raises ConfigError where no picture could be drawn into such a file, before any work is done for it."""
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"output is {str(output)!r}; a picture is one of {', '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise ConfigError(f"output {output} cannot be made: there is no folder {output.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("a picture needs matplotlib; run: pip install 'ranksearch[plot]', or leave --output out")


def draw_profile(profile: Profile, output: Path, *, title: str) -> None:
    """Into a file of the kind that its name ends in. Raises ConfigError as `check_output` does."""
    check_output(output)
    figure = _figure(profile, title)
    if output.suffix != ".html":
        figure.savefig(output, dpi=DOTS_PER_INCH)
        return
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    image = drawn.getvalue()[drawn.getvalue().index("<svg") :]
    page = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{_escaped(title)}</title>\n{image}</html>\n'
    output.write_text(page, encoding="utf-8")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _figure(profile: Profile, title: str) -> "Figure":
    from matplotlib.figure import Figure

    layers = {name: list(options) for name, options in groupby(profile.options, key=lambda option: option.layer)}
    num_rows = math.ceil(len(layers) / COLUMNS)
    figure = Figure(figsize=(WIDTH, TOP_HEIGHT + ROW_HEIGHT * num_rows), layout="constrained")
    grid = figure.add_gridspec(1 + num_rows, COLUMNS, height_ratios=[TOP_HEIGHT, *[ROW_HEIGHT] * num_rows])
    figure.suptitle(f"{title}\n{_under(profile)}", fontsize=11)
    values = _Values(profile)
    right = COLUMNS if profile.staircase is None else COLUMNS - 1
    _draw_front(figure.add_subplot(grid[0, :right]), layers, values)
    if profile.staircase is not None:
        _draw_stairs(figure.add_subplot(grid[0, right:]), profile.staircase)
    methods = list(dict.fromkeys(o.choice.method for o in profile.options if not o.choice.is_dense))
    colors = {method: COLORS[number % len(COLORS)] for number, method in enumerate(methods)}
    first = None
    for number, (layer, options) in enumerate(layers.items()):
        place = grid[1 + number // COLUMNS, number % COLUMNS]
        panel = figure.add_subplot(place, sharex=first)
        first = first or panel
        _draw_layer(panel, layer, options, values, colors, profile.layer_ms.get(layer, 0.0) / profile.dense_ms)
    _draw_legend(figure, colors)
    return figure


def _under(profile: Profile) -> str:
    """`a CPU, eager, batch 8, 1 thread: the dense network takes 12.3 ms`, as far as the identity says it."""
    of = profile.identity
    words = [of.get("device_model", "").partition(" (")[0], of.get("backend", "")]
    words += [f"batch {of['batch_size']}"] if "batch_size" in of else []
    words += [f"{of['threads']} thread{'' if of['threads'] == '1' else 's'}"] if of.get("device") == "cpu" else []
    return f"{', '.join(word for word in words if word)}: the dense network takes {profile.dense_ms:.3g} ms"


class _Values:
    """What an option loses: nats where all losses are known, else the error of its weight."""

    def __init__(self, profile: Profile) -> None:
        self.are_losses = all(option.loss is not None for option in profile.options)
        self.name = "loss (nats)" if self.are_losses else "error of the weight"

    def of(self, option: OptionProfile) -> float:
        return max(option.loss or 0.0, 0.0) if self.are_losses else option.error


# --- panels ----------------------------------------------------------------------------------------------------------


def _draw_front(axes: "Axes", layers: Mapping[str, Sequence[OptionProfile]], values: _Values) -> None:
    """The exact knapsack over all layers: latencies and losses add up, nearly."""
    front = knapsack(
        [np.array([option.latency if _saves(option) else 0.0 for option in options]) for options in layers.values()],
        [np.array([values.of(option) for option in options]) for options in layers.values()],
    )
    ratios, least = 1 + front.costs, max(LEAST, min(front.losses[front.losses > 0], default=LEAST) / 3)
    losses = np.maximum(front.losses, least)  # the dense network loses nothing
    top = 2 * float(losses.max())
    axes.step(ratios, losses, where="post", color=FRONT, linewidth=1.6)
    axes.fill_between(ratios, losses, top, step="post", color=FRONT, alpha=0.08, linewidth=0)
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_ylim(least, top)
    axes.set_xlim(min(ratios.min(), 1) - 0.02, 1.02)
    axes.set_title("the whole network, predicted: the best sums over its layers", fontsize=10, loc="left")
    axes.set_xlabel("latency ratio to the dense network")
    axes.set_ylabel(f"summed {values.name}, before fine-tuning")
    _tidy(axes)


def _draw_stairs(axes: "Axes", stairs: Staircase) -> None:
    axes.plot(stairs.ranks, stairs.latency_ms, ".-", color=GREY, markersize=4, linewidth=0.8)
    if stairs.step > 1:
        for rank in range(stairs.step, max(stairs.ranks) + 1, stairs.step):
            axes.axvline(rank, color=FRONT, linewidth=0.8, linestyle=":")
    found = f"steps of {stairs.step} ranks" if stairs.step > 1 else "no steps"
    axes.set_title(f"{found}: {stairs.method}", fontsize=10, loc="left")
    axes.set_xlabel(f"rank\n{stairs.shape.partition(', on ')[0]}", fontsize=8)
    axes.set_ylabel("ms of the layer")
    axes.set_ylim(0, max(stairs.latency_ms) * 1.1)
    _tidy(axes)


def _draw_layer(
    axes: "Axes",
    layer: str,
    options: Sequence[OptionProfile],
    values: _Values,
    colors: Mapping[str, str],
    share: float,
) -> None:
    small = [option for option in options if not option.choice.is_dense]
    best = _undominated(small, values)
    axes.axhline(0, color=GREY, linewidth=0.8)
    if share:
        axes.axhline(-100 * share, color=GREY, linewidth=0.8, linestyle=":")
    points = {option.choice: (max(values.of(option), LEAST), 100 * option.latency) for option in small}
    if best:
        x, y = zip(*(points[option.choice] for option in best), strict=True)
        axes.plot(x, y, color=FRONT, linewidth=1, drawstyle="steps-post", zorder=1)
    for option in small:
        color, is_best = colors[option.choice.method], option in best
        axes.plot(
            *points[option.choice],
            "o",
            markersize=6 if is_best else 3,
            markerfacecolor=color if option.is_loss_measured else "white",
            markeredgecolor=color,
            zorder=3 if is_best else 2,
        )
    axes.set_xscale("log")
    text = f", {100 * share:.1f} % of the time" if share else ""
    axes.set_title(f"{layer}{text}", fontsize=9, loc="left")
    axes.set_xlabel(values.name, fontsize=8)
    axes.set_ylabel("latency change, %", fontsize=8)
    _tidy(axes)


def _undominated(options: Sequence[OptionProfile], values: _Values) -> list[OptionProfile]:
    """Certainly faster than the dense layer, and faster than all that lose less; the fastest last."""
    kept: list[OptionProfile] = []
    for option in sorted(filter(_saves, options), key=lambda option: (values.of(option), option.latency)):
        if not kept or option.latency < kept[-1].latency:
            kept.append(option)
    return kept


def _saves(option: OptionProfile) -> bool:
    return option.latency < -CERTAIN * option.latency_deviation


def _draw_legend(figure: "Figure", colors: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    def mark(label: str, color: str, **given: Any) -> Line2D:
        return Line2D([], [], linestyle="", marker="o", label=label, markersize=6, color=color, **given)

    marks = [mark(method, color) for method, color in colors.items()]
    marks += [
        mark("loss interpolated", GREY, markerfacecolor="white"),
        Line2D(
            [],
            [],
            color=FRONT,
            linewidth=1,
            marker="o",
            markersize=6,
            markerfacecolor=GREY,
            markeredgecolor=GREY,
            label="nothing beats it",
        ),
        Line2D([], [], color=GREY, linewidth=0.8, linestyle=":", label="all of the layer's time"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9)


def _tidy(axes: "Axes") -> None:
    axes.grid(visible=True, color="#e4e6ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
