"""Every backend returns what the model returns, and refuses in one line what it cannot run."""

import importlib
import importlib.util
import shutil
from contextlib import contextmanager

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ranksearch.errors import ConfigError, MeasurementError
from ranksearch.factorize import METHODS
from ranksearch.inputs import forward
from ranksearch.latency import measure as measure_function
from ranksearch.latency import prepare, prepare_inputs
from ranksearch.latency.backends import BACKENDS, check
from ranksearch.latency.backends import compiled as compiled_module
from ranksearch.latency.backends import onnxruntime as onnx_module
from ranksearch.profile import describe
from ranksearch.records import FinetuneConfig, LayerChoice, MeasureConfig, Plan, Recipe, TrialSpec, TrialState
from ranksearch.threads import threads
from ranksearch.trial import run
from ranksearch.workbench import Workbench
from tests.toy import ToyNet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
QUICK = {"batch_size": 3, "half_width": 0.5, "max_seconds": 0.1, "min_blocks": 2}
RUN_ON_CPU = ["eager", "onnxruntime"]
ON_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


class Keyed(nn.Module):
    """Takes keywords, one of them never used, whole numbers and a switch; returns a nest."""

    def __init__(self):
        super().__init__()
        self.words, self.layer = nn.Embedding(10, 6), nn.Linear(6, 4)

    def forward(self, tokens, scale, unused, negative):
        x = self.layer(self.words(tokens)) * scale
        return {"found": [x.argmax(-1), -x if negative else x], "largest": (x.amax(-1) > 0, 3)}


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(4, 5)

    def forward(self, a, b):
        return self.left(a) * self.right(b)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x):
        return self.block(x)


