"""The journal as records: what a channel's history consists of, as JSON lines, in the order in which it happened.

    {"channel": {"fixedPart": {…}, "terms": {…}}}                     once, first
    {"lock": {…XLN's signed lock…}}                                    one per participant
    {"entry": {"by": 0, "to": …, "ch": …, "seq": …, …}}                each entry, before the state that lists it
    {"state": {"turn": n, "final": false, "t": ms, "runs": [[by, first, last], …], "hash": "0x…", "sigs": ["0x…", …]}}
    {"order": {…signed user order…}, "broker": 0}                      orders behind fills, as the venue's evidence

A state's bytes are not in the journal: replay derives them. DESIGN section 4.
"""

from dataclasses import dataclass
from typing import Any

from channel.entry import Entry, entry_from_json, entry_to_json
from channel.errors import Code, PeerFault
from channel.locks import SignedLock, lock_from_json, lock_to_json
from channel.orders import SignedOrder, order_from_json, order_to_json
from channel.state import FixedPart
from channel.terms import Terms, terms_from_json, terms_to_json
from channel.transition import MAX_RUNS, Run
from channel.typed import custody_domain, node_domain
from channel.units import Hash, format_address, format_hex, parse_address, parse_hash, parse_hex, parse_quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRecord:
    """A co-signed state: its header, the entries that it lists, and both signatures in participant order."""

    turn: int
    is_final: bool
    time_ms: int
    runs: tuple[Run, ...]
    state_hash: Hash
    signatures: tuple[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRecord:
    """A user's order at broker `broker` (participant index): evidence behind the venue's side of a fill."""

    broker: int
    order: SignedOrder


Record = SignedLock | Entry | StateRecord | OrderRecord


def fixed_to_json(fixed: FixedPart) -> dict[str, Any]:
    return {
        "chainId": hex(fixed.chain_id),
        "participants": [format_address(p) for p in fixed.participants],
        "channelNonce": fixed.channel_nonce,
        "appDefinition": format_address(fixed.app_definition),
        "challengeDuration": fixed.challenge_duration_s,
    }


_FIXED_KEYS = {"chainId", "participants", "channelNonce", "appDefinition", "challengeDuration"}


def fixed_from_json(raw: object) -> FixedPart:
    if not isinstance(raw, dict) or set(raw) != _FIXED_KEYS:
        raise PeerFault(Code.PARAMS, f"fixedPart is an object with exactly {', '.join(sorted(_FIXED_KEYS))}")
    participants, nonce, duration = raw["participants"], raw["channelNonce"], raw["challengeDuration"]
    if not isinstance(participants, list) or type(nonce) is not int or type(duration) is not int:
        raise PeerFault(Code.PARAMS, "participants is a list, channelNonce and challengeDuration are whole numbers")
    return FixedPart(
        chain_id=parse_quantity(raw["chainId"], "chainId"),
        participants=tuple(parse_address(p, "participant") for p in participants[:256]),
        channel_nonce=nonce,
        app_definition=parse_address(raw["appDefinition"], "appDefinition"),
        challenge_duration_s=duration,
    )


def header_to_json(fixed: FixedPart, terms: Terms) -> dict[str, Any]:
    return {"channel": {"fixedPart": fixed_to_json(fixed), "terms": terms_to_json(terms)}}


def header_from_json(raw: object) -> tuple[FixedPart, Terms]:
    """Raises PeerFault PARAMS and CHANNEL_TERMS."""
    match raw:
        case {"channel": {"fixedPart": fixed, "terms": terms, **inner}, **outer} if not inner and not outer:
            return fixed_from_json(fixed), terms_from_json(terms)
    raise PeerFault(Code.PARAMS, 'a journal begins with {"channel": {"fixedPart": …, "terms": …}}')


def record_to_json(record: Record, fixed: FixedPart) -> dict[str, Any]:
    match record:
        case Entry():
            return {"entry": {"by": fixed.index_of(record.sender), **entry_to_json(record)}}
        case StateRecord():
            return {
                "state": {
                    "turn": record.turn,
                    "final": record.is_final,
                    "t": record.time_ms,
                    "runs": runs_to_json(record.runs),
                    "hash": format_hex(record.state_hash),
                    "sigs": [format_hex(s) for s in record.signatures],
                }
            }
        case SignedLock():
            return {"lock": lock_to_json(record)}
        case OrderRecord():
            return {"order": order_to_json(record.order), "broker": record.broker}


def record_from_json(raw: object, fixed: FixedPart, terms: Terms) -> Record:
    """Parses one record and verifies an entry's signature. Raises PeerFault."""
    match raw:
        case {"entry": {"by": (0 | 1) as by, **entry}, **rest} if not rest and type(by) is int:
            domain = node_domain(fixed.chain_id, fixed.app_definition)
            return entry_from_json(entry, domain, fixed.participants[by], fixed.participants[1 - by])
        case {"state": dict() as state, **rest} if not rest:
            return _state_from_json(state)
        case {"lock": lock, **rest} if not rest:
            return lock_from_json(lock)
        case {"order": order, "broker": (0 | 1) as broker, **rest} if not rest and type(broker) is int:
            domain = custody_domain(fixed.chain_id, terms.custodies[broker])
            return OrderRecord(broker=broker, order=order_from_json(order, domain))
    raise PeerFault(Code.PARAMS, "a journal record is an entry, a state, a lock or an order")


def _state_from_json(raw: dict[str, Any]) -> StateRecord:
    if set(raw) != {"turn", "final", "t", "runs", "hash", "sigs"}:
        raise PeerFault(Code.PARAMS, "a state record has turn, final, t, runs, hash, sigs")
    turn, time_ms, sigs = raw["turn"], raw["t"], raw["sigs"]
    if type(turn) is not int or type(time_ms) is not int or type(raw["final"]) is not bool or min(turn, time_ms) < 0:
        raise PeerFault(Code.PARAMS, "turn and t are whole numbers, final is true or false")
    if not isinstance(sigs, list) or len(sigs) != 2:
        raise PeerFault(Code.PARAMS, "a co-signed state has two signatures")
    return StateRecord(
        turn=turn,
        is_final=raw["final"],
        time_ms=time_ms,
        runs=runs_from_json(raw["runs"]),
        state_hash=parse_hash(raw["hash"]),
        signatures=(parse_hex(sigs[0], size=65, what="signature"), parse_hex(sigs[1], size=65, what="signature")),
    )


def runs_to_json(runs: tuple[Run, ...]) -> list[list[int]]:
    return [[run.sender, run.first, run.last] for run in runs]


def runs_from_json(raw: object) -> tuple[Run, ...]:
    """Raises PeerFault PARAMS."""
    if not isinstance(raw, list) or len(raw) > MAX_RUNS:
        raise PeerFault(Code.PARAMS, f"runs must be a list of at most {MAX_RUNS}")
    return tuple(_run(item) for item in raw)


def _run(raw: object) -> Run:
    if not isinstance(raw, list) or len(raw) != 3 or any(type(n) is not int for n in raw):
        raise PeerFault(Code.PARAMS, "a run is [participant, first, last]")
    by, first, last = raw
    if by not in (0, 1) or not 0 < first <= last < 2**53:
        raise PeerFault(Code.PARAMS, "a run is [0 or 1, first, last] with first from 1 and last not below it")
    return Run(by, first, last)
