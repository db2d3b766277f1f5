import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ranksearch.calibrate import fisher_loss, gather_metrics, reestimate_batchnorm
from ranksearch.compress import compress
from ranksearch.inputs import forward
from ranksearch.layers import evaluating
from ranksearch.profiling import losses as module
from ranksearch.profiling.errors import option_errors
from ranksearch.profiling.losses import interpolated, measure_losses
from ranksearch.profiling.replay import Replay
from ranksearch.records import DENSE, LayerChoice
from tests.profiling.conftest import NETS, bench_of, records_of


def outputs_with_batch_statistics(net, batch):
    """The oracle's pass: the whole net, BatchNorm training, everything else in eval mode; numpy from here on."""
    net = copy.deepcopy(net)
    with evaluating(net):
        for norm in net.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                norm.train()
        return forward(net, batch).double().numpy()


def kl(dense, other):
    def log_softmax(logits):
        shifted = logits - logits.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    p, q = log_softmax(dense), log_softmax(other)
    return float((np.exp(p) * (p - q)).sum(1).mean())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("num_batches", [1, 2])
def test_losses_are_those_of_whole_passes_through_the_compressed_net(net, num_batches, monkeypatch):
    bench = bench_of(net)
    layers = records_of(bench)
    if num_batches == 2:
        monkeypatch.setattr(module, "activation_bytes", lambda *_: module.MAX_BYTES / 24)
    found = measure_losses(bench, layers, option_errors(bench, layers), examples=48)
    batches = [bench.task.calibration.batch(part)[0] for part in np.split(np.arange(48), num_batches)]
    dense = [outputs_with_batch_statistics(bench.dense, batch) for batch in batches]
    searched = [layer for layer in layers if layer.options]
    assert len(searched) >= 4
    assert list(found) == [(layer.name, option.choice) for layer in searched for option in layer.options]
    for (layer, choice), loss in found.items():
        small = compress(bench.dense, {layer: choice}, layers=bench.layers)
        others = [outputs_with_batch_statistics(small, batch) for batch in batches]
        expected = np.mean([kl(d, o) for d, o in zip(dense, others, strict=True)])
        assert loss.is_measured
        assert loss.value == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_losses_come_near_those_after_reestimation_in_eval_mode():
    bench = bench_of("residual")
    layers = [layer for layer in records_of(bench) if layer.name == "conv2"]
    found = measure_losses(bench, layers, option_errors(bench, layers), examples=48)
    batch, _ = bench.task.calibration.batch(range(48))

    def outputs(choice):
        net = compress(bench.dense, {"conv2": choice}, layers=bench.layers)
        reestimate_batchnorm(net, [batch])
        with torch.no_grad():
            return net(batch).double().numpy()

    for (_, choice), loss in found.items():
        assert loss.value == pytest.approx(kl(outputs(DENSE), outputs(choice)), rel=0.05, abs=1e-6)


def test_metrics_decide_the_factors():
    bench = bench_of("residual")
    layers = [layer for layer in records_of(bench) if layer.name == "conv2"]
    batch = bench.task.calibration.batch(range(48))
    metrics = gather_metrics(bench.dense, bench.layers, [batch], fisher_loss(bench.task))
    found = measure_losses(bench, layers, option_errors(bench, layers, metrics), metrics=metrics, examples=48)
    dense = outputs_with_batch_statistics(bench.dense, batch[0])
    for (layer, choice), loss in found.items():
        small = compress(bench.dense, {layer: choice}, layers=bench.layers, metrics=metrics)
        expected = kl(dense, outputs_with_batch_statistics(small, batch[0]))
        assert loss.value == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("net", NETS)
def test_the_model_is_left_bit_for_bit_as_it_was(net):
    bench = bench_of(net)
    layers = records_of(bench, per_method=1)
    before = {name: value.clone() for name, value in bench.dense.state_dict().items()}
    modes = [(m.training, type(m), set(vars(m)), m._forward_hooks.copy()) for m in bench.dense.modules()]
    gradients = [p.requires_grad for p in bench.dense.parameters()]
    measure_losses(bench, layers, option_errors(bench, layers), examples=16)
    after = bench.dense.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [(m.training, type(m), set(vars(m)), m._forward_hooks) for m in bench.dense.modules()] == modes
    assert [p.requires_grad for p in bench.dense.parameters()] == gradients


