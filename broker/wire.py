"""What brokers say to each other: messages on a connection to actions, effects to messages.

    entry envelopes      one per signed entry; answers carry the ids of its calls
    channel.propose      {ch, turn, final, t, runs, hash, sig}     id "p<turn>": its answer says what was wrong, if any
    channel.countersign  {ch, turn, hash, sig}
    channel.refuse       {ch, turn, hash, code, sig}
    channel.sync         {ch, turn, hash, sent, received, ts, sig, yours}
                         `yours`: the recipient's signature under that state. Answered with the other's; each then sends
                         what the other lacks
    channel.lock         {lock}                                    XLN's signed lock of the sender
    channel.open, channel.close, broker.info                       see `broker.node`
    orderbook.increment  {market, seq, changes}                    a note, to subscribers

On every connection both sync first: nothing is sent before, so that no gap opens. Bad messages are answered with stable
codes and change nothing; what a peer signed and must not have is kept as evidence. DESIGN section 5.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from broker.actions import (
    Action,
    CloseChannel,
    FreezeChannel,
    LockSigned,
    PeerCountersignature,
    PeerEntry,
    PeerProposal,
    PeerRefusal,
    SubscribeBook,
)
from broker.desk import Desk
from broker.effects import (
    Answer,
    BookChanged,
    Effect,
    SendCountersignature,
    SendEntry,
    SendProposal,
    SendRefusal,
)
from broker.engine import Engine
from broker.peerbook import PeerBook
from broker.records import INSERT_EVIDENCE, answer_bytes
from channel.calls import MAX_BATCH
from channel.entry import Entry, entry_from_json, entry_to_json
from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault, XlnError
from channel.journal import runs_from_json, runs_to_json
from channel.locks import lock_from_json, lock_to_json, verify_lock
from channel.signing import SIGNATURE_BYTES, Signer, eth_sign_digest, require_signer
from channel.strictjson import Fields, dumps
from channel.terms import SIDES
from channel.transition import Phase
from channel.typed import REFUSAL, SYNC, collateral_domain
from channel.units import (
    UINT48_MAX,
    ZERO_HASH,
    Address,
    ChannelId,
    Hash,
    MarketId,
    format_address,
    format_hex,
    parse_hash,
)
from node import logs
from node.store import Statement
from rpc import jsonrpc
from rpc.jsonrpc import Batch, Envelope, Message, Notification, RemoteError, Request, Response
from rpc.links import Links
from rpc.transport import Connection

SYNC_TIMEOUT_S = 10.0
RESYNC_S = 0.5
RESEND_BYTES = 1024 * 1024
RESUBSCRIBE_MS = 900  # less than a tick, which asks again
REQUEST_TIMEOUT_S = 20.0

_log = logs.get("broker.wire")
Handler = Callable[[Connection, dict[str, Any]], Coroutine[Any, Any, object]]


class Wire:
    """One per node. `handlers`: further methods that a peer may call, by name."""

    def __init__(self, engine: Engine, signer: Signer, xln: Address, handlers: Mapping[str, Handler]) -> None:
        self._engine = engine
        self._signer = signer
        self._xln = xln
        self._handlers: dict[str, Handler] = {
            "ping": self._ping,
            "channel.propose": self._propose,
            "channel.countersign": self._countersign,
            "channel.refuse": self._refuse,
            "channel.sync": self._sync,
            "channel.lock": self._lock,
            **handlers,
        }
        self.links: Links | None = None
        self.synced: set[ChannelId] = set()
        self.peer_books: dict[tuple[ChannelId, MarketId], PeerBook] = {}
        self._subscribing: dict[tuple[ChannelId, int], MarketId] = {}
        self._resyncing: dict[ChannelId, bool] = {}  # under way; True: and once more after it
        self._asked_ms: dict[tuple[ChannelId, MarketId], int] = {}
        self._accused: set[ChannelId] = set()
        self._syncing: set[tuple[Connection, ChannelId]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- connections

    async def on_up(self, connection: Connection) -> None:
        """A session with a peer begins: sync its channel. Runs beside the reading of messages."""
        for desk in self._desks_of(connection.peer):
            self.synced.discard(desk.channel_id)
            if desk.channel.phase is not Phase.FROZEN:
                self._start(self._sync_out(connection, desk))

    async def on_down(self, peer: Address) -> None:
        for desk in self._desks_of(peer):
            self.synced.discard(desk.channel_id)
            for book in [key for key in self.peer_books if key[0] == desk.channel_id]:
                del self.peer_books[book]
            for call in [key for key in self._subscribing if key[0] == desk.channel_id]:
                del self._subscribing[call]
            for asked in [key for key in self._asked_ms if key[0] == desk.channel_id]:
                del self._asked_ms[asked]

    async def on_message(self, connection: Connection, message: Message) -> None:
        """Never raises for what a peer sent: it is answered with its code."""
        await self._engine.room()
        match message:
            case Envelope():
                await self._answering(connection, None, self._envelope(connection, message))
            case Request():
                await self._request(connection, message)
            case Notification():
                self._notification(connection, message)
            case Response():
                try:
                    self._response(connection, message)
                except XlnError as error:
                    _log.warning("a useless answer", peer=format_address(connection.peer), error=str(error))
            case Batch():
                for item in message.items:
                    await self.on_message(connection, item)

    def _desks_of(self, peer: Address) -> list[Desk]:
        desks = self._engine.core.desks.values()
        return [d for d in desks if d.peer == peer and d.channel.phase is not Phase.SETTLED]

    def desk_of(self, connection: Connection, raw: object) -> Desk:
        """The desk of a channel with this peer. Raises PeerFault CHANNEL_UNKNOWN."""
        desk = self._engine.core.desk(ChannelId(parse_hash(raw, "ch")))
        if desk.peer != connection.peer:
            raise PeerFault(Code.CHANNEL_UNKNOWN, "that channel is with another broker")
        return desk

    def connection(self, peer: Address) -> Connection | None:
        return self.links.connection(peer) if self.links is not None else None

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(self._guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, work: Awaitable[None]) -> None:
        try:
            await work
        except XlnError as error:
            _log.info("not done", error=str(error))

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- in: calls

    async def _request(self, connection: Connection, request: Request) -> None:
        handler = self._handlers.get(request.method)

        async def answer() -> None:
            if handler is None:
                raise PeerFault(Code.METHOD, f"there is no method {request.method[:64]}")
            result = await handler(connection, request.params)
            connection.send_nowait(jsonrpc.response(request.id, result))

        await self._answering(connection, request.id, answer())

    async def _answering(self, connection: Connection, call_id: jsonrpc.Id | None, work: Awaitable[None]) -> None:
        try:
            await work
        except XlnError as error:
            if isinstance(error, InvariantBroken):
                _log.error("broken invariant", error=str(error), peer=format_address(connection.peer))
            if connection.is_open:
                connection.send_nowait(jsonrpc.error_response(call_id, error))

    def _notification(self, connection: Connection, note: Notification) -> None:
        if note.method == "orderbook.increment":
            try:
                self._increment(connection, note.params)
            except XlnError as error:
                connection.send_nowait(jsonrpc.error_response(None, error))
        else:
            fault = PeerFault(Code.METHOD, f"there is no notification {note.method[:64]}")
            connection.send_nowait(jsonrpc.error_response(None, fault))

    async def _ping(self, connection: Connection, params: dict[str, Any]) -> object:
        Fields(params, "ping").done()
        return {"t": self._engine.clock.now_ms(), "you": format_address(connection.peer)}

    # -- in: entries

    async def _envelope(self, connection: Connection, message: Envelope) -> None:
        """The next entry is executed; an old one is answered from the stored answers; anything else is refused."""
        raw = message.fields
        desk = self.desk_of(connection, raw.get("ch"))
        entry = entry_from_json(raw, desk.domain, connection.peer, self._signer.address)
        _require_not_frozen(desk)
        last = desk.channel.view.last_seq[1 - desk.me]
        if entry.seq <= last:
            await self._old_entry(connection, desk, entry)
            return
        if entry.seq > last + 1:
            self._resync(connection, desk)
            raise PeerFault(Code.ENTRY_GAP, f"entry {entry.seq} where {last + 1} is next", next=last + 1, seq=entry.seq)
        try:
            self._engine.execute(PeerEntry(entry))
        except PeerFault as fault:
            fault.data.setdefault("seq", entry.seq)
            if fault.code is Code.ENTRY_INVALID:
                self.freeze(desk, fault.code, fault.message, dumps(entry_to_json(entry)))
            raise

    async def _old_entry(self, connection: Connection, desk: Desk, entry: Entry) -> None:
        await self._engine.durable()  # else an entry whose commit is under way could not be compared
        rows = await self._engine.store.read(
            "SELECT hash FROM journal WHERE channel = ? AND sender = ? AND seq = ?",
            (desk.channel_id, 1 - desk.me, entry.seq),
        )
        if rows and rows[0][0] != entry.entry_hash:
            self._keep_evidence(desk, Code.ENTRY_EQUIVOCATION, dumps(entry_to_json(entry)))
            raise PeerFault(
                Code.ENTRY_EQUIVOCATION, f"entry {entry.seq} was other bytes before; both are kept", seq=entry.seq
            )
        answers = await self._engine.store.read(
            "SELECT answer FROM answers WHERE channel = ? AND seq = ? ORDER BY n", (desk.channel_id, entry.seq)
        )
        for (answer,) in answers:
            connection.send_nowait(bytes(answer) if isinstance(answer, bytes) else str(answer))

    def _keep_evidence(self, desk: Desk, code: Code, text: str) -> None:
        row = (desk.channel_id, self._engine.clock.now_ms(), code.label, text)
        self._engine.execute_all([], [Statement(INSERT_EVIDENCE, row)])

    def freeze(self, desk: Desk, code: Code, message: str, evidence: str) -> None:
        """Stops signing on a channel for good, and says so loudly."""
        if desk.channel.phase is Phase.FROZEN or desk.channel_id in self._accused:
            return
        _log.error("channel frozen", channel=format_hex(desk.channel_id), code=code.label, reason=message)
        row = (desk.channel_id, self._engine.clock.now_ms(), code.label, evidence)
        freeze: Action = FreezeChannel(desk.channel_id, code.name, message)
        self._engine.execute(freeze, [Statement(INSERT_EVIDENCE, row)])
        self._accused.add(desk.channel_id)  # after the final state nothing freezes: one piece of evidence is enough

    # -- in: turns

    async def _propose(self, connection: Connection, params: dict[str, Any]) -> object:
        f = Fields(params, "channel.propose")
        desk = self.desk_of(connection, f.any("ch"))
        turn, is_final = f.integer("turn", 0, UINT48_MAX), f.boolean("final")
        time_ms, runs = f.integer("t"), runs_from_json(f.any("runs"))
        state_hash, signature = f.hash("hash"), f.hex("sig", SIGNATURE_BYTES)
        f.done()
        require_signer(eth_sign_digest(state_hash), signature, desk.peer, f"turn {turn}")
        if is_final and desk.channel.phase is Phase.ACTIVE:
            self._engine.execute(CloseChannel(desk.channel_id))  # it has asked to close, and that call was lost
        try:
            self._engine.execute(PeerProposal(desk.channel_id, turn, is_final, time_ms, runs, state_hash, signature))
        except InvariantBroken as broken:
            if broken.code is Code.FORK:
                self.freeze(desk, broken.code, broken.message, dumps(params))
            raise
        return True

    async def _countersign(self, connection: Connection, params: dict[str, Any]) -> object:
        f = Fields(params, "channel.countersign")
        desk = self.desk_of(connection, f.any("ch"))
        turn, state_hash, signature = f.integer("turn", 0, UINT48_MAX), f.hash("hash"), f.hex("sig", SIGNATURE_BYTES)
        f.done()
        require_signer(eth_sign_digest(state_hash), signature, desk.peer, f"turn {turn}")
        self._engine.execute(PeerCountersignature(desk.channel_id, turn, state_hash, signature))
        return True

    async def _refuse(self, connection: Connection, params: dict[str, Any]) -> object:
        f = Fields(params, "channel.refuse")
        desk = self.desk_of(connection, f.any("ch"))
        turn, state_hash, code = f.integer("turn", 0, UINT48_MAX), f.hash("hash"), f.text("code", 64)
        signature = f.hex("sig", SIGNATURE_BYTES)
        f.done()
        digest = desk.domain.digest(REFUSAL.hash(desk.channel_id, turn, state_hash, code))
        require_signer(digest, signature, desk.peer, f"the refusal of turn {turn}")
        if turn <= desk.channel.burnt_turn:
            return True  # known: nothing to keep
        _log.warning("the peer refused a turn", channel=format_hex(desk.channel_id), turn=turn, code=code)
        row = (desk.channel_id, self._engine.clock.now_ms(), code, dumps(params))
        self._engine.execute(PeerRefusal(desk.channel_id, turn, state_hash), [Statement(INSERT_EVIDENCE, row)])
        return True

    async def _lock(self, connection: Connection, params: dict[str, Any]) -> object:
        f = Fields(params, "channel.lock")
        signed = lock_from_json(f.any("lock"))
        f.done()
        try:
            desk = self.desk_of(connection, format_hex(signed.lock.channel_id))
        except PeerFault as fault:
            raise PeerFault(Code.LOCK_CHANNEL, f"the lock is for another channel: {fault.message}") from fault
        if signed.lock.owner != desk.peer:
            raise PeerFault(Code.CHANNEL_LOCK, "a broker shows its own lock")
        fixed, terms = desk.channel.fixed, desk.channel.terms
        verify_lock(signed, collateral_domain(fixed.chain_id, terms.collateral), self._xln)
        if desk.signed_locks[1 - desk.me] != signed:  # it is shown again and again while the channel opens
            self._engine.execute(LockSigned(signed))
        return True

    # -- sync

    def _sync_message(self, desk: Desk) -> dict[str, Any]:
        channel = desk.channel
        turn, state_hash = (
            (channel.cosigned.state.turn, channel.cosigned.state.state_hash) if channel.cosigned else (0, ZERO_HASH)
        )
        sent, received = channel.view.last_seq[desk.me], channel.view.last_seq[1 - desk.me]
        now_ms = self._engine.clock.now_ms()
        digest = desk.domain.digest(SYNC.hash(desk.channel_id, turn, state_hash, sent, received, now_ms))
        return {
            "ch": format_hex(desk.channel_id),
            "turn": turn,
            "hash": format_hex(state_hash),
            "sent": sent,
            "received": received,
            "ts": now_ms,
            "sig": format_hex(self._signer.sign(digest)),
            "yours": None if desk.last_cosigned is None else format_hex(desk.last_cosigned[1][1 - desk.me]),
        }

    async def _sync_out(self, connection: Connection, desk: Desk) -> None:
        """Tells the peer where this node stands, and sends what the answer shows that it lacks. One at a time."""
        key = (connection, desk.channel_id)
        if key in self._syncing:
            return
        self._syncing.add(key)
        try:
            raw = await connection.request("channel.sync", self._sync_message(desk), SYNC_TIMEOUT_S)
        except RemoteError as error:
            self._maybe_over(desk, error)
            raise
        finally:
            self._syncing.discard(key)
        self._bring_up_to_date(connection, desk, raw)

    def _resync(self, connection: Connection, desk: Desk) -> None:
        """Something is missing: syncs again, at most once in RESYNC_S, so that no peer keeps two nodes spinning."""
        under_way = desk.channel_id in self._resyncing
        self._resyncing[desk.channel_id] = under_way
        if not under_way:
            self._start(self._sync_again(connection, desk))

    async def _sync_again(self, connection: Connection, desk: Desk) -> None:
        try:
            while connection.is_open:
                self._resyncing[desk.channel_id] = False
                await self._sync_out(connection, desk)
                await asyncio.sleep(RESYNC_S)
                if not self._resyncing[desk.channel_id]:
                    return
        finally:
            del self._resyncing[desk.channel_id]

    async def _sync(self, connection: Connection, params: dict[str, Any]) -> object:
        desk = self.desk_of(connection, params.get("ch"))
        _require_not_frozen(desk)
        answer = self._sync_message(desk)
        self._bring_up_to_date(connection, desk, params)
        return answer

    def _bring_up_to_date(self, connection: Connection, desk: Desk, raw: object) -> None:
        f = Fields(raw, "channel.sync")
        turn, state_hash = f.integer("turn", 0, UINT48_MAX), f.hash("hash")
        sent, received, ts_ms = f.integer("sent"), f.integer("received"), f.integer("ts")
        signature, channel_id = f.hex("sig", SIGNATURE_BYTES), ChannelId(f.hash("ch"))
        yours = None if f.any("yours") is None else f.hex("yours", SIGNATURE_BYTES)
        f.done()
        digest = desk.domain.digest(SYNC.hash(channel_id, turn, state_hash, sent, received, ts_ms))
        require_signer(digest, signature, desk.peer, "the sync")
        if channel_id != desk.channel_id:
            raise PeerFault(Code.CHANNEL_UNKNOWN, "a sync of another channel")
        if desk.channel.phase is Phase.FROZEN:
            return
        self._require_not_lost(desk, turn, state_hash, received, yours, dumps(raw))
        missing = [p.entry for p in desk.channel.pending if p.sender == desk.me and p.entry.seq > received]
        again = desk.resend(turn if state_hash != ZERO_HASH else -1)

        def bring() -> None:
            """What the peer lacks may not be durable yet: it is sent in the order of releases, never before."""
            if self.connection(desk.peer) is not connection or not connection.is_open:
                return  # the next connection syncs anew
            self.synced.add(desk.channel_id)
            self._send_missing(connection, desk, missing, again)
            self.subscribe_books(desk)

        self._engine.after(bring)

    def _require_not_lost(
        self, desk: Desk, turn: int, state_hash: Hash, received: int, yours: bytes | None, evidence: str
    ) -> None:
        """Raises when the peer shows a state that this node signed and does not know: the database is an old copy.

        Only the signature proves it. What a peer merely claims to have received is its own fault, and freezes nothing.
        """
        channel = desk.channel
        own_turn = channel.cosigned.state.turn if channel.cosigned else -1
        mine = channel.mine
        ahead = state_hash != ZERO_HASH and turn > own_turn and not (mine and mine.state.state_hash == state_hash)
        if ahead:
            require_signer(eth_sign_digest(state_hash), yours or b"", self._signer.address, f"turn {turn}")
            message = (
                "the peer has a state that this node signed and does not know: the database is an old copy;"
                " nothing more is signed on this channel"
            )
            self.freeze(desk, Code.CHANNEL_LOST_STATE, message, evidence)
            raise LocalRefusal(Code.CHANNEL_LOST_STATE, message)
        sent = channel.view.last_seq[desk.me]
        if received > sent:
            raise PeerFault(
                Code.ENTRY_GAP, f"{received} entries cannot have come from here: {sent} were sent", seq=sent
            )

    def _send_missing(
        self, connection: Connection, desk: Desk, entries: Sequence[Entry], again: Sequence[Effect]
    ) -> None:
        if desk.channel.phase is Phase.OPENING:
            self._send_lock(connection, desk)
        size = 0
        for entry in entries:
            text = dumps(entry_to_json(entry))
            size += len(text)
            if size > RESEND_BYTES and entry is not entries[0]:
                break  # more would not fit the outbox; the gap that is left asks for the rest
            connection.send_nowait(text)
        for effect in again:
            self.release(effect)

    def resend(self, desk: Desk) -> None:
        """Sends what is outstanding again, once it is durable."""
        again = desk.resend()

        def send() -> None:
            for effect in again:
                self.release(effect)

        self._engine.after(send)

    def _send_lock(self, connection: Connection, desk: Desk) -> None:
        lock = desk.signed_locks[desk.me]
        if lock is not None:
            connection.send_nowait(jsonrpc.request("lock", "channel.lock", {"lock": lock_to_json(lock)}))

    def show_lock(self, desk: Desk) -> None:
        """Shows the peer this node's lock, if it is connected; otherwise the next sync does."""
        connection = self.connection(desk.peer)
        if connection is not None:
            self._send_lock(connection, desk)

    # -- peers' books

    def subscribe_books(self, desk: Desk) -> None:
        """Asks for each of the peer's markets that is not here, seldom enough that a peer cannot fill our journal."""
        if not desk.is_trading or desk.channel_id not in self.synced:
            return
        now_ms = self._engine.clock.now_ms()
        for market in desk.channel.terms.markets:
            key = (desk.channel_id, market.market_id)
            if (
                market.holder == desk.peer
                and key not in self.peer_books
                and market.market_id not in self._waiting(desk)
                and abs(now_ms - self._asked_ms.get(key, 0)) >= RESUBSCRIBE_MS
            ):
                self._asked_ms[key] = now_ms
                try:
                    self._subscribe(desk, market.market_id)
                except XlnError as error:
                    _log.warning("not subscribed", channel=format_hex(desk.channel_id), error=str(error))

    def _waiting(self, desk: Desk) -> set[MarketId]:
        return {market for (channel_id, _), market in self._subscribing.items() if channel_id == desk.channel_id}

    def _subscribe(self, desk: Desk, market_id: MarketId) -> None:
        ref = (desk.channel.view.last_seq[desk.me] + 1) * MAX_BATCH
        self._engine.execute(SubscribeBook(desk.channel_id, Hash(market_id), True))
        self._subscribing[(desk.channel_id, ref)] = market_id

    def _response(self, connection: Connection, response: Response) -> None:
        """The answer to a call of an entry, or to a proposal."""
        for desk in self._desks_of(connection.peer):
            if isinstance(response.id, int):
                market_id = self._subscribing.pop((desk.channel_id, response.id), None)
                if market_id is not None and response.error is None:
                    self.peer_books[(desk.channel_id, market_id)] = PeerBook.from_snapshot(response.result)
        if response.error is not None:
            error = jsonrpc.remote_error(response.error)
            _log.info("the peer answered", id=str(response.id), error=str(error))
            for desk in self._desks_of(connection.peer):
                if error.code in (Code.CHANNEL_ENTRIES, Code.ENTRY_GAP):
                    self._resync(connection, desk)
                self._maybe_over(desk, error)

    def _maybe_over(self, desk: Desk, error: XlnError) -> None:
        """The peer has stopped the channel: nothing more is sent, and no order is routed there."""
        if error.code in (Code.CHANNEL_FROZEN, Code.CHANNEL_LOST_STATE):
            self.synced.discard(desk.channel_id)

    def _increment(self, connection: Connection, params: dict[str, Any]) -> None:
        f = Fields(params, "orderbook.increment")
        market_id, seq, changes = MarketId(f.hash("market")), f.integer("seq"), f.list("changes", 100_000)
        f.done()
        for desk in self._desks_of(connection.peer):
            book = self.peer_books.get((desk.channel_id, market_id))
            if book is None:
                continue
            try:
                book.apply_increment(seq, changes)
            except PeerFault as fault:
                _log.info("subscribing to the book again", reason=fault.message)
                del self.peer_books[(desk.channel_id, market_id)]
                self.subscribe_books(desk)

    # -- out

    def release(self, effect: Effect) -> None:
        """Sends what an effect says, if the peer is connected and synced; otherwise the next sync does."""
        match effect:
            case SendEntry():
                self._send(effect.channel_id, dumps(entry_to_json(effect.entry)))
            case Answer():
                if effect.call_id is not None:
                    self._send(effect.channel_id, answer_bytes(effect))
            case SendProposal():
                p = effect.proposal
                params: dict[str, Any] = {
                    "ch": format_hex(effect.channel_id),
                    "turn": p.state.turn,
                    "final": p.state.is_final,
                    "t": p.time_ms,
                    "runs": runs_to_json(p.runs),
                    "hash": format_hex(p.state.state_hash),
                    "sig": format_hex(effect.signature),
                }
                self._send(effect.channel_id, jsonrpc.request(f"p{p.state.turn}", "channel.propose", params))
            case SendCountersignature():
                params = {
                    "ch": format_hex(effect.channel_id),
                    "turn": effect.turn,
                    "hash": format_hex(effect.state_hash),
                    "sig": format_hex(effect.signature),
                }
                self._send(effect.channel_id, jsonrpc.request(f"c{effect.turn}", "channel.countersign", params))
            case SendRefusal():
                _log.warning(
                    "refused a turn",
                    channel=format_hex(effect.channel_id),
                    turn=effect.turn,
                    code=effect.code.label,
                    reason=effect.message,
                )
                params = {
                    "ch": format_hex(effect.channel_id),
                    "turn": effect.turn,
                    "hash": format_hex(effect.state_hash),
                    "code": effect.code.label,
                    "sig": format_hex(effect.signature),
                }
                self._send(effect.channel_id, jsonrpc.request(f"x{effect.turn}", "channel.refuse", params))
            case BookChanged():
                self._publish(effect)
            case _:
                pass

    def _send(self, channel_id: ChannelId, payload: str | bytes) -> None:
        if channel_id not in self.synced:
            return
        connection = self.connection(self._engine.core.desk(channel_id).peer)
        if connection is None or not connection.is_open:
            return
        try:
            connection.send_nowait(payload)
        except LocalRefusal as refusal:
            _log.warning("not sent", peer=format_address(connection.peer), error=str(refusal))

    def _publish(self, effect: BookChanged) -> None:
        subscribers = self._engine.core.exchange.subscribers[effect.market_id]
        if not subscribers:
            return
        changes = [[SIDES[side], price, lots] for side, price, lots in effect.changes]
        params = {"market": format_hex(effect.market_id), "seq": effect.seq, "changes": changes}
        payload = jsonrpc.notification("orderbook.increment", params)
        for channel_id in subscribers:
            self._send(channel_id, payload)


def _require_not_frozen(desk: Desk) -> None:
    """Raises PeerFault CHANNEL_FROZEN."""
    if desk.channel.phase is Phase.FROZEN:
        message = desk.channel.frozen_by[1] if desk.channel.frozen_by else ""
        raise PeerFault(Code.CHANNEL_FROZEN, f"the channel is frozen here: {message}")
