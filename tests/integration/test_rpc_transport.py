"""Connections and links over real sockets on loopback."""

import asyncio
import contextlib
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as ws_serve
from websockets.exceptions import ConnectionClosed

from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.signing import Signer
from channel.units import Address
from rpc import jsonrpc
from rpc.jsonrpc import Batch, Envelope, Message, Notification, RemoteError, Request, Response
from rpc.limits import Limits
from rpc.links import BACKOFF_MAX_S, BACKOFF_MIN_S, Links, backoff_s
from rpc.session import Role, Session
from rpc.transport import Connection, Identity, Server, connect, serve

CHAIN, ADJUDICATOR = 0x7A69, Address(b"\xad" * 20)
LOW, HIGH = sorted((Identity(Signer(bytes([n]) * 32), CHAIN, ADJUDICATOR) for n in (1, 2)), key=lambda i: i.address)
STRANGER = Identity(Signer(b"\x03" * 32), CHAIN, ADJUDICATOR)
KNOWN = {LOW.address, HIGH.address}
QUICK = Limits(hello_timeout_s=0.3, close_timeout_s=0.5, write_timeout_s=1.0)

pytestmark = pytest.mark.timeout(60)


@contextlib.asynccontextmanager
async def pair(
    limits: Limits = QUICK, dialer_limits: Limits | None = None
) -> AsyncIterator[tuple[Connection, Connection, Server]]:
    """LOW's connection to HIGH, HIGH's to LOW, and HIGH's server."""
    accepted: asyncio.Queue[Connection] = asyncio.Queue()

    async def on_connection(connection: Connection) -> None:
        accepted.put_nowait(connection)
        await connection.wait_closed()

    async with serve("127.0.0.1", 0, HIGH, KNOWN.__contains__, on_connection, limits) as server:
        near = await connect(url(server), LOW, HIGH.address, dialer_limits or limits)
        async with asyncio.timeout(5):
            far = await accepted.get()
        try:
            yield near, far, server
        finally:
            await near.close()


def url(server: Server | Links) -> str:
    return f"ws://127.0.0.1:{server.port}"


async def next_of(connection: Connection, count: int = 1) -> list[Message]:
    found: list[Message] = []
    async with asyncio.timeout(10):
        async for message in connection.messages():
            found.append(message)
            if len(found) == count:
                break
    return found


