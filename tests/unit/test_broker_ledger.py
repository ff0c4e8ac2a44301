"""Golden cases of the ledger; the histories are in tests/stateful/test_ledger.py."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from broker.ledger import Balance, Ledger, TokenTotals
from channel.errors import Code, InvariantBroken, LocalRefusal
from channel.units import UINT256_MAX, ZERO_ADDRESS, Address

ALICE, BOB = Address(b"\x0a" * 20), Address(b"\x0b" * 20)
USD, BTC = Address(b"\xcc" * 20), Address(b"\xbb" * 20)


def funded(*funds: tuple[Address, Address, int], locked: bool = False) -> Ledger:
    ledger = Ledger()
    for user, token, amount in funds:
        ledger.deposit_seen(user, token, amount)
        ledger.deposit_confirmed(user, token, amount)
        if locked:
            ledger.lock(user, token, amount)
    return ledger


def test_a_deposit_is_usable_only_when_confirmed() -> None:
    ledger = Ledger()
    ledger.deposit_seen(ALICE, USD, 100)
    assert ledger.balance(ALICE, USD) == Balance(deposited=100)
    with pytest.raises(LocalRefusal) as caught:
        ledger.lock(ALICE, USD, 1)
    assert caught.value.code is Code.ORDER_BALANCE
    ledger.deposit_confirmed(ALICE, USD, 60)
    ledger.deposit_dropped(ALICE, USD, 40)
    assert ledger.balance(ALICE, USD) == Balance(free=60)
    assert ledger.totals(USD) == TokenTotals(free=60, deposits_seen=60)
    ledger.recount()


def test_a_local_trade_moves_both_legs_and_returns_the_price_improvement() -> None:
    ledger = funded((ALICE, USD, 1_000), (BOB, BTC, 5), locked=True)
    ledger.settle_local(buyer=ALICE, seller=BOB, base=BTC, quote=USD, base_amount=2, quote_amount=380, buyer_release=20)
    assert ledger.balances(ALICE) == {BTC: Balance(free=2), USD: Balance(free=20, locked=600)}
    assert ledger.balances(BOB) == {BTC: Balance(locked=3), USD: Balance(free=380)}
    ledger.recount()


@pytest.mark.parametrize(("base_amount", "quote_amount", "release"), [(6, 10, 0), (5, 991, 10), (5, 1_001, 0)])
def test_a_local_trade_that_is_not_backed_moves_nothing(base_amount: int, quote_amount: int, release: int) -> None:
    ledger = funded((ALICE, USD, 1_000), (BOB, BTC, 5), locked=True)
    before = list(ledger.accounts())
    with pytest.raises(InvariantBroken) as caught:
        ledger.settle_local(
            buyer=ALICE,
            seller=BOB,
            base=BTC,
            quote=USD,
            base_amount=base_amount,
            quote_amount=quote_amount,
            buyer_release=release,
        )
    assert caught.value.code is Code.CONSERVATION
    assert list(ledger.accounts()) == before


def test_a_remote_trade_leaves_what_is_owed_in_the_channel_until_it_is_paid() -> None:
    ledger = funded((ALICE, USD, 1_000), locked=True)
    ledger.settle_remote(user=ALICE, pays=USD, pays_amount=400, receives=BTC, receives_amount=7, release=100)
    assert ledger.balances(ALICE) == {BTC: Balance(free=7), USD: Balance(free=100, locked=500)}
    assert (ledger.totals(USD).channel_net, ledger.totals(USD).custody) == (400, 1_000)
    assert (ledger.totals(BTC).channel_net, ledger.totals(BTC).custody) == (-7, 0)
    ledger.check()
    ledger.channel_paid_out(USD, 400)
    ledger.channel_paid_in(BTC, 7)
    assert (ledger.totals(USD).channel_net, ledger.totals(USD).custody) == (0, 600)
    assert (ledger.totals(BTC).channel_net, ledger.totals(BTC).custody) == (0, 7)
    ledger.recount()


def test_what_a_peer_still_owes_trades_at_once_and_is_withdrawn_only_when_paid() -> None:
    ledger = funded((BOB, BTC, 2))
    ledger.channel_in(ALICE, BTC, 7)
    ledger.lock(ALICE, BTC, 7)
    ledger.unlock(ALICE, BTC, 7)
    with pytest.raises(LocalRefusal) as caught:
        ledger.withdrawal_debit(ALICE, BTC, 3)
    assert caught.value.code is Code.BALANCE
    assert caught.value.data["payable"] == 2
    ledger.channel_paid_in(BTC, 7)
    ledger.withdrawal_debit(ALICE, BTC, 7)
    ledger.withdrawal_done(ALICE, BTC, 7)
    ledger.recount()


def test_what_is_being_withdrawn_is_the_users_until_the_chain_says_done() -> None:
    ledger = funded((ALICE, USD, 100))
    ledger.withdrawal_debit(ALICE, USD, 70)
    assert ledger.balance(ALICE, USD) == Balance(free=30, withdrawing=70)
    assert ledger.totals(USD).users == ledger.totals(USD).custody == 100
    with pytest.raises(LocalRefusal) as caught:
        ledger.withdrawal_debit(ALICE, USD, 31)
    assert caught.value.code is Code.BALANCE
    ledger.withdrawal_failed(ALICE, USD, 20)
    ledger.withdrawal_done(ALICE, USD, 50)
    assert ledger.balance(ALICE, USD) == Balance(free=50)
    assert ledger.totals(USD).custody == 50
    ledger.recount()


def test_the_house_takes_and_gives() -> None:
    ledger = funded((ALICE, USD, 100))
    ledger.house_take(ALICE, USD, 30)
    assert ledger.totals(USD).house == 30
    ledger.house_give(BOB, USD, 10)
    assert (ledger.balance(BOB, USD).free, ledger.totals(USD).house) == (10, 20)
    for refused in (
        lambda: ledger.house_take(ALICE, USD, 71),
        lambda: ledger.house_give(ALICE, USD, 21),
        lambda: ledger.house_give(ALICE, BTC, 1),
    ):
        with pytest.raises(LocalRefusal) as caught:
            refused()
        assert caught.value.code is Code.BALANCE
    ledger.recount()


ONE_TOO_MUCH: list[tuple[str, Callable[[Ledger], None], Code]] = [
    ("confirm", lambda ledger: ledger.deposit_confirmed(ALICE, USD, 1), Code.CONSERVATION),
    ("drop", lambda ledger: ledger.deposit_dropped(ALICE, USD, 1), Code.CONSERVATION),
    ("lock", lambda ledger: ledger.lock(ALICE, USD, 51), Code.ORDER_BALANCE),
    ("unlock", lambda ledger: ledger.unlock(ALICE, USD, 51), Code.CONSERVATION),
    ("transfer", lambda ledger: ledger.transfer_locked(ALICE, BOB, USD, 51), Code.CONSERVATION),
    ("channel out", lambda ledger: ledger.channel_out(ALICE, USD, 51), Code.CONSERVATION),
    ("paid out", lambda ledger: ledger.channel_paid_out(USD, 101), Code.CONSERVATION),
    ("withdraw", lambda ledger: ledger.withdrawal_debit(ALICE, USD, 51), Code.BALANCE),
    ("withdrawn", lambda ledger: ledger.withdrawal_done(ALICE, USD, 1), Code.CONSERVATION),
    ("failed", lambda ledger: ledger.withdrawal_failed(ALICE, USD, 1), Code.CONSERVATION),
    ("another user", lambda ledger: ledger.lock(BOB, USD, 1), Code.ORDER_BALANCE),
    ("another token", lambda ledger: ledger.lock(ALICE, ZERO_ADDRESS, 1), Code.ORDER_BALANCE),
    ("negative", lambda ledger: ledger.unlock(ALICE, USD, -1), Code.AMOUNT),
    ("too large", lambda ledger: ledger.deposit_seen(ALICE, USD, UINT256_MAX + 1), Code.AMOUNT),
    ("sum too large", lambda ledger: ledger.deposit_seen(BOB, USD, UINT256_MAX - 99), Code.AMOUNT),
    ("sum too large from a peer", lambda ledger: ledger.channel_in(BOB, USD, UINT256_MAX - 99), Code.AMOUNT),
    (
        "remote trade not backed",
        lambda ledger: ledger.settle_remote(user=ALICE, pays=USD, pays_amount=51, receives=BTC, receives_amount=1),
        Code.CONSERVATION,
    ),
    (
        "remote trade that does not fit",
        lambda ledger: ledger.settle_remote(
            user=ALICE, pays=BTC, pays_amount=0, receives=USD, receives_amount=UINT256_MAX - 99
        ),
        Code.AMOUNT,
    ),
]


@pytest.mark.parametrize(("call", "code"), [case[1:] for case in ONE_TOO_MUCH], ids=[case[0] for case in ONE_TOO_MUCH])
def test_one_unit_too_much_is_refused_and_changes_nothing(call: Callable[[Ledger], None], code: Code) -> None:
    ledger = funded((ALICE, USD, 100))
    ledger.lock(ALICE, USD, 50)
    before = list(ledger.accounts()), ledger.totals(USD), ledger.tokens(), ledger.users()
    with pytest.raises(InvariantBroken if code is Code.CONSERVATION else LocalRefusal) as caught:
        call(ledger)
    assert caught.value.code is code
    assert (list(ledger.accounts()), ledger.totals(USD), ledger.tokens(), ledger.users()) == before
    ledger.recount()


def test_asking_and_refusals_make_no_accounts() -> None:
    ledger = Ledger()
    ledger.balance(ALICE, USD)
    ledger.lock(ALICE, USD, 0)
    ledger.unlock(ALICE, USD, 0)
    ledger.house_give(ALICE, USD, 0)
    assert ledger.users() == ()
    assert ledger.tokens() == ()
    assert ledger.totals(USD) == TokenTotals()


def test_tokens_are_bounded() -> None:
    ledger = Ledger(max_tokens=1)
    ledger.deposit_seen(ALICE, USD, 1)
    for refused in (ledger.deposit_seen, ledger.channel_in):
        with pytest.raises(LocalRefusal) as caught:
            refused(ALICE, BTC, 1)
        assert caught.value.code is Code.BUSY
    ledger.deposit_seen(BOB, USD, 1)
    assert ledger.tokens() == (USD,)


def test_restore_gives_the_same_ledger_and_refuses_one_unit_more() -> None:
    ledger = funded((ALICE, USD, 100), (BOB, BTC, 9))
    ledger.lock(ALICE, USD, 30)
    ledger.settle_remote(user=ALICE, pays=USD, pays_amount=10, receives=BTC, receives_amount=3)
    ledger.withdrawal_debit(BOB, BTC, 4)
    accounts, totals = list(ledger.accounts()), [(token, ledger.totals(token)) for token in ledger.tokens()]
    again = Ledger.restore(accounts, totals)
    assert list(again.accounts()) == accounts
    assert [(token, again.totals(token)) for token in again.tokens()] == totals
    user, token, balance = accounts[0]
    wrong = [(user, token, replace(balance, free=balance.free + 1)), *accounts[1:]]
    with pytest.raises(InvariantBroken):
        Ledger.restore(wrong, totals)
    with pytest.raises(InvariantBroken):
        Ledger.restore(accounts, [(token, replace(of, house=of.house + 1)) for token, of in totals])


@pytest.mark.parametrize(
    "totals",
    [
        TokenTotals(free=-1, house=1),
        TokenTotals(free=1),
        TokenTotals(free=1, deposits_seen=2),
        TokenTotals(house=-1, channel_net=1),
        TokenTotals(channel_net=-1, channel_paid_out=1),
    ],
)
def test_check_finds_what_does_not_add_up(totals: TokenTotals) -> None:
    with pytest.raises(InvariantBroken) as caught:
        Ledger.restore([], [(USD, totals)])
    assert caught.value.code is Code.CONSERVATION
