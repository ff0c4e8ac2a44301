"""What one broker may come to owe the other, against the collateral that is locked behind it.

    owed(X)  = per token: bu[X][Y] + what the open orders of both could still add, no order offset by another
    cover(X) : sum owed(X) x price x ratio <= sum locks of X x price x (1 - haircut)

Values are in base units of the terms' value token. What is owed rounds up and what covers it rounds down, so rounding
never helps the debtor. DESIGN section 4.
"""

from channel.appdata import CollateralLock
from channel.position import Position
from channel.terms import BPS, PRICE_SCALE, Terms
from channel.units import Address, ceil_div

Locks = tuple[CollateralLock | None, CollateralLock | None]


def owed_value(position: Position, debtor: int, terms: Terms) -> int:
    """The worst that participant `debtor` can come to owe, in the value token; rounded up per token."""
    total = 0
    for token in terms.tokens:
        owed = position.owed(debtor, token.address) + position.worst.get((debtor, token.address), 0)
        if owed:
            total += ceil_div(owed * terms.price(token.address), PRICE_SCALE)
    return total


def lock_value(lock: CollateralLock | None, terms: Terms) -> int:
    """What a lock covers after its haircut, in the value token; rounded down."""
    if lock is None:
        return 0
    token = terms.token(lock.token)
    return lock.locked * terms.price(token.address) * (BPS - token.haircut_bps) // (PRICE_SCALE * BPS)


def headroom(position: Position, debtor: int, lock: CollateralLock | None, terms: Terms) -> int:
    """Value that `debtor` may still come to owe more; negative when it is not covered. Rounded down."""
    return lock_value(lock, terms) * BPS // terms.cover_ratio_bps - owed_value(position, debtor, terms)


def is_covered(position: Position, debtor: int, lock: CollateralLock | None, terms: Terms) -> bool:
    needed = owed_value(position, debtor, terms) * terms.cover_ratio_bps
    return needed <= lock_value(lock, terms) * BPS


def uncovered(before: Position, after: Position, locks: Locks, terms: Terms) -> int | None:
    """The participant who would owe more than `before` and more than its lock covers, or None.

    Turns that raise nothing are always admissible.
    """
    for debtor in (0, 1):
        if is_covered(after, debtor, locks[debtor], terms):
            continue
        if owed_value(after, debtor, terms) > owed_value(before, debtor, terms):
            return debtor
    return None


def required_lock(value: int, token: Address, terms: Terms) -> int:
    """The least base units of `token` that cover `value` of the value token; rounded up."""
    entry = terms.token(token)
    needed = ceil_div(value * terms.cover_ratio_bps, BPS)  # what `lock_value`, which rounds down, must reach
    return ceil_div(needed * PRICE_SCALE * BPS, terms.price(token) * (BPS - entry.haircut_bps))
