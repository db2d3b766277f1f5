"""Where settings come from, and which source wins."""

import os
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ranksearch.errors import ConfigError, ModelError
from ranksearch.records import FinetuneConfig, MeasureConfig
from ranksearch.settings import TABLES, Settings, check_writable
from ranksearch.study.study import DEFAULT_STORAGE
from tests.study.conftest import study_record


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory, and no variable of ours."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("RANKSEARCH_") or name in ("OPTUNA_STORAGE", "RAY_ADDRESS"):
            monkeypatch.delenv(name)
    return tmp_path


def toml(path: str, values: dict) -> None:
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [f"{name} = {value!r}" for name, value in values.items() if name not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {value!r}" for key, value in table.items())]
    Path(path).write_text("\n".join(lines))


# --- precedence ------------------------------------------------------------------------------------------------------

SOURCES = ("file", "config", "environment", "flag")  # the weakest first
SETTABLE = {("budget",): 1, ("seed",): 1, ("finetune", "steps"): 1, ("measure", "min_blocks"): 2}


def put(source: str, path: tuple[str, ...], value: int, into: dict) -> None:
    table = into.setdefault(source, {})
    for part in path[:-1]:
        table = table.setdefault(part, {})
    table[path[-1]] = value


def read(given_by: dict[str, dict], monkeypatch) -> Settings:
    toml("ranksearch.toml", given_by.get("file", {}))
    toml("other.toml", given_by.get("config", {}))
    for name, value in given_by.get("environment", {}).items():
        for key, inner in value.items() if isinstance(value, dict) else [(None, value)]:
            variable = f"RANKSEARCH_{name.upper()}" + (f"__{key.upper()}" if key else "")
            monkeypatch.setenv(variable, str(inner))
    return Settings.read(given_by.get("flag", {}), Path("other.toml"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_strongest_source_that_says_anything_wins(data):
    given_by: dict[str, dict] = {}
    expected = {}
    for path, smallest in SETTABLE.items():
        speaking = data.draw(st.sets(st.sampled_from(SOURCES)))
        for rank, source in enumerate(SOURCES):
            if source in speaking:
                put(source, path, smallest + rank, given_by)
                expected[path] = smallest + rank
    with pytest.MonkeyPatch.context() as patch:
        found = read(given_by, patch)
    for path in SETTABLE:
        value, default = found, Settings()
        for part in path:
            value, default = (
                each.get(part) if isinstance(each, dict) else getattr(each, part) for each in (value, default)
            )
        assert value == expected.get(path, default)


def test_ranksearch_toml_goes_before_pyproject_toml(here):
    Path("pyproject.toml").write_text("[tool.ranksearch]\nbudget = 3\n[tool.other]\nbudget = 4\n")
    assert Settings.read({}).budget == 3
    Path("ranksearch.toml").write_text("seed = 5\n")
    assert (Settings.read({}).budget, Settings.read({}).seed) == (200, 5)


def test_a_pyproject_that_says_nothing_of_us(here):
    Path("pyproject.toml").write_text("[project]\nname = 'mine'\n")
    assert Settings.read({}) == Settings()


@pytest.mark.parametrize(
    ("variable", "own", "key"),
    [("OPTUNA_STORAGE", "RANKSEARCH_STORAGE", "storage"), ("RAY_ADDRESS", "RANKSEARCH_ADDRESS", "address")],
)
def test_other_programs_variables_are_weaker_than_ours_and_stronger_than_files(monkeypatch, variable, own, key):
    toml("ranksearch.toml", {key: "sqlite:////file"})
    monkeypatch.setenv(variable, "sqlite:////theirs")
    assert getattr(Settings.read({}), key) == "sqlite:////theirs"
    monkeypatch.setenv(own, "sqlite:////ours")
    assert getattr(Settings.read({}), key) == "sqlite:////ours"
    assert getattr(Settings.read({key: "sqlite:////flag"}), key) == "sqlite:////flag"


def test_an_empty_variable_says_nothing(monkeypatch):
    monkeypatch.setenv("RANKSEARCH_STUDY", "")
    monkeypatch.setenv("OPTUNA_STORAGE", "")
    assert Settings.read({}) == Settings()


def test_every_setting_can_be_a_variable(monkeypatch):
    """Text, as a variable holds it, is understood for every key of every kind."""
    values = {name: default for name, default in Settings().model_dump(mode="json").items() if name not in TABLES}
    texts = {f"RANKSEARCH_{n.upper()}": str(v if v is not None else SAMPLE.get(n, "text")) for n, v in values.items()}
    for table, record in TABLES.items():
        defaults = {f.name: "" if f.default == () else str(f.default) for f in fields(record)}  # a list has commas
        texts |= {f"RANKSEARCH_{table}__{name}".upper(): text for name, text in defaults.items()}
    for name, text in texts.items():
        monkeypatch.setenv(name, text)
    found = Settings.read({})
    assert found.measure == MeasureConfig()
    assert FinetuneConfig(**found.finetune) == FinetuneConfig()
    assert all(getattr(found, name) == value for name, value in values.items() if value is not None)


SAMPLE = {"gpus_per_trial": 0.5, "cpus_per_trial": 2, "max_concurrent": 3, "trial_timeout": 1.5, "max_failures": 4}


SIZES = "also_batch_sizes"

# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("bugdet = 3", "other.toml: unknown setting 'bugdet' (did you mean 'budget'?)"),
        ("[finetune]\nstep = 3", "other.toml: unknown setting 'finetune.step' (did you mean 'finetune.steps'?)"),
        ("budget = 'a'", "other.toml: budget is 'a'; it must be a valid integer"),
        ("budget = 2.5", "other.toml: budget is 2.5; it must be a valid integer"),
        ("budget = 0", "other.toml: budget is 0; it must be greater than or equal to 1"),
        ("finetune = 3", "other.toml: finetune is 3; it must be a table"),
        ("[finetune]\nsteps = -1", "other.toml: finetune.steps is -1; it must be 0 or more"),
        ("[measure]\nthreads = 0", "other.toml: measure.threads is 0; it must be 1 or more"),
        (f"[measure]\n{SIZES} = [0]", f"other.toml: measure.{SIZES} is (0,); it must be numbers of at least 1"),
        (f"[measure]\n{SIZES} = '1,two'", f"other.toml: measure.{SIZES}.1 is 'two'; it must be a valid integer"),
        ("a b", "other.toml is not valid TOML: Expected '=' after a key in a key/value pair (at line 1, column 3)"),
    ],
)  # fmt: skip
def test_errors_name_the_file_the_key_and_the_rule(content, said):
    Path("other.toml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        Settings.read({}, Path("other.toml"))
    assert str(caught.value) == said


def test_errors_name_the_variable_and_the_flag(monkeypatch):
    with pytest.raises(ConfigError, match=r"^--finetune-steps is -1; "):
        Settings.read({"finetune": {"steps": -1}})
    monkeypatch.setenv("RANKSEARCH_FINETUNE__STEPS", "-1")
    with pytest.raises(ConfigError, match=r"^RANKSEARCH_FINETUNE__STEPS is -1; "):
        Settings.read({})


def test_a_wrong_value_is_found_even_where_a_stronger_source_covers_it(monkeypatch):
    monkeypatch.setenv("RANKSEARCH_BUDGET", "many")
    with pytest.raises(ConfigError, match="RANKSEARCH_BUDGET"):
        Settings.read({"budget": "5"})


def test_the_key_in_pyproject_is_named_in_full():
    Path("pyproject.toml").write_text("[tool.ranksearch]\nbudget = 'a'\n")
    with pytest.raises(ConfigError, match=r"^pyproject.toml: tool.ranksearch.budget is 'a'; "):
        Settings.read({})


def test_check_writable(here):
    check_writable(f"sqlite:///{here}/new.db")
    (here / "folder").mkdir()
    for url, said in {f"sqlite:///{here}/folder": "folder", f"sqlite:///{here}/none/a.db": "none"}.items():
        with pytest.raises(ConfigError, match=said):
            check_writable(url)
    assert sorted(path.name for path in here.iterdir()) == ["folder"]


# --- paths -----------------------------------------------------------------------------------------------------------

PATHS = {
    "model": ("nets.py:net", "{}/nets.py:net"),
    "weights": ("net.safetensors", "{}/net.safetensors"),
    "data": ("npz:data.npz", "npz:{}/data.npz"),
    "metric": ("nets.py:f1", "{}/nets.py:f1"),
    "space": ("mine.yaml", "{}/mine.yaml"),
    "storage": ("sqlite:///my.db", "sqlite:///{}/my.db"),
}
NO_PATHS = {
    "model": ("torchvision:resnet18", "mypkg.nets:make"),
    "data": ("digits", "mypkg.data:loaders"),
    "metric": ("mypkg.nets:f1",),
    "space": ("default",),
    "storage": ("sqlite:////abs/my.db", "postgresql+psycopg://host/database"),
}


@pytest.mark.parametrize("key", PATHS)
def test_paths_in_a_file_are_relative_to_it(here, key):
    written, expected = PATHS[key]
    (here / "sub").mkdir()
    toml("sub/other.toml", {key: written})
    assert getattr(Settings.read({}, Path("sub/other.toml")), key) == expected.format("sub")
    found = getattr(Settings.read({}, here / "sub" / "other.toml"), key)
    assert found == expected.format(here / "sub")


@pytest.mark.parametrize("key", PATHS)
def test_elsewhere_they_are_relative_to_the_working_directory(key, monkeypatch):
    written, _ = PATHS[key]
    toml("ranksearch.toml", {key: written})
    assert getattr(Settings.read({}), key) == getattr(Settings.read({key: written}), key) == written


@pytest.mark.parametrize(("key", "text"), [(k, t) for k, texts in NO_PATHS.items() for t in texts])
def test_what_is_no_path_stays_as_it_is(here, key, text):
    (here / "sub").mkdir()
    toml("sub/other.toml", {key: text})
    assert getattr(Settings.read({}, Path("sub/other.toml")), key) == text


def test_a_home_folder_is_found(monkeypatch, here):
    monkeypatch.setenv("HOME", str(here))
    assert Settings.read({"data": "cifar10:~/data"}).data == f"cifar10:{here}/data"


# --- to a search and back --------------------------------------------------------------------------------------------


def test_search_config_takes_over_every_setting():
    flags = {
        "budget": 5,
        "study": "mine",
        "seed": 3,
        "device": "cpu",
        "executor": "inline",
        "address": "auto",
        "gpus_per_trial": 0.5,
        "cpus_per_trial": 2,
        "max_concurrent": 4,
        "trial_timeout": 9,
        "max_failures": 7,
        "finetune": {"steps": 1},
        "measure": {"threads": 2},
    }
    config = Settings.read(flags).search_config()
    assert (config.budget, config.study, config.seed, config.device, config.executor) == (5, "mine", 3, "cpu", "inline")
    cluster = config.cluster
    assert (cluster.address, cluster.gpus_per_trial, cluster.cpus_per_trial, cluster.max_concurrent) == (
        "auto",
        0.5,
        2,
        4,
    )
    assert (config.trial_timeout_seconds, config.max_failures) == (9, 7)
    assert (config.finetune, config.measure) == ({"steps": 1}, MeasureConfig(threads=2))
    assert [recipe.finetune.steps for recipe in config.recipes] == [1]
    assert (config.storage, config.space.name) == (DEFAULT_STORAGE, "default")


def test_what_is_stored_names_the_model_from_anywhere_and_no_password(here):
    flags = {"model": "nets.py:net", "data": "npz:data.npz", "weights": "w.pt", "storage": "postgresql://me:secret@h/d"}
    stored = Settings.read(flags).task_settings()
    assert stored == {
        "model": f"{here}/nets.py:net",
        "data": f"npz:{here}/data.npz",
        "weights": f"{here}/w.pt",
        "normalize": "dataset",
        "seed": "0",
    }
    assert Settings.read({}).task_settings()["model"] == "example"


def test_back_from_a_study(here):
    from dataclasses import replace

    read = Settings.read({"model": "nets.py:net", "data": "npz:data.npz", "seed": "3", "normalize": "none"})
    study = replace(study_record(), settings=read.task_settings())
    found = Settings.of_study(study, {})
    assert (found.model, found.data) == (f"{here}/nets.py:net", f"npz:{here}/data.npz")
    assert (found.seed, found.normalize) == (3, "none")
    assert Settings.of_study(study, {"model": "other.py:net"}).model == "other.py:net"


def test_a_study_made_in_python_does_not_name_its_model():
    from dataclasses import replace

    study = replace(study_record(), settings={})
    with pytest.raises(ModelError, match="--model"):
        Settings.of_study(study, {})
    assert Settings.of_study(study, {"model": "nets.py:net"}).model == "nets.py:net"


@pytest.mark.parametrize("given", ["1,32", [1, 32], " 1, 32"])
def test_more_batch_sizes_are_a_list_or_numbers_with_commas(given):
    assert Settings.read({"measure": {"also_batch_sizes": given}}).measure.also_batch_sizes == (1, 32)
