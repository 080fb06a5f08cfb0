"""An answer of the server to a request, and the error that becomes one."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias

import msgspec

_JSON = b"application/json"

Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]


class Answer(NamedTuple):
    """An answer as it goes out."""

    status: HTTPStatus
    body: bytes
    content_type: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class AnswerError(Exception):
    """A request that gets an error as its answer."""

    def __init__(self, status: HTTPStatus, why: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(why)
        self.answer = Answer(status, msgspec.json.encode({"error": why}), _JSON, headers)


Route: TypeAlias = tuple[str, Callable[[Any, Mapping[bytes, bytes], Receive], Awaitable[Answer]]]
"""The method that a path takes, and what answers, given the application, the headers and the body."""
