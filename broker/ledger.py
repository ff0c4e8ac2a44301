"""What a broker owes to whom: balances of its users per token, its own house account, and the net of its channels.

Purpose: every movement of value in a broker is one call here, atomic, and conserving by construction or refused.

    on chain ──deposit_seen──▶ deposited ──deposit_confirmed──▶ free ◀──lock/unlock──▶ locked ──▶ another user's free
                                   │                            │  ▲                     │
                              deposit_dropped    withdrawal_debit  withdrawal_failed  channel_out ──▶ the peers (net)
                                                                ▼  │                  channel_in  ◀── the peers (net)
                                                             withdrawing ──withdrawal_done──▶ off the chain's custody

Identity, per token, after every call (DESIGN section 8, for broker X with peers P):

    custody = Σ users (deposited + free + locked + withdrawing) + house + channel_net

 - custody is what the chain should show on our contract: deposits seen + payouts from peers − withdrawals done −
   payouts to peers. What a user is withdrawing is still there, and still his, until the chain says it is done.
 - channel_net = Σ over P (bu[X][P] − bu[P][X]), what we owe to our peers less what they owe to us. Nothing else can be
   negative.

`check()` tests it on running totals, cheap enough for every action; `recount()` adds up every account as well.

Errors: LocalRefusal where a user asks for more than he has (ORDER_BALANCE, BALANCE), an amount is out of range
(AMOUNT), or a bound is met (BUSY); InvariantBroken CONSERVATION where our own code asks for what cannot be (unlocking
more than is locked). Either way nothing has changed. Amounts are base units, 0 <= amount < 2^256; 0 is allowed and
moves nothing.
Not here: a deposit that was confirmed is final (choose the confirmations so).

Source: DESIGN section 8; house rule 1 (no clock, no I/O).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from channel.errors import Code, InvariantBroken, LocalRefusal
from channel.units import UINT256_MAX, Address, format_address


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What one user has in one token, in base units."""

    deposited: int = 0  # seen on chain, not confirmed yet: not usable
    free: int = 0
    locked: int = 0  # behind open orders
    withdrawing: int = 0  # on its way out, still in custody

    @property
    def total(self) -> int:
        return self.deposited + self.free + self.locked + self.withdrawing


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTotals:
    """The ledger of one token in base units: what custody must hold, and whose it is."""

    deposited: int = 0
    free: int = 0
    locked: int = 0
    withdrawing: int = 0
    house: int = 0
    channel_net: int = 0  # what we owe to peers less what they owe to us
    deposits_seen: int = 0  # from here on: since the beginning; deposits that were dropped are taken off again
    withdrawals_done: int = 0
    channel_paid_in: int = 0  # by peers' custodies into ours
    channel_paid_out: int = 0

    @property
    def users(self) -> int:
        """What all users have, in whatever state."""
        return self.deposited + self.free + self.locked + self.withdrawing

    @property
    def custody(self) -> int:
        """What our custody contract should hold on chain."""
        return self.deposits_seen + self.channel_paid_in - self.withdrawals_done - self.channel_paid_out


class _Account:
    __slots__ = ("deposited", "free", "locked", "withdrawing")

    def __init__(self, deposited: int = 0, free: int = 0, locked: int = 0, withdrawing: int = 0) -> None:
        self.deposited = deposited
        self.free = free
        self.locked = locked
        self.withdrawing = withdrawing

    def view(self) -> Balance:
        return Balance(deposited=self.deposited, free=self.free, locked=self.locked, withdrawing=self.withdrawing)


