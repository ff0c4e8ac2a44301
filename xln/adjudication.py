"""What XLN decides from the journals of two brokers. Pure: records come in as an iterable of JSON texts.

    look(text)           at upload: what kind of record it is, without checking any signature
    shows_opening(...)   whether records lead to the co-signed state that carries both locks
    adjudicate(...)      the final state that both journals lead to, and what each custody pays by it

Both journals are replayed in full: every signature, both hash chains, every co-signed state. They must end in the same
final state, whose journal head commits to every entry; so their fills are the same, and only the orders behind them
may be spread over the two. Whatever does not hold is ATTEST_JOURNAL with the record's index, or ATTEST_ORDER. DESIGN
sections 4, 6 and 7.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from channel.entry import MAX_BODY_BYTES, Entry
from channel.errors import Code, PeerFault
from channel.journal import OrderRecord, Record, header_from_json, record_from_json
from channel.outcome import decode_outcome
from channel.replay import Replay, require_authorised
from channel.state import FixedPart
from channel.strictjson import loads
from channel.terms import Terms
from channel.typed import ATTESTATION, custody_domain
from channel.units import Address, ChannelId, Hash, format_address

MAX_RECORD_BYTES = MAX_BODY_BYTES * 6 + 4096  # a body of control characters, each \u0000, and the rest of an entry
KINDS = ("channel", "lock", "entry", "state", "order")


@dataclass(frozen=True, slots=True)
class Look:
    """The kind of a record, and whether it claims to be the final state."""

    kind: str
    is_final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodyRows:
    """What one custody pays by an outcome: base units of each token, tokens ascending."""

    custody: Address
    tokens: tuple[Address, ...]
    amounts: tuple[int, ...]

    def digest(self, chain_id: int, channel_id: ChannelId, outcome_hash: Hash) -> Hash:
        """What an attestor signs for it."""
        struct = ATTESTATION.hash(channel_id, outcome_hash, self.tokens, self.amounts)
        return custody_domain(chain_id, self.custody).digest(struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The final state that both journals lead to, and the payments that it means."""

    turn: int
    state_hash: Hash
    outcome: bytes
    outcome_hash: Hash
    rows: tuple[CustodyRows, ...]
    states: int
    entries: int
    fills: int


def look(text: str, index: int) -> Look:
    """Raises PeerFault ATTEST_JOURNAL for what cannot be a record."""
    try:
        raw = loads(text, max_bytes=MAX_RECORD_BYTES)
    except PeerFault as fault:
        raise PeerFault(Code.ATTEST_JOURNAL, f"record {index}: {fault}", at=index) from fault
    if isinstance(raw, dict):
        for kind in KINDS:
            value = raw.get(kind)
            if isinstance(value, dict):
                return Look(kind, kind == "state" and value.get("final") is True)
    raise PeerFault(Code.ATTEST_JOURNAL, f"record {index} is none of {', '.join(KINDS)}", at=index)


def parse_records(fixed: FixedPart, terms: Terms, texts: Iterable[str]) -> Iterator[tuple[int, Record]]:
    """The records of one journal with their indices. A header may be the first of them.

    Raises PeerFault ATTEST_JOURNAL.
    """
    for index, text in enumerate(texts):
        try:
            raw = loads(text, max_bytes=MAX_RECORD_BYTES)
            if index == 0 and isinstance(raw, dict) and "channel" in raw:
                _require_header(raw, fixed, terms)
                continue
            record = record_from_json(raw, fixed, terms)
        except PeerFault as fault:
            raise _wrong(index, fault) from fault
        yield index, record


def _require_header(raw: object, fixed: FixedPart, terms: Terms) -> None:
    if header_from_json(raw) != (fixed, terms):
        raise PeerFault(Code.ATTEST_JOURNAL, "the header is of another channel or other terms")


def _wrong(index: int, fault: PeerFault) -> PeerFault:
    if fault.code in (Code.ATTEST_JOURNAL, Code.ATTEST_ORDER):
        return PeerFault(fault.code, f"record {index}: {fault.message}", at=index)
    return PeerFault(Code.ATTEST_JOURNAL, f"record {index}: {fault}", at=index, cause=fault.code.label)


