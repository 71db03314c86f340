"""Schemathesis reads what the server says of itself, and asks all that this allows, and more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from served import client, served, tiny_r1

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
"""Not `positive_data_acceptance`: no schema says that top_logprobs needs logprobs."""


def test_every_endpoint_says_what_it_answers() -> None:
    with served() as server, client(server) as http:
        paths = http.get("/openapi.json").json()["paths"]
    assert "/v1/chat/completions" in paths
    for path, operations in paths.items():
        assert not path.startswith("/test")
        for operation in operations.values():
            assert operation["description"]
            assert {"4XX", "5XX"} <= set(operation["responses"])
            body = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
            anthropic = path.startswith("/v1/messages")
            assert body["$ref"].endswith("/AnthropicError" if anthropic else "/OpenAIError")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_cases(tmp_path: Path) -> None:
    flags = ["--max-examples", "400", "--generation-deterministic", "--no-color"]
    flags += ["--request-timeout", "120"]
    with served(tiny_r1()) as server:
        address, checks = f"{server.url}/openapi.json", ",".join(CHECKS)
        command = ["-m", "schemathesis.cli", "run", address, "--checks", checks, *flags]
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
        cases = re.search(r"(\d+) generated", done.stdout)
        assert cases is not None
        assert int(cases[1]) >= 5000
        assert '"event": "error"' not in server.log.stream.getvalue()
        with client(server) as http:
            assert http.get("/health").json() == {"status": "ready"}
