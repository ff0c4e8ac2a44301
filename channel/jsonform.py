"""States for people and for files: the JSON form of application data, and one state with its signatures.

Application data (DESIGN section 3), amounts as decimal text by each token's decimals, chains as 0x quantities:

    {"cl":  {owner: [[chain, token, available, locked] or [chain, token, available, locked, lockId], …]},
     "bu":  {holder: {owner: [[chain, token, available, locked], …]}},
     "oos": {holder: {owner: {market name: {"b" or "s": [base, lowest price, highest price, quote]}}}},
     "px":  [[asset, quote, price, time in ms], …], "jh": journal head, "t": time in ms, "terms": terms hash}

A lock id is written only where it is not the one that channel and owner imply. Prices are decimal numbers of whole
quote tokens per whole base token. The form is a view: what is signed are the ABI bytes, and `app_data_from_json`
gives back exactly those.

A state as a file has the field names of tests/vectors/nitro_states.json; our exports add `terms`. What a file says
twice (a signature's `signer` and `bytes`, a hash beside the state) must agree with what is computed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from channel.appdata import (
    AppData,
    BalanceUpdate,
    CollateralLock,
    OpenOrdersSummary,
    Price,
    decode_app_data,
    lock_id_of,
    outcome_of,
)
from channel.errors import Code, PeerFault
from channel.outcome import Allocation, AssetExit, decode_outcome, encode_outcome
from channel.signing import SIGNATURE_BYTES, recover
from channel.state import CosignedState, FixedPart, State, VariablePart
from channel.strictjson import MAX_INTEGER, Fields, shown
from channel.terms import PRICE_SCALE, SIDES, Terms, terms_from_json, terms_to_json, tick_scale
from channel.units import (
    UINT48_MAX,
    UINT64_MAX,
    UINT256_MAX,
    Address,
    Hash,
    format_address,
    format_amount,
    format_hex,
    parse_address,
    parse_amount,
    parse_hash,
    parse_hex,
    parse_quantity,
    parse_uint,
)

MAX_STATE_FILE_BYTES = 4 * 1024 * 1024
_PRICE_DIGITS = len(str(PRICE_SCALE)) - 1
# Whole digits of the largest price: a uint256 of ticks (78), each at most 2^64 x 10^36 whole units (56).
_PRICE_RE = re.compile(r"(0|[1-9][0-9]{0,135})(?:\.([0-9]{1,54}))?", re.ASCII)


# -- application data --------------------------------------------------------------------------------------------------


def app_data_to_json(data: AppData, fixed: FixedPart, terms: Terms) -> dict[str, Any]:
    """The JSON form. Raises PeerFault: CHANNEL_TERMS or ORDER_MARKET for a token or market that the terms do not list,
    NUMBER for a time beyond what JSON integers hold."""
    if any(time_ms > MAX_INTEGER for time_ms in (data.time_ms, *(p.time_ms for p in data.prices))):
        raise PeerFault(Code.NUMBER, "a time in appData is beyond 2^53 milliseconds")
    locks: dict[str, list[list[str]]] = {}
    for lock in data.collateral:
        row = _balance_row(lock, terms)
        if lock.lock_id != lock_id_of(fixed.channel_id, lock.owner):
            row.append(format_hex(lock.lock_id))
        locks.setdefault(format_address(lock.owner), []).append(row)
    balances: dict[str, dict[str, list[list[str]]]] = {}
    for update in data.balance_updates:
        of_holder = balances.setdefault(format_address(update.holder), {})
        of_holder.setdefault(format_address(update.owner), []).append(_balance_row(update, terms))
    orders: dict[str, dict[str, dict[str, dict[str, list[str]]]]] = {}
    for summary in data.open_orders:
        name, values = summary_in_text(summary, terms)
        of_owner = orders.setdefault(format_address(summary.holder), {}).setdefault(format_address(summary.owner), {})
        of_owner.setdefault(name, {})[SIDES[summary.side]] = values
    return {
        "cl": locks,
        "bu": balances,
        "oos": orders,
        "px": [
            [format_address(p.asset), format_address(p.quote), _price_text(p, terms), p.time_ms] for p in data.prices
        ],
        "jh": format_hex(data.journal_head),
        "t": data.time_ms,
        "terms": format_hex(data.terms_hash),
    }


def summary_in_text(row: OpenOrdersSummary, terms: Terms) -> tuple[str, list[str]]:
    """The market's name and its row as decimal text. Raises PeerFault ORDER_MARKET."""
    market = terms.market(row.market_id)
    if market is None or market.holder != row.holder:
        raise PeerFault(Code.ORDER_MARKET, f"the terms list no market {format_hex(row.market_id)} of its holder")
    base, quote = terms.token(market.base).decimals, terms.token(market.quote).decimals
    numerator, digits = tick_scale(market, base, quote)
    return terms.market_name(row.market_id), [
        format_amount(row.base, base),
        format_amount(row.low_ticks * numerator, digits),
        format_amount(row.high_ticks * numerator, digits),
        format_amount(row.quote, quote),
    ]


