"""A small real HTTP server on loopback that answers, or misbehaves, like an OpenAI-compatible judge."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Distribution = dict[str, float]  # reply -> probability
END = "<end>"


class Server:
    """What was asked, how many calls were under way at once, and how to reply: `behave(handler, request)`."""

    def __init__(self, behave: Callable[[Handler, dict[str, Any]], None]) -> None:
        self.behave = behave
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.url = ""

    def asked(self, words: str) -> int:
        """Requests whose last user message holds `words`."""
        return sum(words in user(request) for request in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    judge: Server

    def do_POST(self) -> None:
        judge = self.judge
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.lock:
            judge.requests.append(request)
            judge.keys.append(self.headers.get("Authorization"))
            judge.under_way += 1
            judge.most_under_way = max(judge.most_under_way, judge.under_way)
        try:
            judge.behave(self, request)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up, as it should
        finally:
            with judge.lock:
                judge.under_way -= 1

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def drop(self, after: bytes = b"") -> None:
        """Break the connection, before anything was said or within a body."""
        if after:
            self.send_response(200)
            self.send_header("Content-Length", str(len(after) + 1000))
            self.end_headers()
            self.wfile.write(after)
            self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    def hang(self) -> None:
        self.judge.closing.wait(30)

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def serving(behave: Callable[[Handler, dict[str, Any]], None]) -> Iterator[Server]:
    judge = Server(behave)
    handler = type("JudgeHandler", (Handler,), {"judge": judge})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        judge.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def user(request: dict[str, Any]) -> str:
    return next(m["content"] for m in reversed(request["messages"]) if m["role"] == "user")


def about_trait(request: dict[str, Any]) -> bool:
    return "shows one trait" in user(request)


def completion(
    text: str, tokens: list[dict[str, Any]] | None = None, finish: str = "stop", refusal: str | None = None
) -> bytes:
    """A chat completion as OpenAI writes it."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": refusal},
        "finish_reason": finish,
        "logprobs": None if tokens is None else {"content": tokens},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge-1.5", "system_fingerprint": "fp_7"}
    return json.dumps(whole | {"choices": [choice], "usage": usage}).encode()


def position(chances: Distribution) -> dict[str, Any]:
    """One position: the likeliest token was written, the others are its alternatives."""
    top = sorted(chances.items(), key=lambda pair: -pair[1])
    entries = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in top if p > 0]
    return entries[0] | {"top_logprobs": entries[:20]}


def whole_tokens(chances: Distribution) -> bytes:
    """A judge whose tokenizer writes a number as one token and, as OpenAI's, does not report the end."""
    found = position(chances)
    return completion(found["token"], [found])


def split_tokens(chances: Distribution, started: str = "") -> bytes:
    """A judge whose tokenizer writes digit after digit, going on from `started`, and reports the end."""
    digits, found = started, []
    while not found or found[-1]["token"] != END:
        left = {reply: p for reply, p in chances.items() if reply.startswith(digits)}
        total = sum(left.values())
        following: Distribution = {}
        for reply, p in left.items():
            token = reply[len(digits)] if len(reply) > len(digits) else END
            following[token] = following.get(token, 0.0) + p / total
        found.append(position(following))
        if found[-1]["token"] != END:
            digits += found[-1]["token"]
    return completion(digits[len(started) :], found)


def mean(chances: Distribution) -> float:
    """What the score should be."""
    numbers = {int(reply): p for reply, p in chances.items() if reply.isdigit()}
    return sum(number * p for number, p in numbers.items()) / sum(numbers.values())


def pause(seconds: float) -> None:
    """The server's own slowness; tests do not wait for anything by sleeping."""
    time.sleep(seconds)


# -- a server that writes bytes, not HTTP -------------------------------------------------------------------------------------


class Line:
    """One connection to the raw server, after its request was read."""

    def __init__(self, connection: socket.socket, closing: threading.Event) -> None:
        self.connection, self.closing = connection, closing

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def drip(self, data: bytes, every_s: float = 0.02) -> None:
        """Byte after byte, over and over, until the client has left."""
        while not self.closing.is_set():
            for byte in data:
                self.connection.sendall(bytes([byte]))
                if self.closing.wait(every_s):
                    return

    def flood(self, data: bytes) -> None:
        """As much as the client takes, until it has left."""
        while not self.closing.is_set():
            self.connection.sendall(data)

    def hang(self) -> None:
        """Say nothing until the client has left."""
        with suppress(TimeoutError):
            while self.connection.recv(4096):
                pass


class RawServer:
    def __init__(self, behave: Callable[[Line, str, dict[str, Any]], None]) -> None:
        self.behave = behave
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.lines: set[socket.socket] = set()
        self.n_requests = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listener.settimeout(0.05)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"

    def accept(self) -> None:
        while not self.closing.is_set():
            with suppress(TimeoutError):
                connection, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=[connection], daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        with self.lock:
            self.lines.add(connection)
        try:
            with connection, suppress(OSError, ValueError):
                head, body = b"", b""
                while b"\r\n\r\n" not in head:
                    part = connection.recv(65536)
                    if not part:
                        return
                    head += part
                head, _, body = head.partition(b"\r\n\r\n")
                length = next(int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:"))
                while len(body) < length:
                    body += connection.recv(65536)
                with self.lock:
                    self.n_requests += 1
                self.behave(Line(connection, self.closing), head.split()[1].decode(), json.loads(body))
        finally:
            with self.lock:
                self.lines.discard(connection)


@contextmanager
def serving_bytes(behave: Callable[[Line, str, dict[str, Any]], None]) -> Iterator[RawServer]:
    """`behave(line, path, request)` writes whatever it likes; the connection is closed after it."""
    server = RawServer(behave)
    thread = threading.Thread(target=server.accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        thread.join(5)
        server.listener.close()
        with server.lock:
            for connection in server.lines:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def http(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    """A whole response."""
    fields = {"Content_Type": "application/json", "Content_Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
