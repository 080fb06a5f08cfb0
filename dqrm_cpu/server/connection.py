"""A connection of the server: uvicorn's, with limits of time and size for what comes before a request's body."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEAD_BYTES = 64 << 10
_HEAD_S = 5.0
_REST_S = 1.0
"""For what still comes of a body that was refused: closed at once, the client might not read the answer."""

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class LimitedConnection(HttpToolsProtocol):
    """Closes a connection whose client takes too long with a request line and headers, or sends too much of them.

    So does one that goes on with a body that has been refused already. The body itself is limited by the application,
    the time between requests by uvicorn.
    """

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _is_within_head = False  # its first byte has come, its last has not
    _is_within_body = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_within_body:
            self._head_bytes += len(data)
        super().data_received(data)
        is_idle = self.cycle is None or self.cycle.response_complete
        if self._is_within_body or self.transport.is_closing() or not (is_idle or self._is_within_head):
            return
        if self._head_bytes > _MOST_HEAD_BYTES:
            self._refuse(_TOO_LARGE)
        elif self._timer is None:
            self._begin_timer()

    def on_message_begin(self) -> None:
        self._is_within_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_within_head, self._is_within_body, self._head_bytes = False, True, 0
        self._end_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_within_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._is_within_body:
            self._begin_timer(_REST_S)
        super().on_response_complete()

    def _begin_timer(self, seconds: float = _HEAD_S) -> None:
        self._end_timer()
        self._timer = self.loop.call_later(seconds, self._refuse, _TOO_SLOW)

    def _end_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, answer: bytes) -> None:
        if not self.transport.is_closing():
            if not self._is_within_body:  # else it has been answered
                self.transport.write(answer)
            self.transport.close()
