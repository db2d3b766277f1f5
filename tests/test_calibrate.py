"""BatchNorm re-estimation and metrics, against statistics computed by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ranksearch import calibrate
from ranksearch.calibrate import fisher_loss, gather_metrics, reestimate_batchnorm
from ranksearch.compress import compress
from ranksearch.errors import ModelError
from ranksearch.factorize import METHODS, LayerShape
from ranksearch.layers import find_layers
from ranksearch.records import LayerChoice
from tests.factorize.cases import GPU, example_for, make_layer, pairs


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.Dropout(0.5), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4)
    )


def batches(num=4, size=16):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, 9, 9, generator=generator) * (1 + i) + i for i in range(num)]


def test_statistics_are_the_average_over_the_batches(net):
    data = batches()
    reestimate_batchnorm(net, data)
    activations = [net[0](batch).detach().numpy() for batch in data]
    means = np.mean([a.mean((0, 2, 3)) for a in activations], axis=0)
    variances = np.mean([a.transpose(1, 0, 2, 3).reshape(5, -1).var(1, ddof=1) for a in activations], axis=0)
    np.testing.assert_allclose(net[1].running_mean, means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(net[1].running_var, variances, rtol=1e-5)


def test_a_later_layer_sees_what_the_batch_statistics_of_an_earlier_one_give(net):
    (batch,) = batches(1)
    reestimate_batchnorm(net, [batch])
    normalised = net[1].train()(net[0](batch))
    expected = net[3](normalised).mean((0, 2, 3))
    torch.testing.assert_close(net[4].running_mean, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_but_the_statistics_changes(net, training):
    net.train(training)
    before = copy.deepcopy(net)
    assert reestimate_batchnorm(net, batches()) == 2
    assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
    assert (net[1].momentum, net[4].momentum) == (0.3, 0.1)
    for name, value in net.state_dict().items():
        same = torch.equal(value, before.state_dict()[name])
        assert same != ("running" in name or "num_batches" in name), name


def test_it_undoes_a_change_of_scale(net):
    """Twice the weights in front of a BatchNorm must make no difference after re-estimation."""
    data = batches()
    doubled = copy.deepcopy(net)
    with torch.no_grad():
        doubled[0].weight.mul_(2)
        doubled[0].bias.mul_(2)
    for model in (net, doubled):
        reestimate_batchnorm(model, data)
        model.eval()
    torch.testing.assert_close(net(data[0]), doubled(data[0]), rtol=1e-3, atol=1e-3)


def test_a_model_without_batchnorm_is_not_run():
    def never():
        raise AssertionError("it was run")
        yield

    assert reestimate_batchnorm(nn.Linear(2, 2), never()) == 0


def test_modes_and_momenta_are_restored_after_an_error(net):
    net.train()
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(net, [torch.zeros(1, 3, 3, 3)])
    assert net.training
    assert net[1].momentum == 0.3


# --- metrics ----------------------------------------------------------------------------------------------------------

ALL = 10**9  # positions


def gram(values_GQS: torch.Tensor) -> torch.Tensor:
    return values_GQS @ values_GQS.mT


def by_group(y: torch.Tensor, shape: LayerShape) -> torch.Tensor:
    """(G, channels, samples) of what a layer of this shape gives."""
    channels = y.movedim(-1 if shape.kind == "linear" else 1, 0).flatten(1)
    return channels.unflatten(0, (shape.groups, -1))


def sum_loss(outputs, _targets):
    return outputs.square().sum() / 2


def gather(model, batches, loss=sum_loss, max_positions=ALL, **options):
    inputs = [(batch, None) for batch in batches]
    return gather_metrics(
        model, find_layers(model, batches[0][:1]), inputs, loss, max_positions=max_positions, **options
    )


def is_read_alike(method, shape):
    """Not so where the kernel is 1×1 and a first factor takes only a part of its stride."""
    stage = METHODS[method].stages(shape, METHODS[method].max_ranks(shape))[0]
    return stage.kernel_size != shape.kernel_size or (stage.stride, stage.padding) == (shape.stride, shape.padding)


READ_ALIKE = [
    (method, layer)
    for method, layer in pairs()
    if METHODS[method].takes_metric and is_read_alike(method, LayerShape.of(make_layer(layer)))
]


@pytest.mark.parametrize(("method", "layer"), READ_ALIKE)
def test_moments_are_those_of_what_the_first_factor_reads(method, layer):
    """Whatever weight it has, what leaves it has the second moment W A Wᵀ."""
    method, dense = METHODS[method], make_layer(layer)
    shape, x = LayerShape.of(dense), example_for(dense)
    metric = gather(dense, [x[:1], x[1:]])[""]
    first = method.stages(shape, method.max_ranks(shape))[0]
    weight = torch.randn(first.weight_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = gram(by_group(first.apply(x, weight, None), first))
    W_GRQ = weight.flatten(1).unflatten(0, (shape.groups, -1))
    torch.testing.assert_close(W_GRQ @ metric.inputs[first.kernel_size] @ W_GRQ.mT, expected)


@pytest.mark.parametrize("layer", ["1x1-stride", "1x1-padding", "groups-1x1"])
def test_only_pixels_that_a_strided_1x1_convolution_reads_count(layer):
    dense = make_layer(layer)
    shape, x = LayerShape.of(dense), example_for(dense)
    padded = functional.pad(x, [n for n in reversed(dense.padding) for _ in range(2)])
    read = padded[:, :, :: dense.stride[0], :: dense.stride[1]]
    torch.testing.assert_close(gather(dense, [x])[""].inputs, {(1, 1): gram(by_group(read, shape))})


def test_moments_of_a_convolution_are_those_of_its_unfolded_input():
    dense = make_layer("dilation-stride")
    x = example_for(dense)
    columns = functional.unfold(x, dense.kernel_size, dense.dilation, dense.padding, dense.stride)
    torch.testing.assert_close(gather(dense, [x])[""].inputs[3, 3], gram(columns.transpose(0, 1).flatten(1)[None]))


@pytest.mark.parametrize("layer", ["groups-all", "1d-all", "up-all", "linear", "depthwise", "same"])
def test_covariance_is_that_of_the_gradients_at_the_output(layer):
    dense = make_layer(layer)
    shape, x = LayerShape.of(dense), example_for(dense)
    torch.testing.assert_close(gather(dense, [x])[""].outputs, gram(by_group(dense(x).detach(), shape)))


class Tangled(nn.Module):
    """Layers called twice, written over, reached by no gradient, frozen, in groups; dropout and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.aside = nn.Conv2d(4, 3, 1)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 5))
        self.head[1].weight.requires_grad_(False)

    def forward(self, x):
        x = self.relu(self.twice(x))
        with torch.no_grad():
            self.aside(x)
        x = self.relu(self.norm(self.twice(x[..., ::2])))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def tangled():
    torch.manual_seed(0)
    net = Tangled().double()
    net(torch.randn(8, 4, 6, 6, dtype=torch.float64))  # statistics of its own
    return net.train()


