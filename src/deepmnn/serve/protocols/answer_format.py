"""What an answer is to look like, as OpenAI's APIs name it."""

from __future__ import annotations

from typing import Literal

from deepmnn.serve.body import Body


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """A JSON object of any form."""

    type: Literal["json_object"]
