"""One field of a config.json: is its value of the right type and in range?

config.json comes from anywhere, edited by hand or by a program that writes every number as a float.
A value that can mean one thing only is taken (2.0 is 2); one that can not is a ConfigError: true is
no number, "false" is not false, "1e-6" is not 1e-6.
"""

from __future__ import annotations

import reprlib

from deepmnn.errors import ConfigError, UnsupportedModelError

MAX_INT = 1 << 24
"""No size in a config is larger; a damaged config must not make us allocate without end."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


def shown(value: object) -> str:
    """A value as messages show it: short and printable, however large or deep it is."""
    return _SHORT.repr(value)


def require(condition: bool, name: str, found: object, expected: str) -> None:
    """Raises ConfigError naming the field unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} is {_found(found)}", expected, "Check config.json.")


def supported(name: str, found: object, *choices: object) -> None:
    """Raises UnsupportedModelError unless `found` is one of the choices."""
    if found not in choices:
        expected = " or ".join(repr(choice) for choice in choices)
        raise UnsupportedModelError(
            f"{name} is {shown(found)}", expected, "deepmnn does not run it."
        )


def whole(name: str, value: object, low: int = 1, high: int = MAX_INT) -> int:
    """An integer in low..high; 2.0 is one, true and "2" are none. Raises ConfigError."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} is {_found(value)}", "an integer", "Check config.json.")
    require(low <= value <= high, name, value, f"a number from {low} to {high}")
    return value


def number(name: str, value: object, low: float | None = None, high: float = MAX_INT) -> float:
    """A number in low..high, or above 0 and up to high. Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} is {_found(value)}", "a number", "Check config.json.")
    if low is None:
        require(0 < value <= high, name, value, f"a number above 0, up to {high:g}")
    else:
        require(low <= value <= high, name, value, f"a number from {low:g} to {high:g}")
    return float(value)


def boolean(name: str, value: object) -> bool:
    """true or false; 1 and "true" are neither. Raises ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {_found(value)}", "true or false", "Check config.json.")
    return value


def text(name: str, value: object) -> str:
    """A string. Raises ConfigError."""
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {_found(value)}", "a string", "Check config.json.")
    return value


def texts(name: str, value: object) -> tuple[str, ...]:
    """A list of strings. Raises ConfigError."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name} is {_found(value)}", "a list of strings", "Check config.json.")
    return tuple(value)


def _found(value: object) -> str:
    return "missing" if value is None else shown(value)
