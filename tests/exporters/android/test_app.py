"""The app on this machine: its Java alone, over the JNI bridge with a fake model, its screen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

Run = Callable[..., str]


@pytest.mark.parametrize("name", ["utf8", "cores"])
def test_pure_java(scenario: Run, name: str) -> None:
    scenario("PureScenarios", name, native=False)


def test_settings_are_json_that_means_what_was_set(scenario: Run) -> None:
    plain, quoted, int8 = map(
        json.loads, scenario("PureScenarios", "settings", native=False).splitlines()
    )
    exact = {"attention_mode": 8, "reuse_kv": True}
    assert plain == {**exact, "use_mmap": False}
    assert quoted == {
        **exact,
        "thread_num": 3,
        "precision": "high",
        "power": "low",
        "memory": "normal",
        "use_mmap": True,
        "use_cached_mmap": False,
        "tmp_path": '/a "b"\\c\n世/d',
    }
    changed = {"attention_mode": 10, "reuse_kv": False, "chunk": 0, "memory": "low"}
    changed |= {"power": "normal", "tmp_path": "/e", "use_cached_mmap": True}
    assert int8 == {**quoted, **changed}


BRIDGE = ["characters", "cut", "turns", "int8", "stop", "context", "failures", "folders", "cache"]


@pytest.mark.parametrize("name", BRIDGE)
def test_interpreter_over_the_bridge(scenario: Run, name: str) -> None:
    scenario("BridgeScenarios", name)


def test_threads_are_bound_to_cores(scenario: Run) -> None:
    absent = set(range(64)) - os.sched_getaffinity(0)
    if not absent:
        pytest.skip("every core that can be named is here")
    core = min(os.sched_getaffinity(0))
    scenario("BridgeScenarios", "affinity", f"-Dcore={core}", f"-Dabsent={max(absent)}")


def test_a_missing_library_is_an_error_and_no_crash(scenario: Run) -> None:
    scenario("BridgeScenarios", "library", native=False)


@pytest.mark.parametrize("name", ["order", "stop", "errors", "close"])
def test_chat_on_its_own_thread(scenario: Run, name: str) -> None:
    scenario("ChatScenarios", name)


@pytest.mark.parametrize("name", ["screen", "emptyScreen"])
def test_screen(scenario: Run, name: str) -> None:
    scenario("ChatScenarios", name)
