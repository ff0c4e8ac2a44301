"""What two brokers agree on before turn 0. termsHash is in every state and every lock.

termsHash = keccak(abi.encode(Terms)), with

    Token  = (address token, string symbol, uint8 decimals, uint16 haircutBps)
    Market = (address holder, uint256 chainId, address base, address quote, uint256 tick, uint256 lot)
    Price  = (address asset, uint256 price)
    Fee    = (string method, uint256 base, uint256 perByte)
    Terms  = (address[2] custodies, address collateral, Token[] tokens, Market[] markets, uint32 coverRatioBps,
              address valueToken, uint256 unsettledLimit, Price[] prices, address feeToken, Fee[] fees,
              address[] priceSigners, uint8 priceThreshold, uint64 priceMaxAgeMs,
              uint64 graceS, uint64 evidenceS, uint64 verdictS, uint64 appealS, uint64 claimS)

`custodies` in the order of the participants. Prices are fixed for the life of the channel: base units of `valueToken`
per 10^18 base units of the asset. `unsettledLimit` is U, in base units of `valueToken`. Metering and signed prices are
not part of this version: `fees` and `priceSigners` must be empty. DESIGN sections 3 and 4, ADR 0003.
"""

from dataclasses import dataclass, field
from typing import Any

from eth_abi.abi import encode as abi_encode

from channel.errors import Code, PeerFault
from channel.hashing import keccak
from channel.state import word
from channel.units import (
    UINT64_MAX,
    UINT256_MAX,
    ZERO_ADDRESS,
    Address,
    Hash,
    MarketId,
    format_address,
    parse_address,
    parse_quantity,
    parse_uint,
)