async def eventually(condition: Callable[[], object], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# one connection


async def test_frames_of_every_kind_in_order() -> None:
    async with pair() as (near, far, _):
        assert (near.peer, far.peer) == (HIGH.address, LOW.address)
        assert (near.dialled, far.dialled) == (True, False)
        await near.send(jsonrpc.request(1, "a", {"x": 1}))
        await near.send('{"body":"{}","seq":1}')
        await near.notify("note", {})
        await near.send(jsonrpc.batch([jsonrpc.notification("b", {}), jsonrpc.request(2, "c", {})]))
        await near.respond(9, {"ok": True})
        assert await next_of(far, 5) == [
            Request(id=1, method="a", params={"x": 1}),
            Envelope(fields={"body": "{}", "seq": 1}),
            Notification(method="note", params={}),
            Batch(items=(Notification(method="b", params={}), Request(id=2, method="c", params={}))),
            Response(id=9, result={"ok": True}, error=None),
        ]
        for count in range(2000):
            await far.notify("count", {"n": count})
        messages = await next_of(near, 2000)
        assert [message.params["n"] for message in messages] == list(range(2000))  # type: ignore[union-attr]


async def test_requests_are_answered_refused_late_or_cut() -> None:
    async with pair() as (near, far, _):

        async def answer() -> None:
            async for message in far.messages():
                assert isinstance(message, Request)
                match message.method:
                    case "sum":
                        await far.respond(message.id, message.params["a"] + message.params["b"])
                    case "refuse":
                        await far.respond_error(message.id, PeerFault(Code.ORDER_TICK, "wrong tick", tick=5))
                    case "cut":
                        await far.close(Code.BUSY, "later")
                    case _:
                        pass

        task = asyncio.create_task(answer())
        assert await asyncio.gather(*(near.request("sum", {"a": n, "b": 1}, 5) for n in range(50))) == [
            n + 1 for n in range(50)
        ]
        with pytest.raises(RemoteError) as refused:
            await near.request("refuse", {}, 5)
        assert (refused.value.code, refused.value.data) == (Code.ORDER_TICK, {"tick": 5})
        with pytest.raises(LocalRefusal) as late:
            await near.request("silence", {}, 0.05)
        assert late.value.code is Code.TIMEOUT
        with pytest.raises(LocalRefusal) as cut:
            await near.request("cut", {}, 5)
        assert cut.value.code is Code.PEER_UNAVAILABLE
        await task
        assert near.failure is not None
        assert (near.failure.code, near.failure.message) == (Code.BUSY, "later")
        with pytest.raises(LocalRefusal) as closed:
            await near.send(b"{}")
        assert closed.value.code is Code.PEER_UNAVAILABLE


async def test_pending_requests_are_bounded() -> None:
    limits = Limits(pending_requests=2)
    async with pair(limits) as (near, _, _):
        first = [asyncio.create_task(near.request("silence", {}, 5)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(LocalRefusal) as caught:
            await near.request("silence", {}, 5)
        assert caught.value.code is Code.BUSY
        await near.close()
        for result in await asyncio.gather(*first, return_exceptions=True):
            assert isinstance(result, LocalRefusal)


async def test_closing_in_peace() -> None:
    async with pair() as (near, far, _):
        await near.close()
        await far.wait_closed()
        assert near.failure is far.failure is None
        assert not far.is_open
        assert [message async for message in far.messages()] == []


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"hello", Code.PARSE),
        (b"\xff", Code.PARSE),
        (b"[" * 100, Code.PARSE),
        (b'{"a":1,"a":2}', Code.DUPLICATE_KEY),
        (b"1.5", Code.NUMBER),
        (b"{}", Code.REQUEST),
        (b"[]", Code.REQUEST),
        (b'{"jsonrpc":"2.0","method":"a","params":[]}', Code.PARAMS),
    ],
)
async def test_a_malformed_frame_is_answered_and_the_connection_stays(frame: bytes, code: Code) -> None:
    async with pair() as (near, far, _):
        await near.send(frame)
        (answer,) = await next_of(near)
        assert isinstance(answer, Response)
        assert answer.id is None
        assert answer.error is not None
        assert answer.error["data"]["code"] == code.label
        await near.notify("still here", {})
        assert await next_of(far) == [Notification(method="still here", params={})]


async def test_a_malformed_call_is_answered_with_its_id() -> None:
    async with pair() as (near, _, _):
        await near.send(b'{"jsonrpc":"2.0","id":5,"method":"a","params":[]}')
        (answer,) = await next_of(near)
        assert isinstance(answer, Response)
        assert answer.id == 5


async def test_faults_are_counted() -> None:
    async with pair(Limits(faults=3)) as (near, far, _):
        for _ in range(4):
            await near.send(b"nonsense")
        answers = await next_of(near, 10)
        assert len(answers) == 4
        await near.wait_closed()
        assert near.failure is not None
        assert near.failure.code is Code.PARSE
        assert isinstance(far.failure, PeerFault)


async def test_a_batch_above_the_limit_ends_the_connection() -> None:
    async with pair() as (near, far, _):
        await near.send(b"[" + b",".join([jsonrpc.notification("a", {})] * 513) + b"]")
        (answer,) = await next_of(near)
        assert isinstance(answer, Response)
        await near.wait_closed()
        assert near.failure is not None
        assert near.failure.code is Code.BATCH_TOO_LARGE
        assert [message async for message in far.messages()] == []


async def test_a_frame_of_2_mib_ends_the_connection_and_says_why() -> None:
    async with pair(QUICK, Limits(frame_bytes=2**22, outbox_bytes=2**23)) as (near, far, _):
        await near.send(b'"' + b"x" * 2**21 + b'"')
        async with asyncio.timeout(5):
            await near.wait_closed()
            await far.wait_closed()
        assert isinstance(near.failure, RemoteError)
        assert near.failure.code is Code.FRAME_TOO_LARGE
        assert "exceeds limit of 1048592 bytes" in near.failure.message
        assert isinstance(far.failure, PeerFault)
        assert far.failure.code is Code.FRAME_TOO_LARGE


