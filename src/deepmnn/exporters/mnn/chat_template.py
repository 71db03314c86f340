"""Chat templates in the part of jinja2 that MNN's template engine renders as jinja2 does.

MNN's engine knows no errors: what it cannot read it skips, or it prints something else. Among much
else it keeps the newline at a template's end, reads `True` as an unknown variable, prints `true`
for `a or b`, finds `message['x']` defined when it is not, and has no `%`, no default(), no get(),
no split(x, 1) and no pieces of strings. So a template is parsed by jinja2 and written anew: text as
string literals, one form per meaning, known variables as constants, without dead branches and calls
of raise_exception. The result is a jinja2 template too and renders alike there.

Known differences: MNN's filters and methods know ASCII alone (`trim` leaves U+3000 and `lower` É),
`tojson` sorts keys, and a conversation that a template refuses gets a prompt nonetheless.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepmnn.errors import TokenizerError
from deepmnn.text.limited_process import LimitedProcess, LimitError


def jinja_fields(source: str, special_tokens: Mapping[str, str]) -> dict[str, Any]:
    """The "jinja" object of MNN's llm_config.json.

    Args:
        source: the model's chat template.
        special_tokens: what it knows as bos_token, eos_token, ...

    A template that has something MNN has no form for is passed on as it is, and "note" names what
    may render wrongly. Raises TokenizerError for text that is not Unicode.
    """
    try:
        "".join((source, *special_tokens.values())).encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
        raise TokenizerError(f"the chat template cannot be stored: {error}", "Unicode") from None
    known = {"tools": None, "documents": None, **special_tokens}
    ends = {name: special_tokens.get(f"{name}_token", "") for name in ("bos", "eos")}
    engine = LimitedProcess("deepmnn.exporters.mnn.lower_template", "lower")
    try:
        answer = engine.call({"source": source, "known": known})
    except LimitError as error:
        raise TokenizerError(f"the chat template {error}", "one that MNN can render") from None
    if "template" in answer:
        return {"chat_template": answer["template"], **ends}
    return {
        "chat_template": source.removesuffix("\n"),  # as jinja2 does
        **ends,
        "context": known,
        "note": f"MNN's template engine has no form for {answer['inexpressible']}: "
        "check its prompts.",
    }
