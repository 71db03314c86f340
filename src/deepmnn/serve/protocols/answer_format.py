"""What an answer is to look like, as OpenAI's APIs name it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from deepmnn.serve.body import Body


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """A JSON object of any form, or of llama.cpp's `schema`."""

    type: Literal["json_object"]
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class NamedSchema(Body):
    """A JSON schema; its name and `strict` change nothing: it is always kept to."""

    name: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")


class SchemaFormat(Body):
    """A JSON document of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


AnyFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


def wanted_schema(format: TextFormat | ObjectFormat | SchemaFormat | None) -> Any:
    """The JSON schema of an answer; None where it may be any text."""
    if isinstance(format, SchemaFormat):
        return format.json_schema.json_schema
    return (format.json_schema or {"type": "object"}) if isinstance(format, ObjectFormat) else None