def _balance_row(row: BalanceUpdate | CollateralLock, terms: Terms) -> list[str]:
    decimals = terms.token(row.token).decimals
    return [
        hex(row.chain_id),
        format_address(row.token),
        format_amount(row.available, decimals),
        format_amount(row.locked, decimals),
    ]


def _price_shift(asset: Address, quote: Address, terms: Terms) -> int:
    """Digits after the point of a price: it is kept as quote base units per 10^18 asset base units."""
    return _PRICE_DIGITS + terms.token(quote).decimals - terms.token(asset).decimals


def _price_text(row: Price, terms: Terms) -> str:
    shift = _price_shift(row.asset, row.quote, terms)
    return format_amount(row.price, shift) if shift >= 0 else str(row.price * 10**-shift)


def app_data_from_json(raw: object, fixed: FixedPart, terms: Terms) -> AppData:
    """Parses the JSON form strictly. Raises PeerFault: CHANNEL_STATE for its shape, else the code of the value."""
    o = Fields(raw, "the application data", Code.CHANNEL_STATE)
    data = AppData.of(
        terms_hash=o.hash("terms"),
        time_ms=o.integer("t"),
        journal_head=o.hash("jh"),
        balance_updates=_balances(o.obj("bu"), fixed, terms),
        open_orders=_summaries(o.obj("oos"), fixed, terms),
        collateral=_locks(o.obj("cl"), fixed, terms),
        prices=[_price(row, terms) for row in o.list("px", 64)],
    )
    o.done()
    return data


def _keyed(raw: object, what: str, fixed: FixedPart) -> Iterable[tuple[Address, Any]]:
    """The members of an object whose keys are participants. Two spellings of one address are an error."""
    if type(raw) is not dict or not raw:
        raise PeerFault(Code.CHANNEL_STATE, f"{what} must be an object with an address for each key")
    seen: set[Address] = set()
    for text, value in raw.items():
        address = parse_address(text, what)
        if address in seen or address not in fixed.participants:
            raise PeerFault(Code.CHANNEL_STATE, f"{what}: {format_address(address)} must be a participant, once")
        seen.add(address)
        yield address, value


def _items(raw: object, what: str, low: int, high: int) -> list[Any]:
    if type(raw) is not list or not low <= len(raw) <= high:
        raise PeerFault(Code.CHANNEL_STATE, f"{what} must be a list of {low} to {high}")
    return raw


def _not_zero(row: Any, what: str) -> Any:
    if row.is_zero:
        raise PeerFault(Code.CHANNEL_STATE, f"{what} has a row of zero, which is left out")
    return row


def _amounts(row: list[Any], terms: Terms) -> tuple[int, Address, int, int]:
    token = parse_address(row[1], "token")
    decimals = terms.token(token).decimals
    chain_id = parse_quantity(row[0], "chain")
    return chain_id, token, parse_amount(row[2], decimals, "available"), parse_amount(row[3], decimals, "locked")


def _balances(raw: dict[str, Any], fixed: FixedPart, terms: Terms) -> list[BalanceUpdate]:
    rows = []
    for holder, owners in _keyed(raw, "bu", fixed) if raw else ():
        for owner, items in _keyed(owners, "bu", fixed):
            for item in _items(items, "bu", 1, 64):
                chain_id, token, available, locked = _amounts(_items(item, "a row of bu", 4, 4), terms)
                row = BalanceUpdate(
                    holder=holder, owner=owner, chain_id=chain_id, token=token, available=available, locked=locked
                )
                rows.append(_not_zero(row, "bu"))
    return rows


