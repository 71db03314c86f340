"""What a server may be told, in Python and at a shell."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from deepmnn.cli import app
from deepmnn.errors import RequestError
from deepmnn.serve.options import KEY_VARIABLE, ServeOptions


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_this_machine_nobody_needs_a_key(host: str) -> None:
    assert ServeOptions(host=host).api_key is None
    assert host in ServeOptions(host=host).host_names


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "box.example"])
def test_elsewhere_everybody_does(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="where other machines can ask"):
        ServeOptions(host=host)
    assert ServeOptions(host=host, insecure=True).host_names == frozenset()
    assert ServeOptions(host=host, api_key="abc").api_key == "abc"
    monkeypatch.setenv(KEY_VARIABLE, "from-outside")
    assert ServeOptions(host=host).api_key == "from-outside"
    assert ServeOptions(host=host, api_key="abc").api_key == "abc"
    monkeypatch.setenv(KEY_VARIABLE, "")
    with pytest.raises(RequestError):
        ServeOptions(host=host)


def test_a_key_is_not_shown() -> None:
    assert "abc" not in repr(ServeOptions(api_key="abc"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_key": ""},
        {"api_key": "ключ"},
        {"api_key": "two words"},
        {"api_key": "line\n"},
        {"port": -1},
        {"port": 65_536},
        {"port": "80"},
        {"max_queue": 0},
        {"max_body_bytes": 5},
        {"header_timeout": 0},
        {"header_timeout": True},
        {"insecure": "yes"},
        {"host": 5},
        {"cors": 5},
        {"cors": ("",)},
        {"cors": (5,)},
        {"cors": "chat.example"},
        {"cors": "https://chat.example/"},
        {"allowed_hosts": ("a b",)},
        {"tls_cert": "a.pem"},
    ],
)
def test_impossible_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as raised:
        ServeOptions(**wrong)
    assert next(iter(wrong)) in str(raised.value)


def test_one_name_is_a_list_of_one() -> None:
    options = ServeOptions(cors="https://a.example", allowed_hosts=["B.example", "c"])
    assert options.cors == ("https://a.example",)
    assert {"b.example", "c", "localhost"} <= options.host_names


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "deepmnn.serve.run", None)
    result = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert result.exit_code == 1
    assert 'pip install "deepmnn[serve]"' in result.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "0.0.0.0"], KEY_VARIABLE),
        (["--api-key", "a b"], "--api-key"),
        (["--port", "70000"], "--port"),
        (["--cors", "x"], "--cors"),
        (["--tls-key", "x"], "--tls-cert"),
        (["--max-queue", "5000000"], "--max-queue"),
    ],
)
def test_a_shell_hears_flags(flags: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve", *flags])
    assert result.exit_code == 1
    assert said in result.stderr
