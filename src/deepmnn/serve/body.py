"""The JSON body of a request, and what is said of the first field of it that is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from deepmnn.errors import RequestError, shown


class Body(BaseModel):
    """A JSON object. Unknown fields are ignored, and null is a field that is not given."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @classmethod
    def read(cls, body: object) -> Self:
        """Checks one that does not come over HTTP. Raises RequestError."""
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise wrong_field(error.errors(include_url=False))[1] from None


def wrong_field(errors: Sequence[Mapping[str, Any]]) -> tuple[str, RequestError]:
    """The first field that is wrong, and why: what it is, and what it may be.

    errors: of pydantic.
    """
    first = errors[0]
    name = _field_name(first["loc"])
    where = name or "the body"
    if first["type"] == "missing":
        return name, RequestError(f"{where} is missing", "a value for it")
    same = [each for each in errors if _field_name(each["loc"]) == name]  # of several kinds
    expected = " or ".join(dict.fromkeys(map(_expected, same)))
    return name, RequestError(f"{where} is {shown(first.get('input'))}", expected)


def _field_name(place: Sequence[str | int]) -> str:
    """Where a field stands, as one writes it: "messages[0].role".

    pydantic also names the kinds that it tries, such as "str", "list[str]" or a tag.
    """
    name = ""
    for part in place:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in _KINDS and part != name.rpartition(".")[2]:
            name += f".{part}" if name else part
    return name


_KINDS = {"str", "int", "float", "bool", "body"}

_EXPECTED = {
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "text",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "union_tag_invalid": "the type {expected_tags}",
    "union_tag_not_found": "an object with a type",
}
"""pydantic's kinds of errors, in our words."""


def _expected(error: Mapping[str, Any]) -> str:
    kind, facts = error["type"], error.get("ctx", {})
    if kind in _EXPECTED:
        return _EXPECTED[kind].format(**facts)
    message = str(error["msg"]).removeprefix("Input should be ")
    return message[:1].lower() + message[1:]