async def test_a_frame_that_is_too_large_is_not_sent() -> None:
    async with pair() as (near, far, _):
        with pytest.raises(LocalRefusal) as caught:
            await near.send(b"x" * (2**20 + 1))
        assert caught.value.code is Code.FRAME_TOO_LARGE
        await near.send(b'{"body":"' + b"x" * (2**20 - 11) + b'"}')
        (message,) = await next_of(far)
        assert isinstance(message, Envelope)


async def test_the_rate_is_limited_and_a_batch_counts_its_calls() -> None:
    limits = Limits(messages_per_s=1, burst_messages=100)
    async with pair(limits) as (near, far, _):
        await near.send(jsonrpc.batch([jsonrpc.notification("a", {})] * 98))
        await near.notify("b", {})
        assert len(await next_of(far, 2)) == 2
        for _ in range(3):
            await near.notify("c", {})
        assert len(await next_of(far, 3)) == 1
        await near.wait_closed()
        assert near.failure is not None
        assert near.failure.code is Code.RATE_LIMIT
        (answer,) = [message async for message in near.messages()]
        assert isinstance(answer, Response)
        assert answer.error is not None
        assert answer.error["data"]["code"] == "rate.limit"


async def test_the_rate_is_of_the_peer_and_not_of_its_connection() -> None:
    limits = Limits(messages_per_s=1, burst_messages=10)
    async with pair(limits) as (near, far, server):
        for _ in range(10):
            await near.notify("a", {})
        await next_of(far, 10)
        await near.close()
        again = await connect(url(server), LOW, HIGH.address, limits)
        for _ in range(3):
            await again.notify("a", {})
        await again.wait_closed()
        assert again.failure is not None
        assert again.failure.code is Code.RATE_LIMIT


async def test_a_flood_still_learns_why_it_was_cut() -> None:
    async with pair(Limits(messages_per_s=1, burst_messages=10, close_timeout_s=5), Limits()) as (near, _, _):
        with contextlib.suppress(LocalRefusal):
            while True:
                await near.notify("a", {"x": "y" * 10_000})
                await asyncio.sleep(0)
        await near.wait_closed()
        assert near.failure is not None
        assert near.failure.code is Code.RATE_LIMIT


async def test_an_owner_that_does_not_read_bounds_memory_and_the_sender_cuts() -> None:
    size, bound = 200_000, 2**20
    limits = Limits(
        inbox_bytes=bound, outbox_bytes=bound, messages_per_s=10**9, burst_messages=10**9, close_timeout_s=1
    )
    async with pair(limits) as (near, far, _):
        frame = jsonrpc.notification("a", {"x": "y" * size})
        gc.collect()
        tracemalloc.start()
        sent = 0
        with pytest.raises(LocalRefusal) as caught:  # noqa: PT012
            for _ in range(2000):  # 400 MB
                await near.send(frame)
                sent += 1
                await asyncio.sleep(0.002)
        assert caught.value.code is Code.BUSY
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sent < 200
        assert peak < 20 * 2**20
        assert far._inbox_bytes <= bound + len(frame)
        await near.wait_closed()
        assert near.failure is not None
        assert near.failure.code is Code.BUSY


async def test_a_slow_owner_gets_everything_in_order() -> None:
    limits = Limits(inbox_messages=3, messages_per_s=10**6, burst_messages=10**6)
    async with pair(limits) as (near, far, _):
        for n in range(500):
            await near.notify("a", {"n": n})
        seen = []
        async with asyncio.timeout(10):
            async for message in far.messages():
                assert isinstance(message, Notification)
                seen.append(message.params["n"])
                assert len(far._inbox) <= 3
                if len(seen) % 100 == 0:
                    await asyncio.sleep(0.02)
                if len(seen) == 500:
                    break
        assert seen == list(range(500))


async def test_a_broken_network_is_noticed_by_both() -> None:
    async with pair() as (near, far, _):
        near._ws.transport.abort()
        await near.wait_closed()
        await far.wait_closed()
        for connection in (near, far):
            assert connection.failure is not None
            assert connection.failure.code is Code.PEER_UNAVAILABLE


async def test_an_altered_frame_ends_the_session() -> None:
    async with pair() as (near, far, _):
        await near._ws.send(b"\x00" * 100)
        await near.wait_closed()
        await far.wait_closed()
        assert far.failure is not None
        assert far.failure.code is Code.SESSION_SEALED
        assert isinstance(near.failure, RemoteError)
        assert near.failure.code is Code.SESSION_SEALED


