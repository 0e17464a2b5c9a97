"""A model provider on 127.0.0.1: real HTTP, both protocols, and every way to misbehave.

``WireServer`` answers ``…/chat/completions`` as OpenAI and ``…/messages`` as Anthropic, streaming if the request says so.
What it answers is scripted, one :class:`Answer` (or :class:`Raw`) a request, in the order in which requests arrive; it
records them all. A thread a connection, keep-alive as real servers do it::

    with WireServer(Answer("Hello."), Raw(status=429, headers={"Retry-After": "2"})) as server:
        provider = Provider(model="openai:m", base_url=server.openai_url)
"""

from __future__ import annotations

import json
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Answer", "Raw", "Request", "WireServer", "sse"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: Any
    connection: int

    @property
    def streams(self) -> bool:
        return bool(isinstance(self.body, dict) and self.body.get("stream"))


@dataclass(frozen=True)
class Answer:
    """A well-formed reply, written in the protocol of the request.

    ``tool_calls`` are ``(id, name, arguments)``. After ``hold_after`` events of a stream ``hold`` is waited for, or the
    connection ended if ``drop``.
    """

    text: str | None = None
    tool_calls: Sequence[tuple[str, str, str]] = ()
    usage: tuple[int, int] | None = (7, 5)
    finish: str | None = None
    reasoning: str | None = None
    delay_s: float = 0.0
    hold: threading.Event | None = None
    drop: bool = False
    hold_after: int = 2


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A response to the byte. ``chunks`` are sent one by one; ``drop`` ends the connection without ending the response."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: Sequence[bytes] | None = None
    delay_s: float = 0.0
    drop: bool = False


def sse(*events: Any, done: bool = True, named: bool = False) -> Raw:
    """A stream of these events: objects, or raw lines. ``named`` writes each one's ``type`` as Anthropic does."""
    chunks = []
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        name = f"event: {event['type']}\n" if named else ""
        chunks.append(f"{name}data: {data}\n\n".encode())
    if done:
        chunks.append(b"data: [DONE]\n\n")
    return Raw(headers={"Content-Type": "text/event-stream"}, chunks=chunks)