class _Token:
    """Totals and accounts of one token. The totals are kept by the same calls that move the accounts."""

    __slots__ = (
        "accounts",
        "address",
        "channel_net",
        "channel_paid_in",
        "channel_paid_out",
        "deposited",
        "deposits_seen",
        "free",
        "house",
        "locked",
        "withdrawals_done",
        "withdrawing",
    )

    def __init__(self, address: Address) -> None:
        self.address = address
        self.accounts: dict[Address, _Account] = {}
        self.deposited = self.free = self.locked = self.withdrawing = self.house = 0
        self.channel_net = self.deposits_seen = self.withdrawals_done = 0
        self.channel_paid_in = self.channel_paid_out = 0

    def account(self, user: Address) -> _Account:
        account = self.accounts.get(user)
        if account is None:
            account = self.accounts[user] = _Account()
        return account

    def custody(self) -> int:
        return self.deposits_seen + self.channel_paid_in - self.withdrawals_done - self.channel_paid_out

    def payable(self) -> int:
        """What may leave now: confirmed funds, less what peers still owe us for trades of channels not settled yet."""
        return self.free + self.locked + self.house + min(0, self.channel_net)

    def claims(self) -> int:
        """All that users and house have: kept below 2^256, so that every single balance is."""
        return self.deposited + self.free + self.locked + self.withdrawing + self.house

    def totals(self) -> TokenTotals:
        return TokenTotals(**{name: getattr(self, name) for name in _TOTAL_FIELDS})


_TOTAL_FIELDS = tuple(TokenTotals.__dataclass_fields__)


