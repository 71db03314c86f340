"""Nothing that strangers write into files commands the terminal, whichever verb shows it."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.text import Text
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from deepmnn.artifact.manifest import MANIFEST, manifest_crc
from deepmnn.cli import app
from deepmnn.cli.console import Terminal, table, visible
from exporters.folders import reseal
from tiny_artifact import CONFIG, tiny_artifact, write_config

HOSTILE = (
    "\x1b[2J\x1b]0;PWNED\x07\x9b31m\r\x08\x7f\u202e\u2066[/oops][bold red]:bomb:\nerror: forged"
)
"""Clears the screen, sets the title, colours, goes back, turns text around, is markup, and adds a
line that looks like ours."""

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
TOKENIZER = ("tokenizer_config.json", "tokenizer.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_artifact(tmp_path_factory.mktemp("hostile"), quant="w8")


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def safe(text: str) -> str:
    """The text; fails when it could command a terminal, or pass for a message of ours."""
    for char in text:
        assert char in "\n\t" or unicodedata.category(char) != "Cc", (ascii(char), ascii(text))
        assert unicodedata.bidirectional(char) not in BIDI, (ascii(char), ascii(text))
    assert not any(line.startswith("error: forged") for line in text.split("\n")), ascii(text)
    return text


def harmless(result: Result) -> str:
    """What was printed; fails unless it is safe and there is no traceback."""
    harmless_errors(result)
    return safe(result.stdout) + result.stderr


def harmless_errors(result: Result) -> str:
    """As `harmless`, of stderr: an answer goes into a pipe to the letter."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return safe(result.stderr)


def poison(model: Path, target: Path, file: str, value: Any) -> Path:
    """A copy of the model with another JSON in a file; sealed as whoever sends it would."""
    shutil.copytree(model, target)
    (target / file).write_text(json.dumps(value))
    if file == MANIFEST:
        (target / file).write_text(json.dumps(value | {"crc32": manifest_crc(value)}))
    else:
        reseal(target / MANIFEST)
    return target


def poisoned(value: Any) -> Iterator[Any]:
    """The value with each of its texts replaced in turn: as values, and as names of members."""
    if isinstance(value, str):
        yield HOSTILE
    elif isinstance(value, dict):
        for key, member in value.items():
            for worse in poisoned(member):
                yield {**value, key: worse}
            yield {(HOSTILE if name == key else name): each for name, each in value.items()}
    elif isinstance(value, list):
        yield [HOSTILE, *value[1:]]
        for worse in poisoned(value[0]) if value else ():
            yield [worse, *value[1:]]


@pytest.mark.parametrize("verb", ["info", "convert"])
@pytest.mark.parametrize("key", CONFIG)
def test_every_field_of_a_config(tmp_path: Path, verb: str, key: str) -> None:
    for number, worse in enumerate((HOSTILE, [HOSTILE], {HOSTILE: HOSTILE})):
        source = tmp_path / str(number)
        write_config(source, **{key: worse})
        more = ["info"] if verb == "info" else ["convert", "--random-weights", "--dry-run"]
        harmless(run(*more, source, *([tmp_path / "out"] if verb == "convert" else [])))


