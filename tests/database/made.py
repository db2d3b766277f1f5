"""Made-up records: hypothesis strategies for all that a record may hold, and plain ones for tests of something else."""

import random
from dataclasses import replace

from hypothesis import strategies as st

from ranksearch.records import (
    DENSE,
    OBJECTIVES,
    Cost,
    Environment,
    FinetuneConfig,
    LayerChoice,
    LayerLatency,
    LayerRecord,
    MeasureConfig,
    Measurement,
    Option,
    OptionProfile,
    Plan,
    Profile,
    Recipe,
    Samples,
    Score,
    SeedPlan,
    Staircase,
    StudyRecord,
    Timings,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
)

FINISHED = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAILED]

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(characters, max_size=30)
names = st.text(characters, min_size=1, max_size=30)
words = st.sampled_from(["svd", "spatial_svd", "tucker2", "cp"])
counts = st.integers(0, 2**62)
numbers = st.floats(allow_nan=False, allow_infinity=False)
positives = st.floats(min_value=1e-300, max_value=1e300)
times = st.datetimes().map(lambda moment: moment.isoformat() + "+00:00")
scores = st.builds(Score, value=numbers, low=numbers, high=numbers, num_examples=counts)
costs = st.builds(Cost, parameters=counts, macs=counts)
choices = st.builds(LayerChoice, method=words, ranks=st.lists(st.integers(1, 4096), max_size=3).map(tuple))
environments = st.builds(
    Environment,
    device=texts,
    device_model=texts,
    host=texts,
    python=texts,
    torch=texts,
    ranksearch=texts,
    cores=st.integers(1, 512),
    driver=st.none() | texts,
)
finetunes = st.builds(
    FinetuneConfig, steps=st.integers(0, 10**6), learning_rate=positives, distillation=st.floats(0, 1)
)
measures = st.builds(MeasureConfig, threads=st.integers(1, 64), half_width=positives, max_seconds=positives)
dictionaries = st.dictionaries(texts, texts, max_size=4)


@st.composite
def samples(draw, num_blocks):
    """As the timer gives them, but for the rounding that packing them does."""
    size = 2 * draw(st.integers(1, 4))
    times = st.floats(min_value=2**-60, max_value=2**60, width=32)
    arm = st.lists(times, min_size=num_blocks * size, max_size=num_blocks * size)
    return Samples.of(draw(arm), draw(arm), num_blocks)


@st.composite
def measurements(draw):
    low, ratio, high = sorted(draw(st.tuples(positives, positives, positives)))
    num_blocks = draw(st.integers(2, 20))
    return Measurement(
        protocol=draw(st.integers(0, 9)),
        identity=draw(dictionaries),
        conditions=draw(st.dictionaries(texts, st.none() | texts | numbers, max_size=4)),
        batch_size=draw(st.integers(1, 1024)),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        dense_p50_ms=draw(numbers),
        p50_ms=draw(numbers),
        p90_ms=draw(st.none() | numbers),
        p95_ms=draw(st.none() | numbers),
        p99_ms=draw(st.none() | numbers),
        num_blocks=num_blocks,
        num_samples=draw(st.integers(0, 10**6)),
        num_dropped_blocks=draw(st.integers(0, 10**6)),
        warmup_seconds=draw(numbers),
        seconds=draw(numbers),
        flags=tuple(draw(st.lists(st.sampled_from(["noisy", "contended", "unstable"]), unique=True))),
        samples=draw(st.none() | samples(num_blocks)),
    )


@st.composite
def layers(draw, name):
    found = draw(st.lists(choices, unique=True, max_size=4))
    options = [Option(choice=choice, cost=draw(costs)) for choice in [*found, DENSE]]
    return LayerRecord(
        name=name,
        kind=draw(texts),
        shape=draw(texts),
        cost=draw(costs),
        skipped=draw(st.none() | texts),
        options=tuple(options) if found else (),
    )


def plans(layer_names):
    return st.dictionaries(st.sampled_from(layer_names), choices | st.just(DENSE), max_size=5).map(Plan)


