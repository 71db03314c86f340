"""Markdown on the chat page: as markdown-it-py reads it, in whatever pieces it comes, and fast."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from markdown_it import MarkdownIt

from browser_page import launched, opened
from fake_chat import FakeChat, running

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

Tree = list[Any]
"""[tag, attribute, children...]; text is a string."""

RENDER = """async (pieces) => {
    const { Markdown } = await import(new URL("page/markdown.js", location.href));
    const node = document.createElement("div");
    const markdown = new Markdown(node);
    for (const piece of pieces) markdown.push(piece);
    markdown.end();
    const tree = (node) => {
        if (node.nodeType === 3) return node.data;
        if (node.className === "code") node = node.querySelector("pre");
        if (node.className === "table") node = node.querySelector("table");
        if (node.className === "math") return [`${node.localName}.math`, "", node.textContent];
        const side = ["center", "end"].includes(node.className) ? `.${node.className}` : "";
        const tag = node.localName + side;
        const fact = node.getAttribute("href") ?? node.getAttribute("start") ?? "";
        return [tag, fact, ...[...node.childNodes].map(tree)];
    };
    return tree(node);
}"""

LENGTH = """async ([text, size]) => {
    const { Markdown } = await import(new URL("page/markdown.js", location.href));
    const node = document.createElement("div");
    const markdown = new Markdown(node);
    for (let at = 0; at < text.length; at += size) markdown.push(text.slice(at, at + size));
    markdown.end();
    return node.textContent.trim().length;
}"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with launched() as browser, running(FakeChat().app) as url:
        yield from opened(browser, url)


