"""Proposals: new ones only, the same for the same history; and Optuna's copy of the study."""

from dataclasses import replace

import optuna
import pytest

from ranksearch.allocate import uniform_sweep
from ranksearch.errors import ConfigError
from ranksearch.records import Plan, Proposal, TrialRecord, TrialResult, TrialSpec, TrialState, key_of
from ranksearch.space import SearchSpace
from ranksearch.study.mirror import OptunaMirror
from ranksearch.study.sampler import SAMPLERS, Sampler, make_sampler
from tests.study.conftest import Bench, pretend, study_record


def finished(study, proposal: Proposal, number: int, **changed) -> TrialRecord:
    finetune = {recipe.name: recipe.finetune for recipe in study.recipes}[proposal.recipe]
    spec = TrialSpec(study=study.key, plan=proposal.plan, seed=study.seed, finetune=finetune, measure=study.measure)
    record = TrialRecord(
        number=number,
        origin="sampler",
        spec=spec,
        recipe=proposal.recipe,
        state=TrialState.COMPLETE,
        started="",
        result=pretend(spec, study),
    )
    return replace(record, **changed)


def sampler_of(study, history=(), seed=0, name="tpe") -> Sampler:
    return make_sampler(name, SearchSpace.of(study), study.objectives, seed=seed, history=history)


def grow(study, num: int, seed=0) -> list[TrialRecord]:
    sampler, records = sampler_of(study, seed=seed), []
    for number in range(num):
        records.append(finished(study, sampler.propose(), number))
        sampler.observe(records[-1])
    return records


# eleven options squared; with recipes as many again, but for the dense model, which is not trained
@pytest.mark.parametrize(("recipes", "num"), [(("a",), 121), (("a", "b", "c"), 361)])
def test_every_proposal_is_new_even_while_others_run(recipes, num):
    study = study_record(num_layers=2, recipes=recipes)
    sampler, seen = sampler_of(study), set()
    for number in range(num):
        proposal = sampler.propose()
        assert proposal not in seen
        seen.add(proposal)
        if number % 3:
            sampler.observe(finished(study, proposal, number))
    assert sampler.propose() is None
    assert {proposal.recipe for proposal in seen} == set(recipes)
    assert sum(not proposal.plan for proposal in seen) == 1


def test_what_history_holds_is_not_proposed_again():
    study = study_record(num_layers=1)
    history = grow(study, 8)
    sampler = sampler_of(study, history)
    rest = {sampler.propose() for _ in range(3)}
    assert not {proposal.plan for proposal in rest} & {record.spec.plan for record in history}
    assert sampler.propose() is None


def test_the_same_history_and_seed_propose_the_same_and_a_longer_one_does_not():
    study = study_record(recipes=("a", "b"))
    history = grow(study, 15)
    assert sampler_of(study, history).propose() == sampler_of(study, history).propose()
    assert sampler_of(study, history).propose() != sampler_of(study, history[:-1]).propose()


def test_a_trial_that_was_trained_on_says_nothing_of_its_plan():
    study = study_record(num_layers=1)
    history = grow(study, 3)
    child = replace(history[-1], number=3, recipe=None)
    sampler = sampler_of(study, [*history, child])
    assert None not in {sampler.propose() for _ in range(8)}  # eleven options, three of them tried
    assert sampler.propose() is None


def test_an_optuna_study_of_someone_else_is_left_alone(tmp_path):
    bench = Bench(tmp_path, study_record())
    with bench.database() as database:
        database.save_study(bench.study)
        optuna.create_study(storage=bench.url, study_name="toy", directions=["minimize", "maximize"])
        theirs = optuna.load_study(storage=bench.url, study_name="toy")
        theirs.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=1)
        with pytest.raises(ConfigError, match="did not make"):
            OptunaMirror(database, bench.study)


def test_optuna_s_own_tools_read_the_study(bench):
    bench.drive(15)
    study = optuna.load_study(study_name="toy", storage=bench.url)
    best = {trial.number for trial in study.best_trials}
    with bench.database() as database:
        assert best == set(database.pareto_frame("toy").index)
    assert study.metric_names == ["latency", "accuracy"]
    plans = [Plan.from_json(trial.user_attrs["plan"]) for trial in study.get_trials()]
    with bench.database() as database:
        assert plans == [record.spec.plan for record in database.trials("toy")]


def test_optuna_sees_the_recipe_where_it_is_searched(tmp_path):
    bench = Bench(tmp_path, study_record(recipes=("plain", "distil")))
    bench.drive(30)
    trials = optuna.load_study(study_name="toy", storage=bench.url).get_trials()
    with bench.database() as database:
        records = database.trials("toy")
    assert [trial.params["@recipe"] for trial in trials] == [record.recipe for record in records]
    seeds = [record.recipe for record in records if record.origin != "sampler"]
    assert seeds == sorted(seeds, reverse=True)
    assert seeds.count("distil") == len(uniform_sweep(bench.study.layers)[2::4]) > 1
    steps = {"plain": 20, "distil": 21}
    assert all(record.spec.finetune.steps == steps[record.recipe] for record in records)


def test_a_lost_trial_is_repeated_by_its_own_recipe(tmp_path):
    bench, lost = Bench(tmp_path, study_record(recipes=("plain", "distil"))), set()

    def once_lost(spec, study):
        if spec.finetune.steps == 20 or key_of(spec) in lost:
            return pretend(spec, study)
        lost.add(key_of(spec))
        return TrialResult(key=key_of(spec), state=TrialState.FAILED, reason="the worker died", retryable=True)

    bench.drive(20, outcome=once_lost)
    with bench.database() as database:
        records = {record.number: record for record in database.trials("toy")}
    retries = [record for record in records.values() if record.retry_of is not None]
    assert len(retries) == len(lost) > 1
    assert all(record.recipe == records[record.retry_of].recipe == "distil" for record in retries)
    assert all(record.spec == records[record.retry_of].spec for record in retries)


def test_optuna_takes_a_child_whose_recipe_is_its_own(tmp_path):
    bench = Bench(tmp_path, study_record(recipes=("plain", "distil")))
    (record,) = grow(bench.study, 1)
    with bench.database() as database:
        database.save_study(bench.study)
        mirror = OptunaMirror(database, bench.study)
        mirror.catch_up([record, replace(record, number=1, recipe=None)])
        mirror.close()
    parent, child = optuna.load_study(study_name="toy", storage=bench.url).get_trials()
    assert parent.params == {**child.params, "@recipe": record.recipe}
    assert child.user_attrs["recipe"] is None
