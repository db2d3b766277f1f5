"""Where a run's settings come from.

    flag > environment > --config FILE > ./ranksearch.toml, or [tool.ranksearch] in ./pyproject.toml > default

Every source is checked by itself, so that an error names the place where the wrong value stands. Paths in a file are
relative to that file's folder.
"""

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ranksearch.errors import ConfigError, ModelError
from ranksearch.recipes import FinetuneTable
from ranksearch.records import FinetuneConfig, MeasureConfig, StudyRecord, nearest

if TYPE_CHECKING:
    from ranksearch.study.search import SearchConfig
    from ranksearch.tasks import Task

__all__ = ["TABLES", "Settings", "check_writable"]

# Other programs' variables that say the same; one of ours wins over them.
FOREIGN_VARIABLES = {"OPTUNA_STORAGE": "storage", "RAY_ADDRESS": "address"}
PREFIX = "RANKSEARCH_"
# What a task is made of: stored with the study, so that a trial's model can be made again.
TASK_KEYS = ("model", "weights", "train", "data", "metric", "normalize", "seed")
EXAMPLE = "example"

Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Everything that a command line, the environment or a file may say about a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: str | None = Field(
        None, description="torchvision:NAME, module:function or file.py:function. The built-in example when absent."
    )
    weights: str | None = Field(None, description="The model's trained weights: safetensors, or a saved state dict.")
    train: str | None = Field(
        None,
        coerce_numbers_to_str=True,
        description="Train the model first: epochs, or epochs=N,optimizer=sgd|adam,learning_rate=X,batch_size=N,"
        "weight_decay=X,schedule=onecycle|step|constant. Done once, and cached.",
    )
    data: str | None = Field(
        None,
        description="digits, (fashion_)mnist:ROOT, cifar10:ROOT, npz:FILE, imagefolder:ROOT or module:function.",
    )
    metric: str | None = Field(None, description="module:function of your own, higher is better. Accuracy when absent.")
    normalize: str = Field("dataset", description="How images are normalised: dataset, pixel, imagenet or none.")
    space: str = Field("default", description="A search space, by its name or as a YAML file.")
    study: str | None = Field(None, description="The study's name. <model>-<data>-<device> when absent.")
    storage: str | None = Field(
        None, description="Where results are kept, as a database URL. sqlite:///ranksearch.db when absent."
    )
    budget: Count = Field(200, description="Finished trials that the study shall have.")
    seed: int = Field(0, description="Decides splits, batches and proposals.", ge=0, lt=2**32)
    device: str = Field("auto", description="auto, cpu or cuda.")
    sampler: str = Field("additive", description="additive (learns what each option does), tpe, nsga2, gp or random.")
    profile_seconds: Annotated[float, Field(ge=0)] = Field(
        60.0, description="For measuring what options do by themselves, before the first trial; 0: not at all."
    )
    prune_below: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.05, description="A trial is stopped that joins the front with a smaller probability; 0: none is."
    )
    longer: Annotated[int, Field(ge=0)] = Field(
        4, description="In the last tenth of the budget the front's plans are trained so many times as long; 0: not."
    )
    executor: str = Field("ray", description="ray, or inline: in this process, one trial after the other.")
    address: str | None = Field(
        None, description="A running Ray cluster: auto or host:port. A private one when absent."
    )
    gpus_per_trial: Annotated[float, Field(ge=0)] | None = Field(None, description="GPUs that a trial takes.")
    cpus_per_trial: Count | None = Field(None, description="CPU cores that a trial takes.")
    max_concurrent: Count | None = Field(
        None, description="Trials at a time. As many as there is room for when absent."
    )
    trial_timeout: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Seconds after which a trial is given up."
    )
    max_failures: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Failed trials after which the run stops. A tenth of the budget, at least 10, when absent."
    )
    weights_limit_mb: Annotated[float, Field(ge=0)] = Field(
        2048, description="MiB of trained weights kept beside the database. The front's are kept in any case."
    )
    finetune: FinetuneTable = Field({}, description="What wins over the space's recipes.")
    measure: MeasureConfig = MeasureConfig()

    @field_validator("measure", mode="before")
    @classmethod
    def _listed(cls, table: Any) -> Any:
        """A flag or the environment writes 8,32 where a file has [8, 32]."""
        sizes = table.get("also_batch_sizes") if isinstance(table, Mapping) else None
        return {**table, "also_batch_sizes": sizes.split(",") if sizes else []} if isinstance(sizes, str) else table

    @classmethod
    def read(cls, flags: Mapping[str, Any], config: Path | None = None) -> Self:
        """The settings in force here. `flags`: what the command line says, tables nested.

        Raises ConfigError, one line naming the source, where a key is unknown or a value cannot be used.
        """
        sources = [*_files(config), *_environment(), _Source(_all_located(flags, Path()), _flag)]
        found: dict[str, Any] = {}
        for source in sources:
            source.check(cls)
            found = _merged(found, source.values)
        return cls.model_validate(found)

    @classmethod
    def table(cls, name: str, flags: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of one table as flags without its name gave them, read and checked. Raises ConfigError."""
        source = _Source({name: flags}, lambda path: _flag(path[1:]))
        source.check(cls)
        return getattr(cls.model_validate(source.values), name)

    @classmethod
    def of_study(cls, study: StudyRecord, flags: Mapping[str, Any]) -> Self:
        """How a stored study named its model and data, with `flags` over it.

        Raises ModelError where it named none, since it was made from objects in Python.
        """
        if "model" not in study.settings and "model" not in flags:
            raise ModelError(f"study {study.name!r} was made in Python with a model in hand; give --model and --data")
        stored = {key: value for key, value in study.settings.items() if key in TASK_KEYS}
        source = _Source(_all_located(flags, Path()), _flag)
        source.check(cls)
        return cls.model_validate(_merged(stored, source.values))

    def task(self) -> "Task":
        """Raises ModelError, DataError or ConfigError."""
        from ranksearch.tasks import build_task

        return build_task(
            model=self.model,
            weights=self.weights,
            train=self.train,
            data=self.data,
            metric=self.metric,
            normalize=self.normalize,
            seed=self.seed,
        )

    def task_settings(self) -> dict[str, str]:
        """How model and data are named, to be stored: paths are absolute."""
        named = self.model_dump(include={*TASK_KEYS}) | {"model": self.model or EXAMPLE}
        return {k: _located(k, str(v), Path.cwd()) for k, v in named.items() if v is not None}

    @property
    def storage_url(self) -> str:
        from ranksearch.study.study import DEFAULT_STORAGE

        return self.storage or DEFAULT_STORAGE

    def search_config(self) -> "SearchConfig":
        """Raises ConfigError or SpaceError."""
        from ranksearch.space import load_space
        from ranksearch.study.search import SearchConfig
        from ranksearch.workers.executor import ClusterConfig

        check_writable(self.storage_url)
        return SearchConfig(
            budget=self.budget,
            study=self.study,
            storage=self.storage_url,
            space=load_space(self.space),
            seed=self.seed,
            device=self.device,
            finetune=self.finetune,
            measure=self.measure,
            sampler=self.sampler,
            profile_seconds=self.profile_seconds,
            prune_below=self.prune_below,
            longer=self.longer,
            executor=self.executor,
            cluster=ClusterConfig(
                address=self.address,
                gpus_per_trial=self.gpus_per_trial,
                cpus_per_trial=self.cpus_per_trial,
                max_concurrent=self.max_concurrent,
            ),
            trial_timeout_seconds=self.trial_timeout,
            max_failures=self.max_failures,
            weights_limit_mb=self.weights_limit_mb,
            settings=self.task_settings(),
        )


def check_writable(storage: str) -> None:
    """Raises ConfigError where a database at this URL could neither be made nor written, as far as can be told without
    trying."""
    from ranksearch.database import read_url, sqlite_file

    path = sqlite_file(read_url(storage))
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"storage {path} is a folder; name a file in it, like sqlite:///{path / 'ranksearch.db'}")
    if not path.parent.is_dir():
        raise ConfigError(f"storage {path} cannot be made: there is no folder {path.parent}; make it or name another")
    for place in (path.parent, path):
        if place.exists() and not os.access(place, os.W_OK):
            raise ConfigError(f"storage {path} cannot be written: no permission for {place}; name another --storage")


# table -> the record whose fields are its keys
TABLES: Mapping[str, type[FinetuneConfig | MeasureConfig]] = {"finetune": FinetuneConfig, "measure": MeasureConfig}


@dataclass(frozen=True, slots=True)
class _Source:
    """Values from one place, and how that place names a key."""

    values: Mapping[str, Any]
    name_of: Callable[[tuple[str, ...]], str]
    file: Path | None = None

    def check(self, settings: type[Settings]) -> None:
        try:
            settings.model_validate(self.values)
        except ValidationError as error:
            where = f"{self.file}: " if self.file else ""
            raise ConfigError(where + self._explain(error.errors()[0], settings)) from error

    def _explain(self, error: Mapping[str, Any], settings: type[Settings]) -> str:
        place = tuple(map(str, error["loc"]))
        name = self.name_of(place)
        if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            return f"unknown setting {name!r}{nearest(name, map(self.name_of, _paths(settings)))}"
        if error["type"] == "value_error":  # a record speaks, and begins with its field's name
            field, _, rule = error["msg"].removeprefix("Value error, ").partition(" ")
            return f"{self.name_of((*place, field))} {rule}"
        rule = error["msg"].removeprefix("Input should be ").partition(",")[0]
        return f"{name} is {error['input']!r}; it must be {'a table' if error['type'] == 'dataclass_type' else rule}"


def _paths(settings: type[Settings]) -> list[tuple[str, ...]]:
    """Every key, those of tables after their table's name."""
    return [
        path
        for name in settings.model_fields
        for path in ([(name, f.name) for f in fields(TABLES[name])] if name in TABLES else [(name,)])
    ]


def _merged(weak: Mapping[str, Any], strong: Mapping[str, Any]) -> dict[str, Any]:
    tables = [k for k, v in strong.items() if isinstance(v, Mapping) and isinstance(weak.get(k), Mapping)]
    return {**weak, **strong, **{k: _merged(weak[k], strong[k]) for k in tables}}


# --- the sources -----------------------------------------------------------------------------------------------------


def _flag(path: tuple[str, ...]) -> str:
    return "--" + "-".join(path).replace("_", "-")


def _environment() -> list[_Source]:
    """Other programs' variables, then ours. An empty variable says nothing."""
    given = {name: value for name, value in os.environ.items() if value}
    foreign = {key: given[name] for name, key in FOREIGN_VARIABLES.items() if name in given}
    own: dict[str, Any] = {}
    for name in (n for n in given if n.startswith(PREFIX)):
        table, _, key = name.removeprefix(PREFIX).lower().partition("__")
        own = _merged(own, {table: {key: given[name]} if key else given[name]})
    names = {key: name for name, key in FOREIGN_VARIABLES.items()}
    return [
        _Source(_all_located(foreign, Path()), lambda path: names[path[0]]),
        _Source(_all_located(own, Path()), lambda path: PREFIX + "__".join(path).upper()),
    ]


def _files(config: Path | None) -> list[_Source]:
    """The file beside us, then the one that was named."""
    found = []
    if Path("ranksearch.toml").is_file():
        found.append(_file(Path("ranksearch.toml")))
    elif Path("pyproject.toml").is_file():
        found.append(_file(Path("pyproject.toml")))
    if config is not None:
        found.append(_file(config))
    return found


def _file(path: Path) -> _Source:
    table, prefix = _toml(path), ()
    if path.name == "pyproject.toml":
        table, prefix = table.get("tool", {}).get("ranksearch", {}), ("tool", "ranksearch")
    return _Source(_all_located(table, path.parent), lambda place: ".".join((*prefix, *place)), path)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no config file {str(path)!r}; --config names a TOML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


# --- paths -----------------------------------------------------------------------------------------------------------


def _all_located(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return {key: _located(key, v, folder) if isinstance(v, str) else v for key, v in values.items()}


def _located(key: str, text: str, folder: Path) -> str:
    """`text` with the path in it, where there is one, read from `folder`."""
    place, _, name = text.rpartition(":")
    if key in ("model", "data", "metric") and place.endswith(".py"):
        return f"{_path(folder, place)}:{name}"
    if key == "weights" or (key == "space" and text.endswith((".yaml", ".yml"))):
        return _path(folder, text)
    if key == "data":
        return _data(text, folder)
    return _storage(text, folder) if key == "storage" else text


def _path(folder: Path, text: str) -> str:
    return str(folder / Path(text).expanduser())


def _data(text: str, folder: Path) -> str:
    from ranksearch.tasks.sources import SOURCES

    kind, _, place = text.partition(":")
    return f"{kind}:{_path(folder, place)}" if kind in SOURCES and place else text


def _storage(url: str, folder: Path) -> str:
    """A SQLite URL has three slashes before a relative path, four before an absolute one."""
    scheme, slashes, path = url.partition(":///")
    is_relative = scheme.startswith("sqlite") and slashes and path and not path.startswith(("/", ":"))
    return f"{scheme}:///{folder / path}" if is_relative else url
