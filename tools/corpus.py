"""Text that other people wrote and that we may learn from: Debian packages and Python's library.

Nothing here is committed: packages are downloaded and unpacked into a cache outside the repository.
A document is *held out* by its name, the same on every machine; nothing learns from it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sysconfig
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deepmnn" / "corpus"
HELD_OUT_MODULES = frozenset(
    ("bisect", "calendar", "fractions", "gzip", "sched", "statistics", "textwrap", "zipfile")
)
HELD_OUT_FOLDERS = ("python/reference/",)  # what Python shows as pydoc's topics


@dataclass(frozen=True)
class Document:
    """name: "source/path"; text: without trailing spaces, at least 400 characters."""

    name: str
    text: str

    @property
    def source(self) -> str:
        return self.name.partition("/")[0]

    @property
    def is_held_out(self) -> bool:
        if self.source == "stdlib":
            path = self.name.removeprefix("stdlib/")
            return re.split(r"[/.]", path)[0] in HELD_OUT_MODULES
        if self.name.startswith(HELD_OUT_FOLDERS):
            return True
        return hashlib.sha256(self.name.encode()).digest()[0] < 8  # one in 32


# ---------------------------------------------------------------- packages


def package(name: str, cache: Path) -> Path:
    """The files of a Debian package, downloaded once; VERSION says which version it is."""
    folder = cache / name
    if folder.is_dir():
        return folder
    unpacked = _fresh(cache / f"{name}.unpacking")
    subprocess.run(["apt-get", "download", "-qq", name], cwd=unpacked, check=True)
    (archive,) = unpacked.glob("*.deb")
    subprocess.run(["dpkg", "-x", str(archive), str(unpacked)], check=True)
    (unpacked / "VERSION").write_text(archive.name.split("_")[1])
    archive.unlink()
    unpacked.replace(folder)
    return folder


def npm_package(name: str, version: str, cache: Path) -> Path:
    """The files of an npm package, downloaded once."""
    folder = cache / f"npm-{name.replace('/', '-')}-{version}"
    if folder.is_dir():
        return folder
    unpacked = _fresh(cache / f"{folder.name}.unpacking")
    subprocess.run(["npm", "pack", "-s", f"{name}@{version}"], cwd=unpacked, check=True)
    (archive,) = unpacked.glob("*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(unpacked, filter="data")
    archive.unlink()
    unpacked.replace(folder)
    return folder


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


# ---------------------------------------------------------------- text of a file


class PageText(HTMLParser):
    """What a page says: a line for a paragraph, code as it is, no navigation."""

    BLOCKS = re.compile(r"p|div|li|[uod]l|d[td]|h[1-6]|tr|table|pre|br|section")
    SILENT = re.compile(r"script|style|nav|head|svg|title|button|noscript|form")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.silent = 0
        self.verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.SILENT.fullmatch(tag):
            self.silent += 1
        if tag == "pre":
            self.verbatim += 1
        if self.BLOCKS.fullmatch(tag):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self.SILENT.fullmatch(tag):
            self.silent = max(0, self.silent - 1)
        if tag == "pre":
            self.verbatim = max(0, self.verbatim - 1)
        if self.BLOCKS.fullmatch(tag):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(data if self.verbatim else re.sub(r"\s+", " ", data))


def page_text(html: str) -> str:
    parser = PageText()
    parser.feed(html)
    lines = (line.rstrip() for line in "".join(parser.parts).split("\n"))
    text = "\n".join(line if line.startswith("  ") else line.strip() for line in lines)
    return re.sub(r"\n{3,}", "\n\n", text)


def strings_of_r(data: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database (.rdb): compressed chunks, each a vector."""
    while data:
        inflate = zlib.decompressobj()
        chunk = inflate.decompress(data[4:])  # after its length
        data = inflate.unused_data
        position = chunk.index(b"\0\0\0\x10") + 4  # a character vector, its length, its strings
        (count,) = struct.unpack_from(">i", chunk, position)
        position += 4
        found = []
        for _ in range(count):
            (size,) = struct.unpack_from(">i", chunk, position + 4)
            found.append(chunk[position + 8 : position + 8 + size].decode())
            position += 8 + size
        yield found


