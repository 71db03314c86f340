"""The endpoints that say what the server is, over HTTP; official clients are the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

import deepmnn
from deepmnn.cli.options import bundled
from deepmnn.serve.run import Server
from served import client, served, tiny_r1


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(tiny_r1()) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with client(server) as made:
        yield made


def test_health_and_version(http: httpx.Client) -> None:
    health = http.get("/health")
    assert (health.status_code, health.json()) == (200, {"status": "ready"})
    assert http.head("/health").status_code == 200
    assert http.get("/version").json() == {"version": deepmnn.__version__}


def test_while_the_model_loads_health_says_so_and_nothing_is_answered() -> None:
    with served() as server, client(server) as http:
        health = http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        assert int(health.headers["retry-after"]) > 0
        for refused in (http.get("/v1/models"), http.post("/tokenize", json={"prompt": "x"})):
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.json()["error"]["type"] == "server_error"
        assert "num_requests_running" in http.get("/metrics").text
        server.ready(tiny_r1())
        assert http.get("/v1/models").status_code == 200


def test_openai_and_anthropic_clients_list_the_model(server: Server) -> None:
    ours = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    (listed,) = ours.models.list()
    assert listed.id == ours.models.retrieve("tiny-r1").id == "tiny-r1"
    assert listed.model_extra is not None
    assert listed.model_extra["max_model_len"] == tiny_r1().driver.engine.context_length
    theirs = anthropic.Anthropic(base_url=server.url, api_key="none")
    (model,) = theirs.models.list()
    assert (model.id, model.type, model.display_name) == ("tiny-r1", "model", "tiny-r1")
    with pytest.raises(openai.NotFoundError) as raised:
        ours.models.retrieve("gpt-4")
    assert raised.value.code == "model_not_found"
    assert raised.value.request_id is not None


def test_codex_finds_its_list_beside_openais(http: httpx.Client) -> None:
    assert http.get("/v1/models", params={"client_version": "0.153.4"}).json()["models"] == []


def test_tokens_are_the_tokenizers(http: httpx.Client) -> None:
    tokenizer, text = tiny_r1().tokenizer, "347 + 285 = ?"
    for special, field in ((True, "add_special_tokens"), (False, "add_special_tokens")):
        said = http.post("/tokenize", json={"prompt": text, field: special}).json()
        assert said["tokens"] == tokenizer.encode(text, add_special_tokens=special)
        assert said["count"] == len(said["tokens"])
    ids = tokenizer.encode(text, add_special_tokens=False)
    theirs = {"content": text, "add_special": False}
    assert http.post("/tokenize", json=theirs).json()["tokens"] == ids
    back = http.post("/detokenize", json={"tokens": ids}).json()
    assert back == {"prompt": text, "content": text}


def test_a_conversation_is_tokenised_with_the_template(http: httpx.Client) -> None:
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    said = http.post("/tokenize", json={"messages": messages}).json()
    assert said["tokens"] == tiny_r1().encode(messages)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, None),
        ("/tokenize", {"prompt": "a", "messages": []}, None),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": [{"content": "no role"}]}, None),
        ("/tokenize", {"messages": "x"}, "messages"),
        ("/tokenize", [], None),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, 1 << 40]}, "tokens[1]"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_impossible_values_get_openais_error(
    http: httpx.Client, path: str, body: object, param: str | None
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]


def test_embeddings_are_refused_once(server: Server) -> None:
    ours = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    with pytest.raises(openai.NotFoundError, match="makes no embeddings"):
        ours.embeddings.create(model="tiny-r1", input="x")


def test_paths_and_methods_that_are_not_there(http: httpx.Client) -> None:
    missing = http.get("/v2/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, None)
    wrong = http.delete("/health")
    assert wrong.status_code == 405
    assert "GET" in wrong.headers["allow"]
    theirs = http.get("/v1/messages/nothing").json()
    assert (theirs["type"], theirs["error"]["type"]) == ("error", "not_found_error")
    assert theirs["request_id"].startswith("req_")


def test_a_bug_is_no_news_for_the_client(server: Server, http: httpx.Client) -> None:
    answer = http.get("/test/bug")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in server.log.stream.getvalue()
    assert "the secret" in server.log.stream.getvalue()


def test_every_answer_has_a_name_and_no_server(http: httpx.Client) -> None:
    answers = [http.get("/health"), http.get("/nothing"), http.post("/tokenize", content=b"{")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3
    for answer in answers:
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers


def test_metrics_count_cache_blocks_on_the_disk(tmp_path: Path) -> None:
    model = deepmnn.load(
        bundled(), threads=1, cache_tokens=128, kv_disk="4MiB", kv_directory=tmp_path
    )
    disk = model.engine.manager.disk
    assert disk is not None
    with served(model) as server, client(server) as http:
        room = f'deepmnn:kv_disk_blocks{{model_name="{server.name}"}} {disk.capacity:.1f}'
        assert room in http.get("/metrics").text, "said before a block is written"
        for prompt in ([5] * 90, [6] * 90, [5] * 90):
            body = {"prompt": prompt, "max_tokens": 2, "model": "x"}
            assert http.post("/v1/completions", json=body).status_code == 200
        told = http.get("/metrics").text
    values = {
        sample.name.removeprefix("deepmnn:kv_disk_blocks"): sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
        if sample.name.startswith("deepmnn:kv_disk_blocks")
    }
    assert values == {
        "": disk.capacity,
        "_used": len(disk),
        "_written_total": disk.written,
        "_read_total": disk.read,
        "_lost_total": 0,
        "_unwritten_total": 0,
    }
    assert disk.read


def test_metrics_count_what_was_answered() -> None:
    with served(tiny_r1()) as server, client(server) as http:
        assert http.post("/test/stream", json={"max_tokens": 7}).text.count("\n") == 7
        told = http.get("/metrics")
    values = {
        (sample.name, sample.labels.get("finished_reason", sample.labels.get("le"))): sample.value
        for family in text_string_to_metric_families(told.text)
        for sample in family.samples
    }
    prompt = len(tiny_r1().encode([{"role": "user", "content": "What is 2 + 2?"}]))
    expected = {
        ("vllm:prompt_tokens_total", None): prompt,
        ("vllm:prefix_cache_queries_total", None): prompt,
        ("vllm:generation_tokens_total", None): 7,
        ("vllm:request_success_total", "length"): 1,
        ("vllm:time_to_first_token_seconds_count", None): 1,
        ("vllm:inter_token_latency_seconds_count", None): 6,
        ("vllm:request_generation_tokens_sum", None): 7,
        ("vllm:e2e_request_latency_seconds_count", None): 1,
        ("vllm:num_requests_running", None): 0,
        ("vllm:kv_cache_usage_perc", None): 0,
        ("deepmnn:step_seconds_count", None): 7,
    }
    assert {key: values[key] for key in expected} == expected
