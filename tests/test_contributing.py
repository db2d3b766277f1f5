"""The worked example of CONTRIBUTING.md obeys the laws of a method, and takes every kind of layer it should."""

import importlib.util
import re
from pathlib import Path

import pytest

from ranksearch.factorize import METHODS, LayerShape, Method
from tests.factorize.cases import LAYERS, make_layer
from tests.factorize.test_laws import CHECKS

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def method(tmp_path_factory) -> Method:
    example, word = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path_factory.mktemp("contributed") / "input_svd.py"
    path.write_text(example, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("input_svd", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "InputSVD()" in word
    return module.InputSVD()


@pytest.mark.parametrize("layer", LAYERS)
def test_the_worked_example_obeys_the_laws(method, layer):
    dense = make_layer(layer)
    shape = LayerShape.of(dense)
    if shape.taps == 1 or "depthwise" in layer:
        assert method.refuses(shape)
        return
    assert method.refuses(shape) is None
    for check in CHECKS:
        check(method, dense)


def test_the_worked_example_is_new(method):
    assert method.name not in METHODS