class Ledger:
    """The balances of one broker. Not safe for use from two threads."""

    __slots__ = ("_max_tokens", "_tokens")

    def __init__(self, *, max_tokens: int = 256) -> None:
        """`max_tokens`: how many tokens may ever be held; more are refused BUSY (anyone can deploy a token)."""
        self._tokens: dict[Address, _Token] = {}
        self._max_tokens = max_tokens

    # -- deposits, as the chain shows them

    def deposit_seen(self, user: Address, token: Address, amount: int) -> None:
        """A deposit is on chain, not confirmed yet. Raises LocalRefusal AMOUNT, BUSY."""
        _check_amount(amount)
        book = self._token_for_credit(token, amount)
        book.account(user).deposited += amount
        book.deposited += amount
        book.deposits_seen += amount

    def deposit_confirmed(self, user: Address, token: Address, amount: int) -> None:
        """A deposit that was seen has its confirmations: it is free to use."""
        _check_amount(amount)
        book, account = self._have(user, token)
        if account.deposited < amount:
            raise _impossible("confirm", user, token, amount, account.deposited)
        account.deposited -= amount
        book.deposited -= amount
        account.free += amount
        book.free += amount

    def deposit_dropped(self, user: Address, token: Address, amount: int) -> None:
        """A deposit that was seen is gone again: its block was replaced."""
        _check_amount(amount)
        book, account = self._have(user, token)
        if account.deposited < amount:
            raise _impossible("drop", user, token, amount, account.deposited)
        account.deposited -= amount
        book.deposited -= amount
        book.deposits_seen -= amount

    # -- orders

    def lock(self, user: Address, token: Address, amount: int) -> None:
        """Put free funds behind an order. Raises LocalRefusal ORDER_BALANCE."""
        _check_amount(amount)
        book, account = self._have(user, token)
        if account.free < amount:
            raise LocalRefusal(
                Code.ORDER_BALANCE,
                f"the order needs {amount} base units of {format_address(token)}, {account.free} are free",
                needed=amount,
                free=account.free,
            )
        account.free -= amount
        book.free -= amount
        account.locked += amount
        book.locked += amount

    def unlock(self, user: Address, token: Address, amount: int) -> None:
        """Give back what an order no longer needs."""
        _check_amount(amount)
        book, account = self._have(user, token)
        if account.locked < amount:
            raise _impossible("unlock", user, token, amount, account.locked)
        account.locked -= amount
        book.locked -= amount
        account.free += amount
        book.free += amount

    def transfer_locked(self, from_user: Address, to_user: Address, token: Address, amount: int) -> None:
        """One leg of a local trade: out of one user's locked funds into another's free ones."""
        _check_amount(amount)
        book, account = self._have(from_user, token)
        if account.locked < amount:
            raise _impossible("transfer", from_user, token, amount, account.locked)
        account.locked -= amount
        book.locked -= amount
        book.account(to_user).free += amount
        book.free += amount

    def settle_local(
        self,
        *,
        buyer: Address,
        seller: Address,
        base: Address,
        quote: Address,
        base_amount: int,
        quote_amount: int,
        buyer_release: int = 0,
    ) -> None:
        """Both legs of a trade between two users of this broker, from their locked funds, or neither.

        `buyer_release`: quote that the buyer had locked above `quote_amount` for what was filled, because his limit was
        higher than the price; it becomes free again.
        """
        for amount in (base_amount, quote_amount, buyer_release):
            _check_amount(amount)
        assert base != quote
        pays, gives = self._have(buyer, quote)[1].locked, self._have(seller, base)[1].locked
        if pays < quote_amount + buyer_release:
            raise _impossible("settle", buyer, quote, quote_amount + buyer_release, pays)
        if gives < base_amount:
            raise _impossible("settle", seller, base, base_amount, gives)
        self.unlock(buyer, quote, buyer_release)
        self.transfer_locked(buyer, seller, quote, quote_amount)
        self.transfer_locked(seller, buyer, base, base_amount)

    # -- channels with peers

    def channel_out(self, user: Address, token: Address, amount: int) -> None:
        """A user's locked funds went to a peer's user: from now on we owe them to that peer."""
        _check_amount(amount)
        book, account = self._have(user, token)
        if account.locked < amount:
            raise _impossible("pay a peer", user, token, amount, account.locked)
        account.locked -= amount
        book.locked -= amount
        book.channel_net += amount

    def channel_in(self, user: Address, token: Address, amount: int) -> None:
        """A peer owes us what our user got from its user; he can trade it here at once.

        Raises LocalRefusal AMOUNT, BUSY.
        """
        _check_amount(amount)
        book = self._token_for_credit(token, amount)
        book.account(user).free += amount
        book.free += amount
        book.channel_net -= amount

    def settle_remote(
        self,
        *,
        user: Address,
        pays: Address,
        pays_amount: int,
        receives: Address,
        receives_amount: int,
        release: int = 0,
    ) -> None:
        """Both legs of our user's trade with a peer's user, or neither.

        `release`: of token `pays`, what was locked above `pays_amount` for what was filled. Raises LocalRefusal AMOUNT,
        BUSY.
        """
        for amount in (pays_amount, receives_amount, release):
            _check_amount(amount)
        locked = self._have(user, pays)[1].locked
        if locked < pays_amount + release:
            raise _impossible("settle", user, pays, pays_amount + release, locked)
        self.channel_in(user, receives, receives_amount)  # the only step left that can refuse
        self.unlock(user, pays, release)
        self.channel_out(user, pays, pays_amount)

    def channel_paid_out(self, token: Address, amount: int) -> None:
        """Our custody paid a settled channel's outcome to a peer's custody: we owe that much less."""
        _check_amount(amount)
        book = self._token(token)
        if book.custody() < amount:
            raise _unbalanced(book, f"custody cannot have paid out {amount} of the {book.custody()} it has")
        book.channel_paid_out += amount
        book.channel_net -= amount

    def channel_paid_in(self, token: Address, amount: int) -> None:
        """A peer's custody paid a settled channel's outcome to ours: it owes that much less."""
        _check_amount(amount)
        book = self._token(token)
        book.channel_paid_in += amount
        book.channel_net += amount

    # -- withdrawals

    def withdrawal_debit(self, user: Address, token: Address, amount: int) -> None:
        """Set free funds apart for a withdrawal. Raises LocalRefusal BALANCE.

        It is also refused while custody would need for it what peers have yet to pay in: what came from a remote trade
        can be withdrawn once its channel is settled (DESIGN section 8). That is counted for all users of a token
        together, because funds that were traded on cannot be told apart.
        """
        _check_amount(amount)
        book, account = self._have(user, token)
        if account.free < amount:
            raise LocalRefusal(
                Code.BALANCE,
                f"{amount} base units of {format_address(token)} were to be withdrawn, {account.free} are free",
                needed=amount,
                free=account.free,
            )
        if book.payable() < amount:
            raise LocalRefusal(
                Code.BALANCE,
                f"until channels are settled, {max(0, book.payable())} base units of {format_address(token)} can leave",
                needed=amount,
                payable=book.payable(),
            )
        account.free -= amount
        book.free -= amount
        account.withdrawing += amount
        book.withdrawing += amount

    def withdrawal_done(self, user: Address, token: Address, amount: int) -> None:
        """The chain shows the withdrawal, final."""
        _check_amount(amount)
        book, account = self._have(user, token)
        if account.withdrawing < amount:
            raise _impossible("withdraw", user, token, amount, account.withdrawing)
        if book.custody() < amount:
            raise _unbalanced(book, f"custody cannot have paid out {amount} of the {book.custody()} it has")
        account.withdrawing -= amount
        book.withdrawing -= amount
        book.withdrawals_done += amount

    def withdrawal_failed(self, user: Address, token: Address, amount: int) -> None:
        """The withdrawal can no longer happen on chain: the funds are free again."""
        _check_amount(amount)
        book, account = self._have(user, token)
        if account.withdrawing < amount:
            raise _impossible("give back", user, token, amount, account.withdrawing)
        account.withdrawing -= amount
        book.withdrawing -= amount
        account.free += amount
        book.free += amount

    # -- the house

    def house_take(self, user: Address, token: Address, amount: int) -> None:
        """A user's free funds become the broker's own. Raises LocalRefusal BALANCE."""
        _check_amount(amount)
        book, account = self._have(user, token)
        if account.free < amount:
            raise LocalRefusal(Code.BALANCE, f"{amount} base units are due, {account.free} are free", needed=amount)
        account.free -= amount
        book.free -= amount
        book.house += amount

    def house_give(self, user: Address, token: Address, amount: int) -> None:
        """The broker's own funds become a user's, free. Raises LocalRefusal BALANCE."""
        _check_amount(amount)
        book = self._tokens.get(token)
        house = 0 if book is None else book.house
        if house < amount:
            raise LocalRefusal(Code.BALANCE, f"{amount} base units are due, the house has {house}", needed=amount)
        if book is not None:
            book.house -= amount
            book.account(user).free += amount
            book.free += amount

    # -- looking at it

    def balance(self, user: Address, token: Address) -> Balance:
        """What a user has in a token; zeros if nothing."""
        return self._have(user, token)[1].view()

    def balances(self, user: Address) -> dict[Address, Balance]:
        """What a user has, by token, in ascending order of address; tokens of which he has nothing left out."""
        found = {token: self.balance(user, token) for token in self.tokens()}
        return {token: balance for token, balance in found.items() if balance.total}

    def users(self) -> tuple[Address, ...]:
        """Everyone who has ever had anything, ascending."""
        return tuple(sorted({user for book in self._tokens.values() for user in book.accounts}))

    def tokens(self) -> tuple[Address, ...]:
        return tuple(sorted(self._tokens))

    def totals(self, token: Address) -> TokenTotals:
        """The running totals of a token; zeros if it was never held."""
        book = self._tokens.get(token)
        return TokenTotals() if book is None else book.totals()

    def channel_net(self, token: Address) -> int:
        """What we owe to our peers less what they owe to us, in base units."""
        book = self._tokens.get(token)
        return 0 if book is None else book.channel_net

    def accounts(self) -> Iterator[tuple[Address, Address, Balance]]:
        """(user, token, balance) of every account that is not empty, ascending by user and token."""
        for user in self.users():
            for token, balance in self.balances(user).items():
                yield user, token, balance

    # -- checking it

    def check(self) -> None:
        """The identity on the running totals, per token: O(tokens). Raises InvariantBroken CONSERVATION."""
        for book in self._tokens.values():
            custody = book.custody()
            if custody != book.claims() + book.channel_net:
                raise _unbalanced(book, f"custody is {custody}, claims on it are {book.claims() + book.channel_net}")
            if (
                min(book.deposited, book.free, book.locked, book.withdrawing, book.house, custody) < 0
                or book.claims() > UINT256_MAX
            ):
                raise _unbalanced(book, "a total is negative or above 2^256")

    def recount(self) -> None:
        """check(), and every account added up against the totals: O(accounts). Raises InvariantBroken CONSERVATION."""
        self.check()
        for book in self._tokens.values():
            for name in ("deposited", "free", "locked", "withdrawing"):
                amounts = [getattr(account, name) for account in book.accounts.values()]
                if sum(amounts) != getattr(book, name):
                    raise _unbalanced(book, f"{name} adds up to {sum(amounts)}, the total says {getattr(book, name)}")
                if min(amounts, default=0) < 0:
                    raise _unbalanced(book, f"an account has {min(amounts)} {name}")

    @classmethod
    def restore(
        cls,
        accounts: Iterable[tuple[Address, Address, Balance]],
        totals: Iterable[tuple[Address, TokenTotals]],
        *,
        max_tokens: int = 256,
    ) -> "Ledger":
        """A ledger from what accounts() and totals() gave. Raises InvariantBroken CONSERVATION if they do not agree."""
        ledger = cls(max_tokens=max_tokens)
        for token, token_totals in totals:
            book = ledger._token(token)
            for name in _TOTAL_FIELDS:
                setattr(book, name, getattr(token_totals, name))
        for user, token, balance in accounts:
            account = ledger._token(token).account(user)
            account.deposited, account.free = balance.deposited, balance.free
            account.locked, account.withdrawing = balance.locked, balance.withdrawing
        ledger.recount()
        return ledger

    # -- inside

    def _have(self, user: Address, token: Address) -> tuple[_Token, _Account]:
        """For taking: an account that does not exist reads as one of zeros, and is not made by asking."""
        book = self._tokens.get(token)
        if book is None:
            return _Token(token), _Account()
        account = book.accounts.get(user)
        return (book, account) if account is not None else (book, _Account())

    def _token(self, token: Address) -> _Token:
        book = self._tokens.get(token)
        if book is None:
            if len(self._tokens) >= self._max_tokens:
                raise LocalRefusal(Code.BUSY, f"the ledger holds {self._max_tokens} tokens, no more are taken")
            book = self._tokens[token] = _Token(token)
        return book

    def _token_for_credit(self, token: Address, amount: int) -> _Token:
        """For value that comes in: refuse what would let a balance reach 2^256."""
        book = self._tokens.get(token)
        if book is not None and book.claims() + amount > UINT256_MAX:
            raise LocalRefusal(Code.AMOUNT, f"balances of {format_address(token)} would no longer fit in 256 bits")
        return self._token(token) if book is None else book


def _check_amount(amount: int) -> None:
    if not 0 <= amount <= UINT256_MAX:
        raise LocalRefusal(Code.AMOUNT, f"an amount is between 0 and 2^256-1 base units, not {amount}")


def _impossible(verb: str, user: Address, token: Address, amount: int, there: int) -> InvariantBroken:
    return InvariantBroken(
        Code.CONSERVATION,
        f"cannot {verb} {amount} of {format_address(token)} for {format_address(user)}: there are {there}",
        user=user,
        token=token,
        amount=amount,
    )


def _unbalanced(book: _Token, what: str) -> InvariantBroken:
    return InvariantBroken(
        Code.CONSERVATION, f"{format_address(book.address)}: {what}", token=book.address, totals=book.totals()
    )
