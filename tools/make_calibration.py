"""Makes the calibration set that comes with deepmnn, and the page that says where it is from.

    python tools/make_calibration.py

Some of it was written for deepmnn (`tools/calibration/`), some is generated (`arithmetic.py`,
`word_problems.py`), the rest are passages of public-domain and permissively licensed documents
(`corpus.py` downloads them; nothing that is held out is taken). The same versions of the packages
give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import corpus
from arithmetic import Conversation, sample_conversation
from corpus import CACHE, Document, long_enough, npm_package, package
from word_problems import conversation

OUT = Path(__file__).parents[1] / "src" / "deepmnn" / "text" / "calibration"
WRITTEN = Path(__file__).parent / "calibration"
SHORTEST, LONGEST = 1100, 1900  # characters of a passage

Line = dict[str, object]


@dataclass(frozen=True)
class Source:
    """Documents under one licence, and how many passages of them are taken."""

    kind: str
    title: str
    licence: str
    count: int
    documents: Callable[[Path], Iterator[Document]]
    packages: tuple[str, ...]


# ---------------------------------------------------------------- where documents are from


def library(cache: Path) -> Iterator[Document]:
    root = package("libpython3.11-stdlib", cache)
    return corpus.stdlib_modules(root / "usr/lib/python3.11")


def go_sources(cache: Path) -> Iterator[Document]:
    root = package("golang-1.19-src", cache) / "usr/share/go-1.19/src"
    for path in sorted(root.glob("**/*.go")):
        name = path.relative_to(root).as_posix()
        if not re.search(r"(^|/)(cmd|vendor|testdata|internal)/|_test\.go$|zdefault|tables", name):
            yield Document(f"go/{name}", path.read_text(encoding="utf-8", errors="replace"))


def javascript(cache: Path) -> Iterator[Document]:
    for name, version in (("lodash", "4.18.1"), ("express", "5.3.0")):
        root = npm_package(name, version, cache) / "package"
        paths = (root / "lib").glob("*.js") if name == "express" else root.glob("[a-z]*.js")
        for path in sorted(paths):
            if not re.search(r"\.min\.|lodash\.js|core\.js", path.name):
                yield Document(f"{name}/{path.name}", path.read_text(encoding="utf-8"))


def sqlite_header(cache: Path) -> Iterator[Document]:
    text = (package("libsqlite3-dev", cache) / "usr/include/sqlite3.h").read_text()
    for number, start in enumerate(range(0, len(text), 60_000)):
        yield Document(f"sqlite3.h/{number}", text[start : start + 60_000])


def ant_design(cache: Path) -> Iterator[Document]:
    root = npm_package("@jzone-mcp/antd-components-mcp", "2.0.22", cache) / "package/componentData"
    for path in sorted(root.glob("components/*/docs.md")):
        yield Document(f"antd/{path.parent.name}", path.read_text(encoding="utf-8"))


SOURCES = (
    Source(
        "english",
        "Jane Austen's novels",
        "public domain",
        22,
        corpus.novels,
        ("r-cran-janeaustenr",),
    ),
    Source(
        "english",
        "The Rust project's books",
        "MIT",
        55,
        corpus.rust_books,
        ("rust-doc",),
    ),
    Source(
        "english",
        "SQLite's documentation",
        "public domain",
        45,
        corpus.sqlite_pages,
        ("sqlite3-doc",),
    ),
    Source(
        "english",
        "Python's documentation",
        "PSF-2.0",
        40,
        corpus.python_pages,
        ("python3.11-doc",),
    ),
    Source(
        "english",
        "PostgreSQL's documentation",
        "PostgreSQL",
        24,
        corpus.postgresql_pages,
        ("postgresql-doc-15",),
    ),
    Source("code", "Python's library", "PSF-2.0", 60, library, ("libpython3.11-stdlib",)),
    Source("code", "Go's library", "BSD-3-Clause", 30, go_sources, ("golang-1.19-src",)),
    Source("code", "Lodash and Express", "MIT", 17, javascript, ("lodash@4.18.1", "express@5.3.0")),
    Source("code", "SQLite's C interface", "public domain", 8, sqlite_header, ("libsqlite3-dev",)),
    Source(
        "chinese",
        "Ant Design's documentation",
        "MIT",
        10,
        ant_design,
        ("@jzone-mcp/antd-components-mcp@2.0.22",),
    ),
)


# ---------------------------------------------------------------- passages


def passage(document: Document, kind: str) -> str | None:
    """Whole paragraphs from somewhere in a document; None where none are worth it."""
    rng = random.Random(f"passage of {document.name}")
    wanted = rng.randint(SHORTEST + 200, LONGEST - 200) // (2 if kind == "chinese" else 1)
    blocks = document.text.split("\n\n")
    starts = [index for index, block in enumerate(blocks) if block[:1].strip()]
    rng.shuffle(starts)
    for start in starts[:20]:
        text = blocks[start]
        for block in blocks[start + 1 :]:
            if len(text) >= wanted:
                break
            text += "\n\n" + block
        text = shortened(text, LONGEST if kind != "chinese" else LONGEST // 2)
        if is_worth_it(text, kind, wanted):
            return text
    return None


def shortened(text: str, most: int) -> str:
    """Cut at the end of a line or a sentence."""
    if len(text) <= most:
        return text.strip("\n")
    end = max(text.rfind("\n", 0, most), text.rfind(". ", 0, most) + 1)
    return text[: max(end, 0)].strip("\n")


def is_worth_it(text: str, kind: str, wanted: int) -> bool:
    """Neither a table of names nor a list of links, nor mostly in another script."""
    if len(text) < 0.8 * wanted or ("http" in text and text.count("http") > 3):
        return False
    if kind == "chinese":
        return len(re.findall("[一-龥]", text)) > 0.25 * len(text)
    if sum(map(str.isascii, text)) < 0.99 * len(text):
        return False
    if kind == "code":
        return text.count("#") + text.count("//") < 0.02 * len(text) and "import" not in text[:200]
    in_sentences = sum(len(line) for line in text.split("\n") if len(line) > 50)
    return in_sentences > 0.7 * len(text)


def taken(source: Source, cache: Path) -> list[str]:
    """The source's passages, at most one of each document."""
    found = [doc for doc in long_enough(source.documents(cache)) if not doc.is_held_out]
    found.sort(key=lambda document: hashlib.sha256(document.name.encode()).digest())
    passages: list[str] = []
    while len(passages) < source.count and found:
        again = []
        for document in found:
            text = passage(document, source.kind)
            if text and text not in passages and len(passages) < source.count:
                passages.append(text)
                again.append(Document(document.name + "'", document.text))
        found = again
    return passages