@pytest.mark.parametrize("most", [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", [MANIFEST, "graph.json", "config.json", *TOKENIZER])
def test_texts_of_a_converted_model(model: Path, tmp_path: Path, file: str, most: int) -> None:
    worse = list(poisoned(json.loads((model / file).read_text())))
    assert worse
    for number, value in enumerate(worse[:: len(worse) // most + 1]):
        path = poison(model, tmp_path / str(number), file, value)
        harmless(run("info", path))
        harmless(run("export", path, tmp_path / "out", "--overwrite"))
        harmless_errors(run("chat", path, "--max-tokens", 1, stdin="x\n"))
        shutil.rmtree(path)


@pytest.mark.parametrize(
    "template",
    [
        f"{{{{ raise_exception({HOSTILE!r}) }}}}",
        f"{{{{ {{}}[{HOSTILE!r}].x }}}}",
        f"{{% {HOSTILE} %}}",
        f"{{{{ messages | {HOSTILE.splitlines()[0]} }}}}",
    ],
)
def test_what_a_chat_template_says(model: Path, tmp_path: Path, template: str) -> None:
    fields = json.loads((model / "tokenizer_config.json").read_text())
    fields["chat_template"] = template
    path = poison(model, tmp_path / "model", "tokenizer_config.json", fields)
    for verb in (["generate", path, "x"], ["chat", path], ["generate", path, "x", "--json"]):
        result = run(*verb, stdin="x\n")
        assert "error: " in harmless_errors(result)
        assert result.exit_code == 1


def test_names_of_tensors_files_and_recipes(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "-")
    directory = tmp_path / name
    write_config(directory / "source")
    assert "deepseek_v3" in harmless(run("info", directory / "source"))
    config = {**CONFIG, "model_type": "llama", "head_dim": 8, "num_key_value_heads": 1}
    config |= {"num_attention_heads": 5, "num_hidden_layers": 1, "rms_norm_eps": 1e-6}
    write_config(tmp_path / "llama", **config)
    harmless(run("convert", tmp_path / "llama", tmp_path / "plain", "--random-weights"))
    made = run("convert", directory / "source", directory / "out", "--random-weights")
    assert "parameters as w8" in harmless(made)
    for verb in ("info", "generate", "chat", "bench", "eval", "export"):
        more = {"generate": ["x"], "export": [directory / "mnn"]}.get(verb, [])
        harmless_errors(run(verb, directory / "out", *more, stdin="x\n"))
        harmless(run(verb, directory / "missing", *more))
    recipe = tmp_path / f"{name}.json"
    for fields in ({"name": HOSTILE, "rules": [{"match": "*", "format": "w8"}]}, {HOSTILE: 1}):
        recipe.write_text(json.dumps(fields))
        out = tmp_path / f"as-{len(fields)}"
        harmless(run("convert", directory / "source", out, "--random-weights", "--quant", recipe))


def test_tensors_that_nothing_reads(tmp_path: Path) -> None:
    write_config(tmp_path / "source")
    save_file({HOSTILE: np.zeros(3, np.float32)}, tmp_path / "source" / "model.safetensors")
    for verb in (["info"], ["convert", "--dry-run"], ["convert"]):
        harmless(run(*verb, tmp_path / "source", *[tmp_path / "out"] * (verb != ["info"])))


def test_data_conversations_and_flags(model: Path, tmp_path: Path) -> None:
    for line in ({"question": "x", "answer": "1", "kind": HOSTILE}, {HOSTILE: HOSTILE}, HOSTILE):
        data = tmp_path / "data.jsonl"
        data.write_text(json.dumps(line) + '\n{"question": "y", "answer": "2"}\n')
        harmless(run("eval", model, "--data", data, "--max-tokens", 1))
    saved = {"format": "deepmnn-chat", "format_version": 1, "system": HOSTILE, "messages": []}
    for worse in (saved, *poisoned(saved), {**saved, "messages": [HOSTILE] * 2}):
        (tmp_path / "chat.json").write_text(json.dumps(worse))
        asked = f"/load {tmp_path / 'chat.json'}\n/system\n/{HOSTILE}\n"
        harmless_errors(run("chat", model, "--max-tokens", 1, stdin=asked))
    for wrong in (["info", HOSTILE], ["generate", model, "x", f"--{HOSTILE}"], [HOSTILE]):
        harmless(run(*wrong))
    harmless(run("generate", model, "x", "--threads", HOSTILE))
    harmless(run("bench", model, "--batch", HOSTILE))
    harmless(run("convert", model, tmp_path / "o", "--quant", HOSTILE))


def test_the_console_shows_every_character_of_the_category() -> None:
    for code in range(0x110000):
        char = chr(code)
        kept = visible(char, one_line=True)
        hostile = unicodedata.category(char) == "Cc" or unicodedata.bidirectional(char) in BIDI
        assert (kept != char) == (hostile or char in "\u2028\u2029"), hex(code)
    assert visible("a\n\tb") == "a\n\tb"


def test_tables_titles_and_styled_text(capsys: pytest.CaptureFixture[str]) -> None:
    console = Terminal()
    made = table(HOSTILE, HOSTILE, HOSTILE)
    made.add_row(HOSTILE, HOSTILE)
    for printed in (made, Text(HOSTILE, "bold"), HOSTILE):
        console.print(printed, style="dim")
    console.say(HOSTILE)
    assert "[/oops]" in safe(capsys.readouterr().out.replace("\nerror: forged", ""))
