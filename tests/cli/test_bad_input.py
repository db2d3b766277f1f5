"""Bad input: exit code 2, one line on stderr that names what is wrong, no traceback, and nothing changes on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.cli.project import dense_net, listing

SPACE = "name: mine\nmethods: [spatial_svd, channel_svd]\n"


def write(name: str, content: str) -> None:
    Path(name).write_text(content)


def garbage(name: str):
    return lambda: Path(name).write_bytes(b"\xff\xfe")


def text(name: str, content: str):
    return lambda: write(name, content)


def space(content: str):
    return text("mine.yaml", SPACE + content)


def config(content: str):
    return text("other.toml", content)


def weights(change):
    def make() -> None:
        state = dense_net(Path()).state_dict()
        change(state)
        save_file(state, "bad.safetensors")

    return make


def npz(*names: str, **changes):
    """The arrays of these names, all by default, some changed."""

    def make() -> None:
        arrays = dict(np.load("data.npz"))
        np.savez("bad.npz", **{n: changes.get(n, lambda a: a)(arrays[n]) for n in names or arrays})

    return make


def first(count: int):
    return lambda array: array[:count]


def plus(number: int):
    return lambda array: array + number


def nothing() -> None:
    pass


OTHER_TOML, MINE_YAML = ["--config", "other.toml"], ["--space", "mine.yaml"]
BAD_NPZ, BAD_WEIGHTS = ["--data", "npz:bad.npz"], ["--weights", "bad.safetensors"]

CASES = {
    "unknown flag": (nothing, ["--bugdet", "5"], "--budget"),
    "unknown key in ranksearch.toml's place": (config("bugdet = 5"), OTHER_TOML, "budget"),
    "unknown key in a table": (config("[finetune]\nstep = 5"), OTHER_TOML, "finetune.steps"),
    "value of the wrong type": (config("budget = 'many'"), OTHER_TOML, "budget is 'many'"),
    "malformed TOML": (config("budget 5"), OTHER_TOML, "line 1"),
    "TOML that is not text": (garbage("other.toml"), OTHER_TOML, "other.toml"),
    "no config file": (nothing, OTHER_TOML, "other.toml"),
    "budget 0": (nothing, ["--budget", "0"], "--budget is '0'"),
    "negative budget": (nothing, ["--budget", "-3"], "--budget is '-3'"),
    "budget that is no number": (nothing, ["--budget", "many"], "--budget is 'many'"),
    "value of a table out of range": (nothing, ["--finetune-steps", "-1"], "--finetune-steps is -1"),
    "unknown device": (nothing, ["--device", "gpu"], "cuda"),
    "unknown executor": (nothing, ["--executor", "inlin"], "inline"),
    "unknown format": (nothing, ["--format", "xml"], "json"),
    "study name": (nothing, ["--study", "a/b"], "a/b"),
    "trial timeout": (nothing, ["--trial-timeout", "-1"], "--trial-timeout"),
    "GPUs that are no number": (nothing, ["--gpus-per-trial", "nan"], "--gpus-per-trial"),
    "unknown space": (nothing, ["--space", "defualt"], "default"),
    "no space file": (nothing, MINE_YAML, "mine.yaml"),
    "malformed YAML": (text("mine.yaml", "name: [a"), MINE_YAML, "mine.yaml"),
    "YAML of the wrong kind": (text("mine.yaml", "- a"), MINE_YAML, "mine.yaml"),
    "empty YAML": (text("mine.yaml", ""), MINE_YAML, "mine.yaml"),
    "YAML that is not text": (garbage("mine.yaml"), MINE_YAML, "mine.yaml"),
    "unknown key of a space": (space("rnaks: {}\n"), MINE_YAML, "ranks"),
    "unknown method": (text("mine.yaml", "name: a\nmethods: [spatal_svd]"), MINE_YAML, "spatial_svd"),
    "layer pattern that matches nothing": (space("layers: [{match: 'block*', dense: true}]\n"), MINE_YAML, "block*"),
    "rank out of range": (space("ranks: {values: [4096]}\n"), MINE_YAML, "4096"),
    "model that does not import": (nothing, ["--model", "nowhere.at_all:net"], "nowhere"),
    "no model file": (nothing, ["--model", "net.py:net"], "nets.py"),
    "no such function": (nothing, ["--model", "nets.py:nett"], "net"),
    "model of no known form": (nothing, ["--model", "resnet"], "resnet"),
    "no such torchvision model": (nothing, ["--model", "torchvision:resnet81"], "resnet"),
    "factory that returns no module": (nothing, ["--model", "nets.py:number"], "int"),
    "factory that raises": (nothing, ["--model", "nets.py:raises"], "first line"),
    "file that raises": (text("broken.py", "1/0"), ["--model", "broken.py:net"], "ZeroDivisionError"),
    "file with a syntax error": (text("broken.py", "def"), ["--model", "broken.py:net"], "SyntaxError"),
    "no weights file": (nothing, ["--weights", "none.pt"], "none.pt"),
    "weights of another kind": (lambda: torch.save([1], "bad.pt"), ["--weights", "bad.pt"], "bad.pt"),
    "empty weights": (text("bad.safetensors", ""), BAD_WEIGHTS, "bad.safetensors"),
    "weights that are none": (text("bad.pt", "hello"), ["--weights", "bad.pt"], "bad.pt"),
    "weights with a missing key": (weights(lambda s: s.pop("9.bias")), BAD_WEIGHTS, "9.bias"),
    "weights with a foreign key": (weights(lambda s: s.update(foreign=torch.ones(1))), BAD_WEIGHTS, "foreign"),
    "weights of another shape": (nothing, ["--model", "nets.py:wider"], "9.weight"),
    "unknown data": (nothing, ["--data", "digit"], "digits"),
    "no data file": (nothing, ["--data", "npz:none.npz"], "none.npz"),
    "data file that is none": (text("bad.npz", "hello"), BAD_NPZ, "bad.npz"),
    "empty data file": (text("bad.npz", ""), BAD_NPZ, "bad.npz"),
    "data without a key": (npz("x_train"), BAD_NPZ, "bad.npz"),
    "data without examples": (npz(x_test=first(0), y_test=first(0)), BAD_NPZ, "x_test"),
    "data of the wrong shape": (npz(x_train=lambda a: a[:, :, 0]), BAD_NPZ, "x_train"),
    "labels that do not fit the images": (npz(y_train=first(-1)), BAD_NPZ, "y_train"),
    "labels beyond the model's": (npz(y_test=plus(2), y_train=plus(2)), BAD_NPZ, "label"),
    "no image folder": (nothing, ["--data", "imagefolder:none"], "none"),
    "unknown normalisation": (nothing, ["--normalize", "datset"], "dataset"),
    "metric that is not there": (nothing, ["--metric", "nets.py:swaped"], "swapped"),
    "URL that is none": (nothing, ["--storage", "ranksearch.db"], "sqlite:///"),
    "URL of an unknown kind": (nothing, ["--storage", "sqllite:///a.db"], "sqlite"),
    "storage in a folder that is not there": (nothing, ["--storage", "sqlite:///none/a.db"], "none"),
    "storage that is a folder": (lambda: Path("folder").mkdir(), ["--storage", "sqlite:///folder"], "folder"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_bytecode(monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", True)


@pytest.mark.parametrize("case", CASES)
def test_run_refuses(fresh, ranksearch, case):
    prepare, flags, expected = CASES[case]
    prepare()
    before = listing(fresh)
    code, out, err = ranksearch("run", *flags)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert listing(fresh) == before


DIFFERENT = {
    "model": (["--model", "nets.py:strided"], "model"),
    "data set": (["--data", "digits", "--normalize", "none"], None),
    "weights": (["--weights", "others.safetensors"], "weights"),
    "metric": (["--metric", "nets.py:swapped"], "metric"),
    "space": (MINE_YAML, "space"),
    "objectives": (["--space", "sizes.yaml"], "objectives"),
    "seed": (["--seed", "1"], "seed"),
    "fine-tuning": (["--finetune-steps", "3"], "finetune"),
    "measuring": (["--measure-batch-size", "4"], "measure"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_run_refuses_a_study_of_another(project, ranksearch, what):
    flags, named = DIFFERENT[what]
    write("mine.yaml", SPACE)
    write("sizes.yaml", "name: default\nobjectives: [parameters, accuracy]\n")
    save_file({name: tensor + 1 for name, tensor in dense_net(project).state_dict().items()}, "others.safetensors")
    before = listing(project)
    code, out, err = ranksearch("run", *flags)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    if named:
        assert f"study 'toy' exists with another {named} (" in err or f"; {named} (it has" in err
    assert listing(project) == before


QUERIES = {
    "trials of no study": (["trials", "--study", "tou"], "toy"),
    "sort by nothing": (["trials", "--sort", "accurcy"], "accuracy"),
    "unknown state": (["trials", "--state", "fialed"], "failed"),
    "limit 0": (["pareto", "--limit", "0"], "--limit"),
    "limit that is no number": (["pareto", "--limit", "few"], "--limit"),
    "no such trial": (["show", "99"], "99"),
    "trial that is no number": (["show", "first"], "TRIAL"),
    "no trial": (["show"], "TRIAL"),
    "no database": (["trials", "--storage", "sqlite:///none.db"], "none.db"),
    "export of no trial": (["export", "99", "--output", "out"], "99"),
    "export to nowhere": (["export", "1"], "--output"),
    "export over a file": (["export", "1", "--output", "data.npz"], "data.npz"),
    "export into a full folder": (["export", "1", "--output", "ranksearch.files"], "toy"),
    "export into a full folder by force": (["export", "1", "--output", "ranksearch.files", "--force"], "toy"),
    "unknown command": (["paretto"], "pareto"),
    "unknown command of a group": (["db", "upgarde"], "upgrade"),
    "database that is none": (["db", "check", "--storage", "sqlite:///none.db"], "none.db"),
    "format that show lacks": (["show", "1", "--format", "csv"], "json"),
    "doctor of no model": (["doctor", "--model", "nets.py:nett"], "net"),
}


@pytest.mark.parametrize("case", QUERIES)
def test_queries_refuse(project, ranksearch, case):
    words, expected = QUERIES[case]
    before = listing(project)
    code, out, err = ranksearch(*words)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert listing(project) == before


@pytest.mark.parametrize("name", ["RANKSEARCH_BUGDET", "RANKSEARCH_FINETUNE__STEP"])
def test_an_unknown_variable_is_refused(fresh, ranksearch, monkeypatch, name):
    monkeypatch.setenv(name, "5")
    code, _, err = ranksearch("run")
    assert code == 2
    assert name in err
    assert "did you mean" in err


def test_a_password_is_never_shown(fresh, ranksearch):
    for url in (
        "postgresql+psycopg://me:secret@nowhere.invalid/db",
        "mysql+nothing://me:secret@host/db",
        "odd://me:secret@host",
    ):
        code, out, err = ranksearch("run", "--storage", url)
        assert code in (2, 4)
        assert "secret" not in out + err