def _feed(result: Replay, index: int, record: Record) -> None:
    try:
        result.feed(record)
    except PeerFault as fault:
        if isinstance(record, OrderRecord):
            fault = PeerFault(Code.ATTEST_ORDER, str(fault))
        raise _wrong(index, fault) from fault


def shows_opening(fixed: FixedPart, terms: Terms, xln: Address, texts: Iterable[str]) -> bool:
    """Whether the records, up to the second co-signed state, are that opening: both locks, each signed by `xln`.

    Stops there. Raises PeerFault ATTEST_JOURNAL for a record before it that does not hold.
    """
    result = Replay(fixed=fixed, terms=terms, xln=xln)
    for index, record in parse_records(fixed, terms, texts):
        if isinstance(record, Entry):
            raise PeerFault(Code.ATTEST_JOURNAL, f"record {index}: an entry before the channel is open", at=index)
        _feed(result, index, record)
        if result.states == 2:
            if None in result.locks:
                raise PeerFault(Code.ATTEST_JOURNAL, f"record {index}: the second state needs both locks", at=index)
            return True
    return False


def replay_journal(fixed: FixedPart, terms: Terms, xln: Address, texts: Iterable[str]) -> Replay:
    """One broker's journal, in full. Raises PeerFault ATTEST_JOURNAL, ATTEST_ORDER, ATTEST_INCOMPLETE."""
    result = Replay(fixed=fixed, terms=terms, xln=xln)
    for index, record in parse_records(fixed, terms, texts):
        _feed(result, index, record)
    if result.last is None or not result.last.state.is_final:
        raise PeerFault(Code.ATTEST_INCOMPLETE, "the journal does not end in a final state")
    if None in result.locks:
        raise PeerFault(Code.ATTEST_JOURNAL, "the journal does not have the locks of both brokers")
    return result


def adjudicate(fixed: FixedPart, terms: Terms, xln: Address, journals: tuple[Iterable[str], Iterable[str]]) -> Verdict:
    """Replays both journals, in the order of the participants. Raises PeerFault ATTEST_*, with `broker` as data."""
    results = []
    for participant, texts in zip(fixed.participants, journals, strict=True):
        try:
            results.append(replay_journal(fixed, terms, xln, texts))
        except PeerFault as fault:
            name = format_address(participant)
            raise PeerFault(
                fault.code, f"journal of {name}: {fault.message}", **{**fault.data, "broker": name}
            ) from fault
    first, second = results
    assert first.last is not None
    assert second.last is not None
    state = first.last.state
    if state.state_hash != second.last.state.state_hash:
        raise PeerFault(
            Code.ATTEST_JOURNAL,
            f"the journals end in different final states, of turn {state.turn} and {second.last.state.turn}",
        )
    if first.fills != second.fills:
        raise PeerFault(Code.ATTEST_JOURNAL, "the journals have different fills")
    first.orders.update(second.orders)
    first.brokers.update(second.brokers)
    require_authorised(first)
    return Verdict(
        turn=state.turn,
        state_hash=state.state_hash,
        outcome=state.variable.outcome,
        outcome_hash=state.outcome_hash,
        rows=custody_rows(state.variable.outcome),
        states=first.states,
        entries=first.entries,
        fills=len(first.fills),
    )


def custody_rows(outcome: bytes) -> tuple[CustodyRows, ...]:
    """An outcome by the custody that pays, in its own order; tokens ascend. Raises PeerFault ENCODING."""
    by_custody: dict[Address, dict[Address, int]] = {}
    for row in decode_outcome(outcome):
        tokens = by_custody.setdefault(row.asset_holder, {})
        tokens[row.asset] = tokens.get(row.asset, 0) + sum(a.amount for a in row.allocations)
    return tuple(
        CustodyRows(custody=custody, tokens=tuple(sorted(tokens)), amounts=tuple(tokens[t] for t in sorted(tokens)))
        for custody, tokens in by_custody.items()
    )
