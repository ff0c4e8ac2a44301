"""Order flow: what a file must look like, which way things are rounded, and that a seed gives one flow."""

import gzip
import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.clob import Side
from channel.errors import Code, LocalRefusal, PeerFault
from channel.units import format_amount
from devnet.flow import (
    FLOW_DECIMALS,
    FlowKind,
    FlowOp,
    FlowRow,
    FlowStats,
    TakerOp,
    generate_flow,
    normalise,
    read_flow,
    round_price,
    round_size,
    takers,
)

HEADER = "op,order_id,side,price,size\n"
E18 = 10**18


def text_of(row: FlowRow) -> str:
    def number(value: int | None) -> str:
        return "" if value is None else format_amount(value, FLOW_DECIMALS)

    return f"{row.kind},{row.order_id},{row.side.name.lower()},{number(row.price_e18)},{number(row.size_e18)}\n"


def file_of(folder: Path, text: str) -> Path:
    path = folder / "flow.csv"
    path.write_bytes(text.encode())
    return path


def row(kind: str, order_id: str, side: Side = Side.BUY, price: str = "100", size: str = "1") -> FlowRow:
    def scaled(value: str) -> int:
        whole, _, fraction = value.partition(".")
        return int(whole) * E18 + int(fraction.ljust(18, "0"))

    return FlowRow(kind=FlowKind(kind), order_id=order_id, side=side, price_e18=scaled(price), size_e18=scaled(size))


def ops_of(*rows: FlowRow) -> tuple[list[FlowOp], FlowStats]:
    stats = FlowStats()
    return list(normalise(rows, stats=stats)), stats


