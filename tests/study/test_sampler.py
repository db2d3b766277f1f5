"""Proposals: new ones only, the same for the same history; and Optuna's copy of the study."""

import optuna
import pytest

from ranksearch.errors import ConfigError
from ranksearch.records import Plan, TrialRecord, TrialSpec, TrialState
from ranksearch.space import SearchSpace
from ranksearch.study.mirror import OptunaMirror
from ranksearch.study.sampler import TPESampler
from tests.study.conftest import Bench, pretend, study_record


def finished(study, plan: Plan, number: int) -> TrialRecord:
    spec = TrialSpec(study=study.key, plan=plan, seed=study.seed, finetune=study.finetune, measure=study.measure)
    return TrialRecord(
        number=number, origin="sampler", spec=spec, state=TrialState.COMPLETE, started="", result=pretend(spec, study)
    )


def sampler_of(study, history=(), seed=0) -> TPESampler:
    return TPESampler(SearchSpace(study.layers), study.objectives, seed, list(history))


def grow(study, num: int, seed=0) -> list[TrialRecord]:
    sampler, records = sampler_of(study, seed=seed), []
    for number in range(num):
        records.append(finished(study, sampler.propose(), number))
        sampler.observe(records[-1])
    return records


def test_every_proposal_is_new_even_while_others_run():
    study = study_record(num_layers=2)
    sampler, seen = sampler_of(study), set()
    for number in range(121):  # the whole space: eleven options squared
        plan = sampler.propose()
        assert plan not in seen
        seen.add(plan)
        if number % 3:
            sampler.observe(finished(study, plan, number))
    assert sampler.propose() is None


def test_what_history_holds_is_not_proposed_again():
    study = study_record(num_layers=1)
    history = grow(study, 8)
    sampler = sampler_of(study, history)
    rest = {sampler.propose() for _ in range(3)}
    assert not rest & {record.spec.plan for record in history}
    assert sampler.propose() is None


def test_the_same_history_and_seed_propose_the_same_and_a_longer_one_does_not():
    study = study_record()
    history = grow(study, 15)
    assert sampler_of(study, history).propose() == sampler_of(study, history).propose()
    assert sampler_of(study, history).propose() != sampler_of(study, history[:-1]).propose()


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
