"""Recipes: the space's, and what a run says over them."""

from dataclasses import fields

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ranksearch.errors import ConfigError, SpaceError
from ranksearch.profile import filled
from ranksearch.recipes import DEFAULT, recipes_of
from ranksearch.records import FinetuneConfig
from ranksearch.settings import Settings
from ranksearch.space import load_space

tables = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(0, 9),
        "learning_rate": st.floats(0.001, 1.0),
        "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
        "ema": st.floats(0, 0.9),
    },
)


@given(st.dictionaries(st.sampled_from("abc"), tables), tables)
def test_what_a_run_says_wins_then_the_recipe_then_the_default(space, given):
    found = {recipe.name: recipe.finetune for recipe in recipes_of(space, given)}
    assert list(found) == (list(space) or [DEFAULT])
    for name, config in found.items():
        for field in fields(FinetuneConfig):
            weaker = space.get(name, {}).get(field.name, field.default)
            assert getattr(config, field.name) == given.get(field.name, weaker)


def test_a_whole_config_takes_the_place_of_all_recipes():
    (recipe,) = recipes_of({"a": {"steps": 3}, "b": {}}, FinetuneConfig(steps=7))
    assert (recipe.name, recipe.finetune) == (DEFAULT, FinetuneConfig(steps=7))


def test_what_does_not_go_together_is_told_with_the_recipe_s_name():
    with pytest.raises(ConfigError, match=r"^with the space's recipe 'atcd' correlation_weight is 0.1; it must be 0"):
        recipes_of({"atcd": {"atcd": "project"}}, {"correlation_weight": 0.1})


@pytest.fixture
def space_of(tmp_path):
    def write(recipes):
        path = tmp_path / "space.yaml"
        path.write_text(yaml.safe_dump({"name": "mine", "recipes": recipes}))
        return load_space(str(path))

    return write


def test_a_space_keeps_what_it_says_and_no_defaults(space_of):
    recipes = {"plain": {"distillation": 0}, "long": {"steps": "60"}}
    space = space_of(recipes)
    assert space.recipes == {"plain": {"distillation": 0}, "long": {"steps": 60}}
    assert space.model_dump(mode="json")["recipes"] == {"plain": {"distillation": 0}, "long": {"steps": 60}}


@pytest.mark.parametrize(
    ("recipes", "said"),
    [
        ({"a": {"learning_rat": 1}}, r"unknown key 'recipes.a.learning_rat' \(did you mean 'learning_rate'\?\)"),
        ({"a": {"steps": -1}}, r"recipes.a: steps is -1; it must be 0 or more"),
        ({"a": {"steps": "many"}}, r"recipes.a.steps: .*integer.* \(got 'many'\)"),
        ({"a b": {}}, r"recipes.a b.*: .*pattern"),
        ({"a": 3}, r"recipes.a: .*"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_named(space_of, recipes, said):
    with pytest.raises(SpaceError, match=said) as caught:
        space_of(recipes)
    assert "\n" not in str(caught.value)


def test_settings_keep_only_what_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ranksearch.toml").write_text("[finetune]\nsteps = 9\nema = 0.5\n")
    monkeypatch.setenv("RANKSEARCH_FINETUNE__BATCH_SIZE", "8")
    found = Settings.read({"finetune": {"steps": "20"}})
    assert found.finetune == {"steps": 20, "ema": 0.5, "batch_size": 8}  # 20 is the default, and said


def test_a_table_by_itself_does_not_hear_files_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ranksearch.toml").write_text("[finetune]\nsteps = 9\n")
    assert Settings.table("finetune", {"epochs": "2"}) == {"epochs": 2.0}
    with pytest.raises(ConfigError, match=r"^--learning-rate is 0.0; it must be more than 0$"):
        Settings.table("finetune", {"learning_rate": "0"})


def test_what_a_recipe_leaves_open_is_filled_and_nothing_else():
    found = FinetuneConfig(threads=4, layout="channels_last", precision="bfloat16", steps=99)
    assert filled(FinetuneConfig(ema=0.5), found) == FinetuneConfig(
        ema=0.5, threads=4, layout="channels_last", precision="bfloat16"
    )
    own = FinetuneConfig(threads=1, layout="contiguous", precision="float32")
    assert filled(own, found) == own