class WireServer:
    """The server. ``requests`` is what arrived; ``closed`` the numbers of connections that the client has closed early."""

    def __init__(
        self, *answers: Answer | Raw | Callable[[Request], Answer | Raw], repeat: bool = False
    ) -> None:
        self.requests: list[Request] = []
        self.closed: queue.Queue[int] = queue.Queue()
        self._answers = list(answers)
        self._repeat = repeat
        self._lock = threading.Lock()
        self._connections = 0
        self._sockets: set[socket.socket] = set()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.wire = self
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.01,), name="wire-server", daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    def __enter__(self) -> WireServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        with self._lock:
            for connection in self._sockets:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self._http.server_close()
        self._thread.join()

    def add(self, *answers: Answer | Raw | Callable[[Request], Answer | Raw]) -> None:
        """Answer further requests with these."""
        with self._lock:
            self._answers.extend(answers)

    def wait_until_closed(self, timeout_s: float = 5.0) -> None:
        """Return when a client has closed its connection in the middle of a response. Raises ``queue.Empty``."""
        self.closed.get(timeout=timeout_s)

    @property
    def connections(self) -> int:
        """How many connections have been opened."""
        return self._connections

    # -- for the handler ----------------------------------------------------------------------------------------------

    def opened(self, connection: socket.socket) -> int:
        with self._lock:
            self._connections += 1
            self._sockets.add(connection)
            return self._connections

    def gone(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(connection)

    def answer(self, request: Request) -> Answer | Raw:
        with self._lock:
            place = len(self.requests)
            self.requests.append(request)
            if self._repeat:
                place %= len(self._answers)
            if place >= len(self._answers):
                return Raw(status=500, body=b'{"error": {"message": "the wire server has no answer left"}}')
            answer = self._answers[place]
        return answer(request) if callable(answer) else answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    wire: WireServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.number = self.server.wire.opened(self.connection)

    def finish(self) -> None:
        self.server.wire.gone(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(
            path=self.path,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=json.loads(body),
            connection=self.number,
        )
        answer = self.server.wire.answer(request)
        if answer.delay_s:
            time.sleep(answer.delay_s)
        if isinstance(answer, Raw):
            self._send_raw(answer)
            return
        protocol = _Anthropic if request.path.endswith("/messages") else _OpenAI
        if request.streams:
            try:
                self._send_stream(protocol.stream(answer, request), answer)
            except ConnectionError:  # the client left while this was being written
                self.server.wire.closed.put(self.number)
                raise
        else:
            self._send_whole(json.dumps(protocol.whole(answer, request)).encode())

    def _send_whole(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_raw(self, raw: Raw) -> None:
        self.send_response(raw.status)
        headers = {"Content-Type": "application/json", **raw.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        if raw.chunks is None:
            self.send_header("Content-Length", str(len(raw.body) + (1 if raw.drop else 0)))
            self.end_headers()
            self.wfile.write(raw.body)
        else:
            self._start_chunks()
            for chunk in raw.chunks:
                self._chunk(chunk)
            if not raw.drop:
                self._chunk(b"")
        self.close_connection = raw.drop

    def _start_chunks(self) -> None:
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _send_stream(self, events: Iterator[bytes], answer: Answer) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self._start_chunks()
        for place, event in enumerate(events):
            if place == answer.hold_after:
                if answer.drop:
                    self.close_connection = True
                    return
                if answer.hold is not None and not self._held(answer.hold):
                    return
            self._chunk(event)
        self._chunk(b"")

    def _held(self, hold: threading.Event) -> bool:
        """Wait for ``hold``; ``False`` if the client leaves meanwhile."""
        while not hold.wait(0.005):
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable:
                try:
                    left = not self.connection.recv(1, socket.MSG_PEEK)
                except OSError:
                    left = True
                if left:
                    self.server.wire.closed.put(self.number)
                    self.close_connection = True
                    return False
        return True


def _pieces(text: str) -> list[str]:
    size = max(1, len(text) // 3)
    return [text[start : start + size] for start in range(0, len(text), size)]


class _OpenAI:
    @staticmethod
    def _finish(answer: Answer) -> str:
        return answer.finish or ("tool_calls" if answer.tool_calls else "stop")

    @staticmethod
    def _usage(answer: Answer) -> dict[str, int] | None:
        if answer.usage is None:
            return None
        prompt, completion = answer.usage
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    @classmethod
    def whole(cls, answer: Answer, request: Request) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.tool_calls:
            message["tool_calls"] = [
                {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for call_id, name, arguments in answer.tool_calls
            ]
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1700000000,
            "model": request.body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": cls._finish(answer)}],
            "usage": cls._usage(answer),
        }

    @classmethod
    def stream(cls, answer: Answer, request: Request) -> Iterator[bytes]:
        def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return cls._event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]})

        yield chunk({"role": "assistant", "content": ""})
        for piece in _pieces(answer.reasoning or ""):
            yield chunk({"reasoning_content": piece})
        for piece in _pieces(answer.text or ""):
            yield chunk({"content": piece})
        for index, (call_id, name, arguments) in enumerate(answer.tool_calls):
            start = {
                "index": index,
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": ""},
            }
            yield chunk({"tool_calls": [start]})
            for piece in _pieces(arguments):
                yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        yield chunk({}, cls._finish(answer))
        if (request.body.get("stream_options") or {}).get("include_usage") and answer.usage is not None:
            yield cls._event({"id": "chatcmpl-1", "choices": [], "usage": cls._usage(answer)})
        yield b"data: [DONE]\n\n"

    @staticmethod
    def _event(event: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(event)}\n\n".encode()


class _Anthropic:
    @staticmethod
    def _finish(answer: Answer) -> str:
        return answer.finish or ("tool_use" if answer.tool_calls else "end_turn")

    @staticmethod
    def _usage(answer: Answer) -> dict[str, int]:
        prompt, completion = answer.usage or (0, 0)
        return {"input_tokens": prompt, "output_tokens": completion}

    @classmethod
    def whole(cls, answer: Answer, request: Request) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": "s"})
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        for call_id, name, arguments in answer.tool_calls:
            content.append({"type": "tool_use", "id": call_id, "name": name, "input": json.loads(arguments)})
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": request.body["model"],
            "content": content,
            "stop_reason": cls._finish(answer),
            "stop_sequence": None,
            "usage": cls._usage(answer),
        }

    @classmethod
    def stream(cls, answer: Answer, request: Request) -> Iterator[bytes]:
        usage = cls._usage(answer)
        message = {
            **cls.whole(Answer(), request),
            "stop_reason": None,
            "usage": {**usage, "output_tokens": 1},
        }
        yield cls._event({"type": "message_start", "message": message})
        yield cls._event({"type": "ping"})
        blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
        if answer.reasoning:
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(answer.reasoning)]
            blocks.append(
                (
                    {"type": "thinking", "thinking": ""},
                    [*deltas, {"type": "signature_delta", "signature": "s"}],
                )
            )
        if answer.text:
            texts = [{"type": "text_delta", "text": piece} for piece in _pieces(answer.text)]
            blocks.append(({"type": "text", "text": ""}, texts))
        for call_id, name, arguments in answer.tool_calls:
            parts = [
                {"type": "input_json_delta", "partial_json": piece} for piece in ["", *_pieces(arguments)]
            ]
            blocks.append(({"type": "tool_use", "id": call_id, "name": name, "input": {}}, parts))
        for index, (block, deltas) in enumerate(blocks):
            yield cls._event({"type": "content_block_start", "index": index, "content_block": block})
            for delta in deltas:
                yield cls._event({"type": "content_block_delta", "index": index, "delta": delta})
            yield cls._event({"type": "content_block_stop", "index": index})
        end = {"stop_reason": cls._finish(answer), "stop_sequence": None}
        yield cls._event(
            {"type": "message_delta", "delta": end, "usage": {"output_tokens": usage["output_tokens"]}}
        )
        yield cls._event({"type": "message_stop"})

    @staticmethod
    def _event(event: dict[str, Any]) -> bytes:
        return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
