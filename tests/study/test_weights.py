"""Which weights stay, and which trials' weights are passed on: read from the files alone."""

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ranksearch.cli import main
from ranksearch.evaluate import evaluate
from ranksearch.outbox import Outbox
from ranksearch.records import MeasureConfig, Plan, TrialState, key_of
from ranksearch.space import load_space
from ranksearch.study.search import SearchConfig, run_search
from ranksearch.study.source import LOST_WITH_DRIVER
from ranksearch.study.study import files_folder
from ranksearch.study.weights import WeightStore
from tests.study.conftest import pretend
from tests.study.test_source import check
from tests.toy import toy_task

BUDGET = 40


def kept(outbox: Outbox) -> set[str]:
    return {path.stem for path in outbox.directory.glob("*.safetensors")}


# --- the limit -------------------------------------------------------------------------------------------------------

KEYS = "abcdef"


@given(
    sizes=st.dictionaries(st.sampled_from(KEYS), st.integers(1, 100)),
    must=st.sets(st.sampled_from(KEYS)),
    may=st.permutations(KEYS),
    spare=st.sets(st.sampled_from(KEYS)),
    limit=st.integers(0, 300),
)
def test_no_more_is_kept_than_the_limit_allows_but_for_what_must_stay(tmp_path_factory, sizes, must, may, spare, limit):
    outbox = Outbox(tmp_path_factory.mktemp("weights"))
    for key, size in sizes.items():
        (outbox.directory / f"{key}.safetensors").write_bytes(b"x" * size)
    total = outbox.keep_weights(must, may, spare, limit)
    left = kept(outbox)
    assert must & set(sizes) <= left
    assert spare & set(sizes) <= left
    assert total >= sum(sizes[key] for key in left - spare)
    assert total <= max(limit, sum(sizes[key] for key in must & set(sizes)))
    for key in set(sizes) - left:  # dropped, since it would not have fitted beside what comes before it
        before = {other for other in [*must, *may[: may.index(key)]] if other in left}
        assert sum(sizes[other] for other in before) + sizes[key] > limit


# --- in a search -----------------------------------------------------------------------------------------------------


@pytest.fixture
def heirs(bench):
    """Trials that inherit; each leaves its weights as a worker would."""
    (recipe,) = bench.study.recipes
    finetune = replace(recipe.finetune, inherit=True)
    bench.study = replace(bench.study, recipes=(replace(recipe, finetune=finetune),))
    return bench


def leaving(bench):
    def outcome(spec, study):
        bench.outbox.put_weights(key_of(spec), nn.Linear(100, 10))
        return pretend(spec, study)

    return outcome


def records(bench):
    with bench.database() as database:
        return database.trials("toy")


def front(bench):
    with bench.database() as database:
        return list(database.pareto_frame("toy").index)


SIZE = 4 * (100 * 10 + 10) + 200  # bytes of such a file, at most


@pytest.mark.parametrize("room", [30, 3])
def test_the_front_is_kept_and_then_the_newest_that_fit(heirs, room, caplog):
    heirs.weights_limit_bytes = room * SIZE
    with caplog.at_level(logging.WARNING):
        heirs.drive(BUDGET, outcome=leaving(heirs))
    by_key = {key_of(record.spec): record.number for record in records(heirs)}
    numbers = {by_key[key] for key in kept(heirs.outbox)}
    of_front = set(front(heirs))
    assert of_front <= numbers
    if room == 3:
        assert numbers == of_front
        assert caplog.text.count("--weights-limit-mb") == 1
    else:
        rest = [number for number in range(BUDGET) if number not in of_front]
        assert numbers - of_front == set(rest[len(rest) - (len(numbers) - len(of_front)) :])
        assert 30 <= len(numbers) <= 32


def test_where_nothing_inherits_the_front_alone_is_kept(bench):
    bench.drive(BUDGET, outcome=leaving(bench))
    assert kept(bench.outbox) == {key_of(records(bench)[number].spec) for number in front(bench)}
    assert {record.spec.parent for record in records(bench)} == {None}


