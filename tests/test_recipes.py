"""Binding recipes: names, types, overrides; and every recipe that is shipped."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon import recipes
from surgeon.errors import BadInput

SHIPPED = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_recipe_binds(recipe: Path):
    steps = recipes.load(recipe)
    assert steps and all(step.settings() for step in steps)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- rnak: {}", "'rnak' is no verb of a recipe. Did you mean rank"),
        ("- rank: 3", "must map parameter names"),
        ("- {rank: {}, evaluate: {}}", "step 1 must be one"),
        ("[]", "holds no steps"),
        ("just text", "holds no steps"),
        ("- rank: {", "not valid YAML"),
    ],
)
def test_a_malformed_recipe_is_refused_in_one_line(tmp_path: Path, text: str, words: str):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=words) as caught:
        recipes.load(file)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(BadInput, match="is no file"):
        recipes.load(tmp_path / "r.yaml")


def test_overrides_reach_the_named_step_only():
    steps = [
        recipes.RecipeStep("rank", {"seed": 0}),
        recipes.RecipeStep("evaluate", {"seed": 0, "limit": 3}),
    ]
    changed = recipes.override(steps, ["rank.seed=7", "limit=5"])
    assert changed == [
        recipes.RecipeStep("rank", {"seed": 7}),
        recipes.RecipeStep("evaluate", {"seed": 0, "limit": 5}),
    ]
    with pytest.raises(BadInput, match=r"several steps have seed\. Say which: rank\.seed"):
        recipes.override(steps, ["seed=1"])
    with pytest.raises(BadInput, match="no step of the recipe has it"):
        recipes.override(steps, ["top_k=1"])


@given(st.text())
def test_any_setting_is_parsed_or_refused(text: str):
    try:
        name, _ = recipes.parse_setting(text)
    except BadInput:
        return
    assert name and text.partition("=")[0].strip() == name


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_yaml_is_a_recipe_or_refused(tmp_path_factory, value):
    import yaml

    file = tmp_path_factory.mktemp("recipe") / "r.yaml"
    file.write_text(yaml.safe_dump(value))
    with pytest.raises(BadInput):
        recipes.load(file)
