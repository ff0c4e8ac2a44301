"""What ends an opening, when trading starts, and how a final channel becomes money, without processes.

Core, engine, store, wire, `Lifecycle` and `ChainWork` are the real ones. Only what lies beyond a connection is played
here: XLN's answers, and the chain's answers and receipts, call by call.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from broker import lifecycle as lifecycles
from broker.actions import CloseChannel, LockSigned, OpeningShown
from broker.chainwork import ChainWork
from broker.config import BrokerConfig, InitOptions
from broker.desk import Desk
from broker.lifecycle import OPEN_WITHIN_S, PAY_AFTER_S, Lifecycle
from broker.views import Views
from channel.errors import Code, LocalRefusal, PeerFault
from channel.journal import fixed_from_json, fixed_to_json
from channel.locks import Lock, SignedLock, lock_to_json
from channel.position import OpenOrder
from channel.signing import Signer, eth_sign_digest
from channel.state import FixedPart
from channel.strictjson import loads
from channel.terms import Terms, terms_from_json, terms_to_json
from channel.transition import Phase
from channel.typed import collateral_domain
from channel.units import ZERO_HASH, Address, Hash, format_address, format_hex, parse_hash
from contracts.abi import Call, decode_values
from contracts.client import ChainClient, Receipt, Sender
from contracts.network import LockStatus
from node.clock import FixedClock
from rpc.jsonrpc import RemoteError
from rpc.links import Links
from rpc.transport import Connection
from tests.support.memory_node import write_and_load
from tests.support.pair import (
    ADJUDICATOR,
    BTC,
    CHAIN_ID,
    COLLATERAL,
    NOW,
    USD,
    XLN,
    custody_of,
    market_of,
    signers,
    user,
)
from tests.support.wires import MAX_FRAME, End, Line, WiredNode

LOCK = 10**13
OPEN_BY_S = NOW // 1000 + 1_000
EXPIRY_S = NOW // 1000 + 10_000
OTHER = Signer(b"\x05" * 32)  # a third broker


def lock_of(fixed: FixedPart, terms: Terms, owner: Address) -> SignedLock:
    """What XLN signs for `owner`."""
    lock = Lock(
        channel_id=fixed.channel_id, terms_hash=terms.terms_hash, owner=owner, token=USD, amount=LOCK,
        expiry_s=EXPIRY_S, open_by_s=OPEN_BY_S,
    )  # fmt: skip
    return SignedLock(lock=lock, signature=XLN.sign(lock.digest(collateral_domain(CHAIN_ID, COLLATERAL))))


class Chain:
    """The chain beyond its endpoint: what calls answer, and the transactions that were sent.

    `lock`: (status, expiry) of `owner`'s; `paid`: custodies that have paid; `down`: how many calls fail next.
    """

    chain_id = CHAIN_ID

    def __init__(self, owner: Address) -> None:
        self.owner = owner
        self.terms_hash = ZERO_HASH
        self.lock: tuple[LockStatus, int] = (LockStatus.NONE, 0)
        self.concluded = False
        self.attestors: tuple[Address, ...] = (XLN.address,)
        self.threshold = 1
        self.paid: set[Address] = set()
        self.sent: list[tuple[str, Address]] = []
        self.asked: list[str] = []
        self.down = 0

    async def call(self, call: Call, *, block: int | Hash | str = "latest") -> tuple[Any, ...]:
        name = call.label.partition(".")[2]
        self.asked.append(name)
        if self.down:
            self.down -= 1
            raise LocalRefusal(Code.CHAIN, "the endpoint does not answer")
        match name:
            case "brokers":
                (broker,) = decode_values(["address"], call.data[4:])
                return custody_of(broker), "ws://127.0.0.1:1"
            case "attestors":
                return (self.attestors,)
            case "threshold":
                return (self.threshold,)
            case "free":
                return (10 * LOCK,)
            case "lockOf":
                _, owner = decode_values(["bytes32", "address"], call.data[4:])
                status, expiry_s = self.lock if owner == self.owner else (LockStatus.NONE, 0)
                return status, self.terms_hash, USD, LOCK, expiry_s, OPEN_BY_S
            case "outcomeOf":
                return ((b"\x01" * 32) if self.concluded else bytes(32),)
            case "paidOut":
                return (call.to in self.paid,)
            case "claims":
                return (0,)
        raise AssertionError(call.label)

    async def send(self, call: Call) -> Receipt:
        assert call.to is not None
        name = call.label.partition(".")[2]
        self.sent.append((name, call.to))
        match name:
            case "registerLock":
                self.lock = (LockStatus.LOCKED, EXPIRY_S)
            case "releaseExpired":
                self.lock = (LockStatus.RELEASED, EXPIRY_S)
            case "conclude":
                self.concluded = True
            case "payout":
                self.paid.add(call.to)
            case _:
                raise AssertionError(call.label)
        return Receipt(
            tx_hash=ZERO_HASH, block_number=1, block_hash=ZERO_HASH, gas_used=1, gas_price_wei=1, status=1, logs=(),
            created=None,
        )  # fmt: skip


class Xln:
    """XLN beyond its connection: signs locks, keeps the journal it is handed, attests what it is told to."""

    def __init__(self, owner: Address) -> None:
        self.owner = owner
        self.peer = XLN.address
        self.is_open = True
        self.opened = False
        self.error: RemoteError | None = None
        self.records: list[str] = []
        self.attested: dict[str, Any] = {}

    async def request(self, method: str, params: dict[str, Any], timeout_s: float) -> object:
        if self.error is not None:
            raise self.error
        match method:
            case "xln.lock":
                fixed, terms = fixed_from_json(params["fixedPart"]), terms_from_json(params["terms"])
                return {"lock": lock_to_json(lock_of(fixed, terms, self.owner))}
            case "xln.journal":
                if params["at"] is not None:
                    assert params["at"] == len(self.records)
                    self.records += params["records"]
                return {"at": len(self.records), "opened": self.opened}
            case "xln.attest":
                return self.attested
        raise AssertionError(method)


class Driven:
    """One node's `Lifecycle`, with XLN and the chain at its edges."""

    def __init__(self, node: WiredNode, config: BrokerConfig) -> None:
        self.node = node
        self.me = node.signer.address
        self.config = config
        self.endpoint = Chain(self.me)
        self.xln: Xln | None = Xln(self.me)
        client = cast(ChainClient, self.endpoint)
        self.chain = ChainWork(config, node.engine, node.signer, client, custody_of(self.me))
        self.chain.sender = cast(Sender, self.endpoint)
        self.chain.head_unix_s = NOW // 1000
        node.wire.links = cast(Links, self)
        self.lifecycle = Lifecycle(config, node.engine, node.wire, self.chain, self.me)

    def connection(self, peer: Address) -> Connection | None:
        if peer == XLN.address:
            return cast("Connection | None", self.xln)
        return self.node.connection(peer)

    def require(self, peer: Address) -> Connection:
        connection = self.connection(peer)
        if connection is None:
            raise LocalRefusal(Code.PEER_UNAVAILABLE, "no connection")
        return connection

    @property
    def calls(self) -> list[str]:
        return [name for name, _ in self.endpoint.sent]

    async def proposed_by(self, peer: Address, nonce: int) -> Desk:
        """`peer` proposes a channel, as `channel.open` comes in."""
        first, second = sorted((self.me, peer))
        fixed = FixedPart(
            chain_id=CHAIN_ID,
            participants=(first, second),
            channel_nonce=nonce,
            app_definition=ADJUDICATOR,
            challenge_duration_s=self.config.channel_terms.challenge_duration_s,
        )
        terms = self.config.terms(self.me, peer, (custody_of(self.me), custody_of(peer)), [market_of(peer)])
        params = {
            "fixedPart": fixed_to_json(fixed),
            "terms": terms_to_json(terms),
            "token": format_address(USD),
            "amounts": [str(LOCK), str(LOCK)],
        }
        self.endpoint.terms_hash = terms.terms_hash
        await self.lifecycle.on_open(cast(Connection, End(peer)), params)
        return self.node.core.desk(fixed.channel_id)

    async def passes(self, desk: Desk, work: Callable[[Desk], Any]) -> None:
        """One pass, as `_drive` makes it: what is missing yet is tried again."""
        try:
            await work(desk)
        except LocalRefusal as refusal:
            assert refusal.code is Code.PEER_UNAVAILABLE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycles, "RETRY_S", 0.001)
    monkeypatch.setattr(lifecycles, "PASS_S", 0.001)


