"""Application data and outcomes: bytes against eth_abi, one encoding only, bounds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from hypothesis import given
from hypothesis import strategies as st

from channel.appdata import (
    AppData,
    BalanceUpdate,
    CollateralLock,
    OpenOrdersSummary,
    Price,
    decode_app_data,
    lock_id_of,
    next_journal_head,
    outcome_of,
)
from channel.errors import Code, PeerFault
from channel.hashing import keccak
from channel.outcome import Allocation, AssetExit, decode_outcome, encode_outcome, single_payment
from channel.state import word
from channel.units import UINT64_MAX, UINT256_MAX, Address, ChannelId, Hash, MarketId

TYPE = (
    "(bytes32,uint64,bytes32,(address,address,uint256,address,uint256,uint256)[],"
    "(address,address,bytes32,uint8,uint256,uint256,uint256,uint256)[],"
    "(address,bytes32,uint256,address,uint256,uint256)[],(address,address,uint256,uint64)[])"
)
ADDRESSES = st.binary(min_size=20, max_size=20).map(Address)
HASHES = st.binary(min_size=32, max_size=32).map(Hash)
UINT = st.integers(0, UINT256_MAX)
SOME = st.integers(1, UINT256_MAX)
UINT64 = st.integers(0, UINT64_MAX)

ROWS: dict[str, st.SearchStrategy[Any]] = {
    "balance_updates": st.builds(
        BalanceUpdate, holder=ADDRESSES, owner=ADDRESSES, chain_id=UINT, token=ADDRESSES, available=UINT, locked=SOME
    ),
    "open_orders": st.builds(
        OpenOrdersSummary,
        holder=ADDRESSES,
        owner=ADDRESSES,
        market_id=HASHES.map(MarketId),
        side=st.integers(0, 1),
        base=SOME,
        low_ticks=UINT,
        high_ticks=UINT,
        quote=UINT,
    ),
    "collateral": st.builds(
        CollateralLock, owner=ADDRESSES, lock_id=HASHES, chain_id=UINT, token=ADDRESSES, available=SOME, locked=UINT
    ),
    "prices": st.builds(Price, asset=ADDRESSES, quote=ADDRESSES, price=SOME, time_ms=UINT64),
}
DATA = st.builds(
    AppData.of,
    terms_hash=HASHES,
    time_ms=UINT64,
    journal_head=HASHES,
    **{name: st.lists(rows, max_size=4, unique_by=lambda row: row.key) for name, rows in ROWS.items()},
)


def fields_of(data: AppData) -> tuple[Any, ...]:
    return (
        data.terms_hash,
        data.time_ms,
        data.journal_head,
        [(r.holder, r.owner, r.chain_id, r.token, r.available, r.locked) for r in data.balance_updates],
        [
            (r.holder, r.owner, r.market_id, r.side, r.base, r.low_ticks, r.high_ticks, r.quote)
            for r in data.open_orders
        ],
        [(r.owner, r.lock_id, r.chain_id, r.token, r.available, r.locked) for r in data.collateral],
        [(r.asset, r.quote, r.price, r.time_ms) for r in data.prices],
    )


@given(DATA)
def test_encoding_is_that_of_eth_abi_and_decodes_to_the_same(data: AppData) -> None:
    encoded = data.encode()
    assert encoded == abi_encode([TYPE], [fields_of(data)])
    assert decode_app_data(encoded) == data


def row(number: int, amount: int = 1) -> BalanceUpdate:
    address = Address(number.to_bytes(20, "big"))
    return BalanceUpdate(holder=address, owner=address, chain_id=1, token=address, available=0, locked=amount)


def data_of(*rows: BalanceUpdate) -> AppData:
    """Rows as they are, in their order."""
    empty = AppData.of(terms_hash=Hash(bytes(32)), time_ms=5, journal_head=Hash(bytes(32)))
    return replace(empty, balance_updates=rows)


def refused(encoded: bytes) -> str:
    with pytest.raises(PeerFault) as caught:
        decode_app_data(encoded)
    assert caught.value.code is Code.ENCODING
    return caught.value.message


GOOD = AppData.of(
    terms_hash=Hash(b"\x01" * 32),
    time_ms=1_700_000_000_000,
    journal_head=Hash(b"\x02" * 32),
    balance_updates=[row(1), row(2)],
    open_orders=[
        OpenOrdersSummary(
            holder=Address(bytes(20)),
            owner=Address(b"\x05" * 20),
            market_id=MarketId(b"\x06" * 32),
            side=1,
            base=5,
            low_ticks=1,
            high_ticks=2,
            quote=9,
        )
    ],
    collateral=[
        CollateralLock(
            owner=Address(b"\x07" * 20),
            lock_id=Hash(b"\x08" * 32),
            chain_id=1,
            token=Address(bytes(20)),
            available=0,
            locked=3,
        )
    ],
    prices=[Price(asset=Address(bytes(20)), quote=Address(b"\x09" * 20), price=5, time_ms=7)],
)
ENCODED = GOOD.encode()


@given(st.integers(0, len(ENCODED) - 1), st.integers(1, 255))
def test_one_encoding_only_any_changed_byte_is_other_data_or_refused(at: int, flip: int) -> None:
    changed = ENCODED[:at] + bytes((ENCODED[at] ^ flip,)) + ENCODED[at + 1 :]
    try:
        data = decode_app_data(changed)
    except PeerFault as fault:
        assert fault.code is Code.ENCODING
        return
    assert data != GOOD
    assert data.encode() == changed


@given(st.binary(max_size=700))
def test_garbage_is_refused_and_never_crashes(raw: bytes) -> None:
    refused(raw)


@given(st.integers(0, len(ENCODED) - 1))
def test_truncated_bytes_are_refused(length: int) -> None:
    refused(ENCODED[:length])


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ((row(2), row(1)), "ascend"),
        ((row(1), row(1)), "each once"),
        ((row(1), row(1, 2)), "each once"),
        ((row(1), row(2, 0)), "zero"),
        (tuple(row(n) for n in range(65)), "too many rows"),
    ],
)
def test_rows_that_are_not_normal(rows: tuple[BalanceUpdate, ...], says: str) -> None:
    assert says in refused(data_of(*rows).encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw + bytes(32),
        lambda raw: raw + b"\0",
        lambda raw: word(64) + bytes(32) + raw[32:],
        lambda raw: raw[:64] + word(2**64) + raw[96:],  # time beyond uint64
        lambda raw: raw[:128] + word(2**255) + raw[160:],  # an offset out of range
        lambda raw: raw[:128] + raw[160:192] + raw[128:160] + raw[192:],  # offsets exchanged
        lambda raw: raw.replace(bytes(12) + b"\x05" * 20, b"\1" * 32, 1),
        lambda raw: raw.replace(word(1) + word(5) + word(1), word(2) + word(5) + word(1), 1),  # side 2
    ],
)
def test_dirty_bytes_are_refused(change: Callable[[bytes], bytes]) -> None:
    changed = change(ENCODED)
    assert changed != ENCODED
    refused(changed)


def test_construction_sorts_drops_zero_and_refuses_duplicates() -> None:
    common: dict[str, Any] = {"terms_hash": Hash(bytes(32)), "time_ms": 0, "journal_head": Hash(bytes(32))}
    data = AppData.of(**common, balance_updates=[row(3), row(1), row(2, 0)])
    assert data.balance_updates == (row(1), row(3))
    for rows, says in (([row(1), row(1)], "one row"), ([row(n) for n in range(65)], "at most 64")):
        with pytest.raises(PeerFault, match=says) as caught:
            AppData.of(**common, balance_updates=rows)
        assert caught.value.code is Code.CHANNEL_STATE
    assert len(AppData.of(**common, balance_updates=[row(n) for n in range(64)]).balance_updates) == 64


def test_hashes_of_locks_and_journal_heads() -> None:
    channel, owner = ChannelId(b"\x01" * 32), Address(b"\x02" * 20)
    assert lock_id_of(channel, owner) == keccak(abi_encode(["bytes32", "address"], [channel, owner]))
    hashes = [b"\x03" * 32, b"\x04" * 32]
    for listed in ([], hashes):
        expected = keccak(abi_encode(["bytes32", "uint256", "bytes32[]"], [channel, 7, listed]))
        assert next_journal_head(Hash(channel), 7, listed) == expected
    assert next_journal_head(Hash(channel), 7, hashes) != next_journal_head(Hash(channel), 7, hashes[::-1])


# -- outcomes

ALLOCATIONS = st.builds(
    Allocation,
    destination=HASHES,
    amount=UINT,
    allocation_type=st.integers(0, 255),
    metadata=st.binary(max_size=40),
)
EXITS = st.lists(
    st.builds(
        AssetExit,
        asset=ADDRESSES,
        chain_id=UINT,
        asset_holder=ADDRESSES,
        allocations=st.lists(ALLOCATIONS, max_size=3).map(tuple),
    ),
    max_size=3,
).map(tuple)
EXIT_TYPE = "(address,(uint8,bytes),(bytes32,uint256,uint8,bytes)[])[]"


def exit_fields(exits: tuple[AssetExit, ...]) -> list[Any]:
    return [
        (
            e.asset,
            (3, abi_encode(["uint256", "address"], [e.chain_id, e.asset_holder])),
            [(a.destination, a.amount, a.allocation_type, a.metadata) for a in e.allocations],
        )
        for e in exits
    ]


@given(EXITS)
def test_outcomes_are_those_of_eth_abi(exits: tuple[AssetExit, ...]) -> None:
    encoded = encode_outcome(exits)
    assert encoded == abi_encode([EXIT_TYPE], [exit_fields(exits)])
    assert decode_outcome(encoded) == exits


@given(st.binary(max_size=400))
def test_garbage_is_no_outcome(raw: bytes) -> None:
    with pytest.raises(PeerFault) as caught:
        decode_outcome(raw)
    assert caught.value.code is Code.ENCODING


@given(EXITS, st.data())
def test_one_encoding_of_an_outcome_only(exits: tuple[AssetExit, ...], data: st.DataObject) -> None:
    encoded = encode_outcome(exits)
    at = data.draw(st.integers(0, len(encoded) - 1))
    changed = encoded[:at] + bytes((encoded[at] ^ data.draw(st.integers(1, 255)),)) + encoded[at + 1 :]
    try:
        again = decode_outcome(changed)
    except PeerFault as fault:
        assert fault.code is Code.ENCODING
        return
    assert again != exits
    assert encode_outcome(again) == changed


def test_a_bomb_of_offsets_is_refused_at_once() -> None:
    """A thousand rows at one place, each with a thousand allocations at one place: a million, to who follows them."""
    count = 1000
    allocation = word(0) + word(1) + word(0) + word(128) + word(0)
    allocations = word(count) + word(32 * count) * count + allocation
    metadata = word(3) + word(64) + word(64) + word(1) + word(0)
    row = word(0) + word(96) + word(96 + len(metadata)) + metadata + allocations
    bomb = word(32) + word(count) + word(32 * count) * count + row
    with pytest.raises(PeerFault, match="too early"):
        decode_outcome(bomb)


def test_only_qualified_assets() -> None:
    encoded = abi_encode([EXIT_TYPE], [[(bytes(20), (0, b""), [])]])
    with pytest.raises(PeerFault, match="Qualified"):
        decode_outcome(encoded)
    encoded = abi_encode([EXIT_TYPE], [[(bytes(20), (3, b"short"), [])]])
    with pytest.raises(PeerFault) as caught:
        decode_outcome(encoded)
    assert caught.value.code is Code.ENCODING


def test_the_outcome_is_a_function_of_the_balances() -> None:
    a, b = Address(b"\x0a" * 20), Address(b"\x0b" * 20)
    custody = {a: Address(b"\xca" * 20), b: Address(b"\xcb" * 20)}
    eth, usd = Address(bytes(20)), Address(b"\x05" * 20)
    rows = [
        BalanceUpdate(holder=b, owner=a, chain_id=1, token=eth, available=1, locked=9),
        BalanceUpdate(holder=a, owner=b, chain_id=1, token=usd, available=0, locked=200),
        BalanceUpdate(holder=a, owner=b, chain_id=1, token=eth, available=0, locked=0),
    ]
    exits = decode_outcome(outcome_of(rows, custody))
    assert [(e.asset_holder, e.asset, e.allocations[0].amount) for e in exits] == [
        (custody[a], usd, 200),
        (custody[b], eth, 10),
    ]
    assert exits[1].allocations[0].destination == bytes(12) + custody[a]
    assert outcome_of(rows[::-1], custody) == outcome_of(rows, custody)
    assert outcome_of([], custody) == word(32) + word(0)


@pytest.mark.parametrize("amount", [0, -1, UINT256_MAX + 1])
def test_a_payment_is_above_zero_and_fits(amount: int) -> None:
    with pytest.raises(PeerFault) as caught:
        single_payment(
            asset=Address(bytes(20)), chain_id=1, payer=Address(bytes(20)), payee=Address(bytes(20)), amount=amount
        )
    assert caught.value.code is Code.AMOUNT


def test_the_vectors_type_is_what_the_decoder_reads() -> None:
    (rows,) = abi_decode([TYPE], ENCODED)
    assert rows[1] == GOOD.time_ms
