"""bench.serve: what its client makes of bytes, its figures, its loads, and a page of them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.serve.cases import FULL, QUICK, Steady
from bench.serve.client import Reply
from bench.serve.figures import Figures, Spread, Stall, Stream, percentile
from bench.serve.loads import Arrivals, Ask, Clients, Interrupted, Prompts, Target
from bench.serve.process import cpu_seconds, memory, shares
from bench.serve.report import page
from bench.serve.rounds import BARE, Found, Measured, Plan
from bench.serve.servers import KINDS, Room
from bench.serve.vocabulary import write_tokenizer

from deepmnn.exporters.gguf.tokenizer import vocabulary
from deepmnn.text.tokenizer import Tokenizer

CHUNK = 'data: {"choices": [{"text": "%s"}]}\n\n'


class FakeServer:
    """Answers with as many events as are asked for, `pause` seconds apart, in odd pieces."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause, self.bodies, self.most, self._now = pause, [], 0, 0  # type: ignore[var-annotated]

    async def __aenter__(self) -> Target:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return Target(self._server.sockets[0].getsockname()[1], "m")

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        while self._now:
            await asyncio.sleep(0.001)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            await self._reply(reader, writer)
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            writer.transport.abort()
            await asyncio.sleep(0.01)
        finally:
            self._now -= 1

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.partition("Content-Length: ")[2].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        self.bodies.append((head.split(" ")[1], body))
        if body["max_tokens"] == 0:
            writer.write(b"HTTP/1.1 400 Bad\r\nContent-Length: 4\r\n\r\nbad!")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for index in range(body["max_tokens"]):
                await self._chunk(writer, CHUNK % f"w{index} ")
            usage = {"completion_tokens": body["max_tokens"], "prompt_tokens": 3}
            await self._chunk(writer, f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n")
            await self._chunk(writer, "data: [DONE]\n\n")
            writer.write(b"0\r\n\r\n")

    async def _chunk(self, writer: asyncio.StreamWriter, text: str) -> None:
        data = f"{len(text.encode()):x}\r\n{text}\r\n".encode()
        for piece in (data[:7], data[7:]):
            writer.write(piece)
            await writer.drain()
        await asyncio.sleep(self.pause)


def run(load: Any, pause: float = 0.0) -> tuple[list[Any], FakeServer]:
    async def both() -> tuple[list[Any], FakeServer]:
        server = FakeServer(pause)
        async with server as target, asyncio.timeout(20):
            return await load(target), server

    return asyncio.run(both())


def test_the_client_reads_what_a_server_streams() -> None:
    exchanges, server = run(Clients([Ask([1, 2], 3), Ask("hello", 2), Ask([1], 0)], 1))
    first, chat, bad = [exchange.read() for exchange in exchanges]
    assert (first.status, first.text, first.tokens, first.error) == (200, "w0 w1 w2 ", 3, "")
    assert len(first.times) == 3
    assert first.times == sorted(first.times)
    assert exchanges[0].sent < first.times[0] < exchanges[0].closed
    assert chat.text == "w0 w1 "
    assert bad == Reply(400, error="bad!")
    assert [path for path, _ in server.bodies] == [
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/completions",
    ]
    assert server.bodies[1][1]["messages"] == [{"role": "user", "content": "hello"}]


def test_an_answer_that_is_left_has_no_end() -> None:
    async def leave(target: Target) -> list[Any]:
        exchange = await target.ask(Ask([1], 200))
        await exchange.began
        exchange.abandon()
        await exchange.ended
        return [exchange]

    (exchange,), _ = run(leave, pause=0.01)
    assert exchange.read().error == "it ended early"
    assert 0 < len(exchange.read().times) < 200


def test_clients_arrivals_and_interruptions_keep_their_order() -> None:
    asks = [Ask([index], index + 1) for index in range(6)]
    exchanges, server = run(Clients(asks, 2), pause=0.002)
    assert [exchange.read().tokens for exchange in exchanges] == [1, 2, 3, 4, 5, 6]
    assert server.most == 2
    exchanges, _ = run(Arrivals(asks, rate=500.0))
    assert [exchange.read().tokens for exchange in exchanges] == [1, 2, 3, 4, 5, 6]
    assert [e.sent for e in exchanges] == sorted(e.sent for e in exchanges)
    streams = [Ask([1], 20), Ask([2], 20)]
    exchanges, _ = run(Interrupted(streams, Ask([3] * 9, 1), 0.02), pause=0.005)
    assert [exchange.read().tokens for exchange in exchanges] == [20, 20, 1]
    first_tokens = [exchange.first for exchange in exchanges]
    assert exchanges[2].sent > max(first_tokens[:2]) + 0.02


def test_figures_of_two_streams() -> None:
    streams = [
        Stream(0.0, [1.0, 2.0, 3.0, 4.0], tokens=4, prompt_tokens=10),
        Stream(0.0, [2.0, 2.5, 3.0, 5.0], tokens=4, prompt_tokens=10),
    ]
    figures = Figures.of(streams, together=True)
    assert figures.total == pytest.approx(8 / 5)
    assert figures.read == pytest.approx(20 / 5)
    assert figures.steady == pytest.approx(4 / 2)  # tokens after 2.0 up to 4.0
    assert figures.ttft == Spread(1.0, 2.0, 2.0, 0.5)
    assert figures.gaps is not None
    assert figures.gaps.most == 2.0
    assert figures.steps == Spread.of([1.0, 1.0, 0.5, 0.5])
    assert Figures.of(streams, together=False).steps is None
    assert percentile([1, 2, 3, 4], 0.5) == 2
    assert percentile(list(range(1, 101)), 0.99) == 99


def test_a_stall_is_what_streams_feel_until_the_long_prompts_first_token() -> None:
    stream = Stream(0.0, [1.0, 1.1, 1.2, 1.8, 2.0, 9.0], 6, 1)
    stall = Stall.of([stream], Stream(1.25, [1.9], 1, 4096))
    assert stall is not None
    assert stall.quiet.p50 == pytest.approx(0.1)
    assert stall.during.most == pytest.approx(0.6)  # 1.2 to 1.8, and 1.8 to 2.0
    assert stall.ratio == pytest.approx(6.0)
    assert stall.first == pytest.approx(0.65)
    assert Stall.of([Stream(0.0, [1.0], 1, 1)], Stream(2.0, [3.0], 1, 1)) is None


def test_prompts_of_all_servers_are_the_same_work() -> None:
    for case in (*FULL, *QUICK):
        assert case.load(1000, 1) == case.load(1000, 1)
        assert case.load(1000, 1) != case.load(1000, 2)
        assert case.room.rows >= case.clients * (case.high + case.tokens)
    mixed = Prompts(1000, random.Random(0)).mixed(5, 128, 2048)
    assert sorted(map(len, mixed)) == [128, 256, 512, 1024, 2048]


def test_every_token_of_the_synthetic_vocabulary_is_text(tmp_path: Path) -> None:
    config = {"eos_token_id": 3000, "vocab_size": 3072}
    write_tokenizer(tmp_path, config)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.token_id("<｜end▁of▁sentence｜>") == 3000
    assert all(tokenizer.decode([token]) for token in range(3000))
    ids = tokenizer.encode("the wet cat sat", add_special_tokens=False)
    assert tokenizer.decode(ids) == "the wet cat sat"
    fields = vocabulary(tokenizer, 3072, config, frozenset((3000,))).fields
    assert len(fields["ggml.tokens"]) == 3072
    assert fields["ggml.eos_token_id"] == 3000
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert chat == "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜><think>\n"


def test_commands_say_what_a_server_needs() -> None:
    for kind in KINDS:
        command = kind.command(Path("m"), 1234, Room(4, 300), 2, Path("/src"))
        assert "1234" in command
        assert str(4 * 512) in command


def test_the_page_has_a_column_for_each_server_and_a_reason_for_each_that_failed() -> None:
    case = Steady(2, 8, 8, 4)
    plan = Plan(KINDS[:2], [case], {}, {}, 2, 100, 0, Path(), 1.0)
    streams = [Stream(0.0, [1.0, 2.0, 3.0], 3, 8), Stream(0.0, [1.0, 2.0, 3.0], 3, 8)]
    made = Measured(Figures.of(streams, together=True))
    found = Found({"deepmnn": "v1", "ik_llama": "v2"}, {case.name: {BARE: made, "deepmnn": made}})
    found.rows[case.name]["ik_llama"] = "it ended with 1: no model"
    text = page(plan, found, {"threads": "2"})
    assert "|  | bare engine | deepmnn serve |" in text
    assert "| total, tok/s | 2.0 | 2.0 |" in text
    assert "- llama-server of ik_llama.cpp: it ended with 1: no model" in text
    assert "2 prompts of 8 tokens, 4 tokens each in answer." in text


def test_a_process_tells_its_time_and_memory() -> None:
    assert cpu_seconds(os.getpid()) > 0
    found = memory(os.getpid())
    assert found["peak"] >= found["rss"] > found["own"] > 0
    whole = shares(os.getpid())
    assert whole["rss"] >= whole["pss"] >= whole["private"] > 0