def paragraphs(lines: list[str]) -> str:
    """Lines of a fixed width joined to paragraphs."""
    blocks = "\n".join(line.rstrip() for line in lines).split("\n\n")
    return "\n\n".join(" ".join(block.split()) for block in blocks if block.strip())


# ---------------------------------------------------------------- sources


def novels(cache: Path) -> Iterator[Document]:
    """Jane Austen's novels (public domain), a chapter each."""
    root = package("r-cran-janeaustenr", cache)
    data = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    for lines in strings_of_r(data):
        title = lines[0].title()
        parts = re.split(r"\n(?=CHAPTER |Chapter )", "\n".join(lines))
        for number, part in enumerate(parts):
            yield Document(f"austen/{title}/{number}", paragraphs(part.split("\n")))


def pages(source: str, root: Path, pattern: str = "**/*.html") -> Iterator[Document]:
    for path in sorted(root.glob(pattern)):
        name = path.relative_to(root).with_suffix("").as_posix()
        yield Document(
            f"{source}/{name}", page_text(path.read_text(encoding="utf-8", errors="replace"))
        )


def sqlite_pages(cache: Path) -> Iterator[Document]:
    """SQLite's documentation (public domain)."""
    for page in pages("sqlite", package("sqlite3-doc", cache) / "usr/share/doc/sqlite3"):
        _, _, text = page.text.rpartition("Support\nPurchase\n")  # ends the menus
        yield Document(page.name, text)


def postgresql_pages(cache: Path) -> Iterator[Document]:
    """PostgreSQL's documentation (PostgreSQL License)."""
    root = package("postgresql-doc-15", cache) / "usr/share/doc/postgresql-doc-15/html"
    return pages("postgresql", root)


def rust_books(cache: Path) -> Iterator[Document]:
    """The Rust project's books (MIT or Apache-2.0)."""
    root = package("rust-doc", cache) / "usr/share/doc/rust-doc/html"
    for book in ("book", "reference", "rust-by-example", "nomicon", "embedded-book", "rustc"):
        yield from pages(f"rust/{book}", root / book)


def python_pages(cache: Path) -> Iterator[Document]:
    """Python's documentation, as it was written (PSF License)."""
    root = package("python3.11-doc", cache) / "usr/share/doc/python3.11/html/_sources"
    for path in sorted(root.glob("**/*.rst.txt")):
        name = path.relative_to(root).as_posix().removesuffix(".rst.txt")
        yield Document(f"python/{name}", path.read_text(encoding="utf-8"))


def handbook_pages(cache: Path) -> Iterator[Document]:
    """The Debian Administrator's Handbook in English (GPL-2+ or CC-BY-SA-3.0)."""
    root = package("debian-handbook", cache) / "usr/share/doc/debian-handbook/html/en-US"
    return pages("handbook", root, "*.html")


def stdlib_modules(root: Path) -> Iterator[Document]:
    """Python's own library without its tests (PSF License)."""
    for path in sorted(root.glob("**/*.py")):
        name = path.relative_to(root).as_posix()
        if not re.search(r"(^|/)(site-packages|tests?|idle_test|pydoc_data)/|^_sysconfig", name):
            yield Document(f"stdlib/{name}", path.read_text(encoding="utf-8", errors="replace"))


def documents(cache: Path = CACHE) -> Iterator[Document]:
    """All there is, held-out documents too; the ones that are too short are left out."""
    sources = (
        novels(cache),
        sqlite_pages(cache),
        postgresql_pages(cache),
        rust_books(cache),
        python_pages(cache),
        handbook_pages(cache),
        stdlib_modules(Path(sysconfig.get_path("stdlib"))),
    )
    for source in sources:
        yield from long_enough(source)


def long_enough(found: Iterator[Document]) -> Iterator[Document]:
    for document in found:
        text = "\n".join(line.rstrip() for line in document.text.strip().split("\n"))
        if len(text) >= 400:
            yield Document(document.name, text)