def tangled_batches(num=3):
    return list(torch.randn(num, 5, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def test_calls_add_up_and_what_is_written_over_is_seen_before(tangled):
    found = gather(tangled, tangled_batches())
    assert set(found) == {"twice", "aside", "head.1"}
    net = copy.deepcopy(tangled).eval()
    inputs, gradients = 0.0, 0.0
    for x in tangled_batches():
        once = net.twice(x).detach().requires_grad_()
        halved = once.relu()[..., ::2]
        again = net.twice(halved)
        loss = net.head(net.norm(again).relu().mean((2, 3))).square().sum() / 2
        for y in torch.autograd.grad(loss, [once, again]):
            gradients = gradients + gram(by_group(y, LayerShape.of(net.twice)))
        for entered in (x, halved.detach()):
            columns = functional.unfold(entered, 3, padding=1).unflatten(1, (2, -1))
            inputs = inputs + gram(columns.permute(1, 2, 0, 3).flatten(2))
    torch.testing.assert_close(found["twice"].inputs[3, 3], inputs)
    torch.testing.assert_close(found["twice"].outputs, gradients)
    assert found["aside"].outputs is None
    assert found["aside"].inputs


def snapshot(net):
    parameters = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules()]
    return parameters, modes, hooks, copy.deepcopy(net.state_dict())


def same(before, after):
    torch.testing.assert_close(before[3], after[3], rtol=0, atol=0)
    for (trained, gradient), (still, now) in zip(before[0], after[0], strict=True):
        assert trained == still
        assert (gradient is None) == (now is None)
        assert gradient is None or torch.equal(gradient, now)
    return before[1:3] == after[1:3]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(tangled, fails):
    tangled.head[0].eval()
    tangled.aside.weight.grad = torch.ones_like(tangled.aside.weight)
    fast = torch.backends.mha.get_fastpath_enabled()
    before = snapshot(tangled)

    def loss(outputs, targets):
        if fails:
            raise RuntimeError("no such loss")
        return sum_loss(outputs, targets)

    if fails:
        with pytest.raises(ModelError, match="fails on calibration data: RuntimeError: no such loss"):
            gather(tangled, tangled_batches(), loss)
    else:
        with torch.no_grad():
            gather(tangled, tangled_batches(), loss)
    assert same(before, snapshot(tangled))
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.is_grad_enabled()


def test_one_pass_serves_all_layers(tangled):
    runs = []
    tangled.norm.register_forward_hook(lambda *_: runs.append(1))
    layers = find_layers(tangled, tangled_batches()[0][:1])
    runs.clear()
    gather_metrics(tangled, layers, ((x, None) for x in tangled_batches()), sum_loss)
    assert len(runs) == len(tangled_batches())


def test_positions_are_bounded_seeded_and_stand_for_all():
    dense = nn.Conv2d(3, 4, 3, bias=False)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    once, again, other = (gather(dense, [x], max_positions=4, seed=seed)[""] for seed in (0, 0, 1))
    for window, moment in once.inputs.items():
        assert torch.equal(moment, again.inputs[window])
        assert not torch.equal(moment, other.inputs[window])
        assert torch.linalg.matrix_rank(moment) <= min(2 * 4, len(moment[0]))
    assert torch.linalg.matrix_rank(once.inputs[3, 3]) == 2 * 4
    assert torch.equal(once.outputs, again.outputs)
    constant = gather(dense, [torch.ones_like(x)], max_positions=4)[""]
    torch.testing.assert_close(constant.inputs[3, 3], torch.full((1, 27, 27), 2.0 * 36))


def test_windows_are_those_of_the_methods_asked_for():
    dense = make_layer("3x5")
    names = {"svd", "spatial_svd", "channel_svd", "tucker2"}

    def windows(*methods):
        return set(gather(dense, [example_for(dense)], methods=[METHODS[m] for m in methods])[""].inputs)

    assert windows("tucker2") == {(1, 1)}
    assert windows("spatial_svd", "svd") == {(3, 1)}
    assert windows(*names) == set(gather(dense, [example_for(dense)])[""].inputs) == {(1, 1), (3, 1), (3, 5)}
    assert gather(dense, [example_for(dense)], methods=[METHODS["svd"]]) == {}


def test_a_side_that_is_too_large_is_left_out(monkeypatch):
    monkeypatch.setattr(calibrate, "LARGEST_SIDE", 27)
    dense = make_layer("3x5")
    metric = gather(dense, [example_for(dense)])[""]
    assert set(metric.inputs) == {(1, 1), (3, 1)}
    assert metric.outputs is not None
    assert gather(nn.Linear(3, 28), [torch.ones(2, 3)])[""].outputs is None
    wide = gather(nn.Linear(28, 3), [torch.ones(2, 28)])[""]
    assert not wide.inputs
    assert wide.outputs is not None
    assert gather(nn.Linear(28, 28), [torch.ones(2, 28)]) == {}


def test_what_is_not_finite_names_its_layer(tangled):
    batches = tangled_batches()
    batches[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match="layer 'twice': its inputs or gradients are NaN or infinite"):
        gather(tangled, batches)


def test_packed_attention_has_metrics_of_its_projections():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    x = torch.randn(3, 5, 8)
    found = gather(block, [x])
    assert {"self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2"} == set(found)
    torch.testing.assert_close(found["self_attn.in_proj"].inputs[()], gram(x.flatten(0, 1).mT[None]))
    assert found["self_attn.in_proj"].outputs.shape == (1, 24, 24)
    assert isinstance(block.self_attn, nn.MultiheadAttention)


def test_half_precision_is_summed_in_float32():
    dense = nn.Linear(3, 2).bfloat16()
    metric = gather(dense, [torch.full((512, 3), 3.0, dtype=torch.bfloat16)])[""]
    torch.testing.assert_close(metric.inputs[()], torch.full((1, 3, 3), 9.0 * 512))


def test_fisher_loss_has_the_covariance_of_labels_drawn_from_the_model(task):
    logits = torch.tensor([2.0, -1.0, 0.5, 1.0], dtype=torch.float64)
    many = logits.expand(40_000, 4).clone().requires_grad_()
    loss = fisher_loss(task, seed=3)
    (gradients,) = torch.autograd.grad(loss(many, None) * len(many), many)
    p = logits.softmax(0)
    torch.testing.assert_close(gradients.T @ gradients / len(many), p.diag() - p.outer(p), atol=0.01, rtol=0)
    torch.testing.assert_close(gradients.sum(1), torch.zeros(len(many), dtype=torch.float64))
    assert gradients.mean(0).abs().max() < 0.01
    (same_seed,) = torch.autograd.grad(fisher_loss(task, seed=3)(many, None) * len(many), many)
    assert torch.equal(gradients, same_seed)


def test_fisher_loss_of_maps_of_logits_draws_at_every_position(task):
    logits = torch.zeros(3, 4, 6, 6, requires_grad=True)
    (gradients,) = torch.autograd.grad(fisher_loss(task)(logits, None), logits)
    assert gradients.sum(1).abs().max() < 1e-6
    assert len(gradients.movedim(1, -1).flatten(0, 2).unique(dim=0)) > 4


def test_of_another_task_it_is_its_own_loss(task):
    other = copy.copy(task)
    other.loss = functional.mse_loss
    assert fisher_loss(other) is functional.mse_loss


@pytest.mark.parametrize("method", ["channel_svd", "spatial_svd", "tucker2"])
def test_one_shot_outputs_are_nearer_to_the_dense_ones(task, method):
    layers = find_layers(task.model, task.example_input)
    metrics = gather_metrics(
        task.model, layers, [task.calibration.batch(range(128))], fisher_loss(task), methods=[METHODS[method]]
    )
    ranks = (6,) * len(METHODS[method].rank_names)
    plan = {name: LayerChoice(method=method, ranks=ranks) for name in ("conv1", "conv2")}
    x, _ = task.validation.batch(range(300))

    def divergence(metrics):
        with torch.no_grad():
            logits = [m(x).log_softmax(1) for m in (compress(task.model, plan, metrics=metrics), task.model)]
        return functional.kl_div(*logits, log_target=True, reduction="batchmean").item()

    assert divergence(metrics) < 0.8 * divergence(None)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_a_model_on_a_gpu_gives_the_same_metrics(device):
    dense = make_layer("groups-all")
    x = example_for(dense)
    expected = gather(dense, [x], max_positions=5)[""]
    found = gather(dense.to(device), [x.to(device)], max_positions=5)[""]
    torch.testing.assert_close(found.outputs, expected.outputs)
    assert found.inputs.keys() == expected.inputs.keys()
    for window, moment in expected.inputs.items():
        torch.testing.assert_close(found.inputs[window], moment)