def _locks(raw: dict[str, Any], fixed: FixedPart, terms: Terms) -> list[CollateralLock]:
    rows = []
    for owner, items in _keyed(raw, "cl", fixed) if raw else ():
        for item in _items(items, "cl", 1, 64):
            item = _items(item, "a row of cl", 4, 5)
            chain_id, token, available, locked = _amounts(item, terms)
            implied = lock_id_of(fixed.channel_id, owner)
            lock_id = parse_hash(item[4], "lockId") if len(item) == 5 else implied
            row = CollateralLock(
                owner=owner, lock_id=lock_id, chain_id=chain_id, token=token, available=available, locked=locked
            )
            rows.append(_not_zero(row, "cl"))
    return rows


def _summaries(raw: dict[str, Any], fixed: FixedPart, terms: Terms) -> list[OpenOrdersSummary]:
    rows = []
    for holder, owners in _keyed(raw, "oos", fixed) if raw else ():
        for owner, markets in _keyed(owners, "oos", fixed):
            if type(markets) is not dict or not markets:
                raise PeerFault(Code.CHANNEL_STATE, "oos must have an object of markets for each owner")
            for name, sides in markets.items():
                if type(sides) is not dict or not sides or not sides.keys() <= set(SIDES):
                    raise PeerFault(
                        Code.CHANNEL_STATE, f'a market of oos has "b", "s" or both, not {shown(str(sides))}'
                    )
                rows += [_summary(holder, owner, name, side, item, terms) for side, item in sides.items()]
    return rows


def _summary(holder: Address, owner: Address, name: str, side: str, raw: object, terms: Terms) -> OpenOrdersSummary:
    item = _items(raw, "a row of oos", 4, 4)
    market = terms.market_named(holder, name)
    base, quote = terms.token(market.base).decimals, terms.token(market.quote).decimals
    numerator, digits = tick_scale(market, base, quote)
    row = OpenOrdersSummary(
        holder=holder,
        owner=owner,
        market_id=market.market_id,
        side=SIDES.index(side),
        base=parse_amount(item[0], base, "sum in base"),
        low_ticks=_exact(item[1], digits, numerator, "lowest price"),
        high_ticks=_exact(item[2], digits, numerator, "highest price"),
        quote=parse_amount(item[3], quote, "sum in quote"),
    )
    checked: OpenOrdersSummary = _not_zero(row, "oos")
    return checked


def _price(raw: object, terms: Terms) -> Price:
    item = _items(raw, "a row of px", 4, 4)
    asset, quote, time_ms = parse_address(item[0], "asset"), parse_address(item[1], "quote"), item[3]
    if type(time_ms) is not int or not 0 <= time_ms <= UINT64_MAX:
        raise PeerFault(Code.CHANNEL_STATE, "the time of a price is a whole number of milliseconds")
    shift = _price_shift(asset, quote, terms)
    price = _exact(item[2], max(shift, 0), 10 ** max(-shift, 0), "price")
    checked: Price = _not_zero(Price(asset=asset, quote=quote, price=price, time_ms=time_ms), "px")
    return checked


def _exact(text: object, digits: int, unit: int, what: str) -> int:
    """How many units of `unit` / 10^`digits` a decimal number is. Raises PeerFault AMOUNT unless they are whole."""
    match = _PRICE_RE.fullmatch(text) if isinstance(text, str) else None
    if match is None or len(match.group(2) or "") > digits:
        raise PeerFault(Code.AMOUNT, f"{what} must be a decimal number in quotes with at most {digits} digits after it")
    scaled: int = int(match.group(1)) * 10**digits + int((match.group(2) or "").ljust(digits, "0") or "0")
    count, rest = scaled // unit, scaled % unit
    if rest or count > UINT256_MAX:
        raise PeerFault(Code.AMOUNT, f"{what} {match.group(0)} is not a whole number of ticks")
    return count