@pytest.fixture
async def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the loop's clock that many seconds ahead of where it was."""
    loop = asyncio.get_running_loop()
    real, ahead_s = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: real() + ahead_s[0])

    def by(seconds: float) -> None:
        ahead_s[0] += seconds

    return by


@pytest.fixture
def config(tmp_path: Path) -> BrokerConfig:
    folder = tmp_path / "config"
    folder.mkdir()
    return write_and_load(folder, InitOptions(lock_max=str(LOCK)))


@pytest.fixture(params=[0, 1], ids=["first", "second"])
async def opener(request: pytest.FixtureRequest, tmp_path: Path, config: BrokerConfig) -> AsyncIterator[Driven]:
    """A node alone: the first participant of a channel asks for its lock at once, the second after turn 0."""
    (tmp_path / "node").mkdir()
    node = WiredNode(signers()[request.param], tmp_path / "node", FixedClock(NOW))
    await node.start()
    try:
        driven = Driven(node, config)
        await driven.chain.start()
        yield driven
    finally:
        await node.stop()


def peer_of(driven: Driven) -> Address:
    return next(s.address for s in signers() if s.address != driven.me)


async def assert_room(driven: Driven, given_up: Desk) -> None:
    """The channel is over, and another broker gets one."""
    assert given_up.channel.phase is Phase.FROZEN
    assert (await driven.proposed_by(OTHER.address, NOW + 1)).channel.phase is Phase.OPENING


