"""One HTTP call to an endpoint, bounded in time and bytes whatever the other end does.

A call has an event loop and a connection of its own. Cancelling it ends everything the other end may be at, and nothing that
one reply leaves behind can be read as the next.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

MAX_BODY_BYTES = 1_000_000  # a reply of a few tokens with their alternatives has some 10 kB
MAX_ERROR_BYTES = 64_000  # of the body of an error status, which nobody reads beyond its first lines
MAX_REDIRECTS = 3  # within the endpoint's own host
ENCODINGS = "gzip, deflate"


class Unanswered(Exception):
    """A call that brought no reply; its text is the failure's name."""

    def __init__(self, name: str, retry: bool, wait_s: float | None = None, detail: str = "") -> None:
        super().__init__(name)
        self.retry, self.wait_s, self.detail = retry, wait_s, detail


@dataclass(frozen=True)
class Answer:
    """What came back, its body decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Loop(asyncio.SelectorEventLoop):
    """An event loop that ends at once: names are looked up in threads that the process may leave behind."""

    async def getaddrinfo(self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        found: asyncio.Future[Any] = self.create_future()

        def settle(result: Any, error: Exception | None) -> None:
            if found.done():
                return
            if error is None:
                found.set_result(result)
            else:
                found.set_exception(error)

        def look_up() -> None:
            result, error = None, None
            try:
                result = socket.getaddrinfo(host, port, family, type, proto, flags)
            except Exception as caught:
                error = caught
            with suppress(RuntimeError):  # the call is over and its loop closed
                self.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=look_up, name="look up", daemon=True).start()
        return await found


class Caller:
    """Makes calls from any thread; `abort` ends those under way."""

    def __init__(self, timeout_s: float, from_environment: bool) -> None:
        """
        Args:
            timeout_s: of a whole call: connecting, sending, waiting, reading.
            from_environment: go through the proxies that the environment names.
        """
        import httpx2

        self.timeout_s, self.from_environment = timeout_s, from_environment
        self.tls = httpx2.create_ssl_context(trust_env=from_environment)
        self.lock = threading.Lock()
        self.aborted = False
        self.under_way: set[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = set()

    def abort(self) -> None:
        """End all calls that are under way, and every later one: each raises `Unanswered` ("stopped")."""
        with self.lock:
            self.aborted = True
            for loop, task in self.under_way:
                loop.call_soon_threadsafe(task.cancel)

    def post(self, url: str, headers: Mapping[str, str], content: bytes) -> Answer:
        """Send one request and read its answer, within the time limit. Raises `Unanswered`."""
        try:
            with asyncio.Runner(loop_factory=Loop) as runner:
                return runner.run(self.bounded(url, headers, content))
        except asyncio.CancelledError:
            raise Unanswered("stopped", retry=False) from None

    async def bounded(self, url: str, headers: Mapping[str, str], content: bytes) -> Answer:
        import httpx2

        task = asyncio.current_task()
        assert task is not None
        me = asyncio.get_running_loop(), task
        with self.lock:
            if self.aborted:
                raise Unanswered("stopped", retry=False)
            self.under_way.add(me)
        head: list[tuple[int, Mapping[str, str]]] = []  # of an answer whose body is being read
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self.exchange(url, headers, content, head)
        except (TimeoutError, httpx2.TimeoutException):
            if head and head[-1][0] >= 300:  # what its status says stands without a body
                return Answer(*head[-1], b"")
            raise Unanswered("timeout", retry=True) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError, ValueError, EOFError) as error:
            if head and head[-1][0] >= 300:
                return Answer(*head[-1], b"")
            raise Unanswered("connection", retry=True, detail=f"{type(error).__name__}: {error}") from None
        finally:
            with self.lock:
                self.under_way.discard(me)

    async def exchange(
        self, url: str, headers: Mapping[str, str], content: bytes, head: list[tuple[int, Mapping[str, str]]]
    ) -> Answer:
        """Send and read, following redirects that stay with the host. `head` is filled as soon as a status is known."""
        import httpx2

        sent = {"Accept": "application/json", "Accept-Encoding": ENCODINGS, "Content-Type": "application/json", **headers}
        sent |= {"Connection": "close", "User-Agent": "iterative-ft"}
        async with httpx2.AsyncClient(verify=self.tls, trust_env=self.from_environment, timeout=None) as client:
            for _ in range(MAX_REDIRECTS + 1):
                head.clear()
                async with client.stream("POST", url, headers=sent, content=content) as response:
                    head.append((response.status_code, response.headers))
                    other = further(url, response.headers.get("location")) if response.status_code in (307, 308) else None
                    if other is None:
                        failed = response.status_code >= 300
                        limit = MAX_ERROR_BYTES if failed else MAX_BODY_BYTES
                        raw = bytearray()
                        async for part in response.aiter_raw():
                            raw += part
                            if len(raw) > limit:
                                break
                        encodings = response.headers.get("content-encoding", "")
                        try:
                            body = decompressed(bytes(raw[: limit + 1]), encodings, limit)
                        except Unanswered:
                            if not failed:
                                raise
                            body = b""
                        return Answer(response.status_code, response.headers, body)
                url = other
        return Answer(*head[-1], b"")


def further(url: str, location: str | None) -> str | None:
    """Where a redirect leads, if that is another path of the same host, or its TLS port; None elsewhere."""
    if location is None or not location.isprintable() or " " in location:
        return None
    try:
        other = urljoin(url, location)
        here, there = urlsplit(url), urlsplit(other)
        same = (there.scheme, there.netloc) == (here.scheme, here.netloc)
        upgraded = (here.scheme, there.scheme) == ("http", "https") and (here.port or 80, there.port or 443) == (80, 443)
        return other if same or (upgraded and here.hostname == there.hostname and there.username is None) else None
    except ValueError:
        return None


def decompressed(raw: bytes, encodings: str, limit: int) -> bytes:
    """Undo a body's encodings, last first, at most `limit` bytes of each. Raises `Unanswered`."""
    if len(raw) > limit:
        raise Unanswered("oversized", retry=False)
    names = [name for name in (part.strip().lower() for part in encodings.split(",")) if name not in ("", "identity")]
    if len(names) > MAX_REDIRECTS:
        raise Unanswered("malformed", retry=False, detail=f"encoded {len(names)} times")
    for name in reversed(names):
        if name not in ("gzip", "x-gzip", "deflate"):
            raise Unanswered("malformed", retry=False, detail=f"content-encoding {name[:50]}, and {ENCODINGS} was asked for")
        try:
            raw = inflated(raw, limit)
        except zlib.error as error:
            raise Unanswered("malformed", retry=False, detail=f"broken {name}: {error}") from None
    return raw


def inflated(raw: bytes, limit: int) -> bytes:
    """Decompress gzip, zlib or bare deflate; several gzip members one after the other."""
    out = bytearray()
    bare = raw[:2] != b"\x1f\x8b" and (len(raw) < 2 or raw[0] & 15 != 8 or (raw[0] * 256 + raw[1]) % 31 != 0)
    while raw:
        stream = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
        out += stream.decompress(raw, limit + 1 - len(out))
        if len(out) > limit:
            raise Unanswered("oversized", retry=False)
        if not stream.eof:
            raise zlib.error("it ends too early")
        raw = stream.unused_data.lstrip(b"\0")
    return bytes(out)
