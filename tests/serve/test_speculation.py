"""What a client, the log and the metrics are told of tokens that were guessed ahead."""

from __future__ import annotations

import json

from prometheus_client.parser import text_string_to_metric_families

import deepmnn
from deepmnn.engine.engine import Engine
from deepmnn.engine.speculation.depth import Fixed
from served import bundled, client, served

ASKED = {
    "model": "tiny-r1",
    "messages": [{"role": "user", "content": "What is 347 + 285?"}],
    "temperature": 0,
    "max_tokens": 40,
}


def test_usage_timings_log_and_metrics_agree() -> None:
    """The model guesses for itself: every token is right, but for what the end cuts off."""

    def always(engine: Engine) -> None:
        assert engine.speculation is not None
        engine.speculation.lookup = None
        engine.speculation.depth = Fixed(3)

    plain = deepmnn.load(bundled(), threads=1, speculate="off")
    model = deepmnn.load(bundled(), threads=1, speculate=bundled())
    model.driver.run(always)
    with served(model) as server, client(server) as http:
        answer = http.post("/v1/chat/completions", json=ASKED).json()
        told = http.get("/metrics").text
        log = server.log.stream.getvalue()
    message = answer["choices"][0]["message"]
    expected = plain.generate(ASKED["messages"], deepmnn.SamplingParams(max_tokens=40))
    assert message["content"].strip() == expected.text.strip()
    details = answer["usage"]["completion_tokens_details"]
    accepted, rejected = (details[f"{word}_prediction_tokens"] for word in ("accepted", "rejected"))
    assert accepted >= 10
    assert rejected <= 3
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(told)
        for sample in family.samples
    }
    assert values["vllm:spec_decode_num_accepted_tokens_total"] == accepted
    assert values["vllm:spec_decode_num_draft_tokens_total"] == accepted + rejected
    assert accepted / 3 <= values["vllm:spec_decode_num_drafts_total"] <= accepted
    [line] = [json.loads(each) for each in log.splitlines() if "chat/completions" in each]
    assert (line["drafted_tokens"], line["accepted_tokens"]) == (accepted + rejected, accepted)
    assert line["completion_tokens"] == answer["usage"]["completion_tokens"]