async def assert_no_room(driven: Driven) -> None:
    with pytest.raises(LocalRefusal) as refused:
        await driven.proposed_by(OTHER.address, NOW + 1)
    assert refused.value.code is Code.CHANNEL_PHASE


@pytest.mark.parametrize(
    ("attestors", "threshold"), [((OTHER.address,), 1), ((XLN.address, OTHER.address), 1), ((XLN.address,), 2), ((), 1)]
)
async def test_a_peer_whose_custody_does_not_answer_to_xln_alone_gets_no_channel(
    opener: Driven, attestors: tuple[Address, ...], threshold: int
) -> None:
    opener.endpoint.attestors, opener.endpoint.threshold = attestors, threshold
    with pytest.raises(PeerFault) as refused:
        await opener.proposed_by(peer_of(opener), NOW)
    assert refused.value.code is Code.CHANNEL_TERMS
    assert not opener.node.core.desks


# -- what ends an opening


async def test_an_opening_without_a_lock_is_given_up_and_makes_room(
    opener: Driven, jump: Callable[[float], None]
) -> None:
    opener.xln = None  # XLN is not there to sign
    desk = await opener.proposed_by(peer_of(opener), NOW)
    await opener.passes(desk, opener.lifecycle._opening)
    jump(OPEN_WITHIN_S - 5)
    await opener.passes(desk, opener.lifecycle._opening)
    assert desk.channel.phase is Phase.OPENING
    await assert_no_room(opener)
    jump(10)
    await opener.passes(desk, opener.lifecycle._opening)
    assert desk.channel.frozen_by is not None
    assert desk.channel.frozen_by[0] is Code.CHANNEL_LOCK
    await assert_room(opener, desk)


async def test_an_opening_that_was_given_up_stays_so_after_a_restart(
    opener: Driven, jump: Callable[[float], None]
) -> None:
    opener.xln = None
    desk = await opener.proposed_by(peer_of(opener), NOW)
    await opener.passes(desk, opener.lifecycle._opening)
    jump(OPEN_WITHIN_S + 5)
    await opener.passes(desk, opener.lifecycle._opening)
    await opener.node.stop()
    await opener.node.start()
    again = opener.node.desk
    assert again is not desk
    assert again.channel.phase is Phase.FROZEN


