"""Proposals: new ones only, the same for the same history; and Optuna's copy of the study."""

from dataclasses import replace

import numpy as np
import optuna
import pytest

from ranksearch.allocate import uniform_sweep
from ranksearch.errors import ConfigError
from ranksearch.records import Plan, Proposal, TrialRecord, TrialResult, TrialSpec, TrialState, key_of
from ranksearch.space import SearchSpace
from ranksearch.study.mirror import OptunaMirror, distributions, proposal_of
from ranksearch.study.sampler import SAMPLERS, OptunaSampler, Sampler, make_sampler
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


def grow(study, num: int, seed=0, name="tpe") -> list[TrialRecord]:
    sampler, records = sampler_of(study, seed=seed, name=name), []
    for number in range(num):
        records.append(finished(study, sampler.propose(), number))
        sampler.observe(records[-1])
    return records


# eleven options squared; with recipes as many again, but for the dense model, which is not trained
@pytest.mark.parametrize(("recipes", "num"), [(("a",), 121), (("a", "b", "c"), 361)])
@pytest.mark.parametrize("name", ["additive", "tpe"])
def test_every_proposal_is_new_even_while_others_run(name, recipes, num):
    study = study_record(num_layers=2, recipes=recipes)
    sampler, seen = sampler_of(study, name=name), set()
    for number in range(num):
        proposal = sampler.propose()
        assert proposal not in seen
        seen.add(proposal)
        if number % 3:
            sampler.observe(finished(study, proposal, number))
    assert sampler.propose() is None
    assert {proposal.recipe for proposal in seen} == set(recipes)
    assert sum(not proposal.plan for proposal in seen) == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_takes_up_a_history_and_exhausts_a_space(name):
    study = study_record(num_layers=1, recipes=("a", "b"))
    history = grow(study, 14)
    for state in (TrialState.FAILED, TrialState.PRUNED, TrialState.RUNNING):
        proposal = sampler_of(study, history).propose()
        history.append(finished(study, proposal, len(history), state=state, result=None))
    sampler, again = (sampler_of(study, history, name=name) for _ in range(2))
    rest = []
    for number in range(17, 21):
        rest.append(sampler.propose())
        assert rest[-1] == again.propose()
        for each in (sampler, again):
            each.observe(finished(study, rest[-1], number))
    known = {(record.spec.plan, record.recipe) for record in history}
    assert len({(p.plan, p.recipe) for p in rest} | known) == 21
    assert sampler.propose() is None


@pytest.mark.parametrize("name", ["additive", "tpe"])
def test_a_seed_that_runs_is_taken_into_account(name):
    """Its end is told to the trial that stands for it, and until then a proposal knows of it."""
    study = study_record(num_layers=2)
    seed = finished(study, Proposal(plan=study.seeds[2].plan, recipe="default"), 0)
    sampler = sampler_of(study, [replace(seed, state=TrialState.RUNNING, result=None)], name=name)
    assert isinstance(sampler, OptunaSampler)
    (trial,) = sampler._study.trials
    assert trial.state.name == "RUNNING"
    assert proposal_of(trial.params, SearchSpace.of(study)).plan == seed.spec.plan
    sampler.observe(seed)
    (trial,) = sampler._study.trials
    assert trial.values == [seed.result.value_of(objective) for objective in study.objectives]


def test_an_unknown_sampler_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"sampler is 'nsga3' \(did you mean 'nsga2'\?\); it must be one of additive,"
    ):
        sampler_of(study_record(), name="nsga3")


def test_gp_says_what_it_needs(monkeypatch):
    monkeypatch.setattr("ranksearch.study.sampler.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs scipy; pip install scipy"):
        sampler_of(study_record(), name="gp")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_speed_up_without_latency_is_refused(name):
    with pytest.raises(ConfigError, match="add latency"):
        make_sampler(name, SearchSpace.of(study_record()), ("accuracy", "macs"), seed=0, history=[], min_speedup=2.0)


def test_nsga2_breeds_from_history():
    """Its first generation is what was there before it: the seeds, which it would otherwise not look at."""
    study = study_record(num_layers=8)
    history = grow(study, 25, name="additive")
    kinds = {choice for record in history for choice in record.spec.plan.items()}
    bred = [sampler_of(study, history, seed=seed, name="nsga2").propose() for seed in range(10)]
    random = [sampler_of(study, history, seed=seed, name="random").propose() for seed in range(10)]
    shares = [np.mean([choice in kinds for p in found for choice in p.plan.items()]) for found in (bred, random)]
    assert shares[0] > shares[1] + 0.1


@pytest.mark.parametrize("in_history", [True, False])
def test_optuna_is_told_how_far_a_trial_is_beyond_its_limits(in_history):
    study = study_record()
    space, told = SearchSpace.of(study), []
    dense, trial = (finished(study, Proposal(plan=plan, recipe="default"), 0) for plan in (Plan(), study.seeds[3].plan))

    class Spy(optuna.samplers.RandomSampler):
        def sample_relative(self, study, trial, search_space):
            told[:] = [t.constraints for t in study.trials if t.state.is_finished()]
            return space.indices(study_record().seeds[3].plan)

        def infer_relative_search_space(self, study, trial):
            return distributions(space)

    limits = {"max_drop": 0.01, "min_speedup": 1.2}
    sampler = OptunaSampler(space, study.objectives, Spy(), 0, [dense, trial][: 1 + in_history], limits)
    if not in_history:
        assert sampler.propose().plan == trial.spec.plan
        sampler.observe(trial)
    sampler.propose()
    drop = dense.result.score.value - trial.result.score.value
    wanted = {"max_drop": drop - 0.01, "min_speedup": trial.result.measurement.ratio - 1 / 1.2}
    assert told[1] == pytest.approx(wanted)
    assert told[0]["max_drop"] == pytest.approx(-0.01)


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