MAX_TOKENS = 32
MAX_MARKETS = 32  # two rows of open orders each: a state has at most 64
MAX_LOT_BASE = 2**128 - 1  # times the lots of all orders it stays far below 2^256
BPS = 10_000
PRICE_SCALE = 10**18
MAX_PRICE_DIGITS = 18
SIDES = ("b", "s")  # side 0 buys, 1 sells


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token that the channel may owe or lock. `haircut_bps` lowers its value as collateral."""

    address: Address
    symbol: str
    decimals: int
    haircut_bps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """One market of one holder.

    `lot_base` is base-token base units per lot; `tick_quote` is quote-token base units per lot and tick, so that
    notional = price ticks x tick_quote x lots is exact.
    """

    holder: Address
    chain_id: int
    base: Address
    quote: Address
    tick_quote: int
    lot_base: int
    market_id: MarketId = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        encoded = word(self.chain_id) + bytes(12) + self.base + bytes(12) + self.quote
        numbers = word(self.tick_quote) + word(self.lot_base)
        object.__setattr__(self, "market_id", MarketId(keccak(bytes(12) + self.holder + encoded + numbers)))

    def quote_amount(self, price_ticks: int, lots: int) -> int:
        """Quote base units of `lots` at a price: exact."""
        return price_ticks * self.tick_quote * lots

    def base_amount(self, lots: int) -> int:
        return lots * self.lot_base

    def same_shape(self, other: "Market") -> bool:
        """Whether an order for one can be filled in the other, whoever holds it."""
        return (self.chain_id, self.base, self.quote, self.tick_quote, self.lot_base) == (
            other.chain_id,
            other.base,
            other.quote,
            other.tick_quote,
            other.lot_base,
        )


def tick_scale(market: Market, base_decimals: int, quote_decimals: int) -> tuple[int, int]:
    """(n, digits): one tick is n / 10^digits whole quote tokens per whole base token.

    Raises PeerFault ORDER_TICK for a market whose tick is not a decimal of at most 18 digits.
    """
    numerator = market.tick_quote * 10**base_decimals * 10**MAX_PRICE_DIGITS
    denominator = market.lot_base * 10**quote_decimals
    if numerator % denominator:
        raise PeerFault(Code.ORDER_TICK, "one tick of this market is not a decimal of at most 18 digits")
    return numerator // denominator, MAX_PRICE_DIGITS


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """See the module docstring for the meaning and unit of each field."""

    custodies: tuple[Address, Address]
    collateral: Address
    tokens: tuple[Token, ...]
    markets: tuple[Market, ...]
    cover_ratio_bps: int
    value_token: Address
    unsettled_limit: int
    prices: tuple[tuple[Address, int], ...]
    grace_s: int
    evidence_s: int
    verdict_s: int
    appeal_s: int
    claim_s: int
    terms_hash: Hash = field(init=False, compare=False, repr=False)
    _token_of: dict[Address, Token] = field(init=False, compare=False, repr=False)
    _market_of: dict[MarketId, Market] = field(init=False, compare=False, repr=False)
    _price_of: dict[Address, int] = field(init=False, compare=False, repr=False)
    _name_of: dict[MarketId, str] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        _require_bounds(self)
        object.__setattr__(self, "_token_of", {t.address: t for t in self.tokens})
        object.__setattr__(self, "_market_of", {m.market_id: m for m in self.markets})
        object.__setattr__(self, "_price_of", dict(self.prices))
        _require_consistent(self)
        names = {m.market_id: f"{self.token(m.base).symbol}/{self.token(m.quote).symbol}".lower() for m in self.markets}
        object.__setattr__(self, "_name_of", names)
        if len({(m.holder, names[m.market_id]) for m in self.markets}) != len(self.markets):
            raise PeerFault(Code.CHANNEL_TERMS, "each holder's markets must have different names")
        object.__setattr__(self, "terms_hash", Hash(keccak(_encode(self))))

    def token(self, address: Address) -> Token:
        """Raises PeerFault CHANNEL_TERMS for a token that is not listed."""
        found = self._token_of.get(address)
        if found is None:
            raise PeerFault(Code.CHANNEL_TERMS, f"token {format_address(address)} is not in the terms")
        return found

    def market(self, market_id: MarketId) -> Market | None:
        return self._market_of.get(market_id)

    def market_name(self, market_id: MarketId) -> str:
        return self._name_of[market_id]

    def market_named(self, holder: Address, name: str) -> Market:
        """Raises PeerFault ORDER_MARKET."""
        for market in self.markets:
            if market.holder == holder and self._name_of[market.market_id] == name:
                return market
        raise PeerFault(Code.ORDER_MARKET, f"the terms list no market {name} of {format_address(holder)}")

    def price(self, asset: Address) -> int:
        """Base units of the value token per 10^18 base units of the asset."""
        return self._price_of[asset]

    @property
    def shortest_challenge_s(self) -> int:
        """A challenge must outlast evidence, verdict and appeal (DESIGN section 3)."""
        return self.evidence_s + self.verdict_s + self.appeal_s


def _require_bounds(terms: Terms) -> None:
    if not 1 <= len(terms.tokens) <= MAX_TOKENS or len(terms.markets) > MAX_MARKETS:
        raise PeerFault(Code.CHANNEL_TERMS, f"terms list 1 to {MAX_TOKENS} tokens and at most {MAX_MARKETS} markets")
    for token in terms.tokens:
        symbol_ok = token.symbol.isascii() and token.symbol.isalnum() and len(token.symbol) <= 16
        if not symbol_ok or not 0 <= token.decimals <= 36 or not 0 <= token.haircut_bps < BPS:
            raise PeerFault(
                Code.CHANNEL_TERMS,
                f"token {token.symbol!r} needs a symbol of 1 to 16 letters and digits, 0 to 36 decimals and a haircut"
                f" below {BPS} bps",
            )
    if not BPS <= terms.cover_ratio_bps <= 100 * BPS:
        raise PeerFault(Code.CHANNEL_TERMS, f"the cover ratio is between {BPS} and {100 * BPS} bps")
    for name in ("grace_s", "evidence_s", "verdict_s", "appeal_s", "claim_s"):
        if not 0 <= getattr(terms, name) <= 30 * 24 * 3600:
            raise PeerFault(Code.CHANNEL_TERMS, f"{name} is between 0 seconds and 30 days")
    if not 0 <= terms.unsettled_limit <= UINT256_MAX:
        raise PeerFault(Code.CHANNEL_TERMS, "unsettledLimit must fit uint256")
    if terms.custodies[0] == terms.custodies[1] or ZERO_ADDRESS in terms.custodies:
        raise PeerFault(Code.CHANNEL_TERMS, "the two custodies are different contracts")


def _require_consistent(terms: Terms) -> None:
    by_address = {token.address: token for token in terms.tokens}
    if len(by_address) != len(terms.tokens) or len({t.symbol.lower() for t in terms.tokens}) != len(terms.tokens):
        raise PeerFault(Code.CHANNEL_TERMS, "each token and each symbol is listed once")
    if sorted(asset for asset, _ in terms.prices) != sorted(by_address):
        raise PeerFault(Code.CHANNEL_TERMS, "terms give one price for each token")
    if any(not 0 < price <= UINT256_MAX for _, price in terms.prices):
        raise PeerFault(Code.CHANNEL_TERMS, "a price is above zero and fits uint256")
    if terms.value_token not in by_address:
        raise PeerFault(Code.CHANNEL_TERMS, "the value token must be one of the tokens")
    if len({m.market_id for m in terms.markets}) != len(terms.markets):
        raise PeerFault(Code.CHANNEL_TERMS, "each market is listed once")
    for market in terms.markets:
        if market.base not in by_address or market.quote not in by_address or market.base == market.quote:
            raise PeerFault(Code.CHANNEL_TERMS, "base and quote of a market are two tokens of the terms")
        if not 0 < market.tick_quote <= UINT64_MAX or not 0 < market.lot_base <= MAX_LOT_BASE:
            raise PeerFault(Code.CHANNEL_TERMS, "tick and lot of a market are above zero, below 2^64 and 2^128")
        tick_scale(market, by_address[market.base].decimals, by_address[market.quote].decimals)


_TERMS_ABI = (
    "(address[2],address,(address,string,uint8,uint16)[],(address,uint256,address,address,uint256,uint256)[],uint32,"
    "address,uint256,(address,uint256)[],address,(string,uint256,uint256)[],address[],uint8,uint64,"
    "uint64,uint64,uint64,uint64,uint64)"
)


def _encode(terms: Terms) -> bytes:
    values: tuple[Any, ...] = (
        terms.custodies,
        terms.collateral,
        [(t.address, t.symbol, t.decimals, t.haircut_bps) for t in terms.tokens],
        [(m.holder, m.chain_id, m.base, m.quote, m.tick_quote, m.lot_base) for m in terms.markets],
        terms.cover_ratio_bps,
        terms.value_token,
        terms.unsettled_limit,
        list(terms.prices),
        ZERO_ADDRESS,
        [],
        [],
        0,
        0,
        terms.grace_s,
        terms.evidence_s,
        terms.verdict_s,
        terms.appeal_s,
        terms.claim_s,
    )
    return abi_encode([_TERMS_ABI], [values])


def terms_to_json(terms: Terms) -> dict[str, Any]:
    """The JSON form, on the wire and in exports. Big numbers are decimal text."""
    a = format_address
    return {
        "custodies": [a(c) for c in terms.custodies],
        "collateral": a(terms.collateral),
        "tokens": [
            {"token": a(t.address), "symbol": t.symbol, "decimals": t.decimals, "haircutBps": t.haircut_bps}
            for t in terms.tokens
        ],
        "markets": [
            {
                "holder": a(m.holder),
                "chainId": hex(m.chain_id),
                "base": a(m.base),
                "quote": a(m.quote),
                "tick": str(m.tick_quote),
                "lot": str(m.lot_base),
            }
            for m in terms.markets
        ],
        "coverRatioBps": terms.cover_ratio_bps,
        "valueToken": a(terms.value_token),
        "unsettledLimit": str(terms.unsettled_limit),
        "prices": [[a(asset), str(price)] for asset, price in terms.prices],
        "windowsS": {
            "grace": terms.grace_s,
            "evidence": terms.evidence_s,
            "verdict": terms.verdict_s,
            "appeal": terms.appeal_s,
            "claim": terms.claim_s,
        },
    }


def terms_from_json(raw: object) -> Terms:
    """Raises PeerFault CHANNEL_TERMS, or the code of the value that is wrong."""
    o = _object(raw, "terms", {"custodies", "collateral", "tokens", "markets", "coverRatioBps", "valueToken",
                               "unsettledLimit", "prices", "windowsS"})  # fmt: skip
    custodies = [parse_address(c, "custody") for c in _list(o["custodies"], "custodies", 2)]
    if len(custodies) != 2:
        raise PeerFault(Code.CHANNEL_TERMS, "custodies lists two contracts, in the order of the participants")
    windows = _object(o["windowsS"], "windowsS", {"grace", "evidence", "verdict", "appeal", "claim"})
    return Terms(
        custodies=(custodies[0], custodies[1]),
        collateral=parse_address(o["collateral"], "collateral"),
        tokens=tuple(_token(t) for t in _list(o["tokens"], "tokens", MAX_TOKENS)),
        markets=tuple(_market(m) for m in _list(o["markets"], "markets", MAX_MARKETS)),
        cover_ratio_bps=_integer(o["coverRatioBps"], "coverRatioBps"),
        value_token=parse_address(o["valueToken"], "valueToken"),
        unsettled_limit=parse_uint(o["unsettledLimit"], what="unsettledLimit"),
        prices=tuple(_price(p) for p in _list(o["prices"], "prices", MAX_TOKENS)),
        grace_s=_integer(windows["grace"], "grace"),
        evidence_s=_integer(windows["evidence"], "evidence"),
        verdict_s=_integer(windows["verdict"], "verdict"),
        appeal_s=_integer(windows["appeal"], "appeal"),
        claim_s=_integer(windows["claim"], "claim"),
    )


def _token(raw: object) -> Token:
    o = _object(raw, "token", {"token", "symbol", "decimals", "haircutBps"})
    if not isinstance(o["symbol"], str):
        raise PeerFault(Code.CHANNEL_TERMS, "symbol must be text")
    return Token(
        address=parse_address(o["token"], "token"),
        symbol=o["symbol"],
        decimals=_integer(o["decimals"], "decimals"),
        haircut_bps=_integer(o["haircutBps"], "haircutBps"),
    )


def _market(raw: object) -> Market:
    o = _object(raw, "market", {"holder", "chainId", "base", "quote", "tick", "lot"})
    return Market(
        holder=parse_address(o["holder"], "holder"),
        chain_id=parse_quantity(o["chainId"], "chainId"),
        base=parse_address(o["base"], "base"),
        quote=parse_address(o["quote"], "quote"),
        tick_quote=parse_uint(o["tick"], what="tick"),
        lot_base=parse_uint(o["lot"], what="lot"),
    )


def _price(raw: object) -> tuple[Address, int]:
    pair = _list(raw, "price", 2)
    if len(pair) != 2:
        raise PeerFault(Code.CHANNEL_TERMS, "a price is [asset, price]")
    return parse_address(pair[0], "asset"), parse_uint(pair[1], what="price")


def _object(raw: object, what: str, keys: set[str]) -> dict[str, Any]:
    if not isinstance(raw, dict) or set(raw) != keys:
        raise PeerFault(Code.CHANNEL_TERMS, f"{what} must be an object with exactly {', '.join(sorted(keys))}")
    return raw


def _list(raw: object, what: str, longest: int) -> list[Any]:
    if not isinstance(raw, list) or len(raw) > longest:
        raise PeerFault(Code.CHANNEL_TERMS, f"{what} must be a list of at most {longest}")
    return raw


def _integer(raw: object, what: str) -> int:
    if type(raw) is not int or not 0 <= raw < 2**48:
        raise PeerFault(Code.CHANNEL_TERMS, f"{what} must be a whole number of at least 0")
    return raw
