"""The application's bytes of a state: balance updates, open orders, collateral locks, prices, journal head, time.

    AppData = (bytes32 termsHash, uint64 timeMs, bytes32 journalHead,
               Bu[]  (address holder, address owner, uint256 chainId, address token, uint256 available, uint256 locked),
               Oos[] (address holder, address owner, bytes32 marketId, uint8 side, uint256 base, uint256 low,
                      uint256 high, uint256 quote),
               Cl[]  (address owner, bytes32 lockId, uint256 chainId, address token, uint256 available, uint256 locked),
               Px[]  (address asset, address quote, uint256 price, uint64 timeMs))

encoded as abi.encode of that one tuple. Arrays ascend by their key fields as unsigned big-endian, keys are unique, rows
of zero are dropped, at most 64 rows each. DESIGN section 3. Encoded by hand: eth_abi, the oracle in the tests, takes 50
times as long.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from channel.errors import Code, PeerFault
from channel.hashing import keccak
from channel.outcome import AssetExit, encode_outcome, single_payment, sort_key
from channel.state import word
from channel.units import UINT64_MAX, Address, ChannelId, Hash, MarketId

MAX_ROWS = 64
_HEAD_WORDS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceUpdate:
    """What `owner` has on `holder`, of one token, in base units."""

    holder: Address
    owner: Address
    chain_id: int
    token: Address
    available: int
    locked: int

    @property
    def key(self) -> bytes:
        return self.holder + self.owner + word(self.chain_id) + self.token

    @property
    def is_zero(self) -> bool:
        return not (self.available or self.locked)

    def words(self) -> bytes:
        return b"".join(
            (
                _address(self.holder),
                _address(self.owner),
                word(self.chain_id),
                _address(self.token),
                word(self.available),
                word(self.locked),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOrdersSummary:
    """What `owner`'s open orders on one side of one of `holder`'s markets add up to.

    `base` and `quote` in base units, `low` and `high` in ticks; side 0 buys, 1 sells.
    """

    holder: Address
    owner: Address
    market_id: MarketId
    side: int
    base: int
    low_ticks: int
    high_ticks: int
    quote: int

    @property
    def key(self) -> bytes:
        return self.holder + self.owner + self.market_id + word(self.side)

    @property
    def is_zero(self) -> bool:
        return not self.base

    def words(self) -> bytes:
        numbers = (self.side, self.base, self.low_ticks, self.high_ticks, self.quote)
        return _address(self.holder) + _address(self.owner) + self.market_id + b"".join(map(word, numbers))


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralLock:
    """What XLN has locked of one token for `owner`, for this channel, in base units."""

    owner: Address
    lock_id: Hash
    chain_id: int
    token: Address
    available: int
    locked: int

    @property
    def key(self) -> bytes:
        return self.owner + self.lock_id + word(self.chain_id) + self.token

    @property
    def is_zero(self) -> bool:
        return not (self.available or self.locked)

    def words(self) -> bytes:
        tail = word(self.chain_id) + _address(self.token) + word(self.available) + word(self.locked)
        return _address(self.owner) + self.lock_id + tail


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Value of `asset` in `quote`: quote base units per 10^18 base units of the asset."""

    asset: Address
    quote: Address
    price: int
    time_ms: int

    @property
    def key(self) -> bytes:
        return self.asset + self.quote

    @property
    def is_zero(self) -> bool:
        return not self.price

    def words(self) -> bytes:
        return _address(self.asset) + _address(self.quote) + word(self.price) + word(self.time_ms)


AnyRow = BalanceUpdate | OpenOrdersSummary | CollateralLock | Price
Row = TypeVar("Row", bound=AnyRow)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppData:
    """The decoded application's bytes. Construct with rows in any order through `AppData.of`."""

    terms_hash: Hash
    time_ms: int
    journal_head: Hash
    balance_updates: tuple[BalanceUpdate, ...]
    open_orders: tuple[OpenOrdersSummary, ...]
    collateral: tuple[CollateralLock, ...]
    prices: tuple[Price, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        terms_hash: Hash,
        time_ms: int,
        journal_head: Hash,
        balance_updates: Iterable[BalanceUpdate] = (),
        open_orders: Iterable[OpenOrdersSummary] = (),
        collateral: Iterable[CollateralLock] = (),
        prices: Iterable[Price] = (),
    ) -> "AppData":
        """Sorts, drops rows of zero, and checks keys and bounds. Raises PeerFault CHANNEL_STATE."""
        return cls(
            terms_hash=terms_hash,
            time_ms=time_ms,
            journal_head=journal_head,
            balance_updates=_normal(balance_updates),
            open_orders=_normal(open_orders),
            collateral=_normal(collateral),
            prices=_normal(prices),
        )

    def encode(self) -> bytes:
        arrays: tuple[Sequence[AnyRow], ...] = (
            self.balance_updates,
            self.open_orders,
            self.collateral,
            self.prices,
        )
        tails = [word(len(rows)) + b"".join(row.words() for row in rows) for rows in arrays]
        offset, heads = 32 * _HEAD_WORDS, []
        for tail in tails:
            heads.append(word(offset))
            offset += len(tail)
        head = word(32) + self.terms_hash + word(self.time_ms) + self.journal_head
        return head + b"".join(heads) + b"".join(tails)


def _address(raw: bytes) -> bytes:
    return bytes(12) + raw