above_minus_one = st.floats(-1, 1e6, exclude_min=True)
staircases = st.builds(
    lambda shape, method, stairs, step: Staircase(
        shape=shape, method=method, ranks=tuple(stairs), latency_ms=tuple(stairs.values()), step=step
    ),
    texts,
    words,
    st.dictionaries(st.integers(1, 64), positives, max_size=4),
    st.integers(1, 64),
)
timings = st.builds(
    Timings,
    identity=dictionaries,
    staircase=st.none() | staircases,
    layers=st.lists(
        st.builds(
            LayerLatency,
            shape=names,
            choice=choices,
            latency_ms=positives,
            dense_ms=positives,
            ratio_deviation=positives,
        ),
        max_size=6,
        unique_by=lambda found: (found.shape, found.choice),
    ).map(tuple),
)
profiles = st.builds(
    Profile,
    shapes=dictionaries,
    staircase=st.none() | staircases,
    identity=dictionaries,
    dense_ms=positives,
    seconds=st.dictionaries(texts, positives, max_size=3),
    options=st.lists(
        st.builds(
            OptionProfile,
            layer=names,
            choice=choices,
            cost=costs,
            latency=above_minus_one,
            latency_deviation=positives,
            layer_ms=st.none() | positives,
            is_latency_measured=st.booleans(),
            error=positives,
            loss=st.none() | numbers,
            is_loss_measured=st.booleans(),
        ),
        max_size=4,
    ).map(tuple),
)


@st.composite
def studies(draw, name):
    layer_names = draw(st.lists(names, unique=True, min_size=1, max_size=4))
    return StudyRecord(
        name=name,
        created=draw(times),
        fingerprint=draw(dictionaries),
        objectives=tuple(draw(st.lists(st.sampled_from([*OBJECTIVES]), unique=True, min_size=1))),
        layers=tuple(draw(layers(layer_name)) for layer_name in layer_names),
        seeds=tuple(
            SeedPlan(origin=origin, plan=draw(plans(layer_names))) for origin in draw(st.lists(names, max_size=3))
        ),
        recipes=tuple(
            Recipe(name=recipe, finetune=draw(finetunes))
            for recipe in draw(st.lists(names.filter(bool), unique=True, min_size=1, max_size=3))
        ),
        measure=draw(measures),
        seed=draw(counts),
        environment=draw(environments),
        settings=draw(dictionaries),
        profile=draw(st.none() | profiles),
    )


@st.composite
def results(draw, spec):
    return TrialResult(
        key=key_of(spec),
        state=draw(st.sampled_from(FINISHED)),
        reason=draw(st.none() | texts),
        details=draw(st.none() | texts),
        score=draw(st.none() | scores),
        oneshot=draw(st.none() | scores),
        rungs=draw(st.dictionaries(st.sampled_from(["1/4", "1/2"]), scores)),
        expected=draw(st.none() | scores),
        measurement=draw(st.none() | measurements()),
        parameters=draw(st.none() | counts),
        macs=draw(st.none() | counts),
        bytes=draw(st.none() | counts),
        peak_memory_bytes=draw(st.none() | counts),
        seconds=draw(st.dictionaries(names, numbers, max_size=4)),
        environment=draw(st.none() | environments),
        retryable=draw(st.booleans()),
    )


@st.composite
def trials(draw, study, number):
    """A trial as it starts, and as it stands once it is finished (or the same, if it never is)."""
    plan = draw(plans([layer.name for layer in study.layers]))
    seed = draw(counts)
    recipe = draw(st.sampled_from(study.recipes))
    spec = TrialSpec(study=study.key, plan=plan, seed=seed, finetune=recipe.finetune, measure=study.measure)
    is_child = draw(st.booleans())
    if is_child:
        spec = replace(spec, finetune=draw(finetunes), parent=key_of(spec))
    retry_of = draw(st.none() | st.integers(0, number - 1)) if number else None
    started = TrialRecord(
        number=number,
        origin=draw(texts),
        spec=spec,
        recipe=None if is_child else recipe.name,
        attempt=number if retry_of is not None else 0,
        retry_of=retry_of,
        started=draw(times),
    )
    result = draw(st.none() | results(spec))
    if result is None:
        return started, started
    return started, replace(started, state=result.state, finished=draw(times), result=result)


