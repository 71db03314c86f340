"""Text that is on this machine: code, manuals and translated messages, each kind a domain.

Nothing is downloaded, so that another machine gives another text of the same kinds. Domains differ
as the texts of a mixture's users do: its experts specialise.
"""

from __future__ import annotations

import gettext
import gzip
import hashlib
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SHARE = Path("/usr/share")
LANGUAGES = ("de", "es", "fr", "ja", "ko", "ru", "sv", "zh_CN")
LEAST, MOST = 600, 60_000
"""Characters of a document; of a longer one, the first."""


@dataclass(frozen=True)
class Document:
    """domain: a kind of text. name: the file's path. text: LEAST to MOST characters."""

    domain: str
    name: str
    text: str

    @property
    def is_held_out(self) -> bool:
        """Whether nothing learns from it: one in 16, told by its name."""
        return hashlib.sha256(self.name.encode()).digest()[0] < 16


def documents(characters: int) -> Iterator[Document]:
    """Up to so many characters of each domain, in the order of the hashes of the files' paths."""
    for domain, (paths, read) in domains().items():
        left = characters
        for path in sorted(paths, key=lambda path: hashlib.sha256(str(path).encode()).digest()):
            if left <= 0:
                break
            try:
                text = read(path)[:MOST]
            except (OSError, UnicodeDecodeError, LookupError):
                continue  # a dangling link, or no text
            if len(text) >= LEAST:
                left -= len(text)
                yield Document(domain, str(path), text)


def domains() -> dict[str, tuple[list[Path], Callable[[Path], str]]]:
    """Each domain's files, and how one is read."""
    usr, manuals = Path("/usr"), SHARE / "man"
    python = [Path(sysconfig.get_path("stdlib")), *(Path(path) for path in sys.path if path)]
    found: dict[str, tuple[list[Path], Callable[[Path], str]]] = {
        "python": (files(python, "*.py"), plain),
        "c": (files([usr / "include"], "*.h"), plain),
        "c++": (files([usr / "include"], "*.hpp"), plain),
        "javascript": (files([usr], "*.js"), plain),
        "perl": (files([SHARE / "perl", usr / "lib"], "*.pm"), plain),
        "vim": (files([SHARE], "*.vim"), plain),
        "cmake": (files([usr], "*.cmake"), plain),
        "html": (files([SHARE], "*.html"), plain),
        "xml": (files([SHARE], "*.xml"), plain),
        "changes": (files([SHARE / "doc"], "changelog*.gz"), unzipped),
        "licences": (files([SHARE / "doc"], "copyright"), plain),
        "english manual": (files(sorted(manuals.glob("man*")), "*.gz"), manual),
    }
    for language in LANGUAGES:
        catalogues = files([SHARE / "locale" / language], "*.mo")
        pages = files([manuals / language], "*.gz")
        found[language] = (catalogues + pages, translated)
    return {domain: value for domain, value in found.items() if value[0]}


def files(roots: list[Path], pattern: str) -> list[Path]:
    """Every file of that name below the roots, once."""
    return sorted({path for root in roots if root.is_dir() for path in root.rglob(pattern)})


def plain(path: Path) -> str:
    """A file as it is."""
    return path.read_text(encoding="utf-8")


def unzipped(path: Path) -> str:
    """A gzip file."""
    return gzip.decompress(path.read_bytes()).decode()


def manual(path: Path) -> str:
    """A manual page without most of its roff."""
    lines = []
    for line in unzipped(path).splitlines():
        if line.startswith((".", "'")):
            line = re.sub(r"^[.'] *(\\\"|[A-Za-z]{1,3}\b)", "", line).strip().strip('"')
        line = re.sub(r"\\f[A-Z]|\\f\([A-Z]{2}|\\&|\\/", "", line)
        lines.append(line.replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def translated(path: Path) -> str:
    """The messages of a catalogue, or a manual page."""
    if path.suffix == ".gz":
        return manual(path)
    with path.open("rb") as file:
        # The table itself, which has no public name: typeshed knows none.
        catalogue: dict[object, str] = vars(gettext.GNUTranslations(file))["_catalog"]
    return "\n".join(message for message in catalogue.values() if len(message) > 20)
