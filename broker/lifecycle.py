"""Opening and closing channels: what must happen besides the turns, with the peer, XLN and the chain.

    opening   terms agreed -> own lock signed by XLN -> registered on chain and shown to the peer -> turn 0, turn 1
    active    the journal with turn 1 is shown to XLN before the locks' openBy; then orders flow
    final     the journal is handed to XLN -> attestations -> conclude -> the peer's custody pays -> settled

Nothing here is remembered only in memory: each pass looks at the channel, the database and the chain, and does the next
missing step. A pass that fails is tried again. DESIGN section 4.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from broker.actions import FreezeChannel, LockSigned, OpenChannel, OpeningShown
from broker.chainwork import ChainWork
from broker.config import BrokerConfig
from broker.core import require_no_channel
from broker.desk import Desk
from broker.engine import Engine
from broker.records import INSERT_CHANNEL
from broker.wire import Wire
from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.journal import fixed_from_json, fixed_to_json
from channel.locks import SignedLock, lock_from_json, verify_lock
from channel.state import FixedPart
from channel.strictjson import Fields, dumps
from channel.terms import Market, Terms, terms_from_json, terms_to_json
from channel.transition import Phase
from channel.typed import collateral_domain
from channel.units import (
    Address,
    ChannelId,
    format_address,
    format_hex,
    parse_address,
    parse_hex,
    parse_uint,
)
from contracts.network import Custody, LockStatus
from node import logs
from node.store import Statement
from rpc.jsonrpc import RemoteError
from rpc.transport import Connection

PASS_S = 0.25
RETRY_S = 1.0
EXPIRED_S = 30.0
XLN_TIMEOUT_S = 30.0
ATTEST_TIMEOUT_S = 300.0
OPEN_WITHIN_S = 900.0  # until this node has its own lock; from then on openBy counts
PAY_AFTER_S = 60.0  # then this node sends the peer's payout too
MAX_AHEAD_MS = 2 * 3600 * 1000
UPLOAD_RECORDS = 256
UPLOAD_BYTES = 512 * 1024

_log = logs.get("broker.channel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """What a custody may pay for a final outcome, with XLN's signature."""

    custody: Address
    tokens: tuple[Address, ...]
    amounts: tuple[int, ...]
    signature: bytes


