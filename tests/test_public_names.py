from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import deepmnn


def test_all_names_exist_and_are_what_they_say() -> None:
    assert set(deepmnn.__all__) <= set(dir(deepmnn))
    for name in deepmnn.__all__:
        assert getattr(deepmnn, name).__doc__, f"{name} has no docstring"
    assert inspect.isclass(deepmnn.LLM)
    assert inspect.isfunction(deepmnn.load)
    with pytest.raises(AttributeError, match="nothing"):
        deepmnn.nothing  # noqa: B018


def test_convert_stays_a_function_when_its_module_is_imported() -> None:
    code = """
import deepmnn.convert
from deepmnn.convert import ConvertReport
import deepmnn, inspect
assert inspect.isfunction(deepmnn.convert), deepmnn.convert
from deepmnn import convert
assert convert is deepmnn.convert
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_import_is_light() -> None:
    code = """
import sys, deepmnn
heavy = {"torch", "transformers", "numpy", "tokenizers", "jinja2", "rich", "typer"}
heavy &= set(sys.modules)
assert not heavy, heavy
import deepmnn.api, deepmnn.convert, deepmnn.cli
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_error_is_a_deepmnn_error_with_a_reason() -> None:
    kinds = [value for value in vars(deepmnn.errors).values() if inspect.isclass(value)]
    assert len(kinds) > 8
    for kind in kinds:
        assert issubclass(kind, deepmnn.errors.DeepmnnError)
        assert kind.__name__ in (deepmnn.errors.__doc__ or "")
        assert str(kind("found", "this", "Do that.")) == "found; expected this. Do that."