# -- a state as a file -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedState:
    """A state as read from a file: every signature is valid and by a participant.

    `signers` in the order of the signatures. `app_data` and `exits` are None where the bytes are not in our format.
    """

    state: State
    signatures: tuple[bytes, ...]
    signers: tuple[Address, ...]
    terms: Terms | None
    app_data: AppData | None
    exits: tuple[AssetExit, ...] | None

    @property
    def unsigned_by(self) -> tuple[Address, ...]:
        """Participants whose signature is not there."""
        return tuple(p for p in self.state.fixed.participants if p not in self.signers)

    @property
    def outcome_follows(self) -> bool | None:
        """Whether the outcome is the one that the balance updates imply; None when the file does not tell."""
        participants = self.state.fixed.participants
        if self.app_data is None or self.terms is None or len(participants) != 2:
            return None
        rows = self.app_data.balance_updates
        if any(address not in participants for row in rows for address in (row.holder, row.owner)):
            return False
        custodies = dict(zip(participants, self.terms.custodies, strict=True))
        try:
            return outcome_of(rows, custodies) == self.state.variable.outcome
        except PeerFault:  # amounts beyond uint256 have no outcome
            return False


def state_to_json(cosigned: CosignedState, terms: Terms | None = None) -> dict[str, Any]:
    """A co-signed state as a file; `signed_state_from_json` reads it, and so does any tool that knows the vectors."""
    state, fixed = cosigned.state, cosigned.state.fixed
    result: dict[str, Any] = {
        "fixedPart": {
            "chainId": str(fixed.chain_id),
            "participants": [format_address(p) for p in fixed.participants],
            "channelNonce": fixed.channel_nonce,
            "appDefinition": format_address(fixed.app_definition),
            "challengeDuration": fixed.challenge_duration_s,
        },
        "turnNum": state.turn,
        "isFinal": state.is_final,
        "appData": format_hex(state.variable.app_data),
        "outcome": format_hex(state.variable.outcome),
        "signatures": [
            {
                "signer": format_address(recover(state.digest, signature)),
                "v": signature[64],
                "r": format_hex(signature[:32]),
                "s": format_hex(signature[32:64]),
                "bytes": format_hex(signature),
            }
            for signature in cosigned.signatures
        ],
    }
    if terms is not None:
        result["terms"] = terms_to_json(terms)
    return result


def signed_state_from_json(raw: object) -> SignedState:
    """Parses a state file strictly and verifies every signature in it.

    Raises PeerFault: PARAMS for the shape, SIGNATURE, SIGNATURE_HIGH_S, SIGNATURE_V, SIGNATURE_SIGNER, CHANNEL_TERMS
    when `terms` are not those of the state, ENCODING when something said twice does not agree.
    """
    o = Fields(raw, "the state")
    state = State(
        fixed=_fixed_part(o.fields("fixedPart")),
        turn=o.integer("turnNum", 0, UINT48_MAX),
        is_final=o.boolean("isFinal"),
        variable=VariablePart(outcome=_outcome(o.any("outcome")), app_data=o.hex("appData")),
    )
    participants = state.fixed.participants
    signatures = tuple(
        _signature(item, index, state) for index, item in enumerate(o.list("signatures", len(participants)))
    )
    _check_redundant(o, state)
    app_data = _or_none(decode_app_data, state.variable.app_data)
    terms = terms_from_json(o.obj("terms")) if o.has("terms") else None
    o.done()
    if terms is not None and (app_data is None or app_data.terms_hash != terms.terms_hash):
        said = "no terms" if app_data is None else f"terms {format_hex(app_data.terms_hash)}"
        raise PeerFault(
            Code.CHANNEL_TERMS, f"the file has terms {format_hex(terms.terms_hash)}, but its appData names {said}"
        )
    return SignedState(
        state=state,
        signatures=tuple(signature for signature, _ in signatures),
        signers=tuple(signer for _, signer in signatures),
        terms=terms,
        app_data=app_data,
        exits=_or_none(decode_outcome, state.variable.outcome),
    )


def _or_none(decode: Any, encoded: bytes) -> Any:
    try:
        return decode(encoded)
    except PeerFault:
        return None  # another application's bytes, which inspection shows as they are


def _fixed_part(o: Fields) -> FixedPart:
    fixed = FixedPart(
        chain_id=_uint(o.any("chainId"), 256, "chainId"),
        participants=tuple(parse_address(p, "participant") for p in o.list("participants", 255, min_items=1)),
        channel_nonce=_uint(o.any("channelNonce"), 48, "channelNonce"),
        app_definition=o.address("appDefinition"),
        challenge_duration_s=o.integer("challengeDuration", 0, UINT48_MAX),
    )
    o.done()
    return fixed