# ---------------------------------------------------------------- written and generated


def written(name: str) -> list[str]:
    text = (WRITTEN / name).read_text(encoding="utf-8")
    return [part.strip("\n") for part in re.split(r"(?m)^----$", text)]


def written_chats() -> Iterator[Line]:
    for chat in written("chats.txt"):
        parts = re.split(r"(?m)^## (system|user|assistant)\n", chat)[1:]
        messages = [
            {"role": role, "content": content.strip("\n")}
            for role, content in zip(parts[::2], parts[1::2], strict=True)
        ]
        kind = "chinese" if re.search("[一-龥]", messages[0]["content"]) else "english"
        yield {"kind": kind, "messages": messages}


def worked(chat: Conversation) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": chat.system}] if chat.system else []
    turns = [*chat.earlier, (chat.problem.question, chat.problem.response)]
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def generated(seed: int) -> Iterator[Line]:
    rng = random.Random(seed)
    for _ in range(35):
        turns = [message for _ in range(3) for message in worked(sample_conversation(rng))]
        first, rest = turns[:1], [message for message in turns[1:] if message["role"] != "system"]
        yield {"kind": "reasoning", "messages": first + rest}
    for index in range(64):
        chinese = index < 24
        messages = conversation(rng, chinese=chinese, problems=rng.randint(2, 4))
        yield {"kind": "chinese" if chinese else "reasoning", "messages": messages}


# ---------------------------------------------------------------- output


def version(name: str, cache: Path) -> str:
    return name if "@" in name else f"{name} {(package(name, cache) / 'VERSION').read_text()}"


def main(
    out: Annotated[Path, typer.Option(help="Directory to write to.")] = OUT,
    cache: Annotated[Path, typer.Option(help="Where packages are downloaded to.")] = CACHE,
    seed: Annotated[int, typer.Option(help="Of the generated problems.")] = 18,
) -> None:
    """Write the samples and the table of where they are from."""
    lines: list[Line] = [{"kind": "english", "text": text} for text in written("english.txt")]
    lines += [{"kind": "chinese", "text": text} for text in written("chinese.txt")]
    lines += [{"kind": "code", "text": text} for text in written("code.txt")]
    lines += list(written_chats())
    table = [f"| written for deepmnn | Apache-2.0 | {len(lines)} | tools/calibration |"]
    made = list(generated(seed))
    lines += made
    table.append(f"| generated problems | Apache-2.0 | {len(made)} | tools/make_calibration.py |")
    for source in SOURCES:
        passages = taken(source, cache)
        lines += [{"kind": source.kind, "text": text} for text in passages]
        packages = ", ".join(version(name, cache) for name in source.packages)
        table.append(f"| {source.title} | {source.licence} | {len(passages)} | {packages} |")
    kinds = [str(line["kind"]) for line in lines]
    print({kind: kinds.count(kind) for kind in sorted(set(kinds))}, len(lines))
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out / "samples.jsonl").write_text(text, encoding="utf-8")
    head = (WRITTEN / "README.head.md").read_text(encoding="utf-8")
    page = head + "| from | licence | samples | package |\n|---|---|---:|---|\n"
    (out / "README.md").write_text(page + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