def test_decimals_are_exact(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        HEADER + "add,1,buy,60940.35136398,0.1\namend,1,buy,9007199254740993.000000000000000001,3\nremove,1,buy,,\n",
    )
    assert list(read_flow(path)) == [
        FlowRow(kind=FlowKind.ADD, order_id="1", side=Side.BUY, price_e18=60940_35136398 * 10**10, size_e18=10**17),
        FlowRow(
            kind=FlowKind.AMEND,
            order_id="1",
            side=Side.BUY,
            price_e18=9007199254740993_000000000000000001,
            size_e18=3 * E18,
        ),
        FlowRow(kind=FlowKind.REMOVE, order_id="1", side=Side.BUY, price_e18=None, size_e18=None),
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_generated_flow_survives_a_file(tmp_path: Path, packed: bool, ending: str) -> None:
    rows = list(generate_flow(1, 300))
    data = (HEADER + "".join(text_of(one) for one in rows)).replace("\n", ending).encode()
    path = tmp_path / "flow"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert list(read_flow(path)) == rows


@pytest.mark.parametrize(
    "line",
    [
        "place,1,buy,1,1",
        "ADD,1,buy,1,1",
        "add,1,bid,1,1",
        "add,,buy,1,1",
        "add," + "9" * 65 + ",buy,1,1",
        "add,1,buy,,1",
        "add,1,buy,1,",
        "amend,1,buy,1,",
        "add,1,buy,1e3,1",
        "add,1,buy,-1,1",
        "add,1,buy,+1,1",
        "add,1,buy, 1,1",
        "add,1,buy,0x1,1",
        "add,1,buy,NaN,1",
        "add,1,buy,1.,1",
        "add,1,buy,.5,1",
        "add,1,buy,1_0,1",
        "add,1,buy,1,0.0000000000000000001",
        "remove,1,buy,x,",
        "add,1,buy,1",
        "add,1,buy,1,1,1",
        "add,é,buy,1,1",
        'add,"1",buy,1',
        "",
        "add,1,buy,1," + "0" * 600,
    ],
)
def test_a_malformed_row_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    rows = read_flow(file_of(tmp_path, HEADER + "add,7,buy,1,1\n" + line + "\nadd,8,buy,1,1\n"))
    assert next(rows).order_id == "7"
    with pytest.raises(PeerFault, match="line 3") as caught:
        next(rows)
    assert caught.value.code is Code.ENCODING
    assert caught.value.data["line"] == 3


@pytest.mark.parametrize("text", ["", "op,id,side,price,size\n", "add,1,buy,1,1\n"])
def test_the_header_is_required(tmp_path: Path, text: str) -> None:
    with pytest.raises(PeerFault, match="line 1") as caught:
        list(read_flow(file_of(tmp_path, text)))
    assert caught.value.code is Code.ENCODING


def test_damaged_gzip_is_told(tmp_path: Path) -> None:
    data = gzip.compress((HEADER + "".join(text_of(one) for one in generate_flow(1, 2_000))).encode())
    path = tmp_path / "flow.csv.gz"
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    for broken in (data[:-20], data[: len(data) // 2], bytes(flipped), data[:2] + b"x" * 40):
        path.write_bytes(broken)
        with pytest.raises(PeerFault) as caught:
            list(read_flow(path))
        assert caught.value.code is Code.ENCODING


def test_a_file_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(LocalRefusal) as caught:
            list(read_flow(path))
        assert caught.value.code is Code.CONFIG


def test_prices_are_rounded_away_from_the_spread_and_sizes_up() -> None:
    ops, stats = ops_of(
        row("add", "1", Side.BUY, "100.019", "0.00011"),
        row("add", "2", Side.SELL, "100.011", "0.0001"),
        row("add", "3", Side.BUY, "100.01", "0.00000001"),
        row("add", "4", Side.SELL, "100.02", "1"),
    )
    assert [(op.side, op.price_ticks, op.lots) for op in ops] == [
        (Side.BUY, 10_001, 2),
        (Side.SELL, 10_002, 1),
        (Side.BUY, 10_001, 1),
        (Side.SELL, 10_002, 10_000),
    ]
    assert (stats.prices_rounded, stats.sizes_rounded) == (2, 2)


@given(price=st.integers(0, 2**80), unit=st.integers(1, 2**70))
def test_rounding_never_makes_a_trade_and_moves_less_than_a_unit(price: int, unit: int) -> None:
    bid, ask, size = (
        round_price(Side.BUY, price, unit),
        round_price(Side.SELL, price, unit),
        round_size(price, unit),
    )
    assert price - unit < bid * unit <= price <= ask * unit < price + unit
    assert price <= size * unit < price + unit


def test_rows_that_make_no_sense_are_skipped_and_counted() -> None:
    ops, stats = ops_of(
        row("add", "1"),
        row("add", "1"),  # duplicate
        row("amend", "2"),  # unknown
        row("remove", "2"),  # unknown
        row("add", "3", size="0"),
        row("add", "3", price="0.001"),  # a bid that rounds to nothing
        row("amend", "1", size="0"),
        row("amend", "1", Side.SELL),
        row("amend", "1", price="100.001"),  # no whole tick
        row("amend", "1", price="101", size="2"),
        row("remove", "1"),
        row("remove", "1"),  # unknown by now
    )
    assert [(op.kind.value, op.price_ticks, op.lots) for op in ops] == [
        ("add", 10_000, 10_000),
        ("amend", 10_100, 20_000),
        ("remove", 10_100, 20_000),
    ]
    assert stats == FlowStats(
        rows=12,
        emitted=3,
        prices_rounded=1,
        skipped_unknown=3,
        skipped_duplicate=1,
        skipped_zero=3,
        skipped_side=1,
        skipped_unchanged=1,
    )
    assert stats.rows == stats.emitted + stats.skipped


def test_an_id_that_comes_back_is_a_new_order() -> None:
    ops, _ = ops_of(row("add", "1"), row("remove", "1"), row("add", "1"), row("amend", "1", size="2"))
    assert [op.order_ref for op in ops] == [1, 1, 2, 2]


def test_bounds_of_normalise() -> None:
    rows = [row("add", str(number)) for number in range(4)]
    with pytest.raises(PeerFault) as caught:
        list(normalise(rows, stats=FlowStats(), max_alive=3))
    assert caught.value.code is Code.AMOUNT
    with pytest.raises(PeerFault) as caught:
        ops_of(row("add", "1", size=str(2**63)))
    assert caught.value.code is Code.AMOUNT
    for tick, lot in (("0", "1"), ("1", "0")):
        with pytest.raises(LocalRefusal) as refused:
            list(normalise([], stats=FlowStats(), tick=tick, lot=lot))
        assert refused.value.code is Code.CONFIG


def test_a_seed_gives_one_flow() -> None:
    def digest(seed: int) -> str:
        return hashlib.sha256("".join(text_of(one) for one in generate_flow(seed, 1_000)).encode()).hexdigest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)
    assert list(generate_flow(1, 80)) == list(generate_flow(1, 1_000))[:80]


@pytest.mark.parametrize("seed", [1, 2])
def test_generated_flow_has_the_shape_of_a_market(seed: int) -> None:
    events = 10_000
    alive: dict[str, FlowRow] = {}
    kinds: Counter[FlowKind] = Counter()
    counts, mids = [], []
    for number, one in enumerate(generate_flow(seed, events)):
        kinds[one.kind] += 1
        if number < 50:
            assert one.kind is FlowKind.ADD
        if one.kind is FlowKind.REMOVE:
            assert alive.pop(one.order_id).side is one.side
        else:
            assert (one.order_id in alive) == (one.kind is FlowKind.AMEND)
            assert one.price_e18 is not None
            assert one.size_e18
            alive[one.order_id] = one
        bids = [order.price_e18 or 0 for order in alive.values() if order.side is Side.BUY]
        asks = [order.price_e18 or 0 for order in alive.values() if order.side is Side.SELL]
        if number >= 50:
            assert max(bids) < min(asks)
            assert max(len(bids), len(asks)) <= 25
            counts.append(len(alive))
            mids.append((max(bids) + min(asks)) // 2 // E18)
    assert 0.33 < kinds[FlowKind.ADD] / events < 0.41
    assert 0.33 < kinds[FlowKind.REMOVE] / events < 0.41
    assert 0.23 < kinds[FlowKind.AMEND] / events < 0.29
    assert 42 < sum(counts) / len(counts) < 48
    assert 55_000 < min(mids) < max(mids) < 65_000
    assert max(mids) - min(mids) > 20
    stats = FlowStats()
    assert sum(1 for _ in normalise(generate_flow(seed, events), stats=stats)) == stats.emitted > 0.97 * events
    assert 0.05 < stats.prices_rounded / events < 0.2
    assert 0.2 < stats.sizes_rounded / events < 0.6


def test_takers_alternate_and_come_every_k_operations_after_the_starting_book() -> None:
    def mixed(seed: int) -> list[FlowOp | TakerOp]:
        ops = normalise(generate_flow(1, 200), stats=FlowStats())
        return list(takers(ops, every=10, seed=seed, min_lots=3, max_lots=9))

    found = mixed(5)
    taken = [(index, op) for index, op in enumerate(found) if isinstance(op, TakerOp)]
    assert [index for index, _ in taken[:3]] == [60, 71, 82]
    assert [op.number for _, op in taken] == list(range(1, len(taken) + 1))
    assert [op.side for _, op in taken[:4]] == [Side.BUY, Side.SELL, Side.BUY, Side.SELL]
    assert {op.lots for _, op in taken} <= set(range(3, 10))
    assert len({op.lots for _, op in taken}) > 2
    assert found == mixed(5)
    assert found != mixed(6)
    plain = list(normalise(generate_flow(1, 200), stats=FlowStats()))
    assert [op for op in found if isinstance(op, FlowOp)] == plain


@pytest.mark.parametrize(("every", "low", "high"), [(0, 1, 2), (1, 0, 2), (1, 3, 2)])
def test_takers_refuse_what_makes_no_sense(every: int, low: int, high: int) -> None:
    with pytest.raises(LocalRefusal) as caught:
        list(takers([], every=every, seed=1, min_lots=low, max_lots=high))
    assert caught.value.code is Code.CONFIG
