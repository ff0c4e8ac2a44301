"""Load for a broker's trader API: signed orders over keep-alive HTTP connections, as cheap for the machine as possible.

The orders are signed and written beforehand, and the answers are hardly looked at, so that on a machine with few cores
the processors are the brokers'. `broker.client` is what traders use; this is not it.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

import orjson

from channel.errors import Code, LocalRefusal, PeerFault

DEADLINE_S: Final = 30.0
HEAD_BYTES_MAX: Final = 16 * 1024
BODY_BYTES_MAX: Final = 64 * 1024
_LENGTH: Final = b"content-length:"


@dataclass(slots=True)
class LoadStats:
    """What came back. Latencies in milliseconds, from the first byte sent to the last one read."""

    latencies_ms: list[float] = field(default_factory=list)
    unfilled: Counter[str] = field(default_factory=Counter)  # by status, or by code of the refusal
    seconds: float = 0.0

    @property
    def filled(self) -> int:
        return len(self.latencies_ms)


class Lane:
    """One connection: one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    @classmethod
    async def open(cls, url: str) -> Self:
        parts = urlsplit(url)
        assert parts.hostname is not None
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=HEAD_BYTES_MAX)
        return cls(reader, writer, parts.netloc)

    def request(self, path: str, body: bytes) -> bytes:
        """The bytes of a POST."""
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def post(self, request: bytes) -> tuple[int, bytes]:
        """Sends what `request` made. Returns status and body. Raises LocalRefusal TIMEOUT, PeerFault PARSE."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                self._writer.write(request)
                head = await self._reader.readuntil(b"\r\n\r\n")
                at = head.lower().find(_LENGTH)
                length = int(head[at + len(_LENGTH) : head.index(b"\r\n", at)]) if at >= 0 else -1
                if not 0 <= length <= BODY_BYTES_MAX:
                    raise PeerFault(Code.PARSE, "an answer without a length, or a long one")
                return int(head[9:12]), await self._reader.readexactly(length)
        except TimeoutError:
            raise LocalRefusal(Code.TIMEOUT, f"an order was not answered within {DEADLINE_S:.0f} s") from None
        except (OSError, asyncio.IncompleteReadError) as error:
            raise LocalRefusal(Code.PEER_UNAVAILABLE, f"the broker has hung up: {error}") from error

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):  # the broker has closed it
            await self._writer.wait_closed()


async def run_load(
    url: str, orders: Sequence[bytes], concurrency: int, progress: Callable[[], None] = lambda: None
) -> LoadStats:
    """Posts `orders` (JSON of signed IOC orders) to a broker, `concurrency` at a time. Raises what `Lane` raises."""
    stats = LoadStats()
    lanes = await asyncio.gather(*(Lane.open(url) for _ in range(concurrency)))
    queue = iter([lanes[0].request("/v1/orders", order) for order in orders])

    async def work(lane: Lane) -> None:
        for request in queue:
            started_s = time.perf_counter()
            status, body = await lane.post(request)
            took_ms = (time.perf_counter() - started_s) * 1000
            _count(stats, status, body, took_ms)
            progress()

    try:
        started_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(work(lane))
        stats.seconds = time.perf_counter() - started_s
    finally:
        await asyncio.gather(*(lane.close() for lane in lanes))
    return stats


def _count(stats: LoadStats, status: int, body: bytes, took_ms: float) -> None:
    if b'"status":"filled"' in body:
        stats.latencies_ms.append(took_ms)
        return
    answer = orjson.loads(body)
    stats.unfilled[str(answer.get("status") or answer.get("error", {}).get("code") or status)] += 1
