"""native/README.md says which folder may ask the operating system, the processor and Python."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
HOMES = {
    # folder: (what it alone may do, a line that does)
    "platform/linux/": (
        r"#\s*include\s*<((sys|linux)/.*|(unistd|fcntl|sched|pthread|signal|windows)\.h|csignal)>",
        "#include <sys/mman.h>",
    ),
    "platform/": (
        r"\b(__linux__|__unix__|__ANDROID__|__APPLE__|_WIN32|__EMSCRIPTEN__)\b",
        "#if defined(__linux__)",
    ),
    "isa/": (
        r"#\s*include\s*<(\w*intrin|cpuid|arm_neon|arm_sve|wasm_simd128)\.h>",
        "#include <immintrin.h>",
    ),
    "bindings/": (r'#\s*include\s*[<"](nanobind/|Python\.h)', "#include <nanobind/nanobind.h>"),
}


def found(pattern: str) -> Iterator[tuple[str, str]]:
    """Files below native/ and their lines that match."""
    for path in sorted([*NATIVE.rglob("*.h"), *NATIVE.rglob("*.cc")]):
        for line in path.read_text().splitlines():
            if re.search(pattern, line):
                yield str(path.relative_to(NATIVE)), line.strip()


@pytest.mark.parametrize("home", HOMES)
def test_each_has_one_home(home: str) -> None:
    pattern, example = HOMES[home]
    assert re.search(pattern, example)
    assert [hit for hit in found(pattern) if not hit[0].startswith(home)] == []


def test_the_stub_needs_the_standard_library_alone() -> None:
    lines = [line for name, line in found("#include <") if name.startswith("platform/stub/")]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"#include <\w+>", line)] == []
