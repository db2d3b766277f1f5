import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ranksearch.data_folder
from ranksearch.data_folder import data_folder

SHOW = "from ranksearch.data_folder import data_folder; print(data_folder('storage'))"


def test_in_a_checkout_it_stands_beside_the_package():
    assert (data_folder("storage") / "README.md").is_file()
    assert data_folder("search_spaces") == Path(__file__).resolve().parent.parent / "search_spaces"


@pytest.mark.parametrize("name", ["site-packages", "with space % and é"])
def test_once_installed_it_lies_inside_whatever_stands_beside(tmp_path, name):
    package = tmp_path / name / "ranksearch"
    (package / "_data" / "storage").mkdir(parents=True)
    (tmp_path / name / "storage").mkdir()
    shutil.copy(ranksearch.data_folder.__file__, package)
    (package / "__init__.py").touch()
    found = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", SHOW], cwd=tmp_path / name, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(package / "_data" / "storage")
