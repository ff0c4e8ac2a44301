"""What the collateral service does: locks, journals, attestations, releases, and the chain that it follows.

    xln.lock     {"fixedPart", "terms", "token", "amount"}        -> {"lock"}
    xln.journal  {"ch", "at": n | null, "records": [text, …]}     -> {"at": next index, "opened": turn 1 is shown}
    xln.attest   {"ch"}                                           -> {"outcomeHash", "outcome", "attestations"}
    xln.release  {"ch"}                                           -> {"status": "locked|waiting|released", "tx"?}
    ping         {}                                               -> {}

Invariants:
- one change at a time (`_changing`): decide on the values in memory, commit, replace the values, and only then let a
  signature or a transaction out;
- a lock, an attestation and a release are signed once; the same request gets the stored one;
- XLN signs a release in two cases only: every row of the outcome that it attested is paid and confirmed on chain (for
  an outcome without rows: the channel is concluded with it), or the channel is void (`xln.locks`, invariant 4);
- nothing is signed while the chain's head is older than configured.

DESIGN sections 4 (life), 5 and 7.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain, islice

from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault, XlnError
from channel.journal import fixed_from_json
from channel.locks import Lock, SignedLock, lock_to_json, release_digest
from channel.signing import Signer
from channel.strictjson import Fields
from channel.terms import terms_from_json
from channel.typed import collateral_domain
from channel.units import Address, ChannelId, format_address, format_hex, parse_uint
from contracts import events
from contracts.abi import interface
from contracts.client import Sender
from contracts.watcher import Poll, Watcher
from node import logs
from node.clock import Clock
from node.store import Statement, Store
from rpc.jsonrpc import Params
from xln import book as books
from xln import locks
from xln.adjudication import MAX_RECORD_BYTES, Verdict, adjudicate, look, shows_opening
from xln.book import Attestation, Book, ChannelFile, Head, Settlement
from xln.config import Settings
from xln.locks import Ledger, LockEntry, LockRequest, Stage

MAX_RECORDS = 512  # in one upload
OPENING_RECORDS = 64  # the opening is among the first so many records, or it is not shown
RESEND_S = 60.0  # a release that is not confirmed after this is sent again
STATUS_CHANNELS_MAX = 1_000

_log = logs.get("xln.service")
Handler = Callable[[Address, Params], Awaitable[object]]


class Service:
    """The state of the service and its methods. One event loop; used with a watcher that somebody polls."""

    def __init__(
        self,
        *,
        settings: Settings,
        signer: Signer,
        store: Store,
        book: Book,
        watcher: Watcher,
        sender: Sender,
        clock: Clock,
    ) -> None:
        self.book = book
        self.release_wanted = asyncio.Event()
        self.methods: dict[str, Handler] = {
            "xln.lock": self.lock,
            "xln.journal": self.journal,
            "xln.attest": self.attest,
            "xln.release": self.release,
            "ping": self.ping,
        }
        self._settings = settings
        self._signer = signer
        self._store = store
        self._watcher = watcher
        self._sender = sender
        self._clock = clock
        self._domain = collateral_domain(settings.chain_id, settings.collateral)
        self._changing = asyncio.Lock()
        self._replaying = asyncio.Lock()  # one replay at a time: each takes a core and the memory of two journals
        self._attesting: dict[ChannelId, asyncio.Task[Attestation]] = {}
        self._refused: dict[ChannelId, tuple[tuple[Head, ...], PeerFault]] = {}
        self._sent: dict[locks.LockKey, float] = {}
        self._stopping = False

    def stop(self) -> None:
        """Ends what runs in threads, soon."""
        self._stopping = True
        for task in self._attesting.values():
            task.cancel()

    def is_known(self, peer: Address) -> bool:
        return peer in self.book.ledger.brokers

    # ---- methods

    async def ping(self, _peer: Address, params: Params) -> object:
        Fields(params, "params").done()
        return {}

    async def lock(self, peer: Address, params: Params) -> object:
        """Signs a lock for the peer, or returns the one signed before. Raises what `admit` raises, and CHAIN_STALE."""
        fields = Fields(params, "params")
        request = LockRequest(
            fixed=fixed_from_json(fields.any("fixedPart")),
            terms=terms_from_json(fields.any("terms")),
            owner=peer,
            token=fields.address("token"),
            amount=parse_uint(fields.any("amount"), what="amount"),
        )
        fields.done()
        self._watcher.require_fresh(self._clock.now_ms() / 1000, self._settings.stale_s)
        head = self._watcher.head
        assert head is not None
        settings = self._settings
        async with self._changing:
            old = self.book.ledger
            now_s = max(head.timestamp, old.block_time_s)
            answer = locks.admit(old, request, now_s=now_s, expiry_s=settings.expiry_s, open_by_s=settings.open_by_s)
            if isinstance(answer, LockEntry):
                signed, new = self._signed(answer), locks.channel_named(old, request.fixed)
            else:
                signed = SignedLock(lock=answer, signature=self._signer.sign(answer.digest(self._domain)))
                new = locks.lock_signed(old, signed, request.fixed)
            await self._commit(new, [books.header_statement(request.fixed, request.terms)])
            channel_id = request.fixed.channel_id
            if channel_id not in self.book.channels:
                self.book.channels[channel_id] = ChannelFile(fixed=request.fixed, terms=request.terms)
        if isinstance(answer, Lock):
            _log.info("lock signed", channel=channel_id, peer=format_address(peer), amount=request.amount)
        return {"lock": lock_to_json(signed)}

    def _signed(self, entry: LockEntry) -> SignedLock:
        # A lock that only the chain remembered: the same bytes again, since signatures are deterministic.
        signature = entry.signature or self._signer.sign(entry.lock.digest(self._domain))
        return SignedLock(lock=entry.lock, signature=signature)

    async def journal(self, peer: Address, params: Params) -> object:
        """Stores the next records of the peer's journal.

        Raises PeerFault CHANNEL_UNKNOWN, CHANNEL_PHASE (the channel is void), ATTEST_JOURNAL (a gap, other bytes at a
        used index, a record that does not hold, too many bytes; `next` in its data is the index to go on with).
        """
        fields = Fields(params, "params")
        channel_id = ChannelId(fields.hash("ch"))
        at = None if not fields.has("at") or fields.any("at") is None else fields.integer("at")
        texts = fields.list("records", MAX_RECORDS) if fields.has("records") else []
        fields.done()
        if any(type(text) is not str or len(text) > MAX_RECORD_BYTES for text in texts):
            raise PeerFault(Code.PARAMS, f"a record is text of at most {MAX_RECORD_BYTES} characters")
        async with self._changing:
            file = self._file(channel_id, peer)
            head = file.heads.get(peer, Head())
            if at is None or not texts:
                return self._progress(channel_id, head)
            new = await self._new_records(channel_id, peer, head, at, texts)
            if not new:
                return self._progress(channel_id, head)
            if self.book.ledger.is_void(channel_id):
                raise PeerFault(Code.CHANNEL_PHASE, "the channel was not shown as opened by openBy and is void")
            looks = [look(text, head.next + i) for i, text in enumerate(new)]
            head = Head(
                next=head.next + len(new),
                size_bytes=head.size_bytes + sum(len(text.encode()) for text in new),
                final=head.final or any(item.is_final for item in looks),
            )
            if head.size_bytes > self._settings.journal_bytes_max:
                limit = self._settings.journal_bytes_max
                raise PeerFault(Code.ATTEST_JOURNAL, f"a journal may have {limit} bytes", next=head.next - len(new))
            first = head.next - len(new)
            ledger = await self._maybe_opened(channel_id, peer, file, first, new)
            await self._commit(ledger, books.record_statements(channel_id, peer, first, new, head))
            file.heads[peer] = head
        return self._progress(channel_id, head)

    def _progress(self, channel_id: ChannelId, head: Head) -> dict[str, object]:
        """The next index of a journal, and whether turn 1 with both locks has been shown by either broker."""
        return {"at": head.next, "opened": self.book.ledger.channels[channel_id].opened}

    async def _new_records(
        self, channel_id: ChannelId, peer: Address, head: Head, at: int, texts: list[str]
    ) -> list[str]:
        """Those of `texts`, which begin at index `at`, that are not stored yet. Raises PeerFault ATTEST_JOURNAL."""
        if at > head.next:
            raise PeerFault(Code.ATTEST_JOURNAL, f"record {at} where {head.next} is next", next=head.next)
        end = min(head.next, at + len(texts))
        stored = await asyncio.to_thread(lambda: list(books.read_records(self._store, channel_id, peer, at, end)))
        for index, (old, new) in enumerate(zip(stored, texts, strict=False), at):
            if old != new:
                raise PeerFault(
                    Code.ATTEST_JOURNAL, f"record {index} is stored with other bytes", at=index, next=head.next
                )
        return texts[end - at :]

    async def _maybe_opened(
        self, channel_id: ChannelId, peer: Address, file: ChannelFile, first: int, new: list[str]
    ) -> Ledger:
        """The ledger after these records; `opened` once they show the co-signed state with both locks."""
        ledger = self.book.ledger
        if ledger.channels[channel_id].opened or first >= OPENING_RECORDS:
            return ledger

        def shown() -> bool:
            stored = books.read_records(self._store, channel_id, peer, 0, first)
            texts = islice(chain(stored, new), OPENING_RECORDS)
            return shows_opening(file.fixed, file.terms, self._signer.address, texts)

        if not await asyncio.to_thread(shown):
            return ledger
        _log.info("channel opened", channel=channel_id, peer=format_address(peer))
        return locks.channel_opened(ledger, channel_id)

    async def attest(self, peer: Address, params: Params) -> object:
        """The attestation of the channel's outcome, once both journals lead to its final state.

        Raises PeerFault CHANNEL_UNKNOWN, CHANNEL_PHASE (void), ATTEST_INCOMPLETE (`journals` in its data says how far
        they are), ATTEST_JOURNAL, ATTEST_ORDER.
        """
        channel_id = self._channel_param(params)
        file = self._file(channel_id, peer)
        if file.attestation is not None:
            return file.attestation.to_json()
        if self.book.ledger.is_void(channel_id):
            raise PeerFault(Code.CHANNEL_PHASE, "the channel was not shown as opened by openBy and is void")
        heads = tuple(file.heads.get(participant, Head()) for participant in file.fixed.participants)
        if not all(head.final for head in heads) or not self.book.ledger.channels[channel_id].opened:
            journals = {
                format_address(participant): f"{head.next} records, {'with' if head.final else 'without'} a final state"
                for participant, head in zip(file.fixed.participants, heads, strict=True)
            }
            text = "; ".join(f"{name}: {journal}" for name, journal in journals.items())
            raise PeerFault(
                Code.ATTEST_INCOMPLETE, f"both journals must reach the final state: {text}", journals=journals
            )
        refused = self._refused.get(channel_id)
        if refused is not None and refused[0] == heads:
            raise refused[1]
        task = self._attesting.get(channel_id)
        if task is None:
            task = asyncio.create_task(self._attest(channel_id, file, heads), name="attest")
            self._attesting[channel_id] = task
            task.add_done_callback(lambda done: self._attested(channel_id, done))
        return (await asyncio.shield(task)).to_json()

    def _attested(self, channel_id: ChannelId, task: "asyncio.Task[Attestation]") -> None:
        self._attesting.pop(channel_id, None)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone: the failure has been seen

    async def _attest(self, channel_id: ChannelId, file: ChannelFile, heads: tuple[Head, ...]) -> Attestation:
        async with self._replaying:
            try:
                verdict = await asyncio.to_thread(self._adjudicate, channel_id, file, heads)
            except PeerFault as fault:
                self._refused[channel_id] = (heads, fault)
                _log.warning("attestation refused", channel=channel_id, code=fault.code.label, why=fault.message)
                raise
        chain_id = self._settings.chain_id
        attestation = Attestation(
            turn=verdict.turn,
            state_hash=verdict.state_hash,
            outcome_hash=verdict.outcome_hash,
            outcome=verdict.outcome,
            signed=tuple(
                (rows, self._signer.sign(rows.digest(chain_id, channel_id, verdict.outcome_hash)))
                for rows in verdict.rows
            ),
        )
        async with self._changing:
            await self._store.commit([books.attestation_statement(channel_id, attestation)])
            file.attestation = attestation
        self._refused.pop(channel_id, None)
        self.release_wanted.set()
        _log.info(
            "attested", channel=channel_id, turn=verdict.turn, states=verdict.states, entries=verdict.entries,
            fills=verdict.fills,
        )  # fmt: skip
        return attestation

    def _adjudicate(self, channel_id: ChannelId, file: ChannelFile, heads: tuple[Head, ...]) -> Verdict:
        """In a thread."""

        def texts(participant: Address, head: Head) -> Iterator[str]:
            for text in books.read_records(self._store, channel_id, participant, 0, head.next):
                if self._stopping:
                    raise LocalRefusal(Code.BUSY, "shutting down")
                yield text

        first, second = (texts(p, h) for p, h in zip(file.fixed.participants, heads, strict=True))
        return adjudicate(file.fixed, file.terms, self._signer.address, (first, second))

    async def release(self, peer: Address, params: Params) -> object:
        """How the release of the channel's locks stands. XLN releases by itself: asking only tells."""
        channel_id = self._channel_param(params)
        self._file(channel_id, peer)
        entries = self.book.ledger.locks_of(channel_id)
        own = self.book.ledger.locks.get((channel_id, peer))
        if all(entry.stage in (Stage.RELEASED, Stage.LAPSED) for entry in entries):
            answer: dict[str, object] = {"status": "released"}
            if own is not None and own.released_tx is not None:
                answer["tx"] = format_hex(own.released_tx)
            return answer
        due = self._release_reason(channel_id) is not None
        return {"status": "waiting" if due else "locked"}

    def _channel_param(self, params: Params) -> ChannelId:
        fields = Fields(params, "params")
        channel_id = ChannelId(fields.hash("ch"))
        fields.done()
        return channel_id

    def _file(self, channel_id: ChannelId, peer: Address) -> ChannelFile:
        """Raises PeerFault CHANNEL_UNKNOWN, also to who is not a participant."""
        file = self.book.channels.get(channel_id)
        if file is None or peer not in file.fixed.participants:
            raise PeerFault(Code.CHANNEL_UNKNOWN, "XLN has signed no lock of yours or your peer's for this channel")
        return file

    async def _commit(self, ledger: Ledger, statements: list[Statement]) -> None:
        """Under `_changing`: durable first, then in memory."""
        await self._store.commit([*books.ledger_statements(self.book.ledger, ledger), *statements])
        self.book.ledger = ledger

    # ---- the chain

    async def apply(self, poll: Poll, block_time_s: int) -> None:
        """Takes what a poll confirmed. `block_time_s`: of the last confirmed block. Raises InvariantBroken."""
        for event in poll.seen:
            # Watched from its first block on: what a custody says may be confirmed together with its creation.
            if isinstance(event, events.CustodyCreated):
                self._watcher.add_address(event.custody)
        async with self._changing:
            ledger, statements = self.book.ledger, []
            settlements: dict[ChannelId, Settlement] = {}
            urls: dict[Address, str] = {}
            for event in poll.confirmed:
                if isinstance(event, events.BrokerRegistered):
                    urls[event.broker] = event.url
                    statements.append(books.broker_statement(event.broker, event.custody, event.url))
                ledger = self._on_collateral(ledger, event)
                self._on_settlement(settlements, event)
            ledger = locks.advance(ledger, block_time_s)
            for channel_id, settlement in settlements.items():
                statements += books.settlement_statements(channel_id, settlement)
            if ledger is self.book.ledger and not statements and poll.cursor == self.book.cursor:
                return
            statements.append(books.cursor_statement(poll.cursor, ledger.block_time_s))
            await self._commit(ledger, statements)
            self.book.cursor = poll.cursor
            self.book.urls |= urls
            self.book.settlements |= settlements
        for custody in set(ledger.brokers.values()):
            self._watcher.add_address(custody)
        if self._due():
            self.release_wanted.set()

    def _on_collateral(self, ledger: Ledger, event: events.ChainEvent) -> Ledger:
        if event.ref.contract != self._settings.collateral:
            return ledger
        match event:
            case events.BrokerRegistered():
                _log.info("broker registered", broker=format_address(event.broker), url=event.url)
                return locks.broker_registered(ledger, event.broker, event.custody)
            case events.CollateralDeposited():
                return locks.deposited(ledger, event.broker, event.token, event.amount)
            case events.CollateralWithdrawalRequested():
                return locks.withdrawal_requested(ledger, event.broker, event.token, event.amount)
            case events.CollateralWithdrawalCancelled():
                return locks.withdrawal_cancelled(ledger, event.broker, event.token, event.amount)
            case events.CollateralWithdrawn():
                return locks.withdrawn(ledger, event.broker, event.token, event.amount)
            case events.LockRegistered():
                lock = Lock(
                    channel_id=event.channel_id,
                    terms_hash=event.terms_hash,
                    owner=event.owner,
                    token=event.token,
                    amount=event.amount,
                    expiry_s=event.expiry_unix_s,
                    open_by_s=event.open_by_unix_s,
                )
                if (lock.channel_id, lock.owner) not in ledger.locks:
                    _log.error("the chain has a lock that this database does not know", channel=lock.channel_id)
                return locks.lock_registered(ledger, lock)
            case events.LockReleased():
                _log.info("lock released", channel=event.channel_id, peer=format_address(event.owner))
                return locks.lock_released(ledger, event.channel_id, event.owner, event.ref.tx_hash)
            case _:
                return ledger

    def _on_settlement(self, changed: dict[ChannelId, Settlement], event: events.ChainEvent) -> None:
        if not isinstance(event, (events.Concluded, events.PayoutExecuted, events.PaidOut)):
            return
        old = changed.get(event.channel_id) or self.book.settlements.get(event.channel_id) or Settlement()
        settlement = Settlement(concluded=old.concluded, executed=dict(old.executed), paid=dict(old.paid))
        contract = event.ref.contract
        match event:
            case events.Concluded() if contract == self._settings.adjudicator:
                settlement.concluded = event.outcome_hash
            case events.PayoutExecuted():
                settlement.executed[contract] = event.outcome_hash
            case events.PaidOut():
                key = (contract, event.token)
                settlement.paid[key] = settlement.paid.get(key, 0) + event.amount
        changed[event.channel_id] = settlement

    # ---- releases

    def _release_reason(self, channel_id: ChannelId) -> str | None:
        """Why the locks of a channel are to be released now, or None."""
        if self.book.ledger.is_void(channel_id):
            return "void"
        file, settlement = self.book.channels.get(channel_id), self.book.settlements.get(channel_id)
        if file is None or file.attestation is None or settlement is None:
            return None
        return "settled" if settlement.covers(file.attestation) else None

    def _due(self) -> list[tuple[locks.LockKey, str]]:
        """Registered locks to release now."""
        return [
            (key, reason)
            for key, entry in self.book.ledger.locks.items()
            if entry.stage is Stage.REGISTERED and (reason := self._release_reason(key[0])) is not None
        ]

    async def send_releases(self) -> None:
        """Signs and sends what is due. What fails is logged and tried again by the next call."""
        now_s = asyncio.get_running_loop().time()
        for key, reason in self._due():
            if now_s - self._sent.get(key, -RESEND_S) < RESEND_S:
                continue
            channel_id, owner = key
            signature = self.book.releases.get(key)
            if signature is None:
                signature = self._signer.sign(release_digest(channel_id, owner, self._domain))
                async with self._changing:
                    await self._store.commit([books.release_statement(channel_id, owner, signature, reason)])
                    self.book.releases[key] = signature
            call = interface("XlnCollateral").call(self._settings.collateral, "release", channel_id, owner, signature)
            line = _log.bind(channel=channel_id, peer=format_address(owner), reason=reason)
            try:
                tx_hash = await self._sender.submit(call)
                line.info("release sent", tx=tx_hash)
                self._sent[key] = now_s
            except LocalRefusal as error:
                if error.code is Code.CHAIN_REVERTED and error.data.get("error") == "CollateralNotLocked":
                    self._sent[key] = now_s  # released already; the confirmation is on its way
                else:
                    line.warning("release not sent", code=error.code.label, why=error.message)
        for key in [key for key in self._sent if self.book.ledger.locks[key].stage is Stage.RELEASED]:
            del self._sent[key]

    # ---- for the operator

    def status(self) -> dict[str, object]:
        """What /admin/status answers. Amounts are base units in text."""
        ledger, head = self.book.ledger, self._watcher.head
        cursor = self._watcher.cursor
        newest = list(self.book.channels.items())[-STATUS_CHANNELS_MAX:]
        return {
            "address": format_address(self._signer.address),
            "chain": {
                "id": ledger.chain_id,
                "head": head.number if head else None,
                "confirmed": cursor.number,
                "blockTime": ledger.block_time_s,
            },
            "brokers": [self._broker_status(ledger, broker) for broker in sorted(ledger.brokers)],
            "channels": [self._channel_status(ledger, channel_id, file) for channel_id, file in newest],
        }

    def _broker_status(self, ledger: Ledger, broker: Address) -> dict[str, object]:
        return {
            "address": format_address(broker),
            "custody": format_address(ledger.brokers[broker]),
            "url": self.book.urls.get(broker, ""),
            "tokens": [
                {
                    "token": format_address(token),
                    "deposited": str(balance.deposited),
                    "locked": str(balance.registered),
                    "signed": str(balance.signed),
                    "withdrawing": str(balance.withdrawing),
                    "free": str(balance.free),
                }
                for (owner, token), balance in sorted(ledger.balances.items(), key=lambda item: item[0])
                if owner == broker
            ],
        }

    def _channel_status(self, ledger: Ledger, channel_id: ChannelId, file: ChannelFile) -> dict[str, object]:
        entries = ledger.locks_of(channel_id)
        released = bool(entries) and all(e.stage in (Stage.RELEASED, Stage.LAPSED) for e in entries)
        phase = "void" if ledger.is_void(channel_id) else "opened" if ledger.channels[channel_id].opened else "opening"
        attestation, settlement = file.attestation, self.book.settlements.get(channel_id, Settlement())
        return {
            "channel": format_hex(channel_id),
            "participants": [format_address(p) for p in file.fixed.participants],
            "phase": phase,
            "locks": [
                {
                    "owner": format_address(entry.lock.owner),
                    "token": format_address(entry.lock.token),
                    "amount": str(entry.lock.amount),
                    "stage": entry.stage.value,
                    "expiry": entry.lock.expiry_s,
                    "openBy": entry.lock.open_by_s,
                }
                for entry in entries
            ],
            "journals": [
                {"broker": format_address(p), "records": head.next, "bytes": head.size_bytes, "final": head.final}
                for p in file.fixed.participants
                if (head := file.heads.get(p)) is not None
            ],
            "attested": format_hex(attestation.outcome_hash) if attestation else None,
            "concluded": format_hex(settlement.concluded) if settlement.concluded else None,
            "paidBy": [format_address(custody) for custody in settlement.executed],
            "released": released,
        }


def internal(error: Exception) -> XlnError:
    """What a peer is told of a failure that is ours."""
    if isinstance(error, InvariantBroken):
        return error
    return InvariantBroken(Code.INTERNAL, "internal error; the service's log has it")
