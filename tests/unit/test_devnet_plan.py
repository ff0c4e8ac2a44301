"""The plan of a demo: deposits and collateral are enough for whatever becomes of it, and the dry run counts right."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.clob.book import Side
from channel.errors import Code, LocalRefusal
from devnet import plan as plans
from devnet.flow import DEMO_LOT_BASE_UNITS, FlowKind, FlowOp, TakerOp
from devnet.plan import Plan, cross_rounds, make_plan, maker_of, notional, taker_of, with_slippage

HEADER = "op,order_id,side,price,size\n"


def plan_of(seed: int = 1, events: int = 600, every: int = 5) -> Plan:
    return make_plan(None, events, every=every, seed=seed, cover_ratio_bps=11_000)


def test_the_same_arguments_give_the_same_plan_and_another_seed_another() -> None:
    assert plan_of() == plan_of()
    assert plan_of().operations != plan_of(seed=2).operations


def test_slippage_is_bounded_and_goes_the_takers_way() -> None:
    assert with_slippage(Side.BUY, 6_000_000) == 6_006_000
    assert with_slippage(Side.SELL, 6_000_000) == 5_994_000
    assert with_slippage(Side.SELL, 1) == 1


@settings(max_examples=15)
@given(seed=st.integers(0, 1_000), events=st.integers(100, 1_500), every=st.integers(1, 20))
def test_nobody_ever_lacks_the_funds_for_an_order(seed: int, events: int, every: int) -> None:
    """Makers: what the flow has alive, plus everything that takers could take from that maker alone before."""
    plan = plan_of(seed, events, every)
    alive: dict[int, FlowOp] = {}
    sold, bought = [0] * plans.TAKERS, [0] * plans.TAKERS  # what takers have been asking for: lots, USD
    taken_btc = taken_usd = 0
    for op in plan.operations:
        if isinstance(op, TakerOp):
            worst = notional(with_slippage(Side.BUY, max(o.price_ticks for o in alive.values())), op.lots)
            if op.side is Side.BUY:
                bought[taker_of(op.number)] += worst
                taken_btc += op.lots * DEMO_LOT_BASE_UNITS
            else:
                sold[taker_of(op.number)] += op.lots * DEMO_LOT_BASE_UNITS
                taken_usd += worst
            continue
        alive.pop(op.order_ref, None)
        if op.kind is not FlowKind.REMOVE:
            alive[op.order_ref] = op
        maker = maker_of(op.order_ref)
        own = [o for o in alive.values() if maker_of(o.order_ref) == maker]
        locked_btc = sum(o.lots for o in own if o.side is Side.SELL) * DEMO_LOT_BASE_UNITS
        locked_usd = sum(notional(o.price_ticks, o.lots) for o in own if o.side is Side.BUY)
        assert locked_btc + taken_btc <= plan.deposits_b[maker].btc
        assert locked_usd + taken_usd <= plan.deposits_b[maker].usd + notional(plan.mid_ticks, 400)
    for number, deposit in enumerate(plan.deposits_a[: plans.TAKERS]):
        assert sold[number] <= deposit.btc
        assert bought[number] <= deposit.usd + notional(plan.mid_ticks, 400)


def test_takers_are_of_both_sides_for_every_user() -> None:
    sides: dict[int, set[Side]] = {}
    for op in plan_of().operations:
        if isinstance(op, TakerOp):
            sides.setdefault(taker_of(op.number), set()).add(op.side)
    assert sides == {user: {Side.BUY, Side.SELL} for user in range(plans.TAKERS)}


def test_collateral_covers_the_peak_twice_and_all_that_can_be_on_its_way() -> None:
    sizing = plan_of(events=3_000).sizing
    needed = 2 * sizing.peak_owed + sizing.in_flight + sizing.crosses
    assert sizing.peak_owed > 0
    assert needed * 11 // 10 <= sizing.lock < needed * 11 // 10 + 2_000 * plans.USD_UNITS
    assert sizing.lock % (1_000 * plans.USD_UNITS) == 0


def test_the_dry_run_by_hand(tmp_path: Path) -> None:
    """50 rows of a book, ten more, then a taker that buys from the two best asks; what B owes is what it got."""
    rows = [f"add,b{n},buy,{59_000 - n},1\n" for n in range(25)] + [
        f"add,s{n},sell,{60_000 + n},0.001\n" for n in range(25)
    ]
    rows += [f"add,x{n},buy,{58_000 - n},1\n" for n in range(10)]
    path = tmp_path / "flow.csv"
    path.write_text(HEADER + "".join(rows))
    plan = make_plan(path, None, every=10, seed=3, cover_ratio_bps=10_000)
    (taker,) = [op for op in plan.operations if isinstance(op, TakerOp)]
    assert (taker.side, plan.takers, plan.mid_ticks) == (Side.BUY, 1, 5_950_000)
    levels, left, paid = 0, taker.lots, 0
    while left and levels < 25 and 6_000_000 + 100 * levels <= with_slippage(Side.BUY, 6_000_000):
        lots = min(left, 10)
        paid += notional(6_000_000 + 100 * levels, lots)
        left, levels = left - lots, levels + 1
    assert plan.expected_fills == levels
    assert plan.sizing.peak_owed == max(paid, notional(plan.mid_ticks, taker.lots - left))


def test_rounds_on_the_other_book_alternate_and_are_bounded() -> None:
    rounds = list(cross_rounds(1, 103))
    assert len(rounds) == 103 // plans.CROSS_EVERY
    assert [side for side, _ in rounds[:4]] == [Side.BUY, Side.SELL, Side.BUY, Side.SELL]
    assert all(plans.CROSS_LOTS[0] <= lots <= plans.CROSS_LOTS[1] for _, lots in rounds)


def test_what_cannot_be_a_demo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalRefusal, match="all needs a file") as no_end:
        make_plan(None, None, every=5, seed=1, cover_ratio_bps=11_000)
    path = tmp_path / "flow.csv"
    path.write_text(HEADER + "add,1,buy,100,1\n")
    with pytest.raises(LocalRefusal, match="too short") as short:
        make_plan(path, None, every=5, seed=1, cover_ratio_bps=11_000)
    assert {no_end.value.code, short.value.code} == {Code.CONFIG}
