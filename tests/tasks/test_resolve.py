import json
import subprocess
import sys

import cloudpickle
import numpy as np
import pytest
import torch

from ranksearch.errors import ConfigError, DataError, ModelError
from ranksearch.tasks.models import model_of_factory
from ranksearch.tasks.resolve import call, is_reference, one_line, resolve
from tests.tasks.usage import refuses


@pytest.mark.parametrize("text", ["nets:make", "nets.py:make", "./nets.py:make"])
def test_modules_and_files(user_folder, text):
    assert resolve(text)(7)(torch.zeros(1, 1, 16, 16)).shape == (1, 7)


def test_files_elsewhere_bring_their_neighbours(user_folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert resolve(f"{user_folder}/nets.py:make_ten")().layers[1].out_features == 10


def test_a_file_is_run_once_and_hides_no_module(user_folder):
    (user_folder / "json.py").write_text("def make(): return 1\nidentity = object\n")
    first, again = resolve("json.py:make"), resolve("./json.py:make")
    assert first is again
    assert sys.modules["json"] is json


def test_installed_modules():
    assert resolve("torchvision.models:resnet18").__name__ == "resnet18"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nets", ["'nets'", "module:function"]),
        ("nets:", ["'nets:'", "module:function"]),
        (":make", ["':make'"]),
        ("a b:make", ["'a b:make'"]),
        ("netz:make", ["no module named 'netz'", "did you mean 'nets'?"]),
        ("nets.deep:make", ["no module named 'nets.deep'"]),
        ("netz.py:make", ["no file 'netz.py'", "did you mean 'nets.py'?"]),
        ("nets:mkae", ["nets has no 'mkae'", "did you mean 'make'?"]),
        ("nets.py:mkae", ["nets.py has no 'mkae'", "did you mean 'make'?"]),
        ("nets:not_callable", ["nets:not_callable is a int", "name a function"]),
        ("unfinished:make", ["importing unfinished failed", "SyntaxError"]),
        ("unfinished.py:make", ["importing unfinished.py failed", "SyntaxError"]),
        ("needy:make", ["importing needy failed", "No module named 'not_installed'"]),
        ("failing.py:make", ["importing failing.py failed: RuntimeError: one two"]),
        ("script.py:make", ["importing script.py failed: SystemExit: 2"]),
        ("script:make", ["importing script failed: SystemExit: 2"]),
    ],
)
def test_what_cannot_be_resolved(user_folder, text, words):
    (user_folder / "unfinished.py").write_text("def make(:\n")
    (user_folder / "needy.py").write_text("import not_installed\n")
    (user_folder / "failing.py").write_text("raise RuntimeError('one\\ntwo')\n")
    (user_folder / "script.py").write_text("import sys; sys.exit(2)\n")
    for error in (ConfigError, ModelError, DataError):
        with refuses(error, *words):
            resolve(text, error=error)


def test_a_file_that_failed_can_be_tried_again(user_folder):
    (user_folder / "late.py").write_text("raise RuntimeError")
    with refuses(ConfigError, "RuntimeError"):
        resolve("late.py:make")
    (user_folder / "late.py").write_text("def make(): return 5")
    assert resolve("late.py:make")() == 5


def test_what_a_function_raises_is_one_line(user_folder):
    with refuses(ModelError, "nets:broken raised ValueError: first line second line"):
        call("nets:broken", resolve("nets:broken"), {}, error=ModelError)


def test_an_error_of_ours_passes():
    def refuse():
        raise DataError("said well already")

    with refuses(DataError, "said well already"):
        call("x:refuse", refuse, {}, error=ModelError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError(), "ValueError"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError("a\n\n  b\tc"), "ValueError: a b c"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 299 + "…"),
    ],
)
def test_one_line(error, text):
    assert one_line(error) == text


def test_references():
    assert all(is_reference(text) for text in ("a:b", "a.b:c", "a.py:b", "/x y/a.py:b"))
    assert not any(is_reference(text) for text in ("a", "a:", ":b", "a:b.c", "cifar10:./data", "a/b:c", "a.:b"))


ELSEWHERE = """
import cloudpickle, json, pathlib, torch
with torch.no_grad():
    for file in sorted(pathlib.Path().glob("*.pickle")):
        print(json.dumps(cloudpickle.loads(file.read_bytes())(torch.ones(1, 1, 16, 16)).tolist()))
"""


def test_user_code_survives_the_trip_to_a_worker(user_folder, tmp_path_factory):
    """… to a process that knows nothing of the user's folder."""
    (user_folder / "project").mkdir()
    (user_folder / "project" / "__init__.py").write_text("")
    # imports its neighbours only when called
    (user_folder / "project" / "late.py").write_text("def make():\n    import nets\n    return nets.make_ten()\n")
    folder, expected = tmp_path_factory.mktemp("worker"), []
    for text in ("project/late.py:make", "project.late:make", "nets:make_ten", "nets.py:make_ten"):
        model = model_of_factory(text, num_classes=None)
        (folder / f"{len(expected)}.pickle").write_bytes(cloudpickle.dumps(model))
        with torch.no_grad():
            expected.append(model(torch.ones(1, 1, 16, 16)).tolist())
        for name in {"nets", "layers"} & set(sys.modules):  # the next one imports them anew
            cloudpickle.unregister_pickle_by_value(sys.modules.pop(name))
    command = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose([json.loads(line) for line in done.stdout.splitlines()], expected, rtol=1e-6)


def test_what_is_installed_goes_by_name(user_folder):
    resolve("nets:make")
    resolve("torchvision.models:resnet18")
    shipped = cloudpickle.list_registry_pickle_by_value()
    assert {"nets", "layers"} <= shipped
    assert not shipped & {"torch", "torchvision", "numpy", "json", "ranksearch"}