@pytest.mark.parametrize("opener", [0], indirect=True)
async def test_with_a_lock_open_by_counts_and_not_the_wait(opener: Driven, jump: Callable[[float], None]) -> None:
    desk = await opener.proposed_by(peer_of(opener), NOW)
    await opener.lifecycle._opening(desk)
    assert desk.signed_locks[desk.me] is not None
    jump(OPEN_WITHIN_S + 5)
    opener.chain.head_unix_s = OPEN_BY_S
    await opener.lifecycle._opening(desk)
    assert desk.channel.phase is Phase.OPENING
    assert opener.calls == ["registerLock"]
    await assert_no_room(opener)


@pytest.mark.parametrize("registered", [False, True])
async def test_after_open_by_a_channel_that_never_became_active_is_given_up(opener: Driven, registered: bool) -> None:
    desk = await opener.proposed_by(peer_of(opener), NOW)
    await opener.node.run(LockSigned(lock_of(desk.channel.fixed, desk.channel.terms, opener.me)))
    if registered:
        await opener.lifecycle._opening(desk)
    before = opener.calls
    opener.chain.head_unix_s = OPEN_BY_S + 1
    await opener.lifecycle._opening(desk)
    assert opener.calls == before  # no lock is registered any more
    await assert_room(opener, desk)


# -- closing


def final_proposal(frame: bytes) -> bool:
    message = loads(frame, max_bytes=MAX_FRAME)
    assert isinstance(message, dict)
    return message.get("method") == "channel.propose" and message["params"]["final"] is True


async def asks_alone(line: Line) -> tuple[WiredNode, WiredNode]:
    """One side closes and signs the final state, which is on the line; the other was never asked. (it, the other)"""
    mover = next(n for n in line.nodes if n.desk.channel.is_mover)
    await mover.run(CloseChannel(line.channel_id))
    await line.propose(mover)
    await line.settle()
    other = line.other(mover)
    assert mover.end is not None
    assert any(final_proposal(frame) for frame in mover.end.outbox)
    assert other.desk.channel.phase is Phase.ACTIVE
    return mover, other


async def test_a_final_proposal_counts_as_the_request_to_close(tmp_path: Path) -> None:
    async with Line.open(tmp_path) as line:
        await asks_alone(line)
        await line.pump()
        assert [n.desk.channel.phase for n in line.nodes] == [Phase.FINAL, Phase.FINAL]
        line.agree()


async def test_a_final_proposal_cancels_what_rests_and_closes(tmp_path: Path) -> None:
    """The side that was not asked has an order at the peer: the final state waits for it to be cancelled."""
    async with Line.open(tmp_path) as line:
        mover = next(n for n in line.nodes if n.desk.channel.is_mover)
        other = line.other(mover)
        side = line.pair.a if other is line.a else line.pair.b
        await line.deposit(other, user(12), BTC, 10**11)
        away = line.pair.order(side, user(12), 1, 6_000_000, 5, market=market_of(mover.signer.address))
        await line.place(other, away)
        await line.pump()
        assert other.desk.channel.view.orders
        mover = next(n for n in line.nodes if n.desk.channel.is_mover)
        await mover.run(CloseChannel(line.channel_id))
        await line.pump()
        assert [n.desk.channel.phase for n in line.nodes] == [Phase.FINAL, Phase.FINAL]
        assert not other.core.exchange.orders
        line.agree()


async def test_who_is_not_the_mover_closes_with_the_next_turn(tmp_path: Path) -> None:
    """It can sign the final state only once the other, which knows of nothing, has moved: a new session makes it."""
    async with Line.open(tmp_path) as line:
        waits = next(n for n in line.nodes if not n.desk.channel.is_mover)
        await waits.run(CloseChannel(line.channel_id))
        await line.reconnect()
        await line.pump()
        assert [n.desk.channel.phase for n in line.nodes] == [Phase.FINAL, Phase.FINAL]
        line.agree()


