import numpy as np
import pytest

from ranksearch.calibrate import fisher_loss, gather_metrics
from ranksearch.compress import compress
from ranksearch.factorize import METHODS
from ranksearch.factorize.metric import window_of
from ranksearch.profiling.errors import option_errors
from ranksearch.records import LayerChoice
from tests.profiling.conftest import NETS, bench_of, records_of

METHODS_TRIED = ("svd", "spatial_svd", "channel_svd", "tucker2", "separable", "tt_conv", "tt_linear", "linearconv")


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("with_metrics", [False, True])
def test_errors_are_those_of_the_weights_in_the_metric(net, with_metrics):
    bench = bench_of(net)
    layers = records_of(bench, METHODS_TRIED, per_method=12)
    batch = bench.task.calibration.batch(range(48))
    metrics = gather_metrics(bench.dense, bench.layers, [batch], fisher_loss(bench.task)) if with_metrics else None
    found = option_errors(bench, layers, metrics)
    shapes = {layer.name: layer.shape for layer in bench.layers}
    assert list(found) == [(layer.name, option.choice) for layer in layers for option in layer.options]
    methods = set()
    for (layer, choice), error in found.items():
        if choice.is_dense:
            assert error == 0
            continue
        method, shape = METHODS[choice.method], shapes[layer]
        methods.add(choice.method)
        small = compress(bench.dense, {layer: choice}, layers=bench.layers, metrics=metrics).get_submodule(layer)
        dense = compress(bench.dense, {layer: full(method, shape)}, layers=bench.layers).get_submodule(layer)
        weights = [method.weight_of(m, shape).detach().double().numpy() for m in (dense, small)]
        metric = (metrics or {}).get(layer)
        window = None
        if metric is not None and metric.inputs:
            window = window_of(method, shape) if method.takes_metric else max(metric.inputs, key=np.prod)
        expected = squared(weights[0] - weights[1], shape, metric, window) / squared(weights[0], shape, metric, window)
        assert error == pytest.approx(expected, rel=2e-3, abs=1e-6)
    assert len(methods) >= 2


def full(method, shape):
    svd = METHODS["svd"] if shape.taps == 1 else METHODS["channel_svd"]
    exact = method if method.exact_at_full_rank else svd
    return LayerChoice(method=exact.name, ranks=exact.max_ranks(shape))


def squared(weight, shape, metric, window):
    """‖B^½ M A^½‖², group by group and tap by tap, by numpy."""
    outputs, _ = shape.group_channels
    weight = weight.reshape(shape.groups, outputs, -1)
    total = 0.0
    for group in range(shape.groups):
        A, B = np.eye(1), np.eye(outputs)
        if window is not None and window in metric.inputs:
            A = damped(metric.inputs[window], metric.damping)[group]
        if metric is not None and metric.outputs is not None:
            B = damped(metric.outputs, metric.damping)[group]
        for tap in np.moveaxis(weight[group].reshape(outputs, len(A), -1), 2, 0):
            total += np.trace(B @ tap @ A @ tap.T)
    return total


def damped(moment, damping):
    moment = moment.double().numpy()
    size = np.einsum("gqq->", moment) / (moment.shape[0] * moment.shape[1])
    return moment + damping * size * np.eye(moment.shape[1])
