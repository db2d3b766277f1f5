"""FactorCache: never another answer than the decomposition's own, never computed twice, never over its bounds."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from ranksearch.errors import ModelError
from ranksearch.factorize import METHODS, FactorCache, Factors, LayerShape, Method
from ranksearch.factorize import cache as cache_module
from ranksearch.factorize.metric import Metric
from ranksearch.factorize.svd import SVD
from tests.factorize.cases import DEVICES, make_layer


class CountingSVD(SVD):
    """Writes a line to `log` for every decomposition, and takes its time."""

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log, self.seconds = log, seconds

    def decompose(self, weight: torch.Tensor, shape: LayerShape, ranks: tuple[int, ...]) -> Factors:
        with self.log.open("a") as log:
            log.write("x\n")
        time.sleep(self.seconds)
        return super().decompose(weight, shape, ranks)

    @property
    def count(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def method(tmp_path: Path) -> CountingSVD:
    return CountingSVD(tmp_path / "log")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "factors"


LINEAR = make_layer("linear", torch.float32)
SHAPE = LayerShape.of(LINEAR)


def ask(cache: FactorCache, method: Method, weight: torch.Tensor = LINEAR.weight, shape: LayerShape = SHAPE) -> Factors:
    """The cache's answer, after a look that it is the right one."""
    factors = cache.factors(method, weight, shape, (1,))
    expected = SVD().decompose(weight.detach().cpu(), shape, (1,))
    assert factors.keys() == expected.keys()
    for name, factor in factors.items():
        torch.testing.assert_close(factor.cpu(), expected[name], rtol=0, atol=0)
        assert factor.device == weight.device
        assert factor.is_contiguous()
    return factors


def entries(directory: Path) -> list[Path]:
    return sorted(p for p in directory.iterdir() if p.is_file())


@pytest.mark.parametrize("device", DEVICES)
def test_memory_is_asked_first(method, device):
    cache = FactorCache()
    weight = LINEAR.weight.to(device)
    first = ask(cache, method, weight)
    assert ask(cache, method, weight)["first"] is first["first"]
    assert method.count == 1


def test_equal_weights_share_an_entry_whatever_their_memory_format(method):
    layer = make_layer("groups-1x1", torch.float32)
    cache = FactorCache()
    ask(cache, method, layer.weight, LayerShape.of(layer))
    copied = layer.weight.detach().clone().to(memory_format=torch.channels_last)
    ask(cache, method, copied, LayerShape.of(layer))
    assert method.count == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.detach().mul_(2),
        lambda weight: weight.data.mul_(2),
        lambda weight: weight.data[0, 0].add_(1e-6),
        lambda weight: weight.detach().copy_(weight.detach().flip(0)),
    ],
    ids=["in-place", "through-data", "one-number", "reordered"],
)
def test_a_changed_weight_is_decomposed_again(method, change):
    weight = nn.Parameter(LINEAR.weight.detach().clone())
    cache = FactorCache()
    ask(cache, method, weight)
    change(weight)
    ask(cache, method, weight)
    assert method.count == 2


def test_a_weight_made_in_inference_mode_can_be_asked_for(method):
    with torch.inference_mode():
        weight = torch.randn(4, 3)
    ask(FactorCache(), method, weight, LayerShape.of(nn.Linear(3, 4)))


def test_the_same_numbers_as_another_layer_are_another_entry(method):
    cache = FactorCache()
    numbers = torch.arange(36, dtype=torch.float32).sin()
    other = [nn.Linear(6, 6), nn.Linear(9, 4), nn.Conv2d(6, 6, 1), nn.Conv2d(12, 6, 1, groups=2)]
    same = [nn.Linear(6, 6, bias=False), nn.Conv2d(6, 6, 1, stride=2, padding=1)]
    for layer in [*other, *same]:
        shape = LayerShape.of(layer, ((5, 5),))
        ask(cache, method, numbers.reshape(shape.weight_shape), shape)
    assert method.count == len(other)


def test_an_entry_is_told_by_method_dtype_and_code(directory, monkeypatch):
    weight = torch.arange(36, dtype=torch.float16).sin().reshape(6, 6, 1, 1)
    shape = LayerShape.of(nn.Conv2d(6, 6, 1))

    def num_entries(name: str, weight: torch.Tensor) -> int:
        FactorCache(directory).factors(METHODS[name], weight, shape, (1,))
        return len(entries(directory))

    assert num_entries("svd", weight) == 1
    assert num_entries("svd", weight.clone()) == 1
    assert num_entries("tucker2", weight) == 2
    assert num_entries("svd", weight.view(torch.bfloat16)) == 3
    monkeypatch.setattr(cache_module, "_code_digest", lambda: "another")
    assert num_entries("svd", weight) == 4


def metric_of(value: float) -> Metric:
    return Metric(inputs={(): value * torch.eye(13)[None] + torch.ones(1, 13, 13)})