# sessions that do not come about


@pytest.mark.parametrize(
    ("who", "expected", "code"),
    [
        (STRANGER, HIGH.address, Code.SESSION_UNKNOWN_PEER),
        (LOW, STRANGER.address, Code.SESSION_HELLO),
        (Identity(LOW.signer, 1, ADJUDICATOR), HIGH.address, Code.SESSION_HELLO),
    ],
)
async def test_the_dialer_learns_why_it_is_refused(who: Identity, expected: Address, code: Code) -> None:
    async with pair() as (_, _, server):
        with pytest.raises(RemoteError) as caught:
            await connect(url(server), who, expected, QUICK)
        assert caught.value.code is code


async def test_who_cannot_be_reached() -> None:
    for target, code in (("ws://127.0.0.1:1", Code.PEER_UNAVAILABLE), ("http://127.0.0.1:1", Code.CONFIG)):
        with pytest.raises(LocalRefusal) as caught:
            await connect(target, LOW, HIGH.address, QUICK)
        assert caught.value.code is code


async def test_a_listener_that_says_nothing() -> None:
    async def silent(ws: ServerConnection) -> None:
        await ws.wait_closed()

    async with ws_serve(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(LocalRefusal) as caught:
            await connect(f"ws://127.0.0.1:{port}", LOW, HIGH.address, QUICK)
        assert caught.value.code is Code.TIMEOUT


async def test_a_dialer_that_says_nothing_or_nonsense() -> None:
    async with pair() as (_, _, server):
        async with ws_connect(url(server), proxy=None) as ws:
            with pytest.raises(ConnectionClosed):  # noqa: PT012
                while True:
                    last = await asyncio.wait_for(ws.recv(), 5)
            assert ws.close_reason is not None
            assert ws.close_reason.startswith("timeout: ")
            assert json.loads(last)["error"]["data"]["code"] == "timeout"
        async with ws_connect(url(server), proxy=None) as ws:
            await ws.send("nonsense")
            assert json.loads(await ws.recv())["error"]["data"]["code"] == "json.parse"
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert ws.close_code == 1008
        async with ws_connect(url(server), proxy=None) as ws:
            await ws.send("x" * 2**21)
            with pytest.raises(ConnectionClosed):
                await ws.recv()
            assert (ws.close_code, (ws.close_reason or "")[:17]) == (1009, "frame.too_large: ")


async def test_a_replayed_hello_is_no_connection() -> None:
    accepted: list[Connection] = []

    async def on_connection(connection: Connection) -> None:
        accepted.append(connection)

    session = Session(
        role=Role.DIALER,
        signer=LOW.signer,
        network=LOW.network,
        nonce=b"\x01" * 32,
        ephemeral_secret=b"\x02" * 32,
        expected=HIGH.address,
    )
    (hello,) = session.data_to_send()
    async with (
        serve("127.0.0.1", 0, HIGH, KNOWN.__contains__, on_connection, QUICK) as server,
        ws_connect(url(server), proxy=None) as ws,
    ):
        await ws.send(hello)
        assert "hello" in json.loads(await ws.recv())
        await ws.send(b"\x00" * 16)
        assert json.loads(await ws.recv())["error"]["data"]["code"] == "session.sealed"
    assert accepted == []


async def test_handshakes_are_bounded() -> None:
    limits = Limits(handshakes=2, hello_timeout_s=1)
    async with (
        serve("127.0.0.1", 0, HIGH, KNOWN.__contains__, _never, limits) as server,
        contextlib.AsyncExitStack() as s,
    ):
        for _ in range(2):
            await s.enter_async_context(ws_connect(url(server), proxy=None))
        with pytest.raises(LocalRefusal) as caught:
            await connect(url(server), LOW, HIGH.address, limits)
        assert caught.value.code is Code.PEER_UNAVAILABLE
        assert "503" in caught.value.message


async def _never(connection: Connection) -> None:
    raise AssertionError(connection)


async def test_leaving_the_server_ends_in_time_though_a_peer_does_not_read() -> None:
    limits = Limits(close_timeout_s=0.3, messages_per_s=10**9, burst_messages=10**9)
    accepted: asyncio.Queue[Connection] = asyncio.Queue()

    async def on_connection(connection: Connection) -> None:
        accepted.put_nowait(connection)
        await connection.wait_closed()

    async with serve("127.0.0.1", 0, HIGH, KNOWN.__contains__, on_connection, limits) as server:
        near = await connect(url(server), LOW, HIGH.address, limits)
        near._ws.transport.pause_reading()
        far = await accepted.get()
        for _ in range(10):
            await far.send(b'{"body":"' + b"x" * 300_000 + b'"}')
        await asyncio.sleep(0.1)
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < 3
    near._ws.transport.abort()
    await near.wait_closed()


# links


class Owner:
    """Records what links tell it, and checks their promises."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.up: dict[Address, Connection] = {}
        self.ups = 0
        self.down_takes_s = 0.0
        self.messages: list[Message] = []
        self.on_message_hook: Callable[[Connection, Message], Awaitable[None]] | None = None

    async def on_up(self, connection: Connection) -> None:
        assert connection.peer not in self.up
        self.up[connection.peer] = connection
        self.ups += 1

    async def on_down(self, peer: Address) -> None:
        await asyncio.sleep(self.down_takes_s)
        del self.up[peer]

    async def on_message(self, connection: Connection, message: Message) -> None:
        assert self.up[connection.peer] is connection
        self.messages.append(message)
        if self.on_message_hook is not None:
            await self.on_message_hook(connection, message)

    def links(self, peers: dict[Address, str] | None = None, **options: Any) -> Links:
        return Links(
            self.identity,
            **{
                "host": "127.0.0.1",
                "peers": peers or {},
                "is_known": KNOWN.__contains__,
                "on_up": self.on_up,
                "on_down": self.on_down,
                "on_message": self.on_message,
                "random": lambda: 0.0,
                "limits": QUICK,
                **options,
            },
        )


async def test_one_side_dials_and_dials_again() -> None:
    low, high = Owner(LOW), Owner(HIGH)
    async with high.links().running() as server:
        async with low.links({HIGH.address: url(server)}, host=None).running() as links:
            connection = await links.wait_up(HIGH.address, 5)
            await connection.notify("a", {})
            await eventually(lambda: high.messages == [Notification(method="a", params={})])
            await high.up[LOW.address].close()
            await eventually(lambda: low.ups == 2 and high.ups == 2)
            connection = await links.wait_up(HIGH.address, 5)
            await connection.notify("b", {})
            await eventually(lambda: len(high.messages) == 2)
        await eventually(lambda: high.up == {})
        assert low.up == {}
        assert server.connection(LOW.address) is None
        with pytest.raises(LocalRefusal) as caught:
            server.require(LOW.address)
        assert caught.value.code is Code.PEER_UNAVAILABLE


async def test_a_peer_that_is_not_there_yet() -> None:
    low, high = Owner(LOW), Owner(HIGH)
    async with high.links().running() as first:
        port = first.port
    async with low.links({HIGH.address: f"ws://127.0.0.1:{port}"}, host=None).running() as links:
        with pytest.raises(LocalRefusal) as caught:
            await links.wait_up(HIGH.address, 0.3)
        assert caught.value.code is Code.PEER_UNAVAILABLE
        async with high.links(port=port).running():
            await links.wait_up(HIGH.address, 5)


@pytest.mark.parametrize("first", [LOW, HIGH])
async def test_where_both_dialled_the_lower_one_s_stays(first: Identity) -> None:
    """`first` dials alone; then the other is told to dial too, against its own judgement."""
    low, high = Owner(LOW), Owner(HIGH)
    second = HIGH if first is LOW else LOW
    async with low.links().running() as low_links, high.links().running() as high_links:
        by = {LOW.address: low_links, HIGH.address: high_links}
        by[first.address].add(second.address, url(by[second.address]))
        await by[first.address].wait_up(second.address, 5)
        await by[second.address].wait_up(first.address, 5)
        extra = await connect(url(by[first.address]), second, first.address, QUICK)
        use = asyncio.create_task(by[second.address]._use(extra))
        if second is HIGH:
            await extra.wait_closed()
            await use
            assert low.ups == high.ups == 1
        else:
            await eventually(lambda: low.ups == 2 and high.ups == 2)
        await asyncio.sleep(0.5)
        assert low.up[HIGH.address].dialled
        assert not high.up[LOW.address].dialled
        await low.up[HIGH.address].notify("x", {})
        await eventually(lambda: high.messages == [Notification(method="x", params={})])
    await use


async def test_both_dial_at_once_and_it_settles() -> None:
    low, high = Owner(LOW), Owner(HIGH)
    async with low.links().running() as low_links, high.links().running() as high_links:
        low_links.add(HIGH.address, url(high_links))
        high_links.add(LOW.address, url(low_links))
        await eventually(lambda: low.up and high.up)
        await asyncio.sleep(1.5)
        ups = (low.ups, high.ups)
        await asyncio.sleep(0.7)
        assert (low.ups, high.ups) == ups  # settled
        assert len(low_links._connections) == len(high_links._connections) == 1
        near, far = low.up[HIGH.address], high.up[LOW.address]
        assert near.dialled != far.dialled
        await near.notify("x", {})
        await far.notify("y", {})
        await eventually(lambda: high.messages and low.messages)


async def test_a_dead_connection_does_not_keep_its_peer_out() -> None:
    low, high = Owner(LOW), Owner(HIGH)
    async with low.links().running() as low_links, high.links().running() as high_links:
        low_links.add(HIGH.address, url(high_links))
        await low_links.wait_up(HIGH.address, 5)
        await high_links.wait_up(LOW.address, 5)
        stale = high.up[LOW.address]
        stale._ws.transport.pause_reading()  # HIGH's machine is gone, without a word
        newcomer = await connect(url(low_links), HIGH, LOW.address, QUICK)
        await eventually(lambda: low.ups == 2)
        assert not low.up[HIGH.address].dialled
        stale._ws.transport.abort()
        await newcomer.close()


async def test_a_newer_connection_of_the_same_dialler_takes_over_in_order_and_nobody_dials_meanwhile() -> None:
    low, high = Owner(LOW), Owner(HIGH)
    low.down_takes_s = 0.1
    async with low.links().running() as low_links, high.links().running() as high_links:
        first = await connect(url(low_links), HIGH, LOW.address, QUICK)
        await first.notify("a", {})
        await eventually(lambda: low.messages)
        low_links.add(HIGH.address, url(high_links))  # waits, as there is a connection
        second = await connect(url(low_links), HIGH, LOW.address, QUICK)
        await second.notify("b", {})
        await eventually(lambda: len(low.messages) == 2)  # Owner.on_up checks that on_down came first
        await first.wait_closed()
        await asyncio.sleep(0.3)
        assert low.ups == 2
        assert high.ups == 0
        assert second.is_open
        low.down_takes_s = 0
        await second.close()
        await eventually(lambda: high.ups == 1)


async def test_a_fault_in_a_handler_ends_its_connection_only() -> None:
    low, high = Owner(LOW), Owner(HIGH)

    async def refuse(connection: Connection, message: Message) -> None:
        raise PeerFault(Code.METHOD, "no such method")

    high.on_message_hook = refuse
    async with (
        high.links().running() as server,
        low.links({HIGH.address: url(server)}, host=None).running() as links,
    ):
        connection = await links.wait_up(HIGH.address, 5)
        await connection.notify("a", {})
        await connection.wait_closed()
        assert connection.failure is not None
        assert connection.failure.code is Code.METHOD
        await eventually(lambda: low.ups == 2)


async def test_a_programmer_s_error_in_a_handler_is_not_silent() -> None:
    low, high = Owner(LOW), Owner(HIGH)

    async def fail(connection: Connection, message: Message) -> None:
        raise ZeroDivisionError

    high.on_message_hook = fail
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with high.links().running() as server:
            connection = await connect(url(server), low.identity, HIGH.address, QUICK)
            await connection.notify("a", {})
            await asyncio.sleep(5)
    assert caught.group_contains(ZeroDivisionError)
    await connection.close()


async def test_a_node_does_not_dial_itself() -> None:
    owner = Owner(LOW)
    with pytest.raises(ExceptionGroup) as caught:
        async with owner.links({LOW.address: "ws://127.0.0.1:1"}).running():
            pass
    assert caught.group_contains(XlnError)


def test_backoff_is_bounded_and_grows() -> None:
    for attempt in range(100):
        for fraction in (0.0, 0.5, 0.999999):
            assert BACKOFF_MIN_S <= backoff_s(attempt, fraction) <= BACKOFF_MAX_S
    assert backoff_s(0, 0.9) < backoff_s(3, 0.9) < backoff_s(9, 0.9)
