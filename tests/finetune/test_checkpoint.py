"""A training that was killed goes on from its file and ends with the very same weights."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from ranksearch.compress import compress
from ranksearch.errors import ConfigError
from ranksearch.finetune import finetune, fixed_batches, loop
from ranksearch.layers import find_layers
from ranksearch.records import FinetuneConfig, LayerChoice, Plan

CPU = torch.device("cpu")
CONFIG = FinetuneConfig(steps=6, threads=1, precision="float32", layout="contiguous", schedule="cosine", batch_size=16)
PLAN = Plan(
    {"conv1": LayerChoice(method="spatial_svd", ranks=(8,)), "conv2": LayerChoice(method="tt_conv", ranks=(4, 8, 4))}
)


@pytest.fixture(autouse=True)
def saved_after_every_step(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)


class Killed(BaseException):
    pass


def until(batches, step: int):
    """Batches, and the end at a step."""
    for number, batch in enumerate(batches):
        if number == step:
            raise Killed
        yield batch


class Training:
    """A training that can be started again and again, always from the same model."""

    def __init__(self, task, config: FinetuneConfig, file=None, dropout: float = 0.0) -> None:
        self.task, self.config, self.file = task, config, file
        small = compress(task.model, PLAN)
        small.conv1 = nn.Sequential(small.conv1, nn.Dropout(dropout)) if dropout else small.conv1
        self.small, self.layers = small, find_layers(task.model, task.example_input)

    def run(self, kill_at: int | None = None, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = copy.deepcopy(self.small)
        batches = fixed_batches(self.task, self.task.model, self.config, 3, CPU)
        batches = batches if kill_at is None else until(batches, kill_at)
        finetune(
            model, batches, self.task, self.config, CPU,
            plan=PLAN, layers=self.layers, checkpoint=self.file,
        )  # fmt: skip
        return model


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for (name, ours), theirs in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"optimizer": "adamw", "learning_rate": 1e-3, "ema": 0.5},
        {"atcd": "project", "atcd_period": 2, "ema": 0.5},
    ],
    ids=["sgd", "adamw and average", "projected"],
)
@pytest.mark.parametrize("steps", [(1,), (2, 5)])
def test_killed_at_a_step_it_ends_as_if_it_had_not_been(task, tmp_path, how, steps):
    config = replace(CONFIG, **how)
    expected = Training(task, config).run()
    killed = Training(task, config, tmp_path / "training")
    for step in steps:
        with pytest.raises(Killed):
            killed.run(kill_at=step)
    assert_same(killed.run(), expected)


def test_what_dropout_draws_goes_on_too(task, tmp_path):
    expected = Training(task, CONFIG, dropout=0.5).run()
    killed = Training(task, CONFIG, tmp_path / "training", dropout=0.5)
    with pytest.raises(Killed):
        killed.run(kill_at=3)
    assert_same(killed.run(seed=1), expected)


def test_a_finished_one_is_not_trained_again(task, tmp_path):
    training = Training(task, CONFIG, tmp_path / "training")
    assert_same(training.run(), training.run())


def test_batches_before_the_checkpoint_cost_no_teacher(task, tmp_path):
    training = Training(task, CONFIG, tmp_path / "training")
    with pytest.raises(Killed):
        training.run(kill_at=4)
    calls = []
    with_hook = copy.deepcopy(task)
    with_hook.model.register_forward_hook(lambda *_: calls.append(1))
    training.task = with_hook
    training.run()
    assert len(calls) == 2


@pytest.mark.parametrize("size", [0, 5, 999])
def test_a_damaged_file_is_refused_with_what_to_do(task, tmp_path, size):
    training = Training(task, CONFIG, tmp_path / "training")
    training.run()
    training.file.write_bytes(training.file.read_bytes()[:size])
    with pytest.raises(ConfigError, match="delete it"):
        training.run()


def test_a_file_of_another_training_is_refused(task, tmp_path):
    Training(task, CONFIG, tmp_path / "training").run()
    with pytest.raises(ConfigError, match="another training"):
        Training(task, replace(CONFIG, learning_rate=0.5), tmp_path / "training").run()


def test_a_half_written_file_is_not_read(task, tmp_path):
    training = Training(task, CONFIG, tmp_path / "training")
    (tmp_path / "training.tmp").write_bytes(b"half")
    assert_same(training.run(), Training(task, CONFIG).run())
