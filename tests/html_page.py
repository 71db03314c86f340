"""Reads a page of ours strictly: whole, alone in the world, whatever a tensor is called."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

HOSTILE = (
    "</title></style></svg><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a\x1b[31m\x00\x9b\u2028\u202eb\udc80",
    "&lt;b&gt; &amp; 'quoted'",
)
VOID = {"meta", "br", "img", "hr", "link", "input"}
ALLOWED = {"html", "head", "meta", "title", "style", "body", "main", "footer", "section", "div"} | {
    *("h1", "h2", "h3", "p", "b", "i", "small", "span", "ul", "li", "details", "summary"),
    *("table", "tr", "th", "td", "figure", "figcaption", "h4"),
    *("svg", "g", "path", "rect", "circle", "text"),
}


class Page(HTMLParser):
    """Parses strictly: every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def checked(text: str) -> Page:
    """A page that is whole, and asks nobody for anything."""
    text.encode()
    parsed = Page(text)
    names = {name for _, attributes in parsed.tags for name in attributes}
    assert {tag for tag, _ in parsed.tags} <= ALLOWED
    assert not [name for name in names if name.startswith("on")]
    assert not names & {"src", "href", "srcset", "action", "data", "xlink:href"}
    assert not re.search(r"https?:|url\(|@import", text)
    (policy,) = [a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        root = ElementTree.fromstring(drawing)
        for element in root.iter():
            for value in element.attrib.values():
                assert "nan" not in value
                assert "inf" not in value
    return parsed


def printed(name: str) -> str:
    """A hostile name as a page shows it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