class Pooled(nn.Module):
    """Pools 4 to 3, which an export by tracing does not know."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x):
        return F.adaptive_avg_pool2d(self.layer(x), 3)


MODELS = {
    "toy": (ToyNet, torch.randn(1, 1, 12, 12)),
    "two arguments": (Product, (torch.randn(1, 3), torch.randn(1, 4))),
    "keywords": (
        Keyed,
        {"tokens": torch.tensor([[1, 2, 3]]), "scale": torch.tensor(2.0), "unused": torch.ones(1), "negative": True},
    ),
    "attention": (Attention, torch.randn(1, 5, 16)),
    "only the newer exporter": (Pooled, torch.randn(1, 2, 4, 4)),
}


def made(name: str, config: MeasureConfig, device: torch.device = CPU):
    factory, example = MODELS[name]
    torch.manual_seed(0)
    return prepare(factory(), config, device), prepare_inputs(example, config, device)


def assert_like_the_model(backend: str, name: str, device: torch.device = CPU):
    config = MeasureConfig(backend=backend, **QUICK)
    model, inputs = made(name, config, device)
    with torch.inference_mode():
        expected = forward(model, inputs)
        call = BACKENDS[backend].prepare(model, inputs, config, device)
        for _ in range(3):
            torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-5)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", RUN_ON_CPU)
def test_a_backend_returns_what_the_model_returns(backend, name):
    assert_like_the_model(backend, name)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=ON_CUDA) for name in ("onnxruntime", "cuda-graph", "compile")]
)
def test_a_backend_returns_what_the_model_returns_on_cuda(backend, name):
    try:
        check(MeasureConfig(backend=backend), CUDA)
    except ConfigError as error:
        pytest.skip(str(error))
    assert_like_the_model(backend, name, CUDA)


@pytest.fixture
def captured_only(monkeypatch):
    """torch.compile without the seconds that inductor takes."""
    real = torch.compile

    def quick(function, *, options, **kwargs):
        return real(function, backend="eager", **kwargs)

    monkeypatch.setattr(torch, "compile", quick)


@pytest.mark.usefixtures("captured_only")
@pytest.mark.parametrize("backend", ["onnxruntime", "compile"])
@pytest.mark.parametrize("name", METHODS)
def test_factorized_layers_run(task, name, backend):
    bench, method = Workbench(task, CPU), METHODS[name]
    layers = {layer.name: layer.shape for layer in bench.layers if layer.shape and not method.refuses(layer.shape)}
    plan = Plan({layer: _half(method, shape) for layer, shape in layers.items() if layer != "stem"})
    config = MeasureConfig(backend=backend, **QUICK)
    model, inputs = prepare(bench.compress(plan), config, CPU), prepare_inputs(task.example_input + 1, config, CPU)
    with torch.inference_mode():
        call = BACKENDS[backend].prepare(model, inputs, config, CPU)
        torch.testing.assert_close(call(), model(inputs), rtol=1e-4, atol=1e-4)


def _half(method, shape) -> LayerChoice:
    return LayerChoice(method=method.name, ranks=tuple((most + 1) // 2 for most in method.max_ranks(shape)))


@pytest.mark.parametrize("name", MODELS)
def test_the_slower_exporter_is_asked_only_where_tracing_fails(monkeypatch, name):
    asked, real = [], torch.onnx.export

    def note(*args, dynamo, **kwargs):
        asked.append("newer" if dynamo else "tracing")
        return real(*args, dynamo=dynamo, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", note)
    assert_like_the_model("onnxruntime", name)
    assert asked == (["tracing", "newer"] if name == "only the newer exporter" else ["tracing"])


def test_a_session_reads_and_writes_where_the_tensors_lie():
    config = MeasureConfig(backend="onnxruntime", **QUICK)
    model, inputs = made("toy", config)
    call = BACKENDS["onnxruntime"].prepare(model, inputs, config, CPU)
    first = call().clone()
    place = call().data_ptr()
    inputs.normal_()
    assert call().data_ptr() == place
    torch.testing.assert_close(call(), model(inputs), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(call(), first)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_has_the_configs_threads(threads):
    config = MeasureConfig(backend="onnxruntime", threads=threads)
    exported = onnx_module._export(nn.Linear(3, 2).requires_grad_(False), [torch.zeros(1, 3)])
    options = onnx_module._session(exported, config, CPU, None).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


# --- compile --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not compiled_module._compiler(), reason="no C++ compiler")
def test_a_compiled_model_returns_what_the_model_returns():
    assert_like_the_model("compile", "two arguments")
    assert torch.get_num_threads() >= 1


class Scaled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(width)))

    def forward(self, x):
        return self.layers(x) * len(self.layers)


@pytest.mark.usefixtures("captured_only")
def test_any_number_of_models_can_be_compiled_beside_each_other():
    config = MeasureConfig(backend="compile", **QUICK)
    inputs = torch.randn(3, 4)
    models = [prepare(Scaled(width), config, CPU) for width in range(1, 13)]
    with torch.inference_mode():
        calls = [BACKENDS["compile"].prepare(model, inputs, config, CPU) for model in models]
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        with threads(config.threads):  # as whoever measures has; for another number torch compiles again
            for model, call in zip(models, calls, strict=True):
                torch.testing.assert_close(call(), model(inputs))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


@pytest.mark.usefixtures("captured_only")
def test_a_model_that_is_not_one_graph_is_refused():
    with pytest.raises(MeasurementError, match="backend 'compile' cannot run this model: ") as raised:
        BACKENDS["compile"].prepare(Branching(), torch.ones(3), MeasureConfig(backend="compile"), CPU)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("captured_only")
def test_a_model_is_compiled_under_its_own_number_of_threads():
    seen = []

    class Witness(nn.Module):
        @torch.compiler.assume_constant_result
        def threads(self):
            seen.append(torch.get_num_threads())
            return 1

        def forward(self, x):
            return x + self.threads()

    before = torch.get_num_threads()
    BACKENDS["compile"].prepare(Witness(), torch.ones(3), MeasureConfig(backend="compile", threads=before + 1), CPU)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


# --- what cannot work is said at the start --------------------------------------------------------------------------


def absent(package: str):
    def patch(monkeypatch):
        real = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))

    return patch


def no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "nosuch++")
    monkeypatch.setattr(shutil, "which", lambda name: None)


def no_cuda_provider(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


def cuda_provider(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])


def nothing(monkeypatch):
    pass


@pytest.mark.parametrize(
    ("config", "device", "state", "words"),
    [
        ({"backend": "cuda-graph"}, CPU, nothing, r"backend is 'cuda-graph'; it needs a GPU and the device is 'cpu'"),
        ({"backend": "compile"}, CPU, no_compiler, r"C\+\+ compiler and finds none of nosuch\+\+, g\+\+"),
        ({"backend": "compile"}, CUDA, absent("triton"), "triton, which is not installed"),
        ({"backend": "onnxruntime"}, CPU, absent("onnxruntime"), r"onnxruntime is not installed: pip install"),
        ({"backend": "onnxruntime"}, CPU, absent("onnxscript"), r"onnxscript is not installed: pip install"),
        ({"backend": "onnxruntime"}, CUDA, no_cuda_provider, "has no CUDAExecutionProvider: install onnxruntime-gpu"),
        ({"backend": "onnxruntime", "dtype": "bfloat16"}, CPU, nothing, "dtype is 'bfloat16'; .* float32 only"),
        ({"backend": "onnxruntime", "dtype": "float16"}, CPU, nothing, "dtype is 'float16'; .* float32 only"),
        ({"backend": "onnxruntime", "dtype": "bfloat16"}, CUDA, cuda_provider, "float32 or float16 only"),
        ({"backend": "onnxruntime", "layout": "channels_last"}, CPU, nothing, "layout is 'channels_last'"),
    ],
)
def test_what_is_missing_is_refused_in_one_line(monkeypatch, config, device, state, words):
    state(monkeypatch)
    with pytest.raises(ConfigError, match=words) as raised:
        check(MeasureConfig(**config), device)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "device", "state"),
    [
        ({"dtype": "bfloat16", "layout": "channels_last"}, CPU, no_compiler),
        ({"backend": "onnxruntime"}, CPU, no_compiler),
        ({"backend": "onnxruntime", "dtype": "float16"}, CUDA, cuda_provider),
        ({"backend": "cuda-graph", "dtype": "bfloat16"}, CUDA, nothing),
    ],
)
def test_what_works_is_not_refused(monkeypatch, config, device, state):
    state(monkeypatch)
    check(MeasureConfig(**config), device)


@pytest.mark.parametrize(("found", "expected"), [("g++", "g++"), ("clang++", "clang++"), ("mine++", "mine++")])
def test_the_compiler_that_is_found_is_taken(monkeypatch, found, expected):
    monkeypatch.setenv("CXX", "mine++")
    monkeypatch.setattr(shutil, "which", lambda name: name if name == found else None)
    check(MeasureConfig(backend="compile"), CPU)
    assert compiled_module._compiler() == expected


def test_a_study_is_refused_before_anything_is_probed(task, monkeypatch):
    bench = Workbench(task, CPU)
    recipe = Recipe(name="default", finetune=FinetuneConfig())
    with pytest.raises(ConfigError, match="needs a GPU"):
        describe(bench, [recipe], MeasureConfig(backend="cuda-graph"), 1)
    assert "dense" not in vars(bench)


# --- in a trial -----------------------------------------------------------------------------------------------------


def spec(**measured) -> TrialSpec:
    return TrialSpec(
        study="study",
        plan=Plan({"conv1": LayerChoice(method="spatial_svd", ranks=(4,))}),
        seed=0,
        finetune=FinetuneConfig(steps=0, precision="float32", layout="contiguous", threads=1),
        measure=MeasureConfig(**QUICK, **measured),
    )


def test_a_trial_is_measured_on_onnxruntime_with_batchnorm_folded(task):
    result = run(spec(backend="onnxruntime", fold_batchnorm=True), Workbench(task, CPU))
    assert result.state is TrialState.COMPLETE, result.details
    identity = result.measurement.identity
    assert identity["backend"] == "onnxruntime"
    assert identity["backend_version"] == onnxruntime.__version__
    assert identity["fold_batchnorm"] == "true"


def test_a_plan_that_a_backend_cannot_run_is_a_failed_trial_with_the_reason(task, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    result = run(spec(backend="onnxruntime"), Workbench(task, CPU))
    assert result.state is TrialState.FAILED
    assert result.reason == "MeasurementError: backend 'onnxruntime' cannot run this model: no such operator"
    assert result.parameters is not None


class Counting:
    """An eager backend that notes the models it is given."""

    name, version = "eager", "0"

    def __init__(self):
        self.models = []

    def prepare(self, model, inputs, config, device):
        self.models.append(model)
        return lambda: forward(model, inputs)


@pytest.fixture
def counting(monkeypatch):
    backend = Counting()
    monkeypatch.setattr(importlib.import_module("ranksearch.latency.measure"), "BACKENDS", {"eager": backend})
    return backend


def test_the_dense_model_is_brought_to_a_backend_once(counting):
    config = MeasureConfig(**QUICK)
    dense, inputs = made("toy", config)
    other, more = made("toy", config)
    candidates = [made("toy", config)[0] for _ in range(3)]
    for model, batch, candidate in [(dense, inputs, 0), (dense, inputs, 1), (dense, more, 2), (other, more, 2)]:
        measure_function(model, candidates[candidate], batch, config, device=CPU, seed=0, lock=None)
    seen = [dense, candidates[0], candidates[1], dense, candidates[2], other, candidates[2]]
    assert all(a is b for a, b in zip(counting.models, seen, strict=True))


@pytest.mark.parametrize("fold", [False, True])
def test_batchnorm_is_folded_in_both_arms_or_in_none(counting, fold):
    config = MeasureConfig(**QUICK, fold_batchnorm=fold)
    dense, inputs = made("toy", config)
    candidate, _ = made("toy", config)
    measure_function(dense, candidate, inputs, config, device=CPU, seed=0, lock=None)
    for model in counting.models:
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) is not fold
    assert any(isinstance(m, nn.BatchNorm2d) for m in dense.modules())


def test_models_are_prepared_while_others_may_train_and_timed_while_not(counting):
    order = []

    class Noting:
        def shared(self):
            return self._held("shared")

        def exclusive(self):
            return self._held("exclusive")

        @contextmanager
        def _held(self, how):
            order.append(how)
            yield
            order.append(len(counting.models))

    config = MeasureConfig(**QUICK)
    dense, inputs = made("toy", config)
    measure_function(dense, made("toy", config)[0], inputs, config, device=CPU, seed=0, lock=Noting())
    assert order == ["shared", 2, "exclusive", 2]


class Echo(nn.Module):
    def forward(self, *args, **kwargs):
        return args, kwargs


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [(1, ((1,), {})), ((1, 2), ((1, 2), {})), ({"a": 1}, ((), {"a": 1})), ([1, 2], (([1, 2],), {}))],
)
def test_inputs_become_arguments(inputs, expected):
    call = BACKENDS["eager"].prepare(Echo(), inputs, MeasureConfig(), CPU)
    assert call() == call() == expected


def test_a_config_allows_the_backends_that_exist():
    for name in BACKENDS:
        assert MeasureConfig(backend=name).backend == name == BACKENDS[name].name
    with pytest.raises(ValueError, match=f"one of {', '.join(BACKENDS)}"):
        MeasureConfig(backend="nosuch")
