"""Requests from a file: answered once each, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import deepmnn
from deepmnn.cli.options import bundled
from deepmnn.errors import RequestError, StorageError
from deepmnn.serve.batch.results import Results
from deepmnn.serve.batch.run import run_batch

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def model() -> deepmnn.LLM:
    return deepmnn.load(bundled(), threads=1)


def question(number: int, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is {number} + 30?"}]
    return {"messages": messages, "max_tokens": 12, **fields}


def task(name: str, body: dict[str, Any], url: str = CHAT) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def write(path: Path, tasks: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in tasks))
    return path


def read(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line["custom_id"]: line for line in lines}
    assert len(found) == len(lines), "a request has two answers"
    return found


def test_answers_are_those_of_generate(model: deepmnn.LLM, tmp_path: Path) -> None:
    tasks = [task(f"q{number}", question(number)) for number in range(20)]
    tasks.append(task("two", question(7, n=2, temperature=1, seed=5)))
    asked = {"input": "What is 3 + 30?", "max_output_tokens": 12}
    tasks.append(task("response", asked, "/v1/responses"))
    tasks.append(task("text", {"prompt": ["12 + ", "13 + "], "max_tokens": 4}, TEXT))
    source, target = write(tmp_path / "in.jsonl", tasks), tmp_path / "out.jsonl"
    told: list[tuple[int, int]] = []
    counts = run_batch(model, "m", source, target, progress=lambda *each: told.append(each))
    assert (counts.total, counts.answered, counts.refused, counts.before) == (23, 23, 0, 0)
    assert told == [(done, 23) for done in range(1, 24)]
    found = read(target)
    assert set(found) == {each["custom_id"] for each in tasks}
    assert not (tmp_path / "out.jsonl.partial").exists()
    params = deepmnn.SamplingParams(max_tokens=12)
    for number in range(20):
        line = found[f"q{number}"]
        assert line["response"]["status_code"] == 200
        assert line["error"] is None
        (choice,) = line["response"]["body"]["choices"]
        answer = model.generate(question(number)["messages"], params)
        assert choice["message"].get("reasoning_content", "") == answer.reasoning
    assert len(found["two"]["response"]["body"]["choices"]) == 2
    (thought,) = found["response"]["response"]["body"]["output"]
    params = deepmnn.SamplingParams(max_tokens=12)
    assert (
        thought["content"][0]["text"] == model.generate(question(3)["messages"], params).reasoning
    )
    assert len(found["text"]["response"]["body"]["choices"]) == 2


def test_what_cannot_be_answered_has_its_error(model: deepmnn.LLM, tmp_path: Path) -> None:
    tasks = [
        task("good", question(1)),
        task("hot", question(1, temperature=-1)),
        task("long", question(1) | {"messages": [{"role": "user", "content": "one " * 5000}]}),
        task("empty", {}),
    ]
    source, target = write(tmp_path / "in.jsonl", tasks), tmp_path / "out.jsonl"
    counts = run_batch(model, "m", source, target)
    assert (counts.answered, counts.refused) == (1, 3)
    found = {name: line["response"] for name, line in read(target).items()}
    assert {name: each["status_code"] for name, each in found.items()} == {
        "good": 200, "hot": 400, "long": 400, "empty": 400
    }  # fmt: skip
    assert "temperature" in found["hot"]["body"]["error"]["message"]
    assert found["long"]["body"]["error"]["code"] == "context_length_exceeded"
    assert "messages is missing" in found["empty"]["body"]["error"]["message"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("{", "line 1 is no JSON"),
        ("[1]", r"line 1 is \[1\]; expected \{\"custom_id\""),
        (json.dumps(task("a", {})) + "\n" + json.dumps(task("a", {})), "two lines .* 'a'"),
        ("\n" + json.dumps(task("a", {}, "/v1/embeddings")), "line 2: url is '/v1/embeddings'"),
        (json.dumps(task("a", {}) | {"method": "GET"}), "line 1: method is 'GET'"),
        (json.dumps(task("", {})), "line 1 is"),
        (json.dumps({**task("a", {}), "body": "x"}), "line 1 is"),
        (b"\xff\xfe", "line 1 is no JSON"),
        ('{"custom_id": "\\ud800"}', "line 1 is no JSON"),
    ],
)
def test_a_file_of_no_requests_is_refused(
    model: deepmnn.LLM, tmp_path: Path, lines: str | bytes, message: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    with pytest.raises(RequestError, match=message):
        run_batch(model, "m", source, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == [source]


def test_files_in_the_way(model: deepmnn.LLM, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [task("a", question(1))])
    target = tmp_path / "out.jsonl"
    with pytest.raises(RequestError, match="cannot be read"):
        run_batch(model, "m", tmp_path / "none.jsonl", target)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RequestError, match="is no file"):
        run_batch(model, "m", tmp_path / "fifo", target)
    requests = write(tmp_path / "q.jsonl.partial", [task("a", question(1))])
    with pytest.raises(RequestError, match="holds the requests"):
        run_batch(model, "m", requests, tmp_path / "q.jsonl")
    (tmp_path / "link.jsonl.partial").symlink_to(source)
    with pytest.raises(RequestError, match="holds the requests"):
        run_batch(model, "m", source, tmp_path / "link.jsonl", overwrite=True)
    copied = write(tmp_path / "copy.jsonl", [task("a", question(1))])
    with pytest.raises(StorageError, match="cannot be written"):
        run_batch(model, "m", copied, tmp_path / "link.jsonl", overwrite=True)
    assert source.read_bytes() == copied.read_bytes()
    with pytest.raises(RequestError, match="holds the requests"):
        run_batch(model, "m", source, source, overwrite=True)
    target.write_text("precious")
    with pytest.raises(StorageError, match="already exists"):
        run_batch(model, "m", source, target)
    assert target.read_text() == "precious"
    run_batch(model, "m", source, target, overwrite=True)
    assert set(read(target)) == {"a"}
    with pytest.raises(StorageError, match="cannot be written"):
        run_batch(model, "m", source, tmp_path / "no" / "out.jsonl")
    other = tmp_path / "other.jsonl"
    with Results(other), pytest.raises(StorageError, match="another process writes"):
        run_batch(model, "m", source, other)


def test_it_goes_on_from_what_is_there(model: deepmnn.LLM, tmp_path: Path) -> None:
    tasks = [task(f"q{number}", question(number)) for number in range(6)]
    source, target = write(tmp_path / "in.jsonl", tasks), tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    mine = {"mine": True, "response": {"body": {}}}
    kept = [{"custom_id": "q1", **mine}, {"custom_id": "q4", **mine}]
    partial.write_text("".join(json.dumps(each) + "\n" for each in kept) + '{"custom_id": "q2", "r')
    counts = run_batch(model, "m", source, target)
    assert (counts.before, counts.answered) == (2, 4)
    found = read(target)
    assert set(found) == {f"q{number}" for number in range(6)}
    assert [name for name, line in found.items() if "mine" in line] == ["q1", "q4"]
    target.unlink()
    other = {"custom_id": "q1", "response": {"body": {"model": "other"}}}
    partial.write_text(json.dumps(other) + "\n")
    with pytest.raises(RequestError, match="has answers of 'other'; expected those of 'm'"):
        run_batch(model, "m", source, target)
    partial.write_text(json.dumps({"custom_id": "elsewhere", **mine}) + "\n")
    with pytest.raises(RequestError, match=r"the answer to 'elsewhere', which .* lacks"):
        run_batch(model, "m", source, target)
    partial.write_text("no JSON\n")
    with pytest.raises(StorageError, match=r"line 1 of .* is no answer"):
        run_batch(model, "m", source, target)
    assert partial.read_text() == "no JSON\n"


def _killed(tmp_path: Path, kills: int, count: int) -> None:
    """The verb, killed at random moments until it is done by itself."""
    tasks = [task(f"q{number}", question(number, max_tokens=40)) for number in range(count)]
    source, target = write(tmp_path / "in.jsonl", tasks), tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    rng = random.Random(0)
    command = [sys.executable, "-m", "deepmnn", "batch", bundled(), str(source), str(target)]
    for _ in range(kills):
        before = partial.stat().st_size if partial.exists() else 0
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while child.poll() is None:  # not before it has written something
            if partial.exists() and partial.stat().st_size > before:
                time.sleep(rng.random() * 0.02)
                break
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if target.exists():
            break
    assert kills > 10 or not target.exists(), "it was done before it could be killed"
    if not target.exists():
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=400)
    assert set(read(target)) == {each["custom_id"] for each in tasks}
    assert all(line["response"]["status_code"] == 200 for line in read(target).values())
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_killed_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    _killed(tmp_path, kills=1, count=200)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_fifty_times_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    _killed(tmp_path, kills=50, count=6_000)