async def test_only_the_peers_own_final_proposal_closes(tmp_path: Path) -> None:
    async with Line.open(tmp_path) as line:
        mover, other = await asks_alone(line)
        assert mover.end is not None
        frame = next(f for f in mover.end.outbox if final_proposal(f))
        mover.end.outbox.clear()
        message = loads(frame, max_bytes=MAX_FRAME)
        assert isinstance(message, dict)
        params = message["params"]
        state_hash = parse_hash(params["hash"], "hash")
        params["sig"] = format_hex(OTHER.sign(eth_sign_digest(state_hash)))
        with pytest.raises(PeerFault):
            await other.wire._propose(cast(Connection, other.end), params)
        assert other.desk.channel.phase is Phase.ACTIVE
        assert other.desk.is_trading


# -- when trading starts


@pytest.fixture
async def waiting(tmp_path: Path, config: BrokerConfig) -> AsyncIterator[tuple[Line, Driven]]:
    """Turn 1 is co-signed, and XLN has not said yet that it knows. A is driven."""
    async with Line.open(tmp_path, shown=False) as line:
        driven = Driven(line.a, config)
        await driven.chain.start()
        yield line, driven


def refuses(desk: Desk) -> Code | None:
    """Why the peer's market takes no order of ours."""
    market = next(m for m in desk.channel.terms.markets if m.holder == desk.peer)
    order = OpenOrder(desk.me, 0, market, 0, 6_000_000, 1, ZERO_HASH)
    found = desk.objection(order, counted=False)
    return None if found is None else found[0]


async def test_trading_waits_until_xln_has_turn_1(waiting: tuple[Line, Driven]) -> None:
    line, driven = waiting
    desk = line.a.desk
    assert driven.xln is not None
    await driven.lifecycle._show_opened(desk)
    rows = await line.a.store.read("SELECT record FROM journal ORDER BY n")
    assert driven.xln.records == [record for (record,) in rows]
    assert len(rows) >= 4  # two locks, turns 0 and 1: XLN has it all, and still has not said that it is open
    assert (desk.channel.phase, desk.opening_shown, desk.phase_name) == (Phase.ACTIVE, False, "opening")
    assert refuses(desk) is Code.CHANNEL_PHASE
    assert not Views(driven.config, line.a.core.exchange).peer_markets()
    driven.xln.opened = True
    await driven.lifecycle._show_opened(desk)
    assert (desk.opening_shown, desk.is_trading, desk.phase_name) == (True, True, "active")
    assert refuses(desk) is None
    assert Views(driven.config, line.a.core.exchange).peer_markets()
    await line.pump()
    assert line.a.wire.peer_books  # and it has asked for the peer's book


async def test_users_orders_for_the_peer_are_refused_before_it(waiting: tuple[Line, Driven]) -> None:
    line, _ = waiting
    await line.deposit(line.a, user(11), USD, 10**13)
    theirs = market_of(line.b.signer.address)
    away = line.pair.order(line.pair.a, user(11), 0, 6_000_000, 5, market=theirs)
    with pytest.raises(LocalRefusal) as refused:
        await line.place(line.a, away)
    assert refused.value.code is Code.ORDER_MARKET  # the market is not offered yet
    here = line.pair.order(line.pair.a, user(11), 0, 6_000_000, 5)
    await line.place(line.a, here, 5)  # planned for the peer: it stays here
    assert line.a.core.exchange.orders[here.order_id].local_lots == 5
    assert line.a.desk.channel.view.last_seq == (0, 0)


async def test_a_peers_order_is_refused_before_it(waiting: tuple[Line, Driven]) -> None:
    """B's XLN has answered already, A's has not: nothing of B is matched at A."""
    line, _ = waiting
    await line.b.run(OpeningShown(line.channel_id))
    await line.deposit(line.b, user(12), BTC, 10**11)
    away = line.pair.order(line.pair.b, user(12), 1, 6_000_000, 5, market=market_of(line.a.signer.address))
    await line.place(line.b, away)
    await line.pump()
    assert not line.a.core.exchange.snapshot(market_of(line.a.signer.address).market_id, 10)["asks"]
    assert line.b.core.exchange.closed[away.order_id].filled_lots == 0
    assert line.a.end is not None
    assert any(Code.CHANNEL_PHASE.label.encode() in frame for frame in line.a.end.sent)
    line.agree()


