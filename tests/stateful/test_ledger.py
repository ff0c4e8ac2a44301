"""The ledger against one dictionary of numbers: same balances, same refusals, and the identity after every step."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.ledger import Balance, Ledger
from channel.errors import Code, InvariantBroken, LocalRefusal
from channel.units import UINT256_MAX, Address

USERS = [Address(bytes([n]) * 20) for n in (1, 2, 3)]
BASE, QUOTE = Address(b"\xb0" * 20), Address(b"\xc0" * 20)
users = st.sampled_from(USERS)
tokens = st.sampled_from([BASE, QUOTE])
amounts = st.one_of(st.integers(0, 40), st.integers(0, 40), st.sampled_from([-1, 2**255, UINT256_MAX, 2**256]))
small = st.integers(0, 30)
# method -> (bucket taken from, bucket given to); None is outside
MOVES = {
    "deposit_seen": (None, "deposited"),
    "deposit_confirmed": ("deposited", "free"),
    "deposit_dropped": ("deposited", None),
    "lock": ("free", "locked"),
    "unlock": ("locked", "free"),
    "channel_out": ("locked", "channel"),
    "channel_in": ("channel", "free"),
    "withdrawal_debit": ("free", "withdrawing"),
    "withdrawal_done": ("withdrawing", None),
    "withdrawal_failed": ("withdrawing", "free"),
    "house_take": ("free", "house"),
    "house_give": ("house", "free"),
}
REFUSALS = {
    "lock": Code.ORDER_BALANCE,
    "withdrawal_debit": Code.BALANCE,
    "house_take": Code.BALANCE,
    "house_give": Code.BALANCE,
}
OWNERLESS = ("channel", "house", "custody")


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.model: Counter[tuple[str, Address | None, Address]] = Counter()

    def key(self, bucket: str, user: Address | None, token: Address) -> tuple[str, Address | None, Address]:
        return bucket, None if bucket in OWNERLESS else user, token

    def claims(self, token: Address) -> int:
        return sum(
            n for (bucket, _, of), n in self.model.items() if of == token and bucket not in ("channel", "custody")
        )

    def expected_code(self, method: str, user: Address, token: Address, amount: int) -> Code | None:
        if not 0 <= amount <= UINT256_MAX:
            return Code.AMOUNT
        source, _ = MOVES[method]
        if source not in (None, "channel") and self.model[self.key(source, user, token)] < amount:
            return REFUSALS.get(method, Code.CONSERVATION)
        if method in ("deposit_seen", "channel_in") and self.claims(token) + amount > UINT256_MAX:
            return Code.AMOUNT
        if method == "withdrawal_debit":
            usable = sum(self.model[b, u, token] for b in ("free", "locked") for u in USERS)
            usable += self.model["house", None, token] + min(0, self.model["channel", None, token])
            if usable < amount:
                return Code.BALANCE
        if method == "withdrawal_done" and self.model["custody", None, token] < amount:
            return Code.CONSERVATION
        return None

    def attempt(self, call, code: Code | None) -> bool:
        """Whether the call did it; it must be refused with `code`, or not at all if that is None."""
        if code is None:
            call()
            return True
        with pytest.raises(InvariantBroken if code is Code.CONSERVATION else LocalRefusal) as caught:
            call()
        assert caught.value.code is code
        return False

    @rule(user=users, token=tokens, amount=small)
    def deposit(self, user, token, amount) -> None:
        """A shortcut, so that there is something to move."""
        if self.claims(token) + amount <= UINT256_MAX:
            self.ledger.deposit_seen(user, token, amount)
            self.ledger.deposit_confirmed(user, token, amount)
            self.model["free", user, token] += amount
            self.model["custody", None, token] += amount

    @rule(method=st.sampled_from(sorted(MOVES)), user=users, token=tokens, amount=amounts)
    def move(self, method, user, token, amount) -> None:
        code = self.expected_code(method, user, token, amount)
        if self.attempt(lambda: getattr(self.ledger, method)(user, token, amount), code):
            source, target = MOVES[method]
            if source is None:
                self.model["custody", None, token] += amount
            else:
                self.model[self.key(source, user, token)] -= amount
            if target is None:
                self.model["custody", None, token] -= amount
            else:
                self.model[self.key(target, user, token)] += amount
        if method == "deposit_seen" and amount > 2**200:  # and away again, or nothing else would fit
            if code is None:
                self.ledger.deposit_dropped(user, token, amount)
                self.model["deposited", user, token] -= amount
                self.model["custody", None, token] -= amount
        elif method == "channel_in" and amount > 2**200 and code is None:
            self.ledger.lock(user, token, amount)
            self.ledger.channel_out(user, token, amount)
            self.model["free", user, token] -= amount
            self.model["channel", None, token] += amount

    @rule(sender=users, to=users, token=tokens, amount=small)
    def transfer(self, sender, to, token, amount) -> None:
        code = Code.CONSERVATION if self.model["locked", sender, token] < amount else None
        if self.attempt(lambda: self.ledger.transfer_locked(sender, to, token, amount), code):
            self.model["locked", sender, token] -= amount
            self.model["free", to, token] += amount

    @rule(buyer=users, seller=users, base=small, quote=small, release=st.integers(0, 5), fund=st.booleans())
    def trade(self, buyer, seller, base, quote, release, fund) -> None:
        if fund:  # two honest orders first
            for user, token, amount in ((buyer, QUOTE, quote + release), (seller, BASE, base)):
                self.deposit(user, token, amount)
                self.ledger.lock(user, token, amount)
                self.model["free", user, token] -= amount
                self.model["locked", user, token] += amount
        short = self.model["locked", buyer, QUOTE] < quote + release or self.model["locked", seller, BASE] < base
        done = self.attempt(
            lambda: self.ledger.settle_local(
                buyer=buyer,
                seller=seller,
                base=BASE,
                quote=QUOTE,
                base_amount=base,
                quote_amount=quote,
                buyer_release=release,
            ),
            Code.CONSERVATION if short else None,
        )
        if done:
            self.model["locked", buyer, QUOTE] -= quote + release
            self.model["free", buyer, QUOTE] += release
            self.model["free", seller, QUOTE] += quote
            self.model["locked", seller, BASE] -= base
            self.model["free", buyer, BASE] += base

    @rule(user=users, buys=st.booleans(), pays=small, receives=small, release=st.integers(0, 5))
    def trade_with_a_peer(self, user, buys, pays, receives, release) -> None:
        out, into = (QUOTE, BASE) if buys else (BASE, QUOTE)
        done = self.attempt(
            lambda: self.ledger.settle_remote(
                user=user, pays=out, pays_amount=pays, receives=into, receives_amount=receives, release=release
            ),
            Code.CONSERVATION if self.model["locked", user, out] < pays + release else None,
        )
        if done:
            self.model["locked", user, out] -= pays + release
            self.model["free", user, out] += release
            self.model["channel", None, out] += pays
            self.model["free", user, into] += receives
            self.model["channel", None, into] -= receives

    @rule(token=tokens, amount=st.one_of(small, st.none()))
    def channel_settles(self, token, amount) -> None:
        """Paid out or in on chain: all of it (None), or some."""
        net = self.model["channel", None, token]
        amount = abs(net) if amount is None else amount
        sign = -1 if net > 0 else 1
        code = Code.CONSERVATION if sign < 0 and self.model["custody", None, token] < amount else None
        pay = self.ledger.channel_paid_out if sign < 0 else self.ledger.channel_paid_in
        if self.attempt(lambda: pay(token, amount), code):
            self.model["channel", None, token] += sign * amount
            self.model["custody", None, token] += sign * amount

    @rule()
    def restore(self) -> None:
        self.ledger = Ledger.restore(
            list(self.ledger.accounts()), [(token, self.ledger.totals(token)) for token in self.ledger.tokens()]
        )

    @invariant()
    def identity(self) -> None:
        self.ledger.check()
        self.ledger.recount()
        for token in (BASE, QUOTE):
            totals = self.ledger.totals(token)
            assert totals.custody == self.model["custody", None, token]
            assert totals.channel_net == self.model["channel", None, token]
            assert totals.house == self.model["house", None, token]
            assert totals.custody == totals.users + totals.house + totals.channel_net
            assert totals.users == sum(self.ledger.balance(user, token).total for user in USERS)

    @invariant()
    def same_balances(self) -> None:
        for user in USERS:
            for token in (BASE, QUOTE):
                assert self.ledger.balance(user, token) == Balance(
                    **{name: self.model[name, user, token] for name in ("deposited", "free", "locked", "withdrawing")}
                )


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
