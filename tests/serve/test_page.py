"""The chat page in a real browser, on a server that answers from a script."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

import deepmnn
from browser_page import launched, opened
from fake_chat import FakeChat, running
from served import KEY, served, tiny_r1

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FOLDER = Path(deepmnn.__file__).parent / "serve" / "page"

QUESTION = "Why is the sky blue?"
REASONING = "They ask about light.\n\nRayleigh it is."
ANSWER = "**Short** waves scatter more.\n\n```python\nprint(1 / 4**4)\n```\n\nThat is `all`."


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def chat() -> Iterator[FakeChat]:
    chat = FakeChat()
    chat.answers[QUESTION] = [[("reasoning", REASONING), ("pause", 0.1), ("text", ANSWER)]]
    with running(chat.app) as chat.url:
        yield chat


@pytest.fixture
def page(browser: Browser, chat: FakeChat) -> Iterator[Page]:
    yield from opened(browser, chat.url)


def ask(page: Page, question: str, *, whole: bool = True) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")
    if whole:
        page.wait_for_selector(".answer:last-child .facts")


def texts(page: Page, selector: str) -> list[str]:
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def until(page: Page, condition: str) -> None:
    # Not wait_for_function: it evaluates text in the page, which the policy forbids.
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    pytest.fail(condition)


# The files, without a browser


def read(url: str, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_the_files_are_served_with_a_policy(chat: FakeChat) -> None:
    index, html = read(chat.url, "/")
    assert html == (FOLDER / "index.html").read_bytes()
    for path in ("/", "/page/page.css", "/page/page.js"):
        response, body = read(chat.url, path)
        assert (response.status, bool(body)) == (200, True)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        again, nothing = read(chat.url, path, **{"If-None-Match": response.headers["ETag"]})
        assert (again.status, nothing) == (304, b"")
        changed, body = read(chat.url, path, **{"If-None-Match": '"another"'})
        assert (changed.status, bool(body)) == (200, True)
    types = {path: read(chat.url, path)[0].headers["Content-Type"] for path in ("/page/page.js",)}
    assert types == {"/page/page.js": "text/javascript; charset=utf-8"}
    assert index.headers["Content-Type"] == "text/html; charset=utf-8"
    for path in ("/page/__init__.py", "/page/..%2f__init__.py", "/page/", "/page/none.js"):
        assert read(chat.url, path)[0].status == 404


def test_modules_name_only_modules_that_there_are() -> None:
    index = (FOLDER / "index.html").read_text()
    loaded = set(re.findall(r'(?:src|href)="page/(.+?\.js)"', index))
    assert loaded == {path.name for path in FOLDER.glob("*.js")}
    for path in FOLDER.glob("*.js"):
        code = path.read_text()
        for name in re.findall(r'from "(.+?)"', code):
            assert (FOLDER / name).exists(), f"{path.name}: {name}"
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", code)


def test_both_languages_say_everything() -> None:
    words = {
        name: re.findall(r"^  (\w+):", (FOLDER / f"{name}.js").read_text(), re.M)
        for name in ("english", "chinese")
    }
    assert words["english"] == words["chinese"]
    used = (FOLDER / "index.html").read_text()
    keys = set(re.findall(r'data-(?:say|label|hint)="(\w+)"', used))
    for path in FOLDER.glob("*.js"):
        keys |= set(re.findall(r'say\("(\w+)"', path.read_text()))
    assert keys <= set(words["english"])


# In a browser


def test_a_question_is_answered(page: Page, chat: FakeChat) -> None:
    ask(page, QUESTION)
    (request,) = chat.asked
    assert request["messages"] == [{"role": "user", "content": QUESTION}]
    assert request["model"] == "tiny-r1"
    assert request["stream"] is True
    assert request["stream_options"] == {"include_usage": True}
    assert not request.keys() & {"temperature", "top_p", "max_tokens", "seed", "thinking"}

    assert texts(page, ".bubble") == [QUESTION]
    assert re.fullmatch(r"Thought for [\d.]+ s", texts(page, ".thoughts summary")[0])
    assert not page.locator(".thoughts .text").is_visible()
    page.click(".thoughts summary")
    assert texts(page, ".thoughts p") == ["They ask about light.", "Rayleigh it is."]
    assert texts(page, ".answer > .text p") == ["Short waves scatter more.", "That is all."]
    assert texts(page, ".answer strong") == ["Short"]
    assert texts(page, ".answer pre") == ["print(1 / 4**4)"]
    count = -(-len(REASONING) // 4) - (-len(ANSWER) // 4)
    facts = texts(page, ".facts")[0]
    assert facts.startswith(f"{count} tokens ({-(-len(REASONING) // 4)} of reasoning) · ")
    assert re.search(r"[\d,]+ tok/s · first token after .* · prompt 1,234 \(1,024 cached\)$", facts)
    assert page.locator("[data-theme=light] .answer").get_attribute("aria-busy") == "false"


def test_keys(page: Page, chat: FakeChat) -> None:
    chat.answers["one\ntwo"] = [[("text", "three")]]
    page.focus("#question")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    # An input method that composes takes Enter for itself; Safari tells it by the code alone.
    for key in ("{isComposing: true}", "{keyCode: 229}"):
        page.evaluate(
            f"document.getElementById('question').dispatchEvent(new KeyboardEvent('keydown', "
            f"{{key: 'Enter', bubbles: true, cancelable: true, ...{key}}}))"
        )
    assert not chat.asked
    page.keyboard.press("Enter")
    page.wait_for_selector(".facts")
    assert chat.asked[0]["messages"][0]["content"] == "one\ntwo"
    page.keyboard.press("Enter")
    page.keyboard.type("   ")
    page.keyboard.press("Enter")
    assert len(chat.asked) == 1
    assert page.locator("#send").is_disabled()


slow = pytest.mark.slow


@slow
@pytest.mark.parametrize("way", ["Escape", "button"])
def test_stop(page: Page, chat: FakeChat, way: str) -> None:
    chat.answers["slow"] = [[("reasoning", "Let me see"), ("text", "Well,"), ("pause", 60)]]
    ask(page, "slow", whole=False)
    page.wait_for_selector(".answer p:has-text('Well,')")
    assert page.locator("#send").get_attribute("aria-label") == "Stop"
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.click("#send")
    page.wait_for_selector(".facts")
    assert texts(page, ".note") == ["You stopped this answer."]
    assert texts(page, ".answer > .text") == ["Well,"]
    for _ in range(100):
        if chat.left == ["slow"]:
            break
        page.wait_for_timeout(20)
    assert chat.left == ["slow"]
    page.reload()
    page.wait_for_selector(".note")
    assert texts(page, ".answer > .text") == ["Well,"]


@slow
def test_retry_and_history_of_the_conversation(page: Page, chat: FakeChat) -> None:
    chat.answers["again"] = [[("text", "first")], [("text", "second")]]
    ask(page, QUESTION)
    ask(page, "again")
    page.click(".answer:last-child [aria-label='Try again']")
    page.wait_for_selector(".answer p:has-text('second')")
    page.wait_for_selector(".answer:last-child .facts")
    history = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "again"},
    ]
    assert [each["messages"] for each in chat.asked] == [history[:1], history, history]
    assert texts(page, ".bubble") == [QUESTION, "again"]


@slow
def test_edit_branches_off(page: Page, chat: FakeChat) -> None:
    chat.answers |= {"a": [[("text", "A")]], "b": [[("text", "B")]], "c": [[("text", "C")]]}
    for question in "ab":
        ask(page, question)
    page.hover(".question >> nth=0")
    page.click(".question >> nth=0 >> [aria-label=Edit]")
    page.keyboard.press("Escape")
    assert texts(page, ".bubble") == ["a", "b"]
    page.click(".question >> nth=0 >> [aria-label=Edit]")
    page.fill(".editor textarea", "c")
    page.keyboard.press("Enter")
    page.wait_for_selector(".answer p:has-text('C')")
    assert texts(page, ".bubble") == ["c"]
    assert chat.asked[-1]["messages"] == [{"role": "user", "content": "c"}]


@slow
def test_copy(browser: Browser, chat: FakeChat) -> None:
    options = {"permissions": ["clipboard-read", "clipboard-write"]}
    for page in opened(browser, chat.url, **options):
        ask(page, QUESTION)
        for button, expected in (
            (".answer .actions [aria-label=Copy]", ANSWER),
            ("[aria-label='Copy code']", "print(1 / 4**4)"),
            (".question [aria-label=Copy]", QUESTION),
        ):
            page.click(button)
            page.wait_for_selector("[aria-label=Copied]")
            assert page.evaluate("navigator.clipboard.readText()") == expected


@slow
def test_conversations_are_kept(page: Page, chat: FakeChat) -> None:
    chat.answers["other"] = [[("text", "else")]]
    ask(page, QUESTION)
    facts = texts(page, ".facts")
    page.click(".new")
    ask(page, "other")
    assert texts(page, "#history .title") == ["other", QUESTION]
    page.reload()
    page.wait_for_selector(".answer p:has-text('else')")  # the address names it
    page.click(f"#history .title:has-text('{QUESTION}')")
    assert texts(page, ".answer strong") == ["Short"]
    assert texts(page, ".facts") == facts

    page.hover("#history li >> nth=1")
    page.click("#history li >> nth=1 >> [aria-label=Rename]")
    page.fill("#history input", "Sky")
    page.keyboard.press("Enter")
    assert texts(page, "#history .title") == ["other", "Sky"]
    page.hover("#history li >> nth=0")
    page.click("#history li >> nth=0 >> [aria-label=Delete]")
    page.click("#confirm-no")
    page.hover("#history li >> nth=0")
    page.click("#history li >> nth=0 >> [aria-label=Delete]")
    page.click("#confirm-yes")
    until(page, "document.querySelectorAll('#history .title').length === 1")
    page.reload()
    page.wait_for_selector(".answer strong")
    assert texts(page, "#history .title") == ["Sky"]
    page.click("[data-press=openSettings]")
    page.click("[data-press=removeAll]")
    page.click("#confirm-yes")
    until(page, "document.querySelectorAll('#history .title').length === 0")
    assert page.evaluate("Object.keys(localStorage).filter(k => k.includes('conversation'))") == []


@slow
def test_the_history_is_bounded_and_survives_damage(page: Page, chat: FakeChat) -> None:
    page.evaluate(
        """() => {
            const keep = (id, changed, content) => {
                const messages = [{role: "user", content}];
                const text = JSON.stringify({id, title: id, changed, messages});
                localStorage.setItem(`deepmnn.conversation.${id}`, text);
            };
            for (let n = 0; n < 230; n++) keep(`old${n}`, n, "x".repeat(1000));
            keep("huge", 1000, "x".repeat(3_900_000));
            localStorage.setItem("deepmnn.conversation.bad", "{");
            localStorage.setItem("deepmnn.conversation.odd", '{"id": "odd", "messages": [null]}');
            localStorage.setItem("deepmnn.settings", '{"system": 5, "key": null, "seed": 7}');
        }"""
    )
    page.reload()
    ask(page, QUESTION)
    assert chat.asked[0]["seed"] == 7
    assert chat.asked[0]["messages"] == [{"role": "user", "content": QUESTION}]
    titles = texts(page, "#history .title")
    assert titles[:2] == [QUESTION, "huge"]
    assert len(titles) < 110
    assert titles[2:] == [f"old{n}" for n in range(229, 231 - len(titles), -1)]
    size = page.evaluate("Object.values(localStorage).reduce((sum, each) => sum + each.length, 0)")
    assert size < 4_100_000


@slow
def test_two_tabs_do_not_overwrite_each_other(page: Page, chat: FakeChat) -> None:
    chat.answers["other"] = [[("text", "else")]]
    second = page.context.new_page()
    second.goto(chat.url)
    ask(page, QUESTION)
    ask(second, "other")
    until(page, "document.querySelectorAll('#history .title').length === 2")
    for each in (page, second):
        assert texts(each, "#history .title") == ["other", QUESTION]


@slow
def test_settings_are_sent(page: Page, chat: FakeChat) -> None:
    page.click("[data-press=openSettings]")
    page.fill("[name=system]", "Be brief.")
    page.select_option("[name=reasoning]", "off")
    page.fill("[name=temperature]", "0.3")
    page.fill("[name=topP]", "0.9")
    page.fill("[name=maxTokens]", "77")
    page.fill("[name=seed]", "-1")
    page.click("#settings .strong")
    assert page.locator("#settings").is_visible()  # a seed is not negative
    page.fill("[name=seed]", "5")
    page.click("#settings .strong")
    page.reload()
    ask(page, QUESTION)
    (request,) = chat.asked
    sampling = {"temperature": 0.3, "top_p": 0.9, "max_tokens": 77, "seed": 5}
    assert request | sampling | {"thinking": {"type": "disabled"}} == request
    assert request["messages"][0] == {"role": "system", "content": "Be brief."}


@slow
def test_languages(browser: Browser, chat: FakeChat) -> None:
    for page in opened(browser, chat.url, locale="zh-CN"):
        assert texts(page, ".new") == ["新对话"]
        assert page.get_attribute("html", "lang") == "zh-CN"
        ask(page, QUESTION)
        assert re.fullmatch(r"思考了 [\d.]+ 秒", texts(page, ".thoughts summary")[0])
        page.click("#language")
        assert texts(page, ".new") == ["New chat"]
        assert texts(page, ".thoughts summary")[0].startswith("Thought for")
        page.reload()
        assert texts(page, ".new") == ["New chat"]


@slow
def test_themes(browser: Browser, chat: FakeChat) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    for page in opened(browser, chat.url, color_scheme="dark"):
        dark = page.evaluate(paper)
        page.click("#theme")
        light = page.evaluate(paper)
        assert (dark, light) == ("rgb(21, 24, 29)", "rgb(255, 255, 255)")
        page.reload()
        assert page.evaluate(paper) == light
        page.click("#theme")
        page.emulate_media(color_scheme="light")  # the system's choice again
        until(page, f"{paper} === '{light}'")


@slow
def test_a_phone(browser: Browser, chat: FakeChat) -> None:
    wide = "| " + " | ".join(["column"] * 12) + " |\n|" + "---|" * 12 + "\n"
    code = "```\n" + "long " * 60 + "\n```\n\n" + "w" * 300 + "\n\n$$" + "x + " * 100 + "$$"
    chat.answers["wide"] = [[("text", wide + "\n" + code)]]
    size = {"width": 360, "height": 640}
    for page in opened(browser, chat.url, viewport=size, has_touch=True, is_mobile=True):
        ask(page, "wide")
        for selector in ("html", "#scroller", "main"):
            widths = page.evaluate(
                "s => [document.querySelector(s).scrollWidth, innerWidth]", selector
            )
            assert widths == [360, 360], selector
        assert not page.locator("#history").is_visible()
        page.tap("#show-sidebar")
        page.locator("#history .title").wait_for()
        page.tap(".new")
        until(page, "document.body.classList.contains('empty')")
        page.wait_for_selector("#history", state="hidden")


@slow
def test_errors_say_what_to_do(page: Page, chat: FakeChat) -> None:
    full = ("refuse", (429, "64 requests wait", {"Retry-After": "3"}))
    half = [("text", "It begins"), ("pause", 0.3)]
    chat.answers |= {
        "busy": [[full], [("text", "fine")]],
        "cut": [[*half, ("break", None)]],
        "fail": [[*half, ("fail", "the step failed")]],
        "bad": [[("refuse", (400, "temperature is 9; expected at most 2", None))]],
        "broken": [[("refuse", (500, "", None))]],
        "long": [[("text", "so much"), ("finish", "length")]],
        "empty": [[("reasoning", "Hm.")]],
    }
    ask(page, "busy")
    assert texts(page, ".problem div") == [
        "The server is busy. Try again in 3 s.\n\n64 requests wait"
    ]
    page.click(".problem button")
    page.wait_for_selector(".answer p:has-text('fine')")
    for question, words, kept in (
        ("cut", "The connection broke before the answer was whole.", "It begins"),
        ("fail", "The server failed.\n\nthe step failed", "It begins"),
        ("bad", "The server refused the request.\n\ntemperature is 9; expected at most 2", ""),
        ("broken", "The server failed.\n\nHTTP 500", ""),
    ):
        ask(page, question)
        assert texts(page, ".answer:last-child .problem div") == [words]
        assert texts(page, ".answer:last-child > .text") == [kept]
    ask(page, "long")
    assert texts(page, ".answer:last-child .note")[0].startswith("The answer reached its limit")
    ask(page, "empty")
    assert texts(page, ".answer:last-child .note") == ["The answer is empty."]


@slow
def test_a_server_that_went_away(browser: Browser) -> None:
    chat = FakeChat()
    with running(chat.app) as url:
        pages = opened(browser, url)
        page = next(pages)
    ask(page, QUESTION)
    said = "The server cannot be reached. Does it still run?"
    assert texts(page, ".answer .problem div") == [said]
    page.wait_for_selector("#trouble .problem")
    assert texts(page, "#trouble div div") == [said]
    assert not list(pages)


@slow
def test_a_key(page: Page, chat: FakeChat) -> None:
    chat.key = "s3cret"
    ask(page, QUESTION)
    assert texts(page, ".answer .problem strong") == ["The server wants an API key."]
    page.click(".answer .problem button:has-text('Enter the key')")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trouble:has-text('does not accept')")
    page.click("#trouble button")
    page.fill("[name=key]", "s3cret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#trouble .problem", state="detached")
    page.click(".answer .problem button:has-text('Try again')")
    page.wait_for_selector(".answer strong:has-text('Short')")


@slow
def test_tool_calls(page: Page, chat: FakeChat) -> None:
    pieces = [
        {"index": 0, "name": "weather", "arguments": '{"city": '},
        {"index": 0, "name": "", "arguments": '"<b>Xi\'an"}'},
        {"index": 1, "name": "time", "arguments": "{}"},
    ]
    chat.answers["tools"] = [[*(("call", piece) for piece in pieces), ("finish", "tool_calls")]]
    ask(page, "tools")
    assert texts(page, ".call span") == ["Tool call: weather", "Tool call: time"]
    assert texts(page, ".call pre") == ['{"city": "<b>Xi\'an"}', "{}"]
    assert not page.locator(".note").count()


@slow
def test_hostile_text_makes_no_element(page: Page, chat: FakeChat) -> None:
    page.evaluate("() => { window.hit = 0; window.alert = () => { window.hit++ } }")
    hostile = "\n\n".join(
        [
            "<img src=x onerror=alert(1)> <script>alert(1)</script> <svg onload=alert(1)>",
            "[x](javascript:alert(1)) [x](JaVaScRiPt:alert(1)) [x](data:text/html,<script>)",
            "[x]( javascript:alert(1)) [x](vbscript:a) ![x](https://evil.example/pixel.png)",
            "<javascript:alert(1)> <https://ok.example/a> [ok](https://ok.example/b_(c))",
            "[x](//evil.example) [x](/logout) [x](file:///etc/passwd)",
            '```html"><img src=x onerror=alert(1)>\n</code></pre><img src=x onerror=alert(1)>\n```',
            "| <img src=x onerror=alert(1)> |\n|---|\n| [x](javascript:alert(1)) |",
            "# <iframe src=javascript:alert(1)>",
        ]
    )
    chat.answers[hostile] = [[("reasoning", hostile), ("text", hostile)]]
    ask(page, hostile)
    page.click(".thoughts summary")
    page.wait_for_timeout(200)
    found = "script, img, iframe, object, embed, form, style, svg:not(.icon), [onerror], [onload]"
    assert page.locator("#messages").locator(found).count() == 0
    links = page.evaluate("[...document.querySelectorAll('#messages a')].map(a => [a.href, a.rel])")
    assert {href for href, _ in links} == {
        "https://ok.example/a",
        "https://ok.example/b_(c)",
        "https://evil.example/pixel.png",
    }
    assert all("noopener" in rel for _, rel in links)
    assert page.evaluate("window.hit") == 0
    assert "<script>alert(1)</script>" in page.inner_text(".answer > .text")
    refused = page.evaluate("try { document.body.innerHTML = '<b>'; 1 } catch { 2 }")
    assert refused == 2  # the policy


@slow
def test_the_view_follows_until_the_reader_scrolls_up(page: Page, chat: FakeChat) -> None:
    line = "a line of an answer\n\n"
    chat.answers["long"] = [[("text", line * 60), ("pause", 1), ("text", line * 60)]] * 2
    distance = "(() => { const s = document.getElementById('scroller');"
    distance += " return s.scrollHeight - s.scrollTop - s.clientHeight })()"
    ask(page, "long", whole=False)
    until(page, "document.querySelectorAll('.answer p').length > 60")
    assert page.evaluate(distance) < 2
    page.mouse.move(600, 300)
    page.mouse.wheel(0, -400)
    page.wait_for_selector("#latest:visible")
    page.wait_for_selector(".facts")
    assert page.evaluate(distance) > 1000
    page.click("#latest")
    until(page, f"{distance} < 2")
    page.wait_for_selector("#latest", state="hidden")


@slow
def test_an_answer_goes_on_while_another_conversation_is_open(page: Page, chat: FakeChat) -> None:
    chat.answers["slow"] = [[("text", "one "), ("pause", 2), ("text", "two")]]
    ask(page, "slow", whole=False)
    page.wait_for_selector(".answer > .text p")
    page.hover("#history li")
    page.click("#history [aria-label=Rename]")
    page.keyboard.press("Escape")  # ends the renaming, not the answer
    assert texts(page, "#history .title") == ["slow"]
    page.click(".new")
    ask(page, QUESTION)
    page.wait_for_selector("#history li.running", state="detached")
    page.click("#history .title:has-text('slow')")
    assert texts(page, ".answer > .text") == ["one two"]


@slow
def test_the_real_server(browser: Browser) -> None:
    with served(tiny_r1()) as server:
        for page in opened(browser, server.url):
            ask(page, "What is 12 + 30?")
            assert "42" in texts(page, ".answer > .text")[0]
            page.click(".thoughts summary")
            assert "12 + 30" in texts(page, ".thoughts .text")[0]
            ask(page, "What is 7 + 8?")
            assert re.match(r"\d+ tokens \(\d+ of reasoning\) · ", texts(page, ".facts")[1])
            page.click("[data-press=openSettings]")
            page.fill("[name=maxTokens]", "3")
            page.click("#settings .strong")
            ask(page, "What is 20 + 2?")
            assert texts(page, ".answer:last-child .facts")[0].startswith("3 tokens")
            assert texts(page, ".note")[0].startswith("The answer reached its limit")


@slow
def test_the_page_waits_for_a_key_and_for_the_model(browser: Browser) -> None:
    with served(api_key=KEY) as server:
        for page in opened(browser, server.url, seen="#trouble .problem"):
            assert texts(page, "#trouble strong") == ["The server wants an API key."]
            page.click("#trouble button")
            page.keyboard.type(KEY)
            page.keyboard.press("Enter")
            page.wait_for_selector("#trouble p:has-text('the model is still being loaded')")
            server.ready(tiny_r1())
            page.wait_for_selector("#model option[value]", state="attached")
            page.wait_for_selector("#trouble .problem", state="detached")
            ask(page, "What is 1 + 1?")
            assert "2" in texts(page, ".answer > .text")[0]