@pytest.mark.parametrize("net", ["residual", "plain"])
def test_what_comes_before_the_layer_does_not_run_again(net):
    bench = bench_of(net)
    layers = [layer.name for layer in records_of(bench) if layer.options]
    replay = Replay(bench.dense, layers, bench.task.calibration.batch(range(16))[0])
    ran: list[str] = []
    for name, part in replay._twin.named_modules():
        part.forward = _noting(part.forward, name, ran)
    for name in layers:
        replay.reach(name)
        for _ in range(2):  # the second finds what the first did, whatever was written into
            ran.clear()
            same = replay.replaced(replay._twin.get_submodule(name))
            assert torch.equal(same, replay.outputs)
            assert [layer for layer in layers if layer in ran] == layers[layers.index(name) :]


def _noting(visit, name, ran):
    """The forward that a replay calls, its inner one noted where that really runs."""
    module, own = visit.args

    def noted(*args, **kwargs):
        ran.append(name)
        return own(*args, **kwargs)

    return partial(visit.func, module, noted)


def test_a_net_that_takes_its_turns_by_chance_is_computed_in_full():
    class Fickle(nn.Module):
        """Its first part returns something else each time it is reached in another way."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
            self.side = nn.Identity()

        def forward(self, x):
            y = self.a(x)
            self.side(y).mul_(2.0)  # writes into what another module returned
            return self.b(y)

    torch.manual_seed(0)
    net, x = Fickle().eval(), torch.randn(5, 4)
    replay = Replay(net, ["a", "b"], x)
    with torch.no_grad():
        expected = net(x)
    for name in ("a", "b"):
        replay.reach(name)
        assert torch.allclose(replay.replaced(replay._twin.get_submodule(name)), expected)


def choices(num):
    return [LayerChoice(method="svd", ranks=(rank,)) for rank in range(1, num + 1)]


apart = st.floats(1e-6, 1.0).map(lambda error: float(f"{error:.6g}"))  # or equal


@given(st.lists(st.tuples(apart, st.floats(1e-6, 5.0)), min_size=3, max_size=12), st.data())
def test_interpolation_goes_through_the_measured_points_and_stays_between_neighbours(points, data):
    names = choices(len(points))
    errors = {name: error for name, (error, _) in zip(names, points, strict=True)}
    known = data.draw(st.sets(st.sampled_from(names), min_size=2))
    measured = {name: loss for name, (_, loss) in zip(names, points, strict=True) if name in known}
    found = interpolated(errors, measured)
    assert {name: found[name] for name in known} == measured
    for name in set(names) - known:
        below = [k for k in known if errors[k] <= errors[name]]
        above = [k for k in known if errors[k] >= errors[name]]
        near = [max(below, key=errors.get)] if below else []
        near += [min(above, key=errors.get)] if above else []
        around = [measured[k] for k in known if any(errors[k] == errors[n] for n in near)]
        assert min(around) * (1 - 1e-9) <= found[name] <= max(around) * (1 + 1e-9)


def test_interpolation_meets_a_power_law():
    names = choices(9)
    errors = {name: 0.5**i for i, name in enumerate(names)}
    law = {name: 3 * error**1.3 for name, error in errors.items()}
    found = interpolated(errors, {name: law[name] for name in (names[0], names[4], names[8])})
    assert found == pytest.approx(law)
    assert sorted(found.values(), reverse=True) == list(found.values())


def test_short_of_time_ends_and_middle_are_measured_and_the_rest_is_marked():
    bench = bench_of("residual")
    layers = records_of(bench, per_method=6)
    errors = option_errors(bench, layers)
    found = measure_losses(bench, layers, errors, examples=48, seconds=0.0)
    for layer in layers:
        factorized = sorted((o.choice for o in layer.options[:-1]), key=lambda c: errors[layer.name, c])
        measured = [found[layer.name, choice].is_measured for choice in factorized]
        if measured:
            assert measured[0]
            assert measured[-1]
            assert sum(measured) == min(3, len(measured))
    assert all(math.isfinite(loss.value) and loss.value >= -1e-9 for loss in found.values())


def test_a_task_without_distillation_has_no_losses():
    bench = bench_of("residual")
    bench.task.distillation = None
    assert measure_losses(bench, records_of(bench), {}) == {}