class _Reader(HTMLParser):
    """HTML of markdown-it as a tree like RENDER's."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[Tree] = [["div", ""]]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        side = {"text-align:center": ".center", "text-align:right": ".end"}
        name = "del" if tag == "s" else tag + side.get(facts.get("style") or "", "")
        node = [name, facts.get("href") or facts.get("start") or ""]
        self.open[-1].append(node)
        self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].append(data)


def normal(tree: Tree | str) -> Tree:
    """Without what the page does in its own way: space between blocks, paragraphs in lists."""
    tag, fact, *children = tree
    if tag == "pre":
        return ["pre", text_of(tree).rstrip("\n")]
    found: Tree = []
    for child in children:
        inside = [child] if isinstance(child, str) else [normal(child)]
        if tag == "li" and not isinstance(child, str) and child[0] == "p":
            inside = [*normal(child)[2:], "\n"]
        for each in inside:
            if isinstance(each, str) and found and isinstance(found[-1], str):
                found[-1] += each
            else:
                found.append(each)
    texts = [
        re.sub("\n+", "\n", each).strip("\n") if isinstance(each, str) else each for each in found
    ]
    return [tag, fact, *(each for each in texts if each != "")]


def text_of(tree: Tree | str) -> str:
    return tree if isinstance(tree, str) else "".join(text_of(each) for each in tree[2:])


def expected(text: str) -> Tree:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True})
    parser.enable(["table", "strikethrough"]).disable(["code", "lheading"])
    return normal(_Reader(parser.render(text)).open[0])


def rendered(page: Page, pieces: list[str]) -> Tree:
    return normal(page.evaluate(RENDER, pieces))


SAMPLES = {
    "paragraphs": "one\ntwo\n\nthree  \nfour\n\n\n\nfive",
    "headings": "# one\n\n### *two* `x`\ntext\n#### three ####\n\n#no heading\n\n####### seven",
    "emphasis": "*a* **b** ***c*** _d_ __e__ ~~f~~ *a **b** c* 2 * 3 * 4 a*b*c a_b_c **x",
    "code spans": "`a` ``b ` c`` ` d ` `*e*` `unclosed **f**",
    "escapes": r"\*a\* \_b\_ \`c\` \# \\ 1\. d \e",
    "links": '[a](https://b.c/d) [*a* `b`](https://x.y/?q=1&r=2 "title") <https://e.f/g> [no] (x)',
    "lists": "- a\n- b\n  - c\n    - d\n  - e\n- f\n\n1. one\n2. two\n   1. three\n3. four",
    "loose lists": "- a\n\n  more\n\n- b\n\n7. seven\n\n8. eight\n\n   - x\n   - y",
    "lists of code": "1. do:\n\n   ```sh\n   make  x\n\n     y\n   ```\n2. then\n\n   > so\n\nend",
    "list markers": "* a\n* b\n\ntext\n\n+ c\n+ d\n\n1) e\n2) f\n\nin\n1999. no list",
    "quotes": "> a\n> b\n>\n> - c\n>   d\n>\n> > e\n\nf\n> g\nlazy",
    "fences": "```python\nx = 1\n\n  y\n```\ntext\n~~~\n```\n~~~\n````md\n```\n````\n```\nopen",
    "tables": "| a | b | c |\n|:--|:-:|--:|\n| 1 | **2** | `3` |\n| x \\| y | |\n\nafter",
    "long code": "```c\n" + "int x = 1; /* a\n\n b */ 'c'\n" * 120 + "```\nend",
    "bare tables": "a | b\n- | -\n1 | 2",
    "no tables": "a | b\nc | d\n\n|---|\n\nx\n|--|--|",
    "rules": "a\n\n---\n\n***\n\n_ _ _\n\nb",
    "Chinese": "**重要**：用 `x`。\n\n1. **一**，二\n2. 三\n\n> 引用",
    "html": "<b>x</b> &amp; <script>y</script>\n\n<div>\n*z*\n</div>",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_it_reads_as_markdown_it_does(page: Page, name: str) -> None:
    text = SAMPLES[name]
    if name == "html":  # markdown-it reads entities; models write what they mean
        text = text.replace("&amp;", "&")
    assert rendered(page, [text]) == expected(text)


def pieces(text: str, random: random.Random) -> list[str]:
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(random.randrange(1, 40)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def test_pieces_make_the_same_as_the_whole(page: Page) -> None:
    source = random.Random(1)
    lines = [line for text in SAMPLES.values() for line in text.split("\n")]
    lines += ["$$", "\\[ x^2", "\\]", "a $b_c$ d \\(e\\)", "```", "> ```", "- ```", "\t- x", ""]
    for _ in range(300):
        text = "\n".join(source.choice(lines) for _ in range(source.randrange(1, 30)))
        whole = page.evaluate(RENDER, [text])
        for cut in (list(text), pieces(text, source)):
            assert normal(page.evaluate(RENDER, cut)) == normal(whole), text


def test_formulas_are_text(page: Page) -> None:
    text = "a \\(x_1 * y_1\\) $a_b*c*d_e$ costs $5 or $6\n\\[\n\\frac{1}{2}_a_\n\\]\n$$ z $$\nend"
    assert rendered(page, [text]) == [
        *("div", ""),
        [
            *("p", "", "a "),
            ["span.math", "", "x_1 * y_1"],
            *(" ", ["span.math", "", "a_b*c*d_e"], " costs $5 or $6"),
        ],
        ["div.math", "", "\\frac{1}{2}_a_"],
        ["div.math", "", "z"],
        ["p", "", "end"],
    ]


def test_what_is_not_whole_yet_looks_as_it_will(page: Page) -> None:
    show = RENDER.replace("markdown.end();", "")
    for text, seen in {
        "a **bold te": ["p", "", "a ", ["strong", "", "bold te"]],
        "a `co": ["p", "", "a ", ["code", "", "co"]],
        "a\n\n-": ["p", "", "a"],
        "| a | b |\n|--": ["p", "", "| a | b |"],
    }.items():
        assert normal(page.evaluate(show, [text])) == ["div", "", seen]


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "[",
            "*",
            "_a",
            "`",
            "`a``b```c",
            "![",
            "](",
            "[a](",
            "<",
            "$",
            "\\(",
            "\\[\n",
            "**a ",
            "~~",
        ),
        *(
            "> ",
            "- ",
            "- \n",
            "|",
            "| ",
            "|-",
            " ",
            "a ",
            "#",
            "# ",
            "http://",
            "https://a.b/(",
            "\n",
        ),
        *("1. a\n  ", "```\n", "| a | b |\n|---|---|\n", "a\tb", "x\r", "\\", '[a](h "', "*a_"),
    ],
)
@pytest.mark.timeout(60)
def test_no_text_hangs_the_page(page: Page, unit: str) -> None:
    text = unit * (40_000 // len(unit))
    assert page.evaluate(LENGTH, [text, len(text)]) <= 4 * len(text)
    assert page.evaluate(LENGTH, [f"a\n{text}z", len(text) // 16]) > 0