# plain ones

COST = Cost(parameters=100, macs=1000)
ENVIRONMENT = Environment(
    device="cpu", device_model="a CPU", host="here", python="3", torch="2", ranksearch="0", cores=2
)


def make_study(name="study", objectives=("latency", "accuracy"), num_layers=3):
    ranks = [LayerChoice(method="svd", ranks=(rank,)) for rank in (1, 2, 4, 8)]
    options = tuple(Option(choice=choice, cost=COST) for choice in [*ranks, DENSE])
    return StudyRecord(
        name=name,
        created="2026-01-01T00:00:00+00:00",
        fingerprint={"model": "net", "data": "digits"} | {f"latency {part}": of for part, of in IDENTITY.items()},
        objectives=tuple(objectives),
        layers=tuple(
            LayerRecord(name=f"layer{i}", kind="Conv2d", shape="3→3", cost=COST, options=options)
            for i in range(num_layers)
        ),
        seeds=(SeedPlan(origin="dense", plan=Plan()),),
        recipes=(Recipe(name="default", finetune=FinetuneConfig()),),
        measure=MeasureConfig(),
        seed=0,
        environment=ENVIRONMENT,
        settings={"model": "module:net"},
    )


def make_trial(study, number, plan=None, *, origin="sampler", attempt=0, retry_of=None):
    plan = Plan() if plan is None else plan
    recipe = study.recipes[0]
    spec = TrialSpec(study=study.key, plan=plan, seed=number, finetune=recipe.finetune, measure=study.measure)
    return TrialRecord(
        number=number,
        origin=origin,
        spec=spec,
        recipe=recipe.name,
        attempt=attempt,
        retry_of=retry_of,
        started=f"2026-01-01T00:00:{number % 60:02}+00:00",
    )


def make_plan(*ranks):
    return Plan({f"layer{i}": LayerChoice(method="svd", ranks=(rank,)) for i, rank in enumerate(ranks)})


IDENTITY = {"device_model": "a CPU", "threads": "1"}


def make_samples(num_blocks=10, size=10):
    """Noise of one percent around 4 and 2 ms, with a few outliers."""
    rng = random.Random(0)
    times = [rng.gauss(1, 0.01) + (rng.random() < 0.01) for _ in range(2 * num_blocks * size)]
    half = num_blocks * size
    return Samples.of([4 * t for t in times[:half]], [2 * t for t in times[half:]], num_blocks)


def make_measurement(ratio=0.5, dense_p50_ms=4.0, identity=None):
    return Measurement(
        protocol=1,
        identity=identity or IDENTITY,
        conditions={"load": 0.5, "clocks": None},
        batch_size=8,
        ratio=ratio,
        ratio_low=ratio * 0.99,
        ratio_high=ratio * 1.01,
        dense_p50_ms=dense_p50_ms,
        p50_ms=ratio * dense_p50_ms,
        p90_ms=None,
        p95_ms=None,
        p99_ms=None,
        num_blocks=10,
        num_samples=100,
        num_dropped_blocks=0,
        warmup_seconds=0.1,
        seconds=1.0,
    )


def make_score(value):
    return Score(value=value, low=value - 0.01, high=value + 0.01, num_examples=1000)


def make_result(trial, *, accuracy=0.9, ratio=0.5, dense_p50_ms=4.0, state=TrialState.COMPLETE, reason=None):
    return TrialResult(
        key=key_of(trial.spec),
        state=state,
        reason=reason,
        score=make_score(accuracy),
        measurement=make_measurement(ratio, dense_p50_ms),
        parameters=1000,
        macs=2000,
        bytes=4000,
        seconds={"compress": 0.5, "finetune": 1.0, "measure": 0.25},
        environment=ENVIRONMENT,
    )


def run_trial(database, study, trial, **result):
    """Starts and finishes a trial; gives what the database should then hold."""
    database.start_trial(study.name, trial)
    outcome = make_result(trial, **result)
    finished = "2026-01-02T00:00:00+00:00"
    database.finish_trial(study.name, trial.number, outcome, finished)
    return replace(trial, state=outcome.state, result=outcome, finished=finished)