async def test_a_channel_that_xln_calls_void_stops_trading(waiting: tuple[Line, Driven]) -> None:
    line, driven = waiting
    assert driven.xln is not None
    driven.xln.error = RemoteError(Code.CHANNEL_PHASE, "the channel was not shown as opened by openBy and is void")
    desk = line.a.desk
    await driven.lifecycle._show_opened(desk)
    assert (desk.channel.phase, desk.is_trading) == (Phase.FROZEN, False)
    assert desk.channel.frozen_by is not None
    assert "void" in desk.channel.frozen_by[1]
    assert refuses(desk) is Code.CHANNEL_PHASE
    await assert_room(driven, desk)


@pytest.mark.parametrize("code", [Code.BUSY, Code.CHANNEL_UNKNOWN, Code.INTERNAL])
async def test_other_answers_of_xln_void_nothing(waiting: tuple[Line, Driven], code: Code) -> None:
    line, driven = waiting
    assert driven.xln is not None
    driven.xln.error = RemoteError(code, "later")
    desk = line.a.desk
    with pytest.raises(RemoteError):
        await driven.lifecycle._show_opened(desk)
    assert (desk.channel.phase, desk.opening_shown) == (Phase.ACTIVE, False)


async def test_a_channel_that_was_shown_is_not_asked_about_again(waiting: tuple[Line, Driven]) -> None:
    line, driven = waiting
    assert driven.xln is not None
    await line.a.run(OpeningShown(line.channel_id))
    driven.xln.error = RemoteError(Code.CHANNEL_PHASE, "void")
    await driven.lifecycle._show_opened(line.a.desk)
    assert line.a.desk.is_trading


# -- locks that have expired


@pytest.fixture
async def locked(tmp_path: Path, config: BrokerConfig) -> AsyncIterator[Driven]:
    async with Line.open(tmp_path) as line:
        driven = Driven(line.a, config)
        driven.endpoint.lock = (LockStatus.LOCKED, EXPIRY_S)
        yield driven


async def test_a_lock_is_taken_back_after_expiry_by_block_time_and_once(locked: Driven) -> None:
    locked.node.clock.advance(10**9)  # this node's own clock says nothing about it
    locked.chain.head_unix_s = EXPIRY_S
    await locked.lifecycle._release_expired()
    assert (locked.endpoint.asked, locked.calls) == ([], [])
    locked.chain.head_unix_s = EXPIRY_S + 1
    await locked.lifecycle._release_expired()
    assert locked.endpoint.sent == [("releaseExpired", COLLATERAL)]
    locked.endpoint.lock = (LockStatus.LOCKED, EXPIRY_S)  # a node that lags
    await locked.lifecycle._release_expired()
    assert locked.calls == ["releaseExpired"]


@pytest.mark.parametrize("status", [LockStatus.NONE, LockStatus.RELEASED])
async def test_only_a_lock_that_is_locked_is_taken_back(locked: Driven, status: LockStatus) -> None:
    locked.endpoint.lock = (status, EXPIRY_S)
    locked.chain.head_unix_s = EXPIRY_S + 1
    await locked.lifecycle._release_expired()
    assert (locked.endpoint.asked, locked.calls) == (["lockOf"], [])


async def test_taking_back_is_tried_again_when_the_chain_fails(locked: Driven) -> None:
    locked.endpoint.down = 1
    locked.chain.head_unix_s = EXPIRY_S + 1
    await locked.lifecycle._release_expired()
    assert locked.calls == []
    await locked.lifecycle._release_expired()
    assert locked.calls == ["releaseExpired"]


# -- driving


