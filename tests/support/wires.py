"""Two brokers' engines, stores and wires with a line between them that a test delivers, drops, repeats and reorders.

Real core, real SQLite, real protocol; only the sockets are missing. A node is started again from its database by
`WiredNode.start`. Nothing moves on the line but by `Line.deliver`.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from broker.actions import (
    Action,
    CloseChannel,
    DepositConfirmed,
    DepositSeen,
    LockConfirmed,
    LockSigned,
    OpenChannel,
    OpeningShown,
    PlaceOrder,
    Propose,
)
from broker.core import Core
from broker.desk import Desk
from broker.effects import Cosigned, Effect
from broker.engine import Engine
from broker.records import MIGRATIONS
from broker.wire import Wire
from channel.errors import LocalRefusal, XlnError
from channel.orders import SignedOrder
from channel.signing import Signer
from channel.strictjson import loads
from channel.transition import Phase
from channel.typed import custody_domain
from channel.units import Address, ChannelId
from node.clock import FixedClock
from node.store import Store
from rpc import jsonrpc
from rpc.links import Links
from rpc.transport import Connection
from tests.support.pair import CHAIN_ID, NOW, XLN, Pair, custody_of, market_of

MAX_FRAME = 2**20


class End:
    """One end of the line, as `Wire` sees a connection. `outbox`: frames on their way to the other end."""

    def __init__(self, peer: Address) -> None:
        self.peer = peer
        self.is_open = True
        self.outbox: deque[bytes] = deque()
        self.sent: list[bytes] = []
        self.pending: dict[str, asyncio.Future[object]] = {}

    def send_nowait(self, payload: str | bytes) -> None:
        data = payload.encode() if isinstance(payload, str) else payload
        self.outbox.append(data)
        self.sent.append(data)

    async def request(self, method: str, params: dict[str, Any], timeout_s: float) -> object:
        identity = f"r{len(self.pending) + 1}"
        self.pending[identity] = asyncio.get_running_loop().create_future()
        self.send_nowait(jsonrpc.request(identity, method, params))
        async with asyncio.timeout(timeout_s):
            return await self.pending[identity]


class WiredNode:
    """Engine, store and wire of one broker, and its end of the line while it is connected."""

    def __init__(self, signer: Signer, folder: Path, clock: FixedClock) -> None:
        self.signer = signer
        self.folder = folder
        self.clock = clock
        self.released: list[Effect] = []
        self.proposes = True
        self.end: End | None = None
        self.core: Core
        self.store: Store
        self.engine: Engine
        self.wire: Wire
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """From what the database has. Returns the number of actions replayed."""
        self.core = Core(self.signer, [market_of(self.signer.address)])
        self.store = Store.open(self.folder / "broker.sqlite", MIGRATIONS)
        self.engine = Engine(self.core, self.store, self.clock, self._release)
        replayed = await self.engine.replay(custody_domain(CHAIN_ID, custody_of(self.signer.address)))
        self.wire = Wire(self.engine, self.signer, XLN.address, {})
        self.wire.links = cast(Links, self)
        self._running = asyncio.create_task(self.engine.run())
        return replayed

    async def stop(self) -> None:
        """As a crash: what is on the disk is on the disk, the rest is gone."""
        if self._running is None:
            return
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        self._running = None
        await self.wire.stop()
        await self.store.close()

    def connection(self, peer: Address) -> Connection | None:
        return cast(Connection, self.end) if self.end is not None and self.end.peer == peer else None

    def _release(self, effects: Sequence[Effect]) -> None:
        self.released += effects
        for effect in effects:
            self.wire.release(effect)
            if isinstance(effect, Cosigned):
                self.wire.subscribe_books(self.desk)

    @property
    def desk(self) -> Desk:
        (desk,) = self.core.desks.values()
        return desk

    async def run(self, action: Action) -> list[Effect]:
        return await self.engine.execute(action)


@dataclass
class Line:
    """Both nodes and what is between them. `pair` has keys, terms and orders."""

    pair: Pair
    a: WiredNode
    b: WiredNode
    clock: FixedClock
    evidence: list[str] = field(default_factory=list)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path, *, shown: bool = True) -> AsyncIterator["Line"]:
        """Two nodes on one line, their channel active; `shown`: XLN has its turn 1, and it trades."""
        clock = FixedClock(NOW)
        nodes = []
        pair = Pair()
        for name, side in zip("ab", pair.sides, strict=True):
            (folder / name).mkdir()
            nodes.append(WiredNode(side.signer, folder / name, clock))
        line = cls(pair, *nodes, clock)
        try:
            for node in nodes:
                await node.start()
            await line._open_channel(shown)
            yield line
        finally:
            for node in nodes:
                await node.stop()

    @property
    def nodes(self) -> tuple[WiredNode, WiredNode]:
        return self.a, self.b

    @property
    def channel_id(self) -> ChannelId:
        return self.pair.fixed.channel_id

    def other(self, node: WiredNode) -> WiredNode:
        return self.b if node is self.a else self.a

    async def _open_channel(self, shown: bool) -> None:
        pair = self.pair
        for node in self.nodes:
            await node.run(OpenChannel(pair.fixed, pair.terms))
        await self.connect()
        await self.pump()
        for side in pair.sides:
            signed = pair.lock(side)
            lock = signed.lock
            for node in self.nodes:
                await node.run(LockSigned(signed))
                await node.run(
                    LockConfirmed(pair.fixed.channel_id, lock.owner, lock.token, lock.amount, lock.terms_hash)
                )
        await self.pump()
        for node in self.nodes:
            assert node.desk.channel.phase is Phase.ACTIVE
            if shown:
                await node.run(OpeningShown(pair.fixed.channel_id))
                node.wire.subscribe_books(node.desk)
        await self.pump()

    async def connect(self) -> None:
        """A new connection; both begin to sync."""
        for node in self.nodes:
            node.end = End(self.other(node).signer.address)
            await node.wire.on_up(cast(Connection, node.end))

    async def disconnect(self) -> None:
        """What is on the line is lost."""
        for node in self.nodes:
            if node.end is not None:
                node.end.is_open = False
                for future in node.end.pending.values():
                    if not future.done():
                        future.set_exception(LocalRefusal(jsonrpc.Code.PEER_UNAVAILABLE, "cut"))
            node.end = None
            await node.wire.on_down(self.other(node).signer.address)
        await asyncio.sleep(0)

    async def reconnect(self) -> None:
        await self.disconnect()
        await self.connect()

    async def restart(self, node: WiredNode) -> None:
        """Killed and started again; the line is cut."""
        await self.disconnect()
        await node.stop()
        await node.start()

    # -- the line

    async def deliver(self, sender: WiredNode, frame: bytes | None = None) -> None:
        """Hands the oldest frame of `sender`, or `frame`, to the other."""
        receiver = self.other(sender)
        assert sender.end is not None
        assert receiver.end is not None
        data = sender.end.outbox.popleft() if frame is None else frame
        message = jsonrpc.parse(loads(data, max_bytes=MAX_FRAME))
        if isinstance(message, jsonrpc.Response) and isinstance(message.id, str):
            future = receiver.end.pending.get(message.id)
            if future is not None and not future.done():
                try:
                    future.set_result(message.unwrap())
                except XlnError as error:
                    future.set_exception(error)
                return
        await receiver.wire.on_message(cast(Connection, receiver.end), message)

    async def settle(self) -> None:
        """What was executed is durable and released; tasks of the wires have had their turn."""
        for _ in range(3):
            await asyncio.sleep(0)
        for node in self.nodes:
            if node.engine.failure is None:
                await node.engine.durable()
        for _ in range(3):
            await asyncio.sleep(0)

    async def propose(self, node: WiredNode) -> None:
        if node.proposes and self.channel_id in node.wire.synced and node.engine.failure is None:
            await node.run(Propose(self.channel_id))

    async def pump(self, lose: Callable[[bytes], bool] = lambda _: False) -> None:
        """Delivers all there is, in order, until both are at rest; frames that `lose` picks are not delivered."""
        for _ in range(10_000):
            await self.settle()
            sender = next((n for n in self.nodes if n.end is not None and n.end.outbox), None)
            if sender is None:
                for node in self.nodes:
                    await self.propose(node)
                await self.settle()
                if not any(n.end is not None and n.end.outbox for n in self.nodes):
                    return
            else:
                assert sender.end is not None
                if lose(sender.end.outbox[0]):
                    sender.end.outbox.popleft()
                else:
                    await self.deliver(sender)
        raise AssertionError("the two never come to rest")

    # -- what people do

    async def deposit(self, node: WiredNode, who: Signer, token: Address, amount: int) -> None:
        await node.run(DepositSeen(who.address, token, amount))
        await node.run(DepositConfirmed(who.address, token, amount))

    async def place(self, node: WiredNode, signed: SignedOrder, remote_lots: int = 0) -> None:
        plan = ((self.channel_id, remote_lots),) if remote_lots else ()
        await node.run(PlaceOrder(signed, plan, signed.order.price_ticks))

    async def close(self) -> None:
        for node in self.nodes:
            await node.run(CloseChannel(self.channel_id))

    # -- what must hold

    def agree(self) -> None:
        """Law V, and C between the two."""
        a, b = (node.desk for node in self.nodes)
        assert a.channel.cosigned is not None
        assert b.channel.cosigned is not None
        assert a.channel.cosigned.state.state_hash == b.channel.cosigned.state.state_hash
        assert a.channel.view.last_seq == b.channel.view.last_seq
        assert not a.channel.pending
        assert not b.channel.pending
        for node in self.nodes:
            node.core.exchange.check()
            node.core.exchange.ledger.recount()
        one, other = (node.core.exchange.channel_net(node.desk) for node in self.nodes)
        assert one == {token: -value for token, value in other.items()}
