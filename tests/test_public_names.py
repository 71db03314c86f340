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


def test_functions_stay_functions_when_every_room_is_imported() -> None:
    code = """
import pkgutil, inspect, importlib, deepmnn
for module in pkgutil.iter_modules(deepmnn.__path__, "deepmnn."):
    if not module.name.endswith(("__main__", "_core")):
        importlib.import_module(module.name)
for name in ("convert", "export", "load"):
    assert inspect.isfunction(getattr(deepmnn, name)), name
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
import deepmnn.cli
heavy = {"numpy", "tokenizers", "jinja2", "safetensors", "deepmnn._core", "fastapi", "pydantic"}
heavy &= set(sys.modules)
assert not heavy, heavy
import deepmnn.api.loading, deepmnn.conversion.convert
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_error_is_a_deepmnn_error_with_a_reason() -> None:
    kinds = [value for name, value in vars(deepmnn.errors).items() if name.endswith("Error")]
    assert len(kinds) > 8
    for kind in kinds:
        assert issubclass(kind, deepmnn.errors.DeepmnnError)
        assert kind.__name__ in (deepmnn.errors.__doc__ or "")
        assert str(kind("found", "this", "Do that.")) == "found; expected this. Do that."
