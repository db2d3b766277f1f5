"""The profile of a model on a device: latencies, errors and losses of every option, within a budget of seconds.

What is known of layers of the same shape comes in as data, and what was found goes out with the profile.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter

from ranksearch import latency, memory
from ranksearch.errors import ConfigError
from ranksearch.factorize.metric import Metric
from ranksearch.profiling.errors import option_errors
from ranksearch.profiling.latencies import PROBE, Latencies, measure_latencies
from ranksearch.profiling.losses import OptionLoss, Point, measure_losses
from ranksearch.profiling.staircase import measure_staircase
from ranksearch.records import LayerRecord, MeasureConfig, OptionProfile, Profile, Timings
from ranksearch.workbench import Workbench

__all__ = ["profile_options"]

STAIRS = 0.05  # of the seconds for latencies, for the width of the steps

Progress = Callable[[str, float], None]  # phase, the part of it that is done, 0 to 1


def profile_options(
    bench: Workbench,
    layers: Sequence[LayerRecord],
    measure: MeasureConfig,
    *,
    seconds: Mapping[str, float] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    examples: int = 128,
    seed: int = 0,
    known: Timings | None = None,
    progress: Progress = lambda _phase, _done: None,
) -> Profile:
    """Every option of every layer that has options, in order.

    seconds: what "latencies" and "losses" may take, 60 and 60 unless said; errors take what decompositions take, which
    trials then find in the cache. metrics: from `gather_metrics`, for errors and for the factors whose losses are
    measured. examples: of the calibration split, for the losses. known: of layers by themselves, as found for whatever
    nets; used where its identity is that of this profile. Torch works on as many threads as it is set to, but for
    latencies, which have their own.

    Raises ConfigError for an unknown phase, ModelError where the model fails on calibration data, MeasurementError
    where the backend cannot run a layer.
    """
    budget = {"latencies": 60.0, "losses": 60.0} | dict(seconds or {})
    if unknown := sorted(budget.keys() - {"latencies", "losses"}):
        raise ConfigError(f"seconds are given for {unknown[0]!r}; give them for latencies or losses")
    config = latency.resolve(measure, bench.device)
    identity = latency.identity(config, bench.device) | {"probe": str(PROBE)}
    if known is None or dict(known.identity) != identity:
        known = Timings(identity=identity)
    taken: dict[str, float] = {}
    with _timed("staircase", taken, progress):
        stairs = known.staircase or measure_staircase(bench, layers, config, seconds=budget["latencies"] * STAIRS)
    with _timed("latencies", taken, progress) as hear:
        latencies = measure_latencies(
            bench, layers, config, seconds=budget["latencies"], seed=seed, known=known.layers, progress=hear
        )
    with _timed("errors", taken, progress), bench.lock.shared():
        errors = option_errors(bench, layers, metrics)
    with _timed("losses", taken, progress) as hear, bench.lock.shared():
        losses = measure_losses(
            bench, layers, errors, examples=examples, seconds=budget["losses"], metrics=metrics, progress=hear
        )
    return Profile(
        identity=identity,
        dense_ms=latencies.dense_ms,
        options=tuple(_options(layers, errors, latencies, losses)),
        seconds=taken,
        shapes=latencies.shapes,
        staircase=stairs,
    )


@contextmanager
def _timed(phase: str, taken: dict[str, float], progress: Progress) -> Iterator[Callable[[float], None]]:
    start = perf_counter()
    progress(phase, 0.0)
    yield lambda done: progress(phase, done)
    memory.trim()
    progress(phase, 1.0)
    taken[phase] = perf_counter() - start


def _options(
    layers: Sequence[LayerRecord],
    errors: Mapping[Point, float],
    latencies: Latencies,
    losses: Mapping[Point, OptionLoss],
) -> Iterator[OptionProfile]:
    for layer in layers:
        for option in layer.options:
            point = layer.name, option.choice
            effect, loss = latencies.effects[point], losses.get(point)
            yield OptionProfile(
                layer=layer.name,
                choice=option.choice,
                cost=option.cost,
                latency=effect.value,
                latency_deviation=effect.deviation,
                layer_ms=effect.layer_ms,
                is_latency_measured=effect.is_measured,
                error=errors[point],
                loss=loss.value if loss else None,
                is_loss_measured=loss is not None and loss.is_measured,
            )
