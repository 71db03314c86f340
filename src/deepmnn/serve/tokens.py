"""/tokenize and /detokenize, with vLLM's names of the fields, and llama.cpp's."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import AliasChoices, BaseModel, Field

from deepmnn.api.chat import Chat
from deepmnn.errors import RequestError
from deepmnn.serve.body import Body
from deepmnn.serve.lifecycle import Ready

router = APIRouter(tags=["tokens"])

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]


class Tokenize(Body):
    """What is to be tokenised: a text, or a conversation with the model's chat template.

    prompt: the text; llama.cpp's name is `content`.
    add_special_tokens: puts the begin-of-sequence token in front of a text. llama.cpp's name is
        `add_special`, and its default is no; here it is yes, as in vLLM.
    """

    prompt: str | None = Field(None, validation_alias=AliasChoices("prompt", "content"))
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool = Field(
        True, validation_alias=AliasChoices("add_special_tokens", "add_special")
    )


class Tokens(BaseModel):
    """Token ids, how many they are, and how many a prompt and its answer may have together."""

    count: int
    max_model_len: int
    tokens: list[int]


class Detokenize(Body):
    """Token ids that are to be text."""

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class Text(BaseModel):
    """The text of token ids; llama.cpp's name is `content`."""

    prompt: str
    content: str


@router.post("/tokenize")
async def tokenize(asked: Tokenize, service: Ready) -> Tokens:
    """The token ids of a text or a conversation."""
    text, messages, special = asked.prompt, asked.messages, asked.add_special_tokens
    if text is not None and messages is None:
        encode = service.model.tokenizer.encode
        ids = await service.read(lambda: encode(text, add_special_tokens=special))
    elif messages is not None and text is None:
        ids = await service.tokens(Chat(messages, asked.tools or ()))
    else:
        raise RequestError("the body has both prompt and messages, or neither", "one of them")
    length = service.model.driver.engine.context_length
    return Tokens(count=len(ids), max_model_len=length, tokens=ids)


@router.post("/detokenize")
async def detokenize(asked: Detokenize, service: Ready) -> Text:
    """The text of token ids."""
    decode = service.model.tokenizer.decode
    text = await service.read(lambda: decode(asked.tokens, skip_special_tokens=False))
    return Text(prompt=text, content=text)