def test_proposals_inherit_from_a_trial_that_has_its_weights(heirs):
    heirs.drive(BUDGET, outcome=leaving(heirs))
    check(heirs, BUDGET)
    rows = records(heirs)
    by_key = {key_of(record.spec): record for record in rows}
    children = [record for record in rows if record.spec.parent]
    assert children
    for child in children:
        parent = by_key[child.spec.parent]
        assert child.origin == "sampler"
        assert parent.number < child.number
        assert any(parent.spec.plan.get(layer) == choice for layer, choice in child.spec.plan.items())
    with heirs.database() as database:
        assert database.lineage("toy", children[-1].number)[0].parent is None
        frame = database.trials_frame("toy")
    assert [frame.parent[child.number] for child in children] == [by_key[c.spec.parent].number for c in children]


def test_nobody_inherits_where_no_weights_are(heirs):
    heirs.drive(BUDGET)
    assert {record.spec.parent for record in records(heirs)} == {None}


def test_a_lost_child_is_repeated_with_its_parent_whatever_the_front_is_by_then(heirs):
    heirs.drive(BUDGET, outcome=leaving(heirs))
    budget, job = BUDGET, None
    while job is None or job.spec.parent is None:
        budget += 1
        with heirs.database() as database:
            job = heirs.source(database, budget).suggest()
        if job.spec.parent is None:
            heirs.drive(budget, outcome=leaving(heirs))
    heirs.outbox.keep_weights(set())
    with heirs.database() as database:
        again = heirs.source(database, budget).suggest()
    assert again.spec == job.spec
    assert [key_of(spec) for spec in again.ancestors][-1] == job.spec.parent
    assert records(heirs)[job.number].result.reason == LOST_WITH_DRIVER


def test_the_parent_is_the_nearest_then_the_most_accurate_then_the_newest(heirs):
    heirs.drive(20, outcome=leaving(heirs))
    (record, *_) = [r for r in records(heirs) if len(r.spec.plan) == 4]
    (first, second, *_), layers = record.spec.plan.items(), record.spec.plan
    near, far = Plan(list(layers.items())[:3]), Plan([first])
    trials = {}
    for number, (plan, accuracy) in enumerate([(far, 0.9), (near, 0.7), (near, 0.8), (near, 0.8), (Plan(), 1.0)]):
        spec = replace(record.spec, plan=plan, seed=number)
        result = replace(record.result, score=replace(record.result.score, value=accuracy))
        trials[number] = replace(record, number=number, spec=spec, result=result, state=TrialState.COMPLETE)
        heirs.outbox.put_weights(key_of(spec), nn.Linear(1, 1))
    store = WeightStore(heirs.outbox, 2**30)
    assert store.parent_of(layers, trials, trials) == key_of(trials[3].spec)
    assert store.parent_of(layers, trials, [0, 1, 2, 4]) == key_of(trials[2].spec)
    assert store.parent_of(layers, trials, [0, 4]) == key_of(trials[0].spec)
    assert store.parent_of(layers, trials, [4]) is None
    assert store.parent_of(Plan([second]), trials, [0]) is None


def test_a_search_that_inherits_gives_models_that_can_be_made_again(tmp_path, capsys):
    config = SearchConfig(
        budget=18,
        study="toy",
        # By MACs: what is measured differs from run to run, and with it the front.
        space=load_space("default").model_copy(update={"objectives": ("macs", "accuracy")}),
        storage=f"sqlite:///{tmp_path}/ranksearch.db",
        executor="inline",
        profile_seconds=0,
        prune_below=0,
        finetune={"inherit": True, "steps": 2, "precision": "float32", "layout": "contiguous", "threads": 1},
        measure=MeasureConfig(batch_size=2, max_seconds=0.05, min_blocks=2, iterations_per_block=2),
    )
    task = toy_task()
    study = run_search(task, config)
    children = study.trials().parent.dropna()
    assert len(children)
    child = int(children.index[-1])
    files = Outbox(files_folder(config.storage, "toy"))
    weights = files.weights(key_of(study.trial(child).spec))
    files.keep_weights(set())
    model = study.load(child, task=task)
    assert evaluate(model, task.validation, task.metric) == study.trial(child).result.score
    if weights is not None:
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert main(["show", str(child), "--storage", config.storage]) == 0
    assert f"trial {children[child]}, whose model it goes on from" in capsys.readouterr().out
