"""How a model is served: the choices, and what each may be."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from typing import Any

from deepmnn.api.options import check_option
from deepmnn.errors import RequestError, Words, argument, shown

KEY_VARIABLE = "DEEPMNN_API_KEY"
"""The environment variable that holds the API key."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""What a client on this machine calls it."""


def _seconds(default: int, text: str) -> Any:
    return field(default=default, metadata={"help": f"{text}, in seconds.", "range": (1, 86_400)})


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Every choice of the server. A field's metadata is that of `LoadOptions`.

    Attributes:
        host: the address to listen on. One that other machines reach needs an API key, or
            `insecure`.
        port: 0 takes a free one.
        api_key: what clients must send, as `Authorization: Bearer KEY` or `x-api-key: KEY`. None
            takes the environment variable DEEPMNN_API_KEY; where that is empty, nobody is asked.
        insecure: other machines may ask without a key.
        cors: origins whose pages may ask from a browser, as "https://chat.example"; "*" is any.
        allowed_hosts: names in the Host header beside those of this machine. On a loopback address
            other names are refused, so that no page of a stranger can reach the server by a name
            of its own (DNS rebinding). Elsewhere every name is taken unless some are given.
        model_name: what the model is called; None takes the last part of its path.
        max_queue: answers that may wait for the engine; with more the server says 429.
        max_stall_ms: how long running streams may wait for a step with parts of new prompts in it;
            None is 2.25 times a step without them (`Pace`).
        max_connections: connections at a time.
        max_body_bytes: of a request.
        max_header_bytes: of a request's line and headers.
        header_timeout: for a request's headers, from the first byte.
        body_timeout: for its body.
        idle_timeout: for the next request on a connection.
        write_timeout: for a client to read on when what it was sent has filled the buffers.
        drain_timeout: for running requests to end after SIGTERM.
        log_prompts: writes what is asked into the log; otherwise no text of a client gets there.
        tls_cert, tls_key: files in PEM format, for https.

    Raises RequestError when a value is impossible, or when anybody on the network could ask.
    """

    host: str = field(
        default="127.0.0.1",
        metadata={
            "help": "Address to listen on; one that others reach needs an API key.",
            "type": str,
            "expected": "an address or a name of this machine",
        },
    )
    port: int = field(
        default=8000,
        metadata={"help": "Port to listen on; 0 takes a free one.", "range": (0, 65_535)},
    )
    api_key: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": f"Key that clients must send; better in the environment: {KEY_VARIABLE}.",
            "type": str,
            "expected": "text",
        },
    )
    insecure: bool = field(
        default=False,
        metadata={
            "help": "Let other machines ask without a key.",
            "type": bool,
            "expected": "True or False",
        },
    )
    cors: str | tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Origin whose pages may ask from a browser, as https://chat.example; "
            "repeatable.",
            "type": str | tuple | list,
            "expected": "origins",
        },
    )
    allowed_hosts: str | tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Name that clients may call this machine by; repeatable.",
            "type": str | tuple | list,
            "expected": "host names",
        },
    )
    model_name: str | None = field(
        default=None,
        metadata={
            "help": "What clients call the model; default: the last part of its path.",
            "type": str,
            "expected": "text",
        },
    )
    max_queue: int = field(
        default=256,
        metadata={"help": "Answers that may wait; more get status 429.", "range": (1, 1_000_000)},
    )
    max_stall_ms: int | None = field(
        default=None,
        metadata={
            "help": "Milliseconds that new prompts may hold up running streams for; "
            "default: 2.25 steps.",
            "range": (1, 60_000),
        },
    )
    max_connections: int = field(
        default=512, metadata={"help": "Connections at a time.", "range": (1, 100_000)}
    )
    max_body_bytes: int = field(
        default=4 << 20, metadata={"help": "Longest request body.", "range": (1024, 1 << 30)}
    )
    max_header_bytes: int = field(
        default=32 << 10, metadata={"help": "Longest request headers.", "range": (1024, 1 << 20)}
    )
    header_timeout: int = _seconds(10, "For the headers of a request")
    body_timeout: int = _seconds(60, "For the body of a request")
    idle_timeout: int = _seconds(75, "For the next request on a connection")
    write_timeout: int = _seconds(60, "For a client that has stopped reading")
    drain_timeout: int = _seconds(30, "For running requests after SIGTERM")
    log_prompts: bool = field(
        default=False,
        metadata={
            "help": "Write prompts into the log.",
            "type": bool,
            "expected": "True or False",
        },
    )
    tls_cert: str | None = field(
        default=None,
        metadata={
            "help": "Certificate in PEM format, for https.",
            "type": str,
            "expected": "a path",
        },
    )
    tls_key: str | None = field(
        default=None,
        metadata={"help": "Its private key.", "type": str, "expected": "a path"},
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                check_option(each.name, value, each.metadata)
        self._set_names("cors", r"\*|https?://[^/\s]+", "origins such as 'https://chat.example'")
        self._set_names("allowed_hosts", r"[^/\s]+", "names such as 'box.example'")
        if self.api_key is None:
            object.__setattr__(self, "api_key", os.environ.get(KEY_VARIABLE) or None)
        self._check_key()
        if (self.tls_cert is None) != (self.tls_key is None):
            found = Words(
                "of tls_cert and tls_key only one is given",
                "of --tls-cert and --tls-key only one is given",
            )
            raise RequestError(found, "both, or neither")

    @property
    def loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:  # another name: whatever it stands for
            return False

    @property
    def host_names(self) -> frozenset[str]:
        """What the Host header may say; empty: anything."""
        if not self.loopback and not self.allowed_hosts:
            return frozenset()
        return frozenset(name.lower() for name in (*LOCAL_NAMES, self.host, *self.allowed_hosts))

    def _set_names(self, name: str, pattern: str, expected: str) -> None:
        """Makes a tuple of a field's texts. Raises RequestError unless each fits the pattern."""
        given = getattr(self, name)
        texts = (given,) if isinstance(given, str) else tuple(given)
        for text in texts:
            if not isinstance(text, str) or not re.fullmatch(pattern, text):
                raise RequestError(argument(name, f" has {shown(text)}"), expected)
        object.__setattr__(self, name, texts)

    def _check_key(self) -> None:
        """Raises RequestError for a key that no header can hold, and where there should be one."""
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise RequestError(
                argument("api_key", " is empty or has characters that no HTTP header holds"),
                "letters, digits and signs of ASCII, without spaces",
            )
        if key is None and not self.loopback and not self.insecure:
            raise RequestError(
                argument("host", f" is {self.host!r:.80}, where other machines can ask"),
                Words("an api_key, or insecure=True", f"an API key in {KEY_VARIABLE}"),
                Words(
                    f"Put a key into the environment variable {KEY_VARIABLE}.",
                    f"Run: export {KEY_VARIABLE}=$(openssl rand -hex 24), then deepmnn serve "
                    f"again; clients need what echo ${KEY_VARIABLE} prints. Or let anybody ask "
                    "with --insecure.",
                ),
            )