def test_an_entry_is_told_by_the_metric_that_the_method_takes(directory, method, monkeypatch):
    cache = FactorCache(directory)
    ask(cache, method)
    (plain,) = entries(directory)
    found = [cache.factors(method, LINEAR.weight, SHAPE, (1,), metric_of(value)) for value in (1.0, 1.0, 2.0)]
    assert method.count == 3
    assert not torch.equal(found[0]["first"], found[2]["first"])
    expected = metric_of(1.0).decompose(SVD(), LINEAR.weight.detach(), SHAPE, (1,))
    for name, factor in found[1].items():
        torch.testing.assert_close(factor, expected[name], rtol=0, atol=0)
    FactorCache(directory).factors(method, LINEAR.weight, SHAPE, (1,), metric_of(2.0))
    ask(FactorCache(directory), method)
    assert method.count == 3
    monkeypatch.setattr(CountingSVD, "takes_metric", False)
    ask_plain = FactorCache(directory).factors(method, LINEAR.weight, SHAPE, (1,), metric_of(5.0))
    torch.testing.assert_close(ask_plain["first"], ask(FactorCache(directory), method)["first"])
    assert method.count == 3
    assert plain in entries(directory)


def test_the_directory_outlives_the_process(directory, method):
    ask(FactorCache(directory), method)
    ask(FactorCache(directory), method)
    assert method.count == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no safetensors at all"),
        lambda file: file.write_bytes(file.read_bytes()[:-40]),
        lambda file: file.write_bytes(file.read_bytes()[:-40] + b"\x01" + file.read_bytes()[-39:]),
        lambda file: file.unlink(),
    ],
    ids=["empty", "garbage", "cut", "one-byte", "gone"],
)
def test_a_damaged_entry_is_computed_again_and_repaired(directory, method, damage):
    ask(FactorCache(directory), method)
    (entry,) = entries(directory)
    damage(entry)
    ask(FactorCache(directory), method)
    ask(FactorCache(directory), method)
    assert method.count == 2


def weights(count: int) -> list[torch.Tensor]:
    """Ones of 13 × 7 numbers."""
    return list(torch.randn(count, *LINEAR.weight.shape, generator=torch.Generator().manual_seed(0)))


def size_of_one_entry() -> int:
    return sum(f.nbytes for f in SVD().decompose(LINEAR.weight, SHAPE, (1,)).values())


def test_memory_is_bounded_and_keeps_what_was_used_last(method):
    cache = FactorCache(max_bytes=3 * size_of_one_entry())
    a, b, c, d = weights(4)
    for weight in (a, b, c, a, d):
        ask(cache, method, weight)
        assert cache.bytes_in_memory <= 3 * size_of_one_entry()
    assert method.count == 4
    ask(cache, method, a)
    assert method.count == 4
    ask(cache, method, b)
    assert method.count == 5


def test_a_cache_of_no_bytes_keeps_nothing(method):
    cache = FactorCache(max_bytes=0)
    ask(cache, method)
    ask(cache, method)
    assert (cache.bytes_in_memory, method.count) == (0, 2)


def test_the_directory_is_bounded_and_keeps_what_was_used_last(directory, method):
    a, b, c, d = weights(4)
    ask(FactorCache(directory), method, a)
    bound = 3 * entries(directory)[0].stat().st_size

    def fresh() -> FactorCache:
        time.sleep(0.01)  # modification times must differ
        return FactorCache(directory, max_bytes=bound)

    for weight in (b, c, a, d):
        ask(fresh(), method, weight)
        assert sum(p.stat().st_size for p in entries(directory)) <= bound
    assert method.count == 4
    ask(fresh(), method, a)
    assert method.count == 4
    ask(fresh(), method, b)
    assert method.count == 5


def test_what_a_killed_process_left_is_in_no_ones_way(directory, method):
    ask(FactorCache(directory), method)
    (entry,) = entries(directory)
    entry.rename(entry.with_suffix(".tmp"))
    ask(FactorCache(directory), method)
    assert method.count == 2
    (directory / "other.tmp").write_bytes(b"x" * 10_000)
    os.utime(directory / "other.tmp", (0, 0))
    ask(FactorCache(directory, max_bytes=5_000), method, weights(1)[0])
    assert not (directory / "other.tmp").exists()


def _ask_in_a_process(directory: Path, log: Path, start: "multiprocessing.synchronize.Barrier") -> None:
    torch.set_num_threads(1)
    start.wait(60)
    ask(FactorCache(directory), CountingSVD(log, seconds=0.5))


def test_processes_that_ask_at_once_compute_once(directory, method):
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(2)
    processes = [spawn.Process(target=_ask_in_a_process, args=(directory, method.log, start)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert method.count == 1


def test_a_directory_that_cannot_be_written_is_given_up(tmp_path, method):
    (tmp_path / "file").write_text("in the way")
    cache = FactorCache(tmp_path / "file" / "factors")
    with pytest.warns(RuntimeWarning, match="kept in memory only"):
        ask(cache, method)
    ask(cache, method)  # no second warning
    ask(cache, method, weights(1)[0])
    assert method.count == 2


def test_a_disk_that_refuses_in_the_middle_is_given_up(directory, method, monkeypatch):
    def full(*_args: object, **_kwargs: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(cache_module, "save_file", full)
    with pytest.warns(RuntimeWarning, match="kept in memory only.*No space left"):
        ask(FactorCache(directory), method)
    assert entries(directory) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", METHODS)
def test_a_weight_that_is_not_finite_is_the_models_fault(name, value):
    layer = make_layer("1x1")
    with torch.no_grad():
        layer.weight[3, 2] = value
    with pytest.raises(ModelError, match="NaN or infinite"):
        FactorCache().factors(METHODS[name], layer.weight, LayerShape.of(layer), (1,))
