"""An exported trial: what is in the folder, and that the model which comes back is the one that went in."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ranksearch import bundle, latency
from ranksearch.compress import compress
from ranksearch.errors import ConfigError, ModelError, NotFoundError, StorageError
from ranksearch.factorize.rebuilt import ContractibleLayer
from ranksearch.layers import find_layers
from ranksearch.records import (
    FinetuneConfig,
    LayerChoice,
    MeasureConfig,
    Measurement,
    Plan,
    Recipe,
    Score,
    StudyRecord,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TrialState,
    key_of,
)
from ranksearch.space import SpaceConfig, layer_records
from ranksearch.tasks.example import ExampleNet
from ranksearch.tasks.models import torchvision_model
from tests.toy import NUM_CLASSES, ToyNet

SCORE = Score(value=0.9, low=0.85, high=0.93, num_examples=300)
EXAMPLE = torch.zeros(1, 1, 12, 12)


def make_study(model: nn.Module, example: torch.Tensor, name: str) -> StudyRecord:
    return StudyRecord(
        name="toy",
        created="2026-01-01T00:00:00.000+00:00",
        fingerprint={"model": "m", "metric": "accuracy"},
        objectives=("latency", "accuracy"),
        layers=layer_records(SpaceConfig(name="all", dense=()), find_layers(model, example)),
        seeds=(),
        recipes=(Recipe(name="default", finetune=FinetuneConfig()),),
        measure=MeasureConfig(batch_size=8),
        seed=3,
        environment=latency.environment(torch.device("cpu")),
        settings={"model": name, "data": "npz:/home/me/secret place/data.npz", "normalize": "dataset", "seed": "3"},
    )


def make_trial(study: StudyRecord, plan: Plan, **changed) -> TrialRecord:
    spec = TrialSpec(study=study.key, plan=plan, seed=3, finetune=study.recipes[0].finetune, measure=study.measure)
    result = TrialResult(
        key=key_of(spec),
        state=TrialState.COMPLETE,
        score=SCORE,
        measurement=MEASUREMENT,
        parameters=1234,
        macs=56789,
        environment=study.environment,
    )
    record = TrialRecord(
        number=7,
        origin="sampler",
        spec=spec,
        recipe="default",
        started="now",
        state=TrialState.COMPLETE,
        result=result,
    )
    return replace(record, **changed)


MEASUREMENT = Measurement(
    protocol=1,
    identity={"device": "cpu", "backend": "eager", "threads": "1"},
    conditions={},
    batch_size=8,
    ratio=0.5,
    ratio_low=0.49,
    ratio_high=0.51,
    dense_p50_ms=2.0,
    p50_ms=1.0,
    p90_ms=None,
    p95_ms=None,
    p99_ms=None,
    num_blocks=10,
    num_samples=100,
    num_dropped_blocks=0,
    warmup_seconds=0.5,
    seconds=1.0,
)


def some_plan(study: StudyRecord) -> Plan:
    """Another option in each of a few layers."""
    options = [(layer.name, layer.options[:-1]) for layer in study.layers if len(layer.options) > 1]
    return Plan({name: found[i % len(found)].choice for i, (name, found) in enumerate(options[:4])})


@pytest.fixture(scope="module")
def dense() -> ToyNet:
    torch.manual_seed(0)
    net = ToyNet()
    net.norm.running_mean.normal_()  # a buffer that a fresh model does not have by itself
    return net.eval()


@pytest.fixture(scope="module")
def study(dense) -> StudyRecord:
    return make_study(dense, EXAMPLE, "/home/me/nets.py:ToyNet")


@pytest.fixture(scope="module")
def small(dense, study) -> nn.Module:
    return compress(dense, some_plan(study)).eval()


@pytest.fixture
def folder(small, study, tmp_path) -> Path:
    return bundle.export(small, make_trial(study, some_plan(study)), study, tmp_path / "small", example_input=EXAMPLE)


def outputs(model: nn.Module, shape=(5, 1, 12, 12)) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.randn(shape, generator=torch.Generator().manual_seed(1)))


# --- there and back --------------------------------------------------------------------------------------------------


def test_the_same_function_comes_back(small, folder):
    torch.manual_seed(9)
    back = bundle.load(folder, model=ToyNet())
    assert not back.training
    assert torch.equal(outputs(back), outputs(small))
    assert list(back.state_dict()) == list(small.state_dict())


class Mixed(nn.Module):
    """Convolutions of several kinds, attention to itself and to others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2)
        self.up = nn.ConvTranspose2d(8, 8, 3, stride=2)
        self.down = nn.Conv2d(8, 16, 3, stride=3)
        self.itself = nn.MultiheadAttention(16, 2, batch_first=True)
        self.queries = nn.Parameter(torch.randn(1, 3, 16))
        self.others = nn.MultiheadAttention(16, 2, batch_first=True)
        self.signal = nn.Conv1d(3, 4, 3)
        self.hidden = nn.Linear(56, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.down(self.up(self.conv(x).relu()).relu()).flatten(2).mT
        tokens = self.itself(tokens, tokens, tokens, need_weights=False)[0]
        few = self.others(self.queries.expand(len(x), -1, -1), tokens, tokens, need_weights=False)[0]
        return self.head(self.hidden(self.signal(few).flatten(1)).relu())


MIXED = {
    "conv": "rank1:2", "up": "separable:3", "down": "tt_conv_naive:2x4x8", "itself.in_proj": "svd:4",
    "itself.out_proj": "tt_linear:2x4x2", "others.q_proj": "linearconv_lowrank:8x4", "others.v_proj": "svd:3",
    "signal": "cp:2", "hidden": "linearconv_sparse:8x20", "head": "svd:2",
}  # fmt: skip


def test_every_sort_of_layer_and_method_comes_back(tmp_path):
    torch.manual_seed(0)
    dense, plan = Mixed().eval(), Plan({name: LayerChoice.parse(text) for name, text in MIXED.items()})
    study = make_study(dense, EXAMPLE, "nets.py:Mixed")
    small = compress(dense, plan).eval()
    for layer in small.modules():
        if isinstance(layer, ContractibleLayer):
            layer.contracted = not layer.contracted
    folder = bundle.export(small, make_trial(study, plan), study, tmp_path / "mixed", example_input=EXAMPLE)
    back = bundle.load(folder, model=Mixed())
    assert torch.equal(outputs(back), outputs(small))
    assert [m.contracted for m in back.modules() if isinstance(m, ContractibleLayer)] == [
        m.contracted for m in small.modules() if isinstance(m, ContractibleLayer)
    ]
    assert sum(p.numel() for p in back.parameters()) < sum(p.numel() for p in dense.parameters())


def test_the_model_that_was_given_is_left_alone(folder, dense):
    given = copy.deepcopy(dense)
    before = outputs(given)
    bundle.load(folder, model=given)
    assert torch.equal(outputs(given), before)


def resnet18() -> nn.Module:
    return torchvision_model("resnet18", num_classes=7, in_channels=1, pretrained=False)


@pytest.mark.parametrize(
    ("name", "make", "shape"),
    [
        ("example", ExampleNet, (1, 16, 16)),
        ("torchvision:resnet18", resnet18, (1, 32, 32)),
    ],
)
def test_a_model_of_a_known_name_is_rebuilt(name, make, shape, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    study = make_study(model, torch.zeros(1, *shape), name)
    small = compress(model, some_plan(study)).eval()
    record = make_trial(study, some_plan(study))
    bundle.export(small, record, study, tmp_path / "small", example_input=torch.zeros(1, *shape))
    assert torch.equal(outputs(bundle.load(tmp_path / "small"), (2, *shape)), outputs(small, (2, *shape)))


def test_the_dense_model_can_be_exported(dense, study, tmp_path):
    bundle.export(dense, make_trial(study, Plan()), study, tmp_path / "dense")
    assert torch.equal(outputs(bundle.load(tmp_path / "dense", model=ToyNet())), outputs(dense))


def test_tied_weights_are_exported(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.b(self.a(x)))

    model = Tied().eval()
    study = make_study(model, torch.zeros(1, 16), "mine:Tied")
    bundle.export(model, make_trial(study, Plan()), study, tmp_path / "tied")
    assert torch.equal(outputs(bundle.load(tmp_path / "tied", model=Tied()), (3, 16)), outputs(model, (3, 16)))


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_files(folder, study):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.safetensors", "plan.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["small"]
    written = json.loads((folder / "plan.json").read_text())
    assert (written["format"], written["trial"], written["study"]) == (bundle.FORMAT, 7, "toy")
    assert Plan.from_json(written["plan"]) == some_plan(study)
    assert written["scores"] == {"validation": SCORE.to_json()}
    assert (written["input_shape"], written["num_outputs"]) == ([1, 12, 12], 4)
    assert written["environment"]["torch"] == torch.__version__


def test_the_page_has_the_figures_and_what_they_hold_for(folder, study):
    text = (folder / "README.md").read_text()
    environment = study.environment
    for fact in (
        *("0.9000 [0.8500, 0.9300], n = 300", "0.500 [0.490, 0.510]", "1.000 ms, dense 2.000 ms, batch 8", "1,234"),
        *(environment.device_model, f"torch {environment.torch}", f"Python {environment.python}", "seed 3"),
        *("ranksearch.load(", "(N, 1, 12, 12)"),
        *map(str, some_plan(study).values()),
    ):
        assert fact in text


def test_the_line_to_load_it_works(folder, small):
    text = (folder / "README.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("model = "))
    import ranksearch

    found = {"ranksearch": ranksearch, "make_net": ToyNet}
    exec(line.replace("path/to/this/folder", str(folder)), found)
    assert torch.equal(outputs(found["model"]), outputs(small))


def test_where_files_lay_stays_at_home(folder):
    assert "secret place" not in (folder / "plan.json").read_text() + (folder / "README.md").read_text()
    assert "npz:data.npz" in (folder / "README.md").read_text()


def test_others_may_read_it(folder):
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 1


# --- refusals --------------------------------------------------------------------------------------------------------


class Strided(ToyNet):
    """Its weights have the same names and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2.stride = (2, 2)


@pytest.mark.parametrize("make", [lambda: ToyNet(width=16), Strided, ExampleNet, lambda: nn.Linear(3, 3)])
def test_another_model_is_refused(folder, make):
    with pytest.raises(ModelError, match="another"):
        bundle.load(folder, model=make())


def test_a_model_that_only_its_owner_can_make_has_to_be_given(folder):
    with pytest.raises(ModelError, match="pass model="):
        bundle.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("head.1.bias"),
        lambda weights: weights.update(foreign=torch.ones(1)),
        lambda weights: weights.update({"head.1.bias": torch.ones(NUM_CLASSES + 1)}),
    ],
)
def test_foreign_weights_are_refused(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match="does not fit"):
        bundle.load(folder, model=ToyNet())


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json"])
def test_damage_is_told(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=name):
        bundle.load(folder, model=ToyNet())
    (folder / name).unlink()
    with pytest.raises(NotFoundError, match=name):
        bundle.load(folder, model=ToyNet())


def test_a_newer_format_is_refused(folder):
    found = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(found | {"format": bundle.FORMAT + 1, "new": 1}))
    with pytest.raises(ModelError, match="written by a newer ranksearch"):
        bundle.load(folder, model=ToyNet())


@pytest.mark.parametrize("state", [TrialState.FAILED, TrialState.RUNNING])
def test_a_trial_without_a_model_is_refused(small, study, tmp_path, state):
    record = make_trial(study, some_plan(study), state=state)
    with pytest.raises(ModelError, match=state.value):
        bundle.export(small, record, study, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_export_is_never_replaced(small, study, tmp_path, force):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    (tmp_path / "file").write_text("…")
    record = make_trial(study, some_plan(study))
    for name in ("mine", "file"):
        with pytest.raises(ConfigError, match=name):
            bundle.export(small, record, study, tmp_path / name, force=force)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "…"


def test_an_export_is_replaced_by_force_alone(folder, small, study):
    record = make_trial(study, some_plan(study), number=8)
    with pytest.raises(ConfigError, match="--force"):
        bundle.export(small, record, study, folder)
    assert json.loads((folder / "plan.json").read_text())["trial"] == 7
    bundle.export(small, record, study, folder, force=True)
    assert json.loads((folder / "plan.json").read_text())["trial"] == 8
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_an_empty_folder_will_do(small, study, tmp_path):
    (tmp_path / "small").mkdir()
    bundle.export(small, make_trial(study, some_plan(study)), study, tmp_path / "small")
    assert (tmp_path / "small" / "plan.json").is_file()


@pytest.mark.parametrize("name", ["plan.json", "README.md"])
@pytest.mark.parametrize("there_was_one", [False, True])
def test_a_full_disk_leaves_nothing_half_written(small, study, tmp_path, monkeypatch, name, there_was_one):
    record = make_trial(study, some_plan(study))
    if there_was_one:
        bundle.export(small, record, study, tmp_path / "small")
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_text = Path.write_text

    def full(path: Path, *arguments, **options) -> int:
        if path.name == name:
            raise OSError(28, "No space left on device")
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left"):
        bundle.export(small, replace(record, number=8), study, tmp_path / "small", force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    shutil.rmtree(tmp_path / "small", ignore_errors=True)
    assert list(tmp_path.iterdir()) == []
