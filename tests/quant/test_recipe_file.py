"""Recipes as YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deepmnn.errors import RequestError
from deepmnn.quant.recipe import RECIPES, Recipe, Rule
from deepmnn.quant.recipe_file import MAX_BYTES, read_recipe, to_yaml

ODD = Recipe("4.5", (Rule("*: #'\"[a]", "w4"), Rule("- é\\n", "w8"), Rule("role:expert", "w3")))


@pytest.mark.parametrize("recipe", [*RECIPES.values(), ODD], ids=lambda recipe: recipe.name)
def test_what_is_written_is_read_again(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(recipe))
    assert read_recipe(str(path)) == recipe
    assert yaml.safe_load(to_yaml(recipe)) == recipe.to_json()


def test_names_and_endings(tmp_path: Path) -> None:
    assert read_recipe("w4") is RECIPES["w4"]
    path = tmp_path / "mine.yml"
    path.write_text("name: mine\nrules:\n- {pattern: role:linear, format: w5}\n")
    assert read_recipe(str(path)) == Recipe("mine", (Rule("role:linear", "w5"),))
    for name in ("4.5", "2024-01-01", "0x" + "f" * 70, "!!bool zz"):
        path.write_text(f"name: {name}\nrules: []\n")
        assert read_recipe(str(path)) == Recipe(name.removeprefix("!!bool "), ()), "all are texts"
    path.write_text('\ufeff{"name": "mine", "rules": []}')
    assert read_recipe(str(path)) == Recipe("mine", ())
    with pytest.raises(RequestError) as fault:
        read_recipe("mine.txt")
    assert ".yaml file" in fault.value.shell


BOMB = "a: &a [1, 2]\n" + "\n".join(f"b{i}: [*a, *a]" for i in range(3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is None"),
        ("name: mine\n", "no field 'rules'"),
        ("name: [4.5]\nrules: []\n", "name is"),
        ("name: mine\nrules: [\n", "not valid YAML"),
        ("name: mine\nname: other\nrules: []\n", "not valid YAML: a key is there twice"),
        ("name: mine\nrules:\n- {pattern: a, pattern: b, format: w4}\n", "there twice"),
        (BOMB, "not valid YAML: it has an alias"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ("{[a]: b}", "not valid YAML|is a key"),
        ("!!python/object/apply:os.system [ls]", "the recipe is .'ls'"),
        ("!!map [x]", "the recipe is"),
        ("name: mine\nrules: !!int ''\n", "rules is ''"),
        ("name: " + "9" * 9000 + "\nrules: []\n", "1 to 80"),
        ("name: m\nrules:\n" + "- {pattern: a, format: w4}\n" * 10_001, "10001 rules"),
        ("--- 1\n--- 2\n", "not valid YAML"),
        ("name: mine\nrules:\n- {pattern: '*', format: w7}\n", "rule 1: weight format 'w7'"),
    ],
)
def test_files_that_are_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        read_recipe(str(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    with pytest.raises(RequestError, match=r"bad\.yaml is missing"):
        read_recipe(str(path))
    for data in (b"\xff", b"\x00"):
        path.write_bytes(data)
        with pytest.raises(RequestError, match="not valid YAML"):
            read_recipe(str(path))
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RequestError, match="at most"):
        read_recipe(str(path))


def test_random_text_is_refused_or_read(tmp_path: Path) -> None:
    import random

    rng, path = random.Random(0), tmp_path / "any.yaml"
    for _ in range(300):
        path.write_text("".join(rng.choices("ab:-{}[]\n '\"#&*!|>%@`,?\t0", k=rng.randint(1, 60))))
        with pytest.raises(RequestError):
            read_recipe(str(path))
