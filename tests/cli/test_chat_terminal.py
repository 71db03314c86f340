"""`deepmnn chat` on a terminal: keys, history, pasted lines, commands, interrupts."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import deepmnn
from cli.typist import Typist, history
from deepmnn.conversion.bundled import bundled_checkpoint

UP, LEFT, ALT_ENTER = "\x1b[A", "\x1b[D", "\x1b\r"
HOME, CTRL_C, CTRL_D, END, CTRL_R = "\x01", "\x03", "\x04", "\x05", "\x12"
PASTE = "\x1b[200~{}\x1b[201~"
STATS = r"prompt \d+ tokens[^>]*tok/s[^|>]*\| \w+"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("bundled")))
        yield bundled_checkpoint()


def chat(model: Path, cache: Path, *flags: object, piped: bool = False) -> Typist:
    return Typist("chat", model, *flags, piped=piped, env={"XDG_CACHE_HOME": str(cache)})


def answer(model: Path, *questions: str) -> str:
    """What the API answers to the last question of a conversation."""
    llm = deepmnn.load(model)
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": llm.generate(messages).text})
    return messages[-1]["content"]


def saved(path: Path) -> list[dict[str, str]]:
    return json.loads(path.read_text())["messages"]


def test_a_conversation_with_commands(model: Path, tmp_path: Path) -> None:
    first, second = "What is 17 + 25?", "What is 12 * 3?"
    with chat(model, tmp_path, "--kv-disk", "8MB") as typist:
        header = typist.expect("/help")
        for fact in ("deepseek_v3", "w8", "context 4096 tokens", "greedy", "cpu", "--kv-disk 0"):
            assert fact in header
        typist.enter(f"{first}\r")
        assert answer(model, first) in typist.expect(STATS)
        typist.enter(f"{second}\r")
        assert answer(model, first, second) in typist.expect(STATS)
        typist.enter("/help\r")
        shown = typist.expect("Ctrl-D")
        for command in ("/help", "/system", "/reset", "/save FILE", "/load FILE", "/bye"):
            assert command in shown
        typist.enter("/nonsense\r")
        typist.expect("error: there is no command /nonsense")
        typist.enter("/sa\t")  # completes
        typist.expect("/save")
        typist.type(f" {tmp_path}/kept.json\r")
        typist.expect(r"2\s+questions")
        typist.enter("/reset\r")
        typist.expect("starts over")
        typist.enter(f"/load {tmp_path}/kept.json\r")
        typist.expect(r"2\s+questions")
        typist.enter("/system Add numbers.\r")
        typist.expect("is set")
        typist.enter("/bye\r")
        assert typist.leave() == 0
    assert [m["content"] for m in saved(tmp_path / "kept.json")][::2] == [first, second]


def test_keys_history_and_pasted_lines(model: Path, tmp_path: Path) -> None:
    with chat(model, tmp_path) as typist:
        typist.enter(f"1 + 1?{HOME}What is {LEFT * 3}{END}\r")  # home, insert, back, end
        typist.expect(STATS)
        typist.enter(PASTE.format("one\ntwo\n/three"))
        typist.type("\r")
        typist.expect(STATS)
        typist.enter(f"four{ALT_ENTER}five\r")
        typist.expect(STATS)
        typist.enter('"""\rsix\rseven\r"""\r')
        typist.expect(STATS)
        typist.enter(f"{UP * 5}{END}!\r")
        typist.expect(STATS)
        typist.enter(" /eight\r")
        typist.expect(STATS)
        typist.enter(f"/save {tmp_path}/kept.json\r")
        typist.expect(r"6\s+questions")
        typist.enter(CTRL_D)
        assert typist.leave() == 0
    questions = [m["content"] for m in saved(tmp_path / "kept.json")][::2]
    assert questions == [
        "What is 1 + 1?",
        "one\ntwo\n/three",
        "four\nfive",
        "six\nseven",
        "four\nfive!",
        "/eight",
    ]
    assert '"four\\nfive!"' in history(tmp_path)
    file = tmp_path / "deepmnn" / "chat-history.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with chat(model, tmp_path) as typist:  # another day
        typist.enter(f"{UP}{UP}{UP}\r")
        typist.expect(STATS)
        typist.enter(f"{CTRL_R}seven\r\r")
        typist.expect(STATS)
        typist.enter(f"/save {tmp_path}/again.json\r")
        typist.expect(r"2\s+questions")
        typist.enter(CTRL_D)
        assert typist.leave() == 0
    questions = [m["content"] for m in saved(tmp_path / "again.json")][::2]
    assert questions == ["four\nfive!", "six\nseven"]


def test_nothing_is_kept_without_history(model: Path, tmp_path: Path) -> None:
    with chat(model, tmp_path, "--no-history") as typist:
        typist.enter("secret\r")
        typist.expect(STATS)
        typist.enter(f"{UP}s\r")
        typist.expect("secrets")
        typist.expect(STATS)
        typist.enter(CTRL_D)
        assert typist.leave() == 0
    assert os.listdir(tmp_path / "deepmnn") == ["models"]


def test_ctrl_c(model: Path, tmp_path: Path) -> None:
    question = "What is 123456 + 654321?"
    with chat(model, tmp_path, "--backend", "reference") as typist:
        typist.enter(CTRL_C)
        typist.expect("Ctrl-D or /bye leaves")
        typist.enter("never asked")
        typist.expect("never asked")
        typist.type(f"{CTRL_C}{question}\r")
        typist.expect("Ones")  # it has begun
        typist.type(CTRL_C)
        shown = typist.expect("kept")
        assert "tok/s" not in shown
        assert "^C" not in shown
        typist.enter(f"/save {tmp_path}/kept.json\r")
        typist.expect(r"1\s+question")
        typist.enter("/bye\r")
        assert typist.leave() == 0
    asked, said = saved(tmp_path / "kept.json")
    assert asked["content"] == question
    whole = deepmnn.load(model, backend="reference").generate([asked])
    assert 0 < len(said["reasoning"]) < len(whole.reasoning)
    assert whole.reasoning.startswith(said["reasoning"])


def test_a_piped_stdout_has_nothing_but_answers(model: Path, tmp_path: Path) -> None:
    question = "What is 17 + 25?"
    with chat(model, tmp_path, "--no-reasoning", piped=True) as typist:
        typist.enter(f"{question}\r")
        typist.expect(STATS)
        typist.enter("/help\r")
        typist.expect("/bye")
        typist.enter(CTRL_D)
        assert typist.leave() == 0
        assert typist.child.stdout
        assert typist.child.stdout.read().decode() == answer(model, question) + "\n"


def test_answers_wrap_at_words(tmp_path: Path, model: Path) -> None:
    with chat(model, tmp_path) as typist:
        typist.enter("x" * 30 + " word" * 30 + "\r")
        typist.expect(STATS)
        typist.enter("/unknown-command-with-a-long-name\r")
        shown = typist.expect("it is a\\s+question")
        assert max(map(len, re.split(r"\n", shown[shown.index("error:") :]))) <= 80
        typist.enter(CTRL_D)
        assert typist.leave() == 0
