"""One connection per peer, kept up: dialled for ever, accepted on one shared port, at most one in use.

Either side may dial. Where both did, the connection that the lower address dialled stays. Of two that the same side
dialled, the newer stays: who dials again has lost the older. A connection that would stay is probed before it displaces
a newcomer, so that a dead one does not keep its peer out.

For each peer the owner sees, strictly in this order and one at a time:

    on_up(connection), then on_message(connection, message) for each message, then on_down(peer), and again

A displaced connection is closed, its messages that have arrived are handed over, and `on_down` has returned, before
`on_up` of the next one. An XlnError that `on_up` or `on_message` raises closes that connection with it; anything else
is a programmer's error and ends the whole `Links`.

Source: DESIGN section 5.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Self

from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.units import Address, format_address
from rpc.jsonrpc import Message
from rpc.limits import Limits
from rpc.transport import DEFAULT_LIMITS, Connection, Identity, IsKnown, connect, serve

log = logging.getLogger("xln.rpc.links")

OnUp = Callable[[Connection], Awaitable[None]]
OnDown = Callable[[Address], Awaitable[None]]
OnMessage = Callable[[Connection, Message], Awaitable[None]]

BACKOFF_MIN_S = 0.2
BACKOFF_MAX_S = 10.0
STABLE_S = 5.0
"""A connection that lived this long starts the backoff anew."""
PROBE_TIMEOUT_S = 1.0
_MAX_DOUBLINGS = 8


def backoff_s(attempt: int, fraction: float) -> float:
    """Seconds to wait before attempt number `attempt` (from 0), for a random `fraction` in [0, 1)."""
    ceiling = min(BACKOFF_MAX_S, BACKOFF_MIN_S * (1 << min(attempt + 1, _MAX_DOUBLINGS)))
    return BACKOFF_MIN_S + fraction * (ceiling - BACKOFF_MIN_S)


def prefers(own: Address, current: Connection, newcomer: Connection) -> bool:
    """Whether the newcomer takes the place of the current connection to the same peer."""
    if current.dialled == newcomer.dialled:
        return True
    return newcomer.dialled == (own < newcomer.peer)


class _Peer:
    """One peer's place. `idle` is set while no connection is in it."""

    __slots__ = ("admission", "current", "dialler", "idle", "up")

    def __init__(self) -> None:
        self.current: Connection | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.up = asyncio.Event()
        self.admission = asyncio.Lock()  # held while a newcomer is judged and takes the place
        self.dialler: asyncio.Task[None] | None = None