@contextlib.asynccontextmanager
async def driving(driven: Driven) -> AsyncIterator[None]:
    task = asyncio.ensure_future(driven.lifecycle.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await driven.lifecycle.stop()


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it does not come")


async def test_driven_an_opening_is_given_up_though_xln_fails_all_the_time(
    opener: Driven, jump: Callable[[float], None]
) -> None:
    opener.xln = None
    desk = await opener.proposed_by(peer_of(opener), NOW)
    async with driving(opener):
        await until(lambda: desk.channel_id in opener.lifecycle._waiting_since)
        jump(OPEN_WITHIN_S + 5)
        await until(lambda: desk.channel.phase is Phase.FROZEN)
    await assert_room(opener, desk)


async def test_driven_a_channel_is_shown_when_xln_is_back(waiting: tuple[Line, Driven]) -> None:
    line, driven = waiting
    assert driven.xln is not None
    driven.xln.error = RemoteError(Code.BUSY, "later")
    async with driving(driven):
        await asyncio.sleep(0.02)
        assert not line.a.desk.is_trading
        driven.xln.error, driven.xln.opened = None, True
        await until(lambda: line.a.desk.is_trading)


async def test_driven_an_expired_lock_is_taken_back_without_xln(
    locked: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycles, "EXPIRED_S", 0.001)
    locked.xln = None
    locked.chain.head_unix_s = EXPIRY_S + 1
    async with driving(locked):
        await until(lambda: locked.calls == ["releaseExpired"])
        await asyncio.sleep(0.02)
    assert locked.calls == ["releaseExpired"]


# -- payouts


def attestation(custody: Address, tokens: Sequence[Address] = (USD,)) -> dict[str, Any]:
    return {
        "custody": format_address(custody),
        "tokens": [format_address(token) for token in tokens],
        "amounts": ["1" for _ in tokens],
        "sig": format_hex(bytes(65)),
    }


@pytest.mark.parametrize("index", [0, 1], ids=["first", "second"])
async def test_a_peer_that_does_not_collect_is_paid_by_this_node_after_a_while(
    tmp_path: Path, config: BrokerConfig, jump: Callable[[float], None], index: int
) -> None:
    async with Line.open(tmp_path) as line:
        await line.close()
        await line.pump()
        driven = Driven(line.nodes[index], config)
        desk = driven.node.desk
        assert desk.channel.phase is Phase.FINAL
        assert desk.channel.cosigned is not None
        state = desk.channel.cosigned.state
        own, theirs = custody_of(driven.me), custody_of(desk.peer)
        assert driven.xln is not None
        driven.xln.attested = {
            "outcomeHash": format_hex(state.outcome_hash),
            "outcome": format_hex(state.variable.outcome),
            "attestations": [attestation(own), attestation(theirs)],
        }
        for _ in range(3):
            await driven.lifecycle._closing(desk)
        assert driven.endpoint.sent == [("conclude", ADJUDICATOR), ("payout", theirs)]
        jump(PAY_AFTER_S - 5)
        await driven.lifecycle._closing(desk)
        assert driven.calls == ["conclude", "payout"]
        jump(10)
        for _ in range(3):
            await driven.lifecycle._closing(desk)
        assert driven.endpoint.sent == [("conclude", ADJUDICATOR), ("payout", theirs), ("payout", own)]


async def test_what_the_peer_has_collected_is_not_paid_again(
    tmp_path: Path, config: BrokerConfig, jump: Callable[[float], None]
) -> None:
    async with Line.open(tmp_path) as line:
        await line.close()
        await line.pump()
        driven = Driven(line.a, config)
        desk = line.a.desk
        assert desk.channel.cosigned is not None
        state = desk.channel.cosigned.state
        own, theirs = custody_of(driven.me), custody_of(desk.peer)
        assert driven.xln is not None
        driven.xln.attested = {
            "outcomeHash": format_hex(state.outcome_hash),
            "outcome": format_hex(state.variable.outcome),
            "attestations": [attestation(own), attestation(theirs)],
        }
        driven.endpoint.concluded = True
        driven.endpoint.paid = {own}
        await driven.lifecycle._closing(desk)
        jump(PAY_AFTER_S + 5)
        await driven.lifecycle._closing(desk)
        assert driven.endpoint.sent == [("payout", theirs)]
