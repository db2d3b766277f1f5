"""A profile drawn into files of every kind, and what cannot be drawn."""

import re
import sys
from dataclasses import replace

import pytest

from ranksearch.errors import ConfigError
from ranksearch.picture import SUFFIXES, _undominated, _Values, check_output, draw_profile
from ranksearch.records import DENSE, Cost, LayerChoice, OptionProfile, Profile, Staircase

LAYERS = ("features.0", "features.3", "a.very.long.name.of.a.layer", "d", "e", "classifier")
STAIRS = Staircase(shape="conv2d 8→8 3×3, on 8×8×4×4", method="svd", ranks=(8, 9, 16), latency_ms=(1.0, 2, 2.1), step=8)


def made_up(*, losses: bool = True, stairs: Staircase | None = STAIRS, useless: bool = False) -> Profile:
    def option(layer: str, rank: int, saved: float) -> OptionProfile:
        choice = LayerChoice(method="svd" if rank % 2 else "tucker2", ranks=(rank,)) if rank else DENSE
        loss = 0.2 * saved**2
        return OptionProfile(
            layer=layer, choice=choice, cost=Cost(parameters=9, macs=9), latency=0.1 if useless and rank else -saved,
            error=saved, loss=loss if losses else None, layer_ms=2 * (0.1 - saved), is_loss_measured=rank != 3,
        )  # fmt: skip

    options = [option(layer, rank, (0.02 * (5 - rank)) if rank else 0.0) for layer in LAYERS for rank in (1, 2, 3, 0)]
    identity = {"device": "cpu", "device_model": "a CPU (avx2)", "backend": "eager", "batch_size": "8", "threads": "1"}
    return Profile(identity=identity, dense_ms=2.0, options=tuple(options), staircase=stairs)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file(tmp_path, suffix):
    output = tmp_path / f"profile{suffix}"
    draw_profile(made_up(), output, title="net <1>")
    drawn = output.read_bytes()
    beginning = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".html": b"<!doctype html>"}[suffix]
    assert drawn.startswith(beginning)
    if suffix == ".html":
        assert b"<title>net &lt;1></title>" in drawn
        assert b"<?xml" not in drawn


def words_in(path) -> str:
    """Text is drawn as shapes; matplotlib leaves what it said in a comment."""
    return " ".join(re.findall("<!-- (.*?) -->", path.read_text()))


def test_it_says_what_it_shows(tmp_path):
    draw_profile(made_up(), tmp_path / "profile.svg", title="net")
    words = words_in(tmp_path / "profile.svg")
    for layer in LAYERS:
        assert f"{layer}, 10.0 % of the time" in words
    for said in ("svd", "tucker2", "steps of 8 ranks", "summed loss (nats)", "a CPU, eager, batch 8, 1 thread", "2 ms"):
        assert said in words


@pytest.mark.parametrize("given", [{"losses": False}, {"stairs": None}, {"useless": True}], ids=str)
def test_what_is_not_known_is_left_out(tmp_path, given):
    draw_profile(made_up(**given), tmp_path / "profile.svg", title="net")
    words = words_in(tmp_path / "profile.svg")
    assert ("error of the weight" in words) == ("losses" in given)
    assert ("ranks" in words) == ("stairs" not in given)


def test_what_nothing_beats_saves_certainly_and_more_than_all_that_lose_less():
    small = [option for option in made_up().options if option.layer == "d" and not option.choice.is_dense]
    fast, middle, slow = small  # the faster, the more it loses
    values = _Values(made_up())
    assert _undominated(small, values) == [slow, middle, fast]
    assert _undominated([fast, middle, replace(slow, loss=0.9)], values) == [middle, fast]
    assert _undominated([fast, middle, replace(slow, latency_deviation=0.03)], values) == [middle, fast]


def test_what_cannot_be_drawn_is_said_before_any_work(tmp_path, monkeypatch):
    check_output(tmp_path / "profile.png")
    with pytest.raises(ConfigError, match=r"output is 'profile.gif'; a picture is one of .png, .svg, .pdf, .html"):
        check_output((tmp_path / "profile.gif").relative_to(tmp_path))
    with pytest.raises(ConfigError, match="there is no folder"):
        check_output(tmp_path / "none" / "profile.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"run: pip install 'ranksearch\[plot\]'"):
        check_output(tmp_path / "profile.png")