def _uint(raw: object, bits: int, what: str) -> int:
    """A JSON integer, decimal digits or a 0x quantity."""
    if type(raw) is int and 0 <= raw < 2**bits:
        return raw
    if isinstance(raw, str):
        value = parse_quantity(raw, what) if raw.startswith("0x") else parse_uint(raw, what=what)
        if value < 2**bits:
            return value
    raise PeerFault(Code.PARAMS, f"{what} must be a whole number below 2^{bits}, as an integer or as text")


def _outcome(raw: object) -> bytes:
    if isinstance(raw, str):
        return parse_hex(raw, what="outcome")
    if type(raw) is not list:
        raise PeerFault(Code.PARAMS, "outcome must be its encoded bytes as 0x text, or a list of exit rows")
    return encode_outcome(tuple(_exit_row(row) for row in raw))


def _exit_row(raw: object) -> AssetExit:
    if type(raw) is dict and raw.keys() & {"allocationItems", "guarantee", "targetChannelId", "destinations"}:
        raise PeerFault(
            Code.PARAMS,
            "outcome is in Nitro's own format, which is not used here: give its encoded bytes as 0x text"
            " (expected.encodedOutcome in the vectors), or exit rows with asset, chainID, assetHolder, allocations",
        )
    o = Fields(raw, "a row of outcome")
    row = AssetExit(
        asset=o.address("asset"),
        chain_id=_uint(o.any("chainID"), 256, "chainID"),
        asset_holder=o.address("assetHolder"),
        allocations=tuple(_allocation(item) for item in o.list("allocations", 65536)),
    )
    o.done()
    return row


def _allocation(raw: object) -> Allocation:
    o = Fields(raw, "an allocation")
    allocation = Allocation(
        destination=o.hash("destination"),
        amount=_uint(o.any("amount"), 256, "amount"),
        allocation_type=o.integer("allocationType", 0, 255),
        metadata=o.hex("metadata"),
    )
    o.done()
    return allocation


def _signature(raw: object, index: int, state: State) -> tuple[bytes, Address]:
    """The 65 bytes and who signed. Raises PeerFault unless it is a participant's valid signature of the state."""
    what = f"signature {index + 1}"
    said: Address | None = None
    if isinstance(raw, str):
        signature = parse_hex(raw, size=SIGNATURE_BYTES, what=what)
    else:
        o = Fields(raw, what)
        signature = o.hex("r", 32) + o.hex("s", 32) + bytes((o.integer("v", 0, 255),))
        if o.has("signer"):
            said = o.address("signer")
        if o.has("bytes") and o.hex("bytes") != signature:
            raise PeerFault(Code.SIGNATURE, f"bytes of {what} are not its r, s and v")
        o.done()
    try:
        signer = recover(state.digest, signature)
    except PeerFault as fault:
        raise PeerFault(fault.code, f"{what}: {fault.message}") from fault
    if said is not None and said != signer:
        raise PeerFault(
            Code.SIGNATURE_SIGNER, f"{what} is by {format_address(signer)}, not by its signer {format_address(said)}"
        )
    if signer not in state.fixed.participants:
        raise PeerFault(
            Code.SIGNATURE_SIGNER, f"{what} recovers to {format_address(signer)}, which is not a participant"
        )
    return signature, signer


def _check_redundant(o: Fields, state: State) -> None:
    """Reads what a file may say beside the state. Hashes must agree; a vector's name and keys are passed over."""
    for name in ("name", "privateKeys"):
        if o.has(name):
            o.any(name)
    _check_hashes(o, state)
    if o.has("expected"):
        _check_hashes(o.fields("expected"), state)


def _check_hashes(o: Fields, state: State) -> None:
    computed: dict[str, Hash | bytes] = {
        "channelId": state.fixed.channel_id,
        "appPartHash": state.app_part_hash,
        "outcomeHash": state.outcome_hash,
        "stateHash": state.state_hash,
        "digest": state.digest,
        "signedDigest": state.digest,
        "encodedOutcome": state.variable.outcome,
    }
    for name, value in computed.items():
        if o.has(name) and o.hex(name) != value:
            shown_value = format_hex(value) if len(value) == 32 else f"{len(value)} other bytes"
            raise PeerFault(Code.ENCODING, f"{name} of {o.what} does not agree: {shown_value} is computed")


__all__ = [
    "MAX_STATE_FILE_BYTES",
    "SignedState",
    "app_data_from_json",
    "app_data_to_json",
    "signed_state_from_json",
    "state_to_json",
    "summary_in_text",
]
