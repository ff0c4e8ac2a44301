"""What the service keeps: the ledger and the channels in memory, and the same in SQLite.

Invariants:
- memory follows the disk: whoever changes something commits the statements first and then replaces the value here;
- a unique row per (channel, owner) stands before every lock that leaves, per channel before every attestation, per
  (channel, owner) before every release: nothing is signed twice differently, whatever crashes;
- a journal is stored as it came, one row per record, indices without gaps;
- the database belongs to one deployment and one key, and says so.

DESIGN section 4, rule 4.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import orjson
from immutables import Map

from channel.errors import Code, LocalRefusal
from channel.journal import header_from_json, header_to_json
from channel.locks import Lock
from channel.state import FixedPart
from channel.strictjson import dumps, loads
from channel.terms import Terms
from channel.units import Address, ChannelId, Hash, format_address, format_hex, parse_address, parse_uint
from contracts.watcher import Cursor
from node.store import Row, SqlValue, Statement, Store, amount_from_text, amount_text
from xln.adjudication import CustodyRows
from xln.locks import Balance, ChannelEntry, Ledger, LockEntry, Stage, advance, check

MIGRATIONS = (
    """
    CREATE TABLE deployment (
        id INTEGER PRIMARY KEY CHECK (id = 1), chain_id TEXT NOT NULL, adjudicator BLOB NOT NULL,
        collateral BLOB NOT NULL, xln BLOB NOT NULL
    ) STRICT;
    CREATE TABLE cursor (
        id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL, hash BLOB NOT NULL, time_s INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE brokers (broker BLOB PRIMARY KEY, custody BLOB NOT NULL, url TEXT NOT NULL) STRICT;
    CREATE TABLE balances (
        broker BLOB NOT NULL, token BLOB NOT NULL, deposited TEXT NOT NULL, registered TEXT NOT NULL,
        withdrawing TEXT NOT NULL, signed TEXT NOT NULL, PRIMARY KEY (broker, token)
    ) STRICT;
    CREATE TABLE locks (
        channel BLOB NOT NULL, owner BLOB NOT NULL, terms_hash BLOB NOT NULL, token BLOB NOT NULL, amount TEXT NOT NULL,
        expiry_s INTEGER NOT NULL, open_by_s INTEGER NOT NULL, signature BLOB NOT NULL, stage TEXT NOT NULL,
        released_tx BLOB, PRIMARY KEY (channel, owner)
    ) STRICT;
    CREATE TABLE channels (
        channel BLOB PRIMARY KEY, terms_hash BLOB NOT NULL, open_by_s INTEGER NOT NULL, opened INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE headers (channel BLOB PRIMARY KEY, header TEXT NOT NULL) STRICT;
    CREATE TABLE journal (
        channel BLOB NOT NULL, broker BLOB NOT NULL, at INTEGER NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (channel, broker, at)
    ) STRICT;
    CREATE TABLE heads (
        channel BLOB NOT NULL, broker BLOB NOT NULL, next INTEGER NOT NULL, bytes INTEGER NOT NULL,
        final INTEGER NOT NULL, PRIMARY KEY (channel, broker)
    ) STRICT;
    CREATE TABLE attestations (
        channel BLOB PRIMARY KEY, turn INTEGER NOT NULL, state_hash BLOB NOT NULL, outcome_hash BLOB NOT NULL,
        outcome BLOB NOT NULL, rows TEXT NOT NULL
    ) STRICT;
    CREATE TABLE concluded (channel BLOB PRIMARY KEY, outcome_hash BLOB NOT NULL) STRICT;
    CREATE TABLE payouts (
        channel BLOB NOT NULL, custody BLOB NOT NULL, outcome_hash BLOB NOT NULL, PRIMARY KEY (channel, custody)
    ) STRICT;
    CREATE TABLE payments (
        channel BLOB NOT NULL, custody BLOB NOT NULL, token BLOB NOT NULL, paid TEXT NOT NULL,
        PRIMARY KEY (channel, custody, token)
    ) STRICT;
    CREATE TABLE releases (
        channel BLOB NOT NULL, owner BLOB NOT NULL, signature BLOB NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (channel, owner)
    ) STRICT;
    """,
)
READ_RECORDS = 256  # records a page: at most some 200 MB of the longest ones, and usually 300 kB


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How much of one broker's journal is here: records, bytes, and whether a final state is among them."""

    next: int = 0
    size_bytes: int = 0
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """What XLN has attested: the outcome, and a signature for each custody with rows to pay."""

    turn: int
    state_hash: Hash
    outcome_hash: Hash
    outcome: bytes
    signed: tuple[tuple[CustodyRows, bytes], ...]

    def to_json(self) -> dict[str, object]:
        """As `xln.attest` answers."""
        return {
            "outcomeHash": format_hex(self.outcome_hash),
            "outcome": format_hex(self.outcome),
            "attestations": [
                {
                    "custody": format_address(rows.custody),
                    "tokens": [format_address(token) for token in rows.tokens],
                    "amounts": [str(amount) for amount in rows.amounts],
                    "sig": format_hex(signature),
                }
                for rows, signature in self.signed
            ],
        }


@dataclass(slots=True, kw_only=True)
class ChannelFile:
    """What XLN knows of one channel beside its locks. `paid`: by (custody, token), all PaidOut so far."""

    fixed: FixedPart
    terms: Terms
    heads: dict[Address, Head] = field(default_factory=dict)
    attestation: Attestation | None = None


@dataclass(slots=True, kw_only=True)
class Settlement:
    """What the chain shows of one channel's end, confirmed. By custody, and by (custody, token)."""

    concluded: Hash | None = None
    executed: dict[Address, Hash] = field(default_factory=dict)
    paid: dict[tuple[Address, Address], int] = field(default_factory=dict)

    def covers(self, attestation: Attestation) -> bool:
        """Every row of the attested outcome is paid in full; for an outcome without rows, the channel is concluded."""
        if not attestation.signed:
            return self.concluded == attestation.outcome_hash
        return all(
            self.executed.get(rows.custody) == attestation.outcome_hash
            and all(
                self.paid.get((rows.custody, token), 0) >= amount
                for token, amount in zip(rows.tokens, rows.amounts, strict=True)
            )
            for rows, _ in attestation.signed
        )


@dataclass(slots=True, kw_only=True)
class Book:
    """Everything in memory. Replaced piece by piece, after the commit."""

    ledger: Ledger
    cursor: Cursor | None
    urls: dict[Address, str]
    channels: dict[ChannelId, ChannelFile]
    settlements: dict[ChannelId, Settlement]
    releases: dict[tuple[ChannelId, Address], bytes]


# ---- loading


def load(store: Store, *, chain_id: int, adjudicator: Address, collateral: Address, xln: Address) -> Book:
    """The book of a database, at start-up. Blocks.

    Raises LocalRefusal CONFIG when the database is of another deployment or key, InvariantBroken when it does not add
    up.
    """
    rows = store.read_now("SELECT chain_id, adjudicator, collateral, xln FROM deployment")
    expected: Row = (str(chain_id), bytes(adjudicator), bytes(collateral), bytes(xln))
    if rows and rows[0] != expected:
        raise LocalRefusal(Code.CONFIG, f"{store.path} belongs to another network or another key; use another folder")
    cursor, time_s = _load_cursor(store)
    ledger = _load_ledger(store, Ledger(chain_id=chain_id, adjudicator=adjudicator, collateral=collateral))
    book = Book(
        ledger=advance(ledger, time_s),
        cursor=cursor,
        urls={Address(_b(b)): _t(url) for b, url in store.read_now("SELECT broker, url FROM brokers")},
        channels={},
        settlements={},
        releases={},
    )
    _load_channels(store, book)
    _load_settlements(store, book)
    for channel, owner, signature in _all(store, "SELECT channel, owner, signature FROM releases"):
        book.releases[ChannelId(_b(channel)), Address(_b(owner))] = _b(signature)
    check(book.ledger)
    return book


def deployment_statement(ledger: Ledger, xln: Address) -> Statement:
    sql = "INSERT OR IGNORE INTO deployment VALUES (1, ?, ?, ?, ?)"
    return Statement(sql, (str(ledger.chain_id), bytes(ledger.adjudicator), bytes(ledger.collateral), bytes(xln)))


def _all(store: Store, sql: str) -> list[Row]:
    return store.read_now(sql, (), 10_000_000)


def _b(value: SqlValue) -> bytes:
    assert isinstance(value, bytes)
    return value


def _t(value: SqlValue) -> str:
    assert isinstance(value, str)
    return value


def _i(value: SqlValue) -> int:
    assert isinstance(value, int)
    return value


def _load_cursor(store: Store) -> tuple[Cursor | None, int]:
    for number, block_hash, time_s in store.read_now("SELECT number, hash, time_s FROM cursor"):
        return Cursor(number=_i(number), hash=Hash(_b(block_hash))), _i(time_s)
    return None, 0


def _load_ledger(store: Store, ledger: Ledger) -> Ledger:
    brokers = {Address(_b(b)): Address(_b(c)) for b, c in _all(store, "SELECT broker, custody FROM brokers")}
    balances = {
        (Address(_b(broker)), Address(_b(token))): Balance(
            deposited=amount_from_text(a),
            registered=amount_from_text(b),
            withdrawing=amount_from_text(c),
            signed=amount_from_text(d),
        )
        for broker, token, a, b, c, d in _all(
            store, "SELECT broker, token, deposited, registered, withdrawing, signed FROM balances"
        )
    }
    locks = {}
    for row in _all(
        store,
        "SELECT channel, owner, terms_hash, token, amount, expiry_s, open_by_s, signature, stage, released_tx"
        " FROM locks",
    ):
        channel, owner, terms_hash, token, amount, expiry_s, open_by_s, signature, stage, tx = row
        lock = Lock(
            channel_id=ChannelId(_b(channel)),
            terms_hash=Hash(_b(terms_hash)),
            owner=Address(_b(owner)),
            token=Address(_b(token)),
            amount=amount_from_text(amount),
            expiry_s=_i(expiry_s),
            open_by_s=_i(open_by_s),
        )
        released_tx = None if tx is None else Hash(_b(tx))
        entry = LockEntry(lock=lock, signature=_b(signature), stage=Stage(_t(stage)), released_tx=released_tx)
        locks[lock.channel_id, lock.owner] = entry
    headers = {ChannelId(_b(c)): _header(_t(text))[0] for c, text in _all(store, "SELECT channel, header FROM headers")}
    channels = {
        ChannelId(_b(channel)): ChannelEntry(
            terms_hash=Hash(_b(terms_hash)),
            open_by_s=_i(open_by_s),
            opened=bool(opened),
            fixed=headers.get(ChannelId(_b(channel))),
        )
        for channel, terms_hash, open_by_s, opened in _all(
            store, "SELECT channel, terms_hash, open_by_s, opened FROM channels"
        )
    }
    return Ledger(
        chain_id=ledger.chain_id,
        adjudicator=ledger.adjudicator,
        collateral=ledger.collateral,
        brokers=Map(brokers),
        balances=Map(balances),
        locks=Map(locks),
        waiting=Map({key: e.lock.open_by_s for key, e in locks.items() if e.stage is Stage.SIGNED}),
        channels=Map(channels),
    )


def _header(text: str) -> tuple[FixedPart, Terms]:
    return header_from_json(loads(text, max_bytes=1024 * 1024))


def _load_channels(store: Store, book: Book) -> None:
    for channel, text in _all(store, "SELECT channel, header FROM headers"):
        fixed, terms = _header(_t(text))
        book.channels[ChannelId(_b(channel))] = ChannelFile(fixed=fixed, terms=terms)
    for channel, broker, next_at, size, final in _all(store, "SELECT channel, broker, next, bytes, final FROM heads"):
        head = Head(next=_i(next_at), size_bytes=_i(size), final=bool(final))
        book.channels[ChannelId(_b(channel))].heads[Address(_b(broker))] = head
    for channel, turn, state_hash, outcome_hash, outcome, rows in _all(
        store, "SELECT channel, turn, state_hash, outcome_hash, outcome, rows FROM attestations"
    ):
        book.channels[ChannelId(_b(channel))].attestation = Attestation(
            turn=_i(turn),
            state_hash=Hash(_b(state_hash)),
            outcome_hash=Hash(_b(outcome_hash)),
            outcome=_b(outcome),
            signed=tuple(_signed_row(item) for item in orjson.loads(_t(rows))),
        )


def _signed_row(item: Mapping[str, object]) -> tuple[CustodyRows, bytes]:
    tokens, amounts, sig = item["tokens"], item["amounts"], item["sig"]
    assert isinstance(tokens, list)
    assert isinstance(amounts, list)
    assert isinstance(sig, str)
    rows = CustodyRows(
        custody=parse_address(item["custody"]),
        tokens=tuple(parse_address(t) for t in tokens),
        amounts=tuple(parse_uint(a) for a in amounts),
    )
    return rows, bytes.fromhex(sig[2:])


def _load_settlements(store: Store, book: Book) -> None:
    def of(channel: SqlValue) -> Settlement:
        return book.settlements.setdefault(ChannelId(_b(channel)), Settlement())

    for channel, outcome_hash in _all(store, "SELECT channel, outcome_hash FROM concluded"):
        of(channel).concluded = Hash(_b(outcome_hash))
    for channel, custody, outcome_hash in _all(store, "SELECT channel, custody, outcome_hash FROM payouts"):
        of(channel).executed[Address(_b(custody))] = Hash(_b(outcome_hash))
    for channel, custody, token, paid in _all(store, "SELECT channel, custody, token, paid FROM payments"):
        of(channel).paid[Address(_b(custody)), Address(_b(token))] = amount_from_text(paid)


# ---- writing


def ledger_statements(old: Ledger, new: Ledger) -> list[Statement]:
    """What makes the database follow the ledger from `old` to `new`. Locks: a new row must not be there yet."""
    statements = []
    if new.balances is not old.balances:
        for (broker, token), balance in new.balances.items():
            if old.balances.get((broker, token)) != balance:
                amounts = (balance.deposited, balance.registered, balance.withdrawing, balance.signed)
                texts = tuple(amount_text(a) for a in amounts)
                sql = "INSERT OR REPLACE INTO balances VALUES (?, ?, ?, ?, ?, ?)"
                statements.append(Statement(sql, (bytes(broker), bytes(token), *texts)))
    if new.locks is not old.locks:
        for key, entry in new.locks.items():
            known = old.locks.get(key)
            if known is None:
                statements.append(_new_lock(entry))
            elif known != entry:
                sql = "UPDATE locks SET stage = ?, released_tx = ? WHERE channel = ? AND owner = ?"
                tx = None if entry.released_tx is None else bytes(entry.released_tx)
                statements.append(Statement(sql, (entry.stage.value, tx, bytes(key[0]), bytes(key[1]))))
    if new.channels is not old.channels:
        for channel_id, channel in new.channels.items():
            if old.channels.get(channel_id) != channel:
                sql = "INSERT OR REPLACE INTO channels VALUES (?, ?, ?, ?)"
                values = (bytes(channel_id), bytes(channel.terms_hash), channel.open_by_s, int(channel.opened))
                statements.append(Statement(sql, values))
    return statements


def _new_lock(entry: LockEntry) -> Statement:
    lock = entry.lock
    return Statement(
        "INSERT INTO locks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        (
            bytes(lock.channel_id),
            bytes(lock.owner),
            bytes(lock.terms_hash),
            bytes(lock.token),
            amount_text(lock.amount),
            lock.expiry_s,
            lock.open_by_s,
            entry.signature,
            entry.stage.value,
        ),
    )


def broker_statement(broker: Address, custody: Address, url: str) -> Statement:
    return Statement("INSERT OR REPLACE INTO brokers VALUES (?, ?, ?)", (bytes(broker), bytes(custody), url))


def cursor_statement(cursor: Cursor, time_s: int) -> Statement:
    return Statement("INSERT OR REPLACE INTO cursor VALUES (1, ?, ?, ?)", (cursor.number, bytes(cursor.hash), time_s))


def header_statement(fixed: FixedPart, terms: Terms) -> Statement:
    text = dumps(header_to_json(fixed, terms))
    return Statement("INSERT OR IGNORE INTO headers VALUES (?, ?)", (bytes(fixed.channel_id), text))


def record_statements(
    channel_id: ChannelId, broker: Address, first: int, texts: list[str], head: Head
) -> list[Statement]:
    key = (bytes(channel_id), bytes(broker))
    sql = "INSERT INTO journal VALUES (?, ?, ?, ?)"
    statements = [Statement(sql, (*key, at, text)) for at, text in enumerate(texts, first)]
    sql = "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)"
    return [*statements, Statement(sql, (*key, head.next, head.size_bytes, int(head.final)))]


def attestation_statement(channel_id: ChannelId, attestation: Attestation) -> Statement:
    return Statement(
        "INSERT INTO attestations VALUES (?, ?, ?, ?, ?, ?)",
        (
            bytes(channel_id),
            attestation.turn,
            bytes(attestation.state_hash),
            bytes(attestation.outcome_hash),
            attestation.outcome,
            dumps(attestation.to_json()["attestations"]),
        ),
    )


def release_statement(channel_id: ChannelId, owner: Address, signature: bytes, reason: str) -> Statement:
    sql = "INSERT INTO releases VALUES (?, ?, ?, ?)"
    return Statement(sql, (bytes(channel_id), bytes(owner), signature, reason))


def settlement_statements(channel_id: ChannelId, settlement: Settlement) -> list[Statement]:
    """All of a settlement: a few rows."""
    key = bytes(channel_id)
    statements = [
        Statement("INSERT OR REPLACE INTO payouts VALUES (?, ?, ?)", (key, bytes(custody), bytes(outcome_hash)))
        for custody, outcome_hash in settlement.executed.items()
    ]
    statements += [
        Statement(
            "INSERT OR REPLACE INTO payments VALUES (?, ?, ?, ?)",
            (key, bytes(custody), bytes(token), amount_text(paid)),
        )
        for (custody, token), paid in settlement.paid.items()
    ]
    if settlement.concluded is not None:
        sql = "INSERT OR REPLACE INTO concluded VALUES (?, ?)"
        statements.append(Statement(sql, (key, bytes(settlement.concluded))))
    return statements


def read_records(store: Store, channel_id: ChannelId, broker: Address, first: int, end: int) -> Iterator[str]:
    """The stored records from index `first` to below `end`, page by page. Blocks: for threads."""
    while first < end:
        rows = store.read_now(
            "SELECT at, record FROM journal WHERE channel = ? AND broker = ? AND at >= ? AND at < ? ORDER BY at",
            (bytes(channel_id), bytes(broker), first, min(end, first + READ_RECORDS)),
        )
        if not rows:
            raise LocalRefusal(Code.STORAGE, "records of a journal are missing in the database")
        for at, record in rows:
            if _i(at) != first:
                raise LocalRefusal(Code.STORAGE, "records of a journal are missing in the database")
            yield _t(record)
            first += 1