class Lifecycle:
    """One per node. `run` drives every channel; `open` and the handlers start one."""

    def __init__(self, config: BrokerConfig, engine: Engine, wire: Wire, chain: ChainWork, me: Address) -> None:
        self._config = config
        self._engine = engine
        self._wire = wire
        self._chain = chain
        self._me = me
        self._final_since: dict[ChannelId, float] = {}
        self._waiting_since: dict[ChannelId, float] = {}
        self._tasks: dict[ChannelId, asyncio.Task[None]] = {}
        self._released: set[ChannelId] = set()
        self.attested: dict[ChannelId, tuple[bytes, tuple[Attestation, ...]]] = {}
        self.gas: dict[str, int] = {}

    # -- agreeing on a channel

    def info(self) -> dict[str, object]:
        """What a peer needs to know to propose terms."""
        markets = [
            {
                "holder": format_address(m.holder),
                "chainId": hex(m.chain_id),
                "base": format_address(m.base),
                "quote": format_address(m.quote),
                "tick": str(m.tick_quote),
                "lot": str(m.lot_base),
            }
            for m in self._engine.core.exchange.markets.values()
        ]
        return {"custody": format_address(self._chain.custody.address), "markets": markets}

    async def open(self, peer: Address, token: Address, amount: int, peer_amount: int) -> Desk:
        """Agrees on terms with `peer` and begins. Locks of `token`: `amount` of this broker, `peer_amount` of the peer.

        Raises LocalRefusal PEER_UNAVAILABLE, CHANNEL_PHASE, LOCK_AMOUNT, and what the peer answers.
        """
        if self._wire.links is None:
            raise LocalRefusal(Code.PEER_UNAVAILABLE, "the node is starting")
        connection = self._wire.links.require(peer)
        await self._give_up_idle(peer)
        require_no_channel(self._engine.core.desks.values())  # before the peer begins one that this node would refuse
        await self._require_collateral(token, amount)
        f = Fields(await connection.request("broker.info", {}, XLN_TIMEOUT_S), "broker.info")
        peer_custody, markets = f.address("custody"), [_market(m) for m in f.list("markets", 32)]
        await self._require_registered(peer, peer_custody)
        terms = self._terms(peer, peer_custody, markets)
        fixed = FixedPart(
            chain_id=self._config.network.chain_id,
            participants=_ascending(self._me, peer),
            channel_nonce=self._nonce(),
            app_definition=self._config.network.adjudicator,
            challenge_duration_s=self._config.channel_terms.challenge_duration_s,
        )
        params = {
            "fixedPart": fixed_to_json(fixed),
            "terms": terms_to_json(terms),
            "token": format_address(token),
            "amounts": [str(peer_amount), str(amount)],  # the recipient's first
        }
        await connection.request("channel.open", params, XLN_TIMEOUT_S)
        await self._begin(fixed, terms, peer, token, amount)
        return self._engine.core.desk(fixed.channel_id)

    async def on_open(self, connection: Connection, params: dict[str, Any]) -> object:
        """A peer proposes a channel: the terms must be what this node would have proposed."""
        f = Fields(params, "channel.open")
        fixed, terms = fixed_from_json(f.any("fixedPart")), terms_from_json(f.any("terms"))
        token, amounts = f.address("token"), f.list("amounts", 2, min_items=2)
        f.done()
        policy = self._config.channel
        if not policy.accept:
            raise LocalRefusal(Code.CHANNEL_TERMS, "this node opens channels by its operator only")
        own_amount = parse_uint(amounts[0], what="amount")
        if fixed.participants != _ascending(self._me, connection.peer):
            raise PeerFault(Code.CHANNEL_TERMS, "the participants must be the two brokers, ascending")
        fixed.require_ours(self._config.network.adjudicator, self._config.network.chain_id, terms.shortest_challenge_s)
        if fixed.channel_nonce > self._engine.clock.now_ms() + MAX_AHEAD_MS:
            raise PeerFault(Code.CHANNEL_TERMS, "channelNonce is the opening time in ms: this one lies in the future")
        theirs = fixed.index_of(connection.peer)
        await self._require_registered(connection.peer, terms.custodies[theirs])
        markets = [m for m in terms.markets if m.holder == connection.peer]
        expected = self._terms(connection.peer, terms.custodies[theirs], markets)
        if expected.terms_hash != terms.terms_hash:
            raise PeerFault(Code.CHANNEL_TERMS, f"the terms differ from this node's: {_differences(expected, terms)}")
        if own_amount > policy.lock_max or token != policy.lock_token:
            raise LocalRefusal(
                Code.LOCK_AMOUNT,
                f"this node locks at most {policy.lock_max} base units of {format_address(policy.lock_token)}",
            )
        await self._require_collateral(token, own_amount)
        if fixed.channel_id not in self._engine.core.desks:
            await self._give_up_idle(connection.peer)
        await self._begin(fixed, terms, connection.peer, token, own_amount)
        return True

    async def _give_up_idle(self, peer: Address) -> None:
        """One of the two opens anew: the other, or a crash, has lost what was begun. Nothing is locked for it here."""
        for desk in list(self._engine.core.desks.values()):
            if desk.peer == peer and desk.channel.phase is Phase.OPENING and desk.signed_locks[desk.me] is None:
                await self._give_up(desk, "another channel is opened with this peer")

    async def _give_up(self, desk: Desk, message: str) -> None:
        _log.warning("channel given up", channel=format_hex(desk.channel_id), reason=message)
        await self._engine.execute(FreezeChannel(desk.channel_id, Code.CHANNEL_LOCK.name, message))

    async def _begin(self, fixed: FixedPart, terms: Terms, peer: Address, token: Address, amount: int) -> None:
        if fixed.channel_id in self._engine.core.desks:
            return
        row = (fixed.channel_id, peer, token, str(amount))
        await self._engine.execute(OpenChannel(fixed, terms), [Statement(INSERT_CHANNEL, row)])
        desk = self._engine.core.desk(fixed.channel_id)
        self._chain.watch(terms.custodies[1 - desk.me])
        self._wire.synced.add(fixed.channel_id)  # both begin with nothing: there is nothing to sync
        _log.info("channel opening", channel=format_hex(fixed.channel_id), peer=format_address(peer))

    def _terms(self, peer: Address, peer_custody: Address, peer_markets: list[Market]) -> Terms:
        """What this node would propose, or accept: its configuration, and the markets that the peer holds."""
        custodies = (self._chain.custody.address, peer_custody)
        return self._config.terms(self._me, peer, custodies, peer_markets)

    def _nonce(self) -> int:
        """The opening time in ms, above every nonce used before."""
        used = [desk.channel.fixed.channel_nonce for desk in self._engine.core.desks.values()]
        return max([self._engine.clock.now_ms(), *(nonce + 1 for nonce in used)])

    async def _require_registered(self, broker: Address, custody: Address) -> None:
        found = await self._chain.collateral.broker_of(broker)
        if found is None or found[0] != custody:
            raise PeerFault(Code.BROKER_UNKNOWN, f"{format_address(broker)} is not registered with that custody")
        # What a custody pays is up to its attestors, whom its broker chose: XLN must suffice, and be the only one.
        contract = Custody(self._chain.client, custody)
        attestors, threshold = await contract.attestors(), await contract.threshold()
        if (attestors, threshold) != ((self._config.network.xln,), 1):
            raise PeerFault(
                Code.CHANNEL_TERMS, f"the custody of {format_address(broker)} must have XLN as its one attestor"
            )

    async def _require_collateral(self, token: Address, amount: int) -> None:
        free = await self._chain.collateral.free(self._me, token)
        if free < amount:
            raise LocalRefusal(
                Code.LOCK_AMOUNT,
                f"{amount} base units of {format_address(token)} were to be locked, {free} are deposited and free;"
                " deposit collateral first",
            )

    # -- driving

    async def run(self) -> None:
        """Gives every channel that has something to do a task of its own, for ever."""
        loop = asyncio.get_running_loop()
        looked_s = loop.time()
        while True:
            for channel_id, desk in list(self._engine.core.desks.items()):
                if not _has_ended(desk) and channel_id not in self._tasks:
                    self._tasks[channel_id] = asyncio.ensure_future(self._drive(desk))
            if loop.time() - looked_s > EXPIRED_S:
                looked_s = loop.time()
                await self._release_expired()
            await asyncio.sleep(PASS_S)

    async def _release_expired(self) -> None:
        """Takes back this broker's locks that have expired on chain: XLN is not needed for that."""
        for desk in list(self._engine.core.desks.values()):
            lock = desk.signed_locks[desk.me]
            if lock is None or self._chain.head_unix_s <= lock.lock.expiry_s or desk.channel_id in self._released:
                continue
            try:
                record = await self._chain.collateral.lock_of(desk.channel_id, self._me)
                if record is not None and record.status is LockStatus.LOCKED:
                    await self._chain.collateral.release_expired(self._chain.sender, desk.channel_id, self._me)
                    _log.warning("took back a lock that had expired", channel=format_hex(desk.channel_id))
                self._released.add(desk.channel_id)
            except XlnError as error:
                _log.info("an expired lock waits", channel=format_hex(desk.channel_id), reason=str(error))

    async def stop(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drive(self, desk: Desk) -> None:
        said = ""
        try:
            while not _has_ended(desk):
                wait_s = PASS_S
                try:
                    match desk.channel.phase:
                        case Phase.OPENING:
                            await self._opening(desk)
                        case Phase.ACTIVE | Phase.CLOSING:
                            await self._show_opened(desk)
                        case Phase.FINAL:
                            await self._closing(desk)
                        case _:
                            pass
                except XlnError as error:
                    wait_s = RETRY_S
                    if str(error) != said:
                        said = str(error)
                        phase = desk.channel.phase.value
                        _log.info("waiting", channel=format_hex(desk.channel_id), phase=phase, reason=said)
                await asyncio.sleep(wait_s)
            _log.info("channel ended", channel=format_hex(desk.channel_id), phase=desk.channel.phase.value)
        finally:
            self._tasks.pop(desk.channel_id, None)

    async def _opening(self, desk: Desk) -> None:
        """B asks for its lock when turn 0 is co-signed; A at once."""
        lock = desk.signed_locks[desk.me]
        if lock is None:
            since_s = self._waiting_since.setdefault(desk.channel_id, asyncio.get_running_loop().time())
            if asyncio.get_running_loop().time() - since_s > OPEN_WITHIN_S:
                await self._give_up(desk, f"no lock was signed within {OPEN_WITHIN_S:g} s")
            elif desk.me == 0 or desk.channel.cosigned is not None:
                await self._ask_lock(desk)
            return
        if self._chain.head_unix_s > lock.lock.open_by_s:
            await self._give_up(desk, "the channel was not opened before its locks' openBy: they are void")
            return
        confirmed = desk.channel.locks_confirmed[desk.me]
        if not confirmed and await self._chain.collateral.lock_of(desk.channel_id, self._me) is None:
            receipt = await self._register(lock)
            self.gas["register lock"] = receipt
        await asyncio.sleep(RETRY_S)
        if desk.channel.phase is Phase.OPENING:
            self._wire.show_lock(desk)  # again: the peer may not have begun when it was shown first
            await self._chain.find_locks(desk)

    async def _register(self, signed: SignedLock) -> int:
        lock = signed.lock
        receipt = await self._chain.collateral.register_lock(
            self._chain.sender,
            channel_id=lock.channel_id,
            terms_hash=lock.terms_hash,
            owner=lock.owner,
            token=lock.token,
            amount=lock.amount,
            expiry_unix_s=lock.expiry_s,
            open_by_unix_s=lock.open_by_s,
            signature=signed.signature,
        )
        return receipt.gas_used

    async def _ask_lock(self, desk: Desk) -> None:
        rows = await self._engine.store.read(
            "SELECT lock_token, lock_amount FROM channels WHERE channel = ?", (desk.channel_id,)
        )
        token, amount = rows[0]
        assert isinstance(token, bytes)
        fixed, terms = desk.channel.fixed, desk.channel.terms
        params = {
            "fixedPart": fixed_to_json(fixed),
            "terms": terms_to_json(terms),
            "token": format_address(token),
            "amount": str(amount),
        }
        f = Fields(await self._xln().request("xln.lock", params, XLN_TIMEOUT_S), "xln.lock")
        signed = lock_from_json(f.any("lock"))
        wanted = (desk.channel_id, terms.terms_hash, self._me, token, int(str(amount)))
        lock = signed.lock
        if (lock.channel_id, lock.terms_hash, lock.owner, lock.token, lock.amount) != wanted:
            raise PeerFault(Code.LOCK_CHANNEL, "XLN signed another lock than was asked for")
        verify_lock(signed, collateral_domain(fixed.chain_id, terms.collateral), self._config.network.xln)
        await self._engine.execute(LockSigned(signed))
        self._wire.show_lock(desk)

    def _xln(self) -> Connection:
        if self._wire.links is None:
            raise LocalRefusal(Code.PEER_UNAVAILABLE, "the node is starting")
        return self._wire.links.require(self._config.network.xln)

    async def _show_opened(self, desk: Desk) -> None:
        """Turn 1 must be shown to XLN by openBy; trading waits for it. The rest of the journal follows at the end."""
        if not desk.opening_shown:
            try:
                if await self._upload(desk):
                    await self._engine.execute(OpeningShown(desk.channel_id))
                    self._wire.subscribe_books(desk)
                    return
            except RemoteError as error:
                if error.code is not Code.CHANNEL_PHASE:
                    raise
                # XLN releases both locks, and never attests: whatever was traded on would be lost.
                await self._give_up(desk, f"nobody showed turn 1 to XLN in time: {error.message}")
                return
        await asyncio.sleep(RETRY_S)

    async def _upload(self, desk: Desk) -> bool:
        """Hands XLN what it lacks of this broker's journal, in pages. Returns whether the channel is opened to XLN."""
        ch = format_hex(desk.channel_id)
        query: dict[str, Any] = {"ch": ch, "at": None, "records": []}
        f = Fields(await self._xln().request("xln.journal", query, XLN_TIMEOUT_S), "xln.journal")
        at = f.integer("at")
        while True:
            rows = await self._engine.store.read(
                "SELECT record FROM journal WHERE channel = ? AND n >= ? ORDER BY n LIMIT ?",
                (desk.channel_id, at, UPLOAD_RECORDS),
            )
            if not rows:
                return f.boolean("opened")
            records: list[str] = []
            size = 0
            for (record,) in rows:
                escaped = len(dumps(str(record)).encode())
                if records and size + escaped > UPLOAD_BYTES:
                    break
                records.append(str(record))
                size += escaped
            params = {"ch": ch, "at": at, "records": records}
            f = Fields(await self._xln().request("xln.journal", params, XLN_TIMEOUT_S), "xln.journal")
            at = f.integer("at")

    async def _closing(self, desk: Desk) -> None:
        """From the final state to money."""
        if desk.channel_id not in self.attested:
            await self._upload(desk)
            self.attested[desk.channel_id] = await self._attest(desk)
        outcome, attestations = self.attested[desk.channel_id]
        if await self._chain.adjudicator.outcome_of(desk.channel_id) is None:
            # Either may conclude; B leaves it to A for a while, so that gas is not spent twice.
            if desk.me == 1:
                await asyncio.sleep(5 * RETRY_S)
            if await self._chain.adjudicator.outcome_of(desk.channel_id) is None:
                await self._conclude(desk)
        theirs = desk.channel.terms.custodies[1 - desk.me]
        now_s = asyncio.get_running_loop().time()
        overdue = now_s - self._final_since.setdefault(desk.channel_id, now_s) > PAY_AFTER_S
        for attestation in attestations:
            # Each collects what it is owed; a peer that does not must not keep this broker's lock and channel for ever.
            if attestation.custody == theirs or overdue:
                await self._collect(desk, outcome, attestation)
        await asyncio.sleep(RETRY_S)

    async def _attest(self, desk: Desk) -> tuple[bytes, tuple[Attestation, ...]]:
        """Asks XLN; checks that it attests what was co-signed. Raises RemoteError ATTEST_INCOMPLETE while it waits."""
        cosigned = desk.channel.cosigned
        assert cosigned is not None
        raw = await self._xln().request("xln.attest", {"ch": format_hex(desk.channel_id)}, ATTEST_TIMEOUT_S)
        f = Fields(raw, "xln.attest")
        outcome_hash, outcome, rows = f.hash("outcomeHash"), f.hex("outcome"), f.list("attestations", 2)
        if outcome_hash != cosigned.state.outcome_hash or outcome != cosigned.state.variable.outcome:
            raise PeerFault(Code.ATTEST_JOURNAL, "XLN attests another outcome than was co-signed")
        return outcome, tuple(_attestation(row) for row in rows)

    async def _conclude(self, desk: Desk) -> None:
        assert desk.last_cosigned is not None
        proposal, signatures = desk.last_cosigned
        receipt = await self._chain.adjudicator.conclude(
            self._chain.sender,
            fixed=desk.channel.fixed,
            turn=proposal.state.turn,
            app_data=proposal.state.variable.app_data,
            outcome_hash=proposal.state.outcome_hash,
            signatures=signatures,
        )
        self.gas["conclude"] = receipt.gas_used

    async def _collect(self, desk: Desk, outcome: bytes, attestation: Attestation) -> None:
        """A custody pays the other, once; what it was short of is a claim that is asked for again."""
        custody = Custody(self._chain.client, attestation.custody)
        if not await custody.paid_out(desk.channel_id):
            receipt = await custody.payout(
                self._chain.sender,
                channel_id=desk.channel_id,
                outcome=outcome,
                tokens=attestation.tokens,
                amounts=attestation.amounts,
                attestations=(attestation.signature,),
            )
            self.gas["payout"] = receipt.gas_used
            return
        for token in attestation.tokens:
            if await custody.claims(desk.channel_id, token):
                _log.warning(
                    "a custody was short", custody=format_address(custody.address), token=format_address(token)
                )
                await custody.pay_claim(self._chain.sender, desk.channel_id, token)


def _has_ended(desk: Desk) -> bool:
    return desk.channel.phase in (Phase.SETTLED, Phase.FROZEN)


def _ascending(first: Address, second: Address) -> tuple[Address, Address]:
    return (first, second) if first < second else (second, first)


def _market(raw: object) -> Market:
    f = Fields(raw, "market")
    market = Market(
        holder=f.address("holder"),
        chain_id=f.quantity("chainId"),
        base=f.address("base"),
        quote=f.address("quote"),
        tick_quote=f.uint("tick"),
        lot_base=f.uint("lot"),
    )
    f.done()
    return market


def _attestation(raw: object) -> Attestation:
    f = Fields(raw, "attestation")
    tokens, amounts = f.list("tokens", 64), f.list("amounts", 64)
    result = Attestation(
        custody=f.address("custody"),
        tokens=tuple(parse_address(t, "token") for t in tokens),
        amounts=tuple(parse_uint(a, what="amount") for a in amounts),
        signature=parse_hex(f.text("sig", 132), size=65, what="sig"),
    )
    f.done()
    return result


def _differences(expected: Terms, got: Terms) -> str:
    """The names of the fields in which two terms differ."""
    a, b = terms_to_json(expected), terms_to_json(got)
    return ", ".join(name for name in a if a[name] != b[name]) or "their encoding"
