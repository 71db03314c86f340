"""The life of a server: loading, ready, draining, and its end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from deepmnn.errors import RequestError, StorageError
from deepmnn.serve import run
from deepmnn.serve.options import ServeOptions
from deepmnn.serve.run import Server
from served import client, connect, served, tiny_r1

WAITING = {"max_tokens": 3000}
"""An answer that takes seconds."""


def until(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_draining_lets_what_runs_end_and_refuses_the_rest() -> None:
    with served(tiny_r1(), drain_timeout=60) as server, client(server) as http:
        with http.stream("POST", "/test/stream", json={"max_tokens": 1000}) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.drain()
            until(lambda: http.get("/health").json() == {"status": "draining"})
            assert http.get("/health").status_code == 503
            refused = http.post("/tokenize", json={"prompt": "x"})
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert refused.headers["connection"] == "close"
            *_, last = lines
            assert last == '[1, "length"]'
        server.join()
        with pytest.raises(OSError, match="refused"):
            connect(server)


def test_draining_takes_no_longer_than_it_may() -> None:
    with served(tiny_r1(), drain_timeout=1) as server, client(server) as http:
        with http.stream("POST", "/test/stream", json=WAITING | {"n": 32}) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.drain()
            *_, last = lines
            assert last == '[0, "cancelled"]'  # of one that still waited
        server.join()


def test_the_end_frees_what_ran() -> None:
    model = tiny_r1()
    with served(model) as server, client(server) as http:
        with http.stream("POST", "/test/stream", json=WAITING) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert model.engine.scheduler.running
            server.end()
            with pytest.raises(httpx.HTTPError):
                list(lines)
        server.join()
        until(lambda: not model.engine.scheduler.busy)


def test_a_client_that_leaves_frees_its_slot() -> None:
    model = tiny_r1()
    with served(model) as server, client(server) as http:
        with http.stream("POST", "/test/stream", json=WAITING) as answer:
            next(answer.iter_lines())
        until(lambda: not model.engine.scheduler.busy)


def test_a_full_queue_says_so() -> None:
    model = tiny_r1()  # runs 4 answers at a time
    with served(model, max_queue=1) as server:
        clients = [client(server) for _ in range(6)]
        streams = [http.stream("POST", "/test/stream", json=WAITING) for http in clients]
        answers = [stream.__enter__() for stream in streams]
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429]
        full = next(answer for answer in answers if answer.status_code == 429)
        assert int(full.headers["retry-after"]) > 0
        full.read()
        error = full.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        for stream in streams:
            stream.__exit__(None, None, None)
        until(lambda: not model.engine.scheduler.busy)
        for http in clients:
            http.close()


def test_a_port_that_is_taken() -> None:
    with served() as server:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(RequestError, match="another program listens there") as raised:
                Server(ServeOptions(host=host, port=server.port), "x")
            assert "--port" in raised.value.shell


def test_a_port_that_may_not_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run, "_bound", refused)
    with pytest.raises(StorageError, match="Permission denied"):
        Server(ServeOptions(port=80), "x")


def test_a_host_that_is_not_here() -> None:
    with pytest.raises(RequestError, match=r"203\.0\.113\.5"):
        Server(ServeOptions(host="203.0.113.5", insecure=True), "x")
    with pytest.raises(RequestError, match=r"no\.such"):
        Server(ServeOptions(host="no.such.invalid", insecure=True), "x")


def test_localhost_is_every_address_of_that_name() -> None:
    with served(host="localhost") as server:
        answered = 0
        for *_, address in socket.getaddrinfo("localhost", server.port, type=socket.SOCK_STREAM):
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            try:
                said = httpx.get(f"http://{host}:{server.port}/health", trust_env=False)
            except httpx.ConnectError:  # ::1 may be named and not there
                continue
            answered += said.status_code == 503
        assert answered


def test_https(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-nodes", "-keyout", key, "-out", cert]
    subprocess.run([*make, *names, *files], check=True, capture_output=True)
    trust = ssl.create_default_context(cafile=cert)
    with served(tls_cert=cert, tls_key=key) as server, client(server, verify=trust) as http:
        assert server.url.startswith("https:")
        assert http.get("/health").json() == {"status": "loading"}


def test_a_certificate_that_is_none() -> None:
    with pytest.raises(RequestError, match="certificate"):
        Server(ServeOptions(tls_cert="/nowhere", tls_key="/nowhere"), "x")


# ------------------------------------------------------------------------------ the command


@contextmanager
def command(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`deepmnn serve`, and its address once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deepmnn", "serve", "--port", "0", "--threads", "1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    killer = threading.Timer(60, process.kill)
    killer.start()
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", first)
        yield process, found[0] if found else ""
    finally:
        killer.cancel()
        process.kill()
        process.communicate()


def test_the_command_serves_and_a_second_signal_ends_it_at_once() -> None:
    endless = {"prompt": "x", "stream": True, "ignore_eos": True, "n": 64, "max_tokens": 4000}
    with command() as (process, url), httpx.Client(base_url=url, trust_env=False) as http:
        assert process.stdout is not None
        assert "KV cache" in process.stdout.readline()
        assert process.stdout.readline() == "Try:\n"
        assert f"curl {url}/v1/chat/completions" in process.stdout.readline()
        assert http.get("/v1/models").json()["data"][0]["id"] == "tiny-r1"
        with http.stream("POST", "/v1/completions", json=endless) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            until(lambda: http.get("/health").json() == {"status": "draining"})
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert process.stderr is not None
        log = process.stderr.read()
    assert '"event": "draining"' in log
    assert '"path": "/v1/models"' in log
    assert "Traceback" not in log


def test_the_command_says_that_rows_go_to_disk(tmp_path: Path) -> None:
    with command("--memory", "4GiB", "--kv-directory", str(tmp_path)) as (process, _):
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)][-1]
    assert f"are written to a file in {tmp_path}, at most 4.3 GB; --kv-disk 0 turns" in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_is_a_good_end(number: signal.Signals) -> None:
    with command() as (process, _):
        process.send_signal(number)
        assert process.wait(30) == 0


def test_an_interrupt_while_the_model_loads_ends_the_server() -> None:
    with pytest.raises(KeyboardInterrupt), served() as server:
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="refused"):
        connect(server)