class Links:
    """See the module's docstring. Used as `async with links.running():`, once."""

    def __init__(
        self,
        identity: Identity,
        *,
        host: str | None,
        port: int = 0,
        peers: Mapping[Address, str],
        is_known: IsKnown,
        on_up: OnUp,
        on_down: OnDown,
        on_message: OnMessage,
        random: Callable[[], float],
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """`host`: None does not listen. `peers`: whom to dial, and where. `random`: fractions in [0, 1) for backoff.

        `is_known` is asked about inbound peers.
        """
        self._identity = identity
        self._host = host
        self._configured_port = port
        self._urls = dict(peers)
        self._is_known = is_known
        self._on_up = on_up
        self._on_down = on_down
        self._on_message = on_message
        self._random = random
        self._limits = limits
        self._peers: dict[Address, _Peer] = {}
        self._group: asyncio.TaskGroup | None = None
        self._connections: set[Connection] = set()
        self._closing = False
        self.port = 0
        """Where it listens, once running."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Listens and dials until the context is left; then every connection is closed and every callback done."""
        async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as stack:
            self._group = group
            if self._host is not None:
                server = await stack.enter_async_context(
                    serve(
                        self._host,
                        self._configured_port,
                        self._identity,
                        self._is_known,
                        self._accept,
                        self._limits,
                    )
                )
                self.port = server.port
            for peer, url in self._urls.items():
                self._start_dialling(peer, url)
            try:
                yield self
            finally:
                await self._close()

    def connection(self, peer: Address) -> Connection | None:
        """The connection in use, for which `on_up` has been called or is being called; None while there is none."""
        place = self._peers.get(peer)
        return place.current if place is not None else None

    def require(self, peer: Address) -> Connection:
        """As `connection`. Raises LocalRefusal PEER_UNAVAILABLE."""
        connection = self.connection(peer)
        if connection is None:
            raise LocalRefusal(Code.PEER_UNAVAILABLE, f"no connection to {format_address(peer)}")
        return connection

    async def wait_up(self, peer: Address, timeout_s: float) -> Connection:
        """The connection, once `on_up` for it has returned. Raises LocalRefusal PEER_UNAVAILABLE."""
        place = self._place(peer)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while place.current is None or not place.up.is_set():
                    await place.up.wait()
        return self.require(peer)

    def add(self, peer: Address, url: str) -> None:
        """Dials one more peer from now on; a new url replaces the old one at the next attempt."""
        self._urls[peer] = url
        if self._group is not None and not self._closing:
            self._start_dialling(peer, url)

    # dialling

    def _start_dialling(self, peer: Address, url: str) -> None:
        if peer == self._identity.address:
            raise LocalRefusal(Code.CONFIG, f"{format_address(peer)} at {url} is this node itself")
        assert self._group is not None
        place = self._place(peer)
        if place.dialler is None:
            name = f"dial {format_address(peer)}"
            place.dialler = self._group.create_task(self._dial_for_ever(peer, place), name=name)

    async def _dial_for_ever(self, peer: Address, place: _Peer) -> None:
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            await self._until_wanted(place)
            started_s = loop.time()
            try:
                connection = await connect(self._urls[peer], self._identity, peer, self._limits)
            except XlnError as error:
                level = logging.INFO if attempt == 0 else logging.DEBUG
                log.log(level, "cannot connect: %s", error, extra={"peer": format_address(peer)})
            else:
                await self._use_in_group(connection)
                if loop.time() - started_s >= STABLE_S:
                    attempt = 0
            await asyncio.sleep(backoff_s(attempt, self._random()))
            attempt += 1

    async def _until_wanted(self, place: _Peer) -> None:
        while True:
            await place.idle.wait()
            async with place.admission:  # a newcomer may be about to take the place
                if place.current is None:
                    return

    async def _accept(self, connection: Connection) -> None:
        """Runs in the server's task."""
        await self._use_in_group(connection)

    async def _use_in_group(self, connection: Connection) -> None:
        """Until the connection is no longer used. A failure ends the group; who is cancelled here stops waiting."""
        if self._closing:
            await connection.close()
            return
        assert self._group is not None
        name = f"{'dialled' if connection.dialled else 'accepted'} {format_address(connection.peer)}"
        await asyncio.wait([self._group.create_task(self._use(connection), name=name)])

    # one connection

    def _place(self, peer: Address) -> _Peer:
        place = self._peers.get(peer)
        if place is None:
            place = self._peers[peer] = _Peer()
        return place

    async def _use(self, connection: Connection) -> None:
        """The life of one established connection."""
        place = self._place(connection.peer)
        self._connections.add(connection)
        try:
            if await self._take_place(place, connection):
                try:
                    await self._pump(place, connection)
                finally:
                    place.current = None
                    place.up.clear()
                    place.idle.set()
        finally:
            await connection.close()
            self._connections.discard(connection)

    async def _take_place(self, place: _Peer, newcomer: Connection) -> bool:
        async with place.admission:
            current = place.current
            if current is not None and not prefers(self._identity.address, current, newcomer):
                if current.is_open and await current.ping(PROBE_TIMEOUT_S):
                    await newcomer.close(reason="another connection stays")
                    return False
                log.info("the connection in use is dead", extra={"peer": format_address(newcomer.peer)})
            if current is not None:
                await current.close(reason="another connection stays")
                await place.idle.wait()
            if self._closing or not newcomer.is_open:
                return False
            place.current = newcomer
            place.idle.clear()
            return True

    async def _pump(self, place: _Peer, connection: Connection) -> None:
        peer = format_address(connection.peer)
        log.info("connected", extra={"peer": peer, "dialled": connection.dialled})
        try:
            await self._on_up(connection)
            place.up.set()
            async for message in connection.messages():
                await self._on_message(connection, message)
        except XlnError as error:
            log.warning("the connection is closed: %s", error, extra={"peer": peer})
            code = error.code if isinstance(error, PeerFault) else Code.BUSY
            await connection.close(code, error.message if isinstance(error, PeerFault) else "not now")
        finally:
            log.info("disconnected: %s", connection.failure or "closed", extra={"peer": peer})
            await self._on_down(connection.peer)

    async def _close(self) -> None:
        """Stops dialling and closes all. The server and the group end by themselves after that."""
        self._closing = True
        for place in self._peers.values():
            if place.dialler is not None:
                place.dialler.cancel()
        await asyncio.gather(*(connection.close() for connection in self._connections))
