"""`import ranksearch`: what it offers, and what it costs."""

import subprocess
import sys

import pytest
import torch

import ranksearch as rs
from ranksearch.records import FinetuneConfig, MeasureConfig
from tests.toy import NUM_CLASSES, pictures, trained_net


def test_every_public_name_is_there():
    assert sorted(rs.__all__) == sorted(set(rs.__all__))
    for name in rs.__all__:
        assert getattr(rs, name) is not None
    with pytest.raises(AttributeError, match="serach"):
        rs.serach  # noqa: B018


def test_every_error_is_public():
    from ranksearch import errors

    assert set(errors.__all__) <= set(rs.__all__)


def test_compress_is_the_function_whatever_has_been_imported():
    import ranksearch.compress
    import ranksearch.workbench

    assert callable(rs.compress)
    assert callable(ranksearch.compress)


def test_importing_it_imports_neither_ray_nor_optuna_nor_a_database():
    slow = ("ray", "optuna", "sqlalchemy", "pandas", "torchvision", "sklearn")
    code = f"import sys, ranksearch, ranksearch.cli; print([m for m in {slow!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert found.stderr == ""


class Told:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.told: list = []

    def on_stage(self, text: str) -> None:
        self.told.append(text)

    def on_start(self, study, trials, budget: int) -> None:
        self.told.append((study.name, budget))

    def on_trial(self, trial) -> None:
        self.told.append((trial.number, trial.state.value))


def test_search_with_a_model_in_hand(tmp_path, monkeypatch):
    monkeypatch.setattr("ranksearch.latency.protocol.MAX_WARMUP_SECONDS", 0.05)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    net = trained_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    arguments = {
        "data": (pictures(256, 1), pictures(64, 2), pictures(64, 3)),
        "budget": 3,
        "study": "mine",
        "storage": f"sqlite:///{tmp_path}/my.db",
        "executor": "inline",
        "profile_seconds": 0,
        "finetune": FinetuneConfig(steps=2, threads=1),
        "measure": MeasureConfig(max_seconds=0.05, min_blocks=2),
    }
    listener = Told()
    study = rs.search(net, **arguments, listener=listener)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    front = study.pareto()
    assert len(study.trials()) == 3
    small = study.load(front.index[0])
    assert small(pictures(5, 4)[0]).shape == (5, NUM_CLASSES)
    assert listener.told == [
        *("starting workers", "looking at the model on a worker", ("mine", 3)),
        *((n, state) for n in range(3) for state in ("running", "complete")),
        f"scoring {len({0, *front.index})} trials on the test split",
    ]
    again = rs.search(net, **arguments)
    assert again.trials().equals(study.trials())


@pytest.mark.parametrize(
    ("argument", "error"),
    [
        ({"budget": 0}, rs.ConfigError),
        ({"storage": "nothing"}, rs.ConfigError),
        ({"space": "defualt"}, rs.SpaceError),
        ({"data": None}, rs.DataError),
        ({"device": "gpu"}, rs.ConfigError),
    ],
)
def test_bad_arguments_are_usage_errors_and_write_nothing(tmp_path, monkeypatch, argument, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        rs.search(trained_net(0), **{"data": (pictures(64, 1), pictures(64, 2)), "executor": "inline"} | argument)
    assert list(tmp_path.iterdir()) == []