def _normal(rows: Iterable[Row]) -> tuple[Row, ...]:
    kept = sorted((row for row in rows if not row.is_zero), key=lambda row: row.key)
    if len(kept) > MAX_ROWS:
        raise PeerFault(Code.CHANNEL_STATE, f"a state has at most {MAX_ROWS} rows of a kind, not {len(kept)}")
    for first, second in pairwise(kept):
        if first.key == second.key:
            raise PeerFault(Code.CHANNEL_STATE, "a state has one row for a key")
    return tuple(kept)


class _Words:
    """Reads ABI words; what is out of range or has dirty bytes raises ValueError."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def uint(self, at: int) -> int:
        if at < 0 or at + 32 > len(self.raw):
            raise ValueError("out of range")
        return int.from_bytes(self.raw[at : at + 32], "big")

    def bytes32(self, at: int) -> Hash:
        if at + 32 > len(self.raw):
            raise ValueError("out of range")
        return Hash(self.raw[at : at + 32])

    def address(self, at: int) -> Address:
        if self.uint(at) >> 160:
            raise ValueError("dirty address")
        return Address(self.raw[at + 12 : at + 32])

    def uint64(self, at: int) -> int:
        value = self.uint(at)
        if value > UINT64_MAX:
            raise ValueError("does not fit uint64")
        return value

    def rows(self, head_at: int, base: int, row_words: int, read: Callable[[int], Row]) -> tuple[Row, ...]:
        start = base + self.uint(head_at)
        count = self.uint(start)
        if count > MAX_ROWS:
            raise ValueError("too many rows")
        return tuple(read(start + 32 + 32 * row_words * i) for i in range(count))


def decode_app_data(raw: bytes) -> AppData:
    """Raises PeerFault ENCODING unless `raw` is the one canonical encoding of valid application data."""
    r = _Words(raw)

    def balance_update(at: int) -> BalanceUpdate:
        return BalanceUpdate(
            holder=r.address(at),
            owner=r.address(at + 32),
            chain_id=r.uint(at + 64),
            token=r.address(at + 96),
            available=r.uint(at + 128),
            locked=r.uint(at + 160),
        )

    def open_orders(at: int) -> OpenOrdersSummary:
        return OpenOrdersSummary(
            holder=r.address(at),
            owner=r.address(at + 32),
            market_id=MarketId(r.bytes32(at + 64)),
            side=r.uint(at + 96),
            base=r.uint(at + 128),
            low_ticks=r.uint(at + 160),
            high_ticks=r.uint(at + 192),
            quote=r.uint(at + 224),
        )

    def collateral(at: int) -> CollateralLock:
        return CollateralLock(
            owner=r.address(at),
            lock_id=r.bytes32(at + 32),
            chain_id=r.uint(at + 64),
            token=r.address(at + 96),
            available=r.uint(at + 128),
            locked=r.uint(at + 160),
        )

    def price(at: int) -> Price:
        return Price(asset=r.address(at), quote=r.address(at + 32), price=r.uint(at + 64), time_ms=r.uint64(at + 96))

    try:
        base = r.uint(0)
        if base != 32:
            raise ValueError("not one tuple")
        data = AppData(
            terms_hash=r.bytes32(base),
            time_ms=r.uint64(base + 32),
            journal_head=r.bytes32(base + 64),
            balance_updates=r.rows(base + 96, base, 6, balance_update),
            open_orders=r.rows(base + 128, base, 8, open_orders),
            collateral=r.rows(base + 160, base, 6, collateral),
            prices=r.rows(base + 192, base, 4, price),
        )
    except ValueError as error:
        raise PeerFault(Code.ENCODING, f"appData is not the application data of a broker channel: {error}") from error
    arrays: tuple[Sequence[AnyRow], ...] = (data.balance_updates, data.open_orders, data.collateral, data.prices)
    for rows in arrays:
        if any(row.is_zero for row in rows) or any(first.key >= second.key for first, second in pairwise(rows)):
            raise PeerFault(Code.ENCODING, "appData rows must ascend by their keys, each once, without rows of zero")
    if any(row.side > 1 for row in data.open_orders):
        raise PeerFault(Code.ENCODING, "the side of open orders is 0 (buy) or 1 (sell)")
    if data.encode() != raw:
        raise PeerFault(Code.ENCODING, "appData is not the canonical ABI encoding of its rows")
    return data


def outcome_of(rows: Iterable[BalanceUpdate], custody_of: dict[Address, Address]) -> bytes:
    """The encoded outcome that `rows` imply. `custody_of`: the custody contract of each participant."""
    exits: list[AssetExit] = [
        single_payment(
            asset=row.token,
            chain_id=row.chain_id,
            payer=custody_of[row.holder],
            payee=custody_of[row.owner],
            amount=row.available + row.locked,
        )
        for row in rows
        if not row.is_zero
    ]
    return encode_outcome(tuple(sorted(exits, key=sort_key)))


def lock_id_of(channel_id: ChannelId, owner: Address) -> Hash:
    """XlnCollateral's id of the one lock of `owner` for this channel."""
    return Hash(keccak(channel_id + bytes(12) + owner))


def next_journal_head(previous: Hash, turn: int, entry_hashes: Iterable[bytes]) -> Hash:
    """keccak(abi.encode(bytes32 previous, uint256 turn, bytes32[] entries)). DESIGN section 4."""
    hashes = tuple(entry_hashes)
    return Hash(keccak(previous + word(turn) + word(96) + word(len(hashes)) + b"".join(hashes)))
