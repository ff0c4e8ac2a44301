"""Configuration of a broker: `broker.toml` in its folder with the environment over it; its markets and channel terms.

Invariants: a market is exact integers (`tick_quote`, `lot_base`) or it is refused; amounts are base units, prices base
units of the value token per 10^18 base units of the asset, as `channel.terms` has them; the terms that two brokers
build from the same arguments are the same bytes. Errors are PeerFault CONFIG with file, section, key and what would be
right. DESIGN sections 3 and 4.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Self

from channel.errors import Code, PeerFault, XlnError
from channel.strictjson import Fields, loads
from channel.terms import (
    BPS,
    MAX_LOT_BASE,
    MAX_MARKETS,
    MAX_PRICE_DIGITS,
    MAX_TOKENS,
    PRICE_SCALE,
    Market,
    Terms,
    Token,
    tick_scale,
)
from channel.units import (
    UINT64_MAX,
    UINT256_MAX,
    ZERO_ADDRESS,
    Address,
    format_address,
    parse_address,
    parse_amount,
    parse_quantity,
)
from node import logs
from node.config import Config, Field, Section, Table, write_template

CONFIG_FILE: Final = "broker.toml"
KEY_FILE: Final = "key.json"
DATABASE_FILE: Final = "broker.sqlite"
LOG_FILE: Final = "broker.log"
NETWORK_BYTES_MAX: Final = 256 * 1024
PEERS_MAX: Final = 64
MONTH_S: Final = 30 * 24 * 3600
_PRICE_DIGITS = len(str(PRICE_SCALE)) - 1
_SYMBOL = "[A-Za-z0-9]{1,16}"


def _fail(message: str) -> NoReturn:
    raise PeerFault(Code.CONFIG, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """One deployment, and how its chain is followed. There are no events of its contracts before `from_block`."""

    chain_url: str
    chain_id: int
    adjudicator: Address
    factory: Address
    collateral: Address
    xln: Address  # who signs for the XLN service
    from_block: int = 0
    confirmations: int = 3
    poll_ms: int = 500

    @property
    def poll_s(self) -> float:
        return self.poll_ms / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConfig:
    """`price`: base units of the value token per 10^18 base units of this one."""

    symbol: str
    address: Address
    decimals: int
    haircut_bps: int
    price: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketConfig:
    """A market of this broker. `tick_quote`: quote base units per lot and tick; `lot_base`: base base units per lot."""

    base: TokenConfig
    quote: TokenConfig
    tick_quote: int
    lot_base: int

    @property
    def name(self) -> str:
        return f"{self.base.symbol}/{self.quote.symbol}".lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class TermsConfig:
    """What this broker puts into the terms of channels. `unsettled_limit` in base units of `value_token`."""

    cover_ratio_bps: int
    value_token: Address
    unsettled_limit: int
    grace_s: int
    evidence_s: int
    verdict_s: int
    appeal_s: int
    claim_s: int
    challenge_duration_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """What this broker does when a peer asks for a channel: `lock_max` is the most it locks, in base units."""

    accept: bool
    lock_token: Address
    lock_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerConfig:
    """A broker that this one knows. Without a `url` it is not dialled, only let in."""

    address: Address
    url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """Bounds of the trader API."""

    requests_max: int = 512  # at work at once
    ws_clients_max: int = 256
    ws_queue_max: int = 256  # messages that wait for one client
    book_levels_max: int = 200  # a side, in answers and on the WebSocket


@dataclass(frozen=True, slots=True, kw_only=True)
class XlnConfig:
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcConfig:
    """Where peers connect. `public_url` is what the registry on chain says; None: from host and port."""

    host: str
    port: int
    public_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysConfig:
    keyfile: Path
    password_file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """`file` None: standard error."""

    level: str
    file: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """See the module docstring. `channel_terms` and `own_markets` are what `terms` and `markets` build from."""

    network: NetworkConfig
    xln: XlnConfig
    rpc: RpcConfig
    api: ApiConfig
    tokens: tuple[TokenConfig, ...]
    own_markets: tuple[MarketConfig, ...]
    channel_terms: TermsConfig
    channel: ChannelConfig
    peers: tuple[PeerConfig, ...]
    limits: LimitsConfig
    keys: KeysConfig
    log: LogConfig

    @classmethod
    def load(cls, folder: Path, *, env: Mapping[str, str] | None = None) -> Self:
        """Reads `<folder>/broker.toml`; `env` defaults to the environment of the process. Raises PeerFault CONFIG."""
        file = Config.load(folder / CONFIG_FILE, env=env)
        rpc, api, keys, log, limits = (file.table(name) for name in ("rpc", "api", "keys", "log", "limits"))
        tokens, value_token = _read_tokens(file)
        config = cls(
            network=_network(file.table("network")),
            xln=XlnConfig(url=file.table("xln").url("url", schemes=("ws", "wss"))),
            rpc=RpcConfig(
                host=rpc.text("host", "127.0.0.1"),
                port=rpc.integer("port", 7_100, high=65_535),
                public_url=rpc.url("public_url", "", schemes=("ws", "wss")) or None,
            ),
            api=ApiConfig(host=api.text("host", "127.0.0.1"), port=api.integer("port", 8_100, high=65_535)),
            tokens=tokens,
            own_markets=_markets(file, tokens),
            channel_terms=_terms(file.table("terms"), value_token),
            channel=_channel(file.table("channel"), tokens, value_token),
            peers=_peers(file),
            limits=LimitsConfig(
                requests_max=limits.integer("requests_max", 512, low=1, high=65_536),
                ws_clients_max=limits.integer("ws_clients_max", 256, low=1, high=65_536),
                ws_queue_max=limits.integer("ws_queue_max", 256, low=4, high=65_536),
                book_levels_max=limits.integer("book_levels_max", 200, low=1, high=1_000),
            ),
            keys=KeysConfig(
                keyfile=keys.path("keyfile", folder / KEY_FILE), password_file=keys.optional_path("password_file")
            ),
            log=LogConfig(level=log.text("level", "info", choices=logs.LEVELS), file=log.optional_path("file")),
        )
        file.finish()
        return config

    def token(self, address: Address) -> TokenConfig | None:
        return next((token for token in self.tokens if token.address == address), None)

    def token_named(self, text: str) -> TokenConfig:
        """By symbol, in whatever case, or by address. Raises PeerFault PARAMS."""
        for token in self.tokens:
            if text.lower() in (token.symbol.lower(), format_address(token.address).lower()):
                return token
        raise PeerFault(
            Code.PARAMS, f"there is no token {text[:48]} here; known are {', '.join(t.symbol for t in self.tokens)}"
        )

    def market_name(self, market: Market) -> str:
        """ "btc/usd", of any market in tokens that are known here."""
        base, quote = self.token(market.base), self.token(market.quote)
        return f"{base.symbol if base else '?'}/{quote.symbol if quote else '?'}".lower()

    def markets(self, me: Address) -> tuple[Market, ...]:
        """This broker's markets, with itself as their holder."""
        return tuple(
            Market(
                holder=me,
                chain_id=self.network.chain_id,
                base=m.base.address,
                quote=m.quote.address,
                tick_quote=m.tick_quote,
                lot_base=m.lot_base,
            )
            for m in self.own_markets
        )

    def terms(
        self, me: Address, peer: Address, custodies: tuple[Address, Address], peer_markets: Iterable[Market]
    ) -> Terms:
        """Terms for a channel with `peer`. `custodies`: of this broker, of the peer; they get the participants' order.

        Markets of the peer in tokens that this broker does not list are left out. Raises PeerFault CHANNEL_TERMS.
        """
        known = {token.address for token in self.tokens}
        markets = [*self.markets(me), *(m for m in peer_markets if m.base in known and m.quote in known)]
        tokens = sorted(self.tokens, key=lambda token: token.address)
        t = self.channel_terms
        return Terms(
            custodies=custodies if me < peer else (custodies[1], custodies[0]),
            collateral=self.network.collateral,
            tokens=tuple(
                Token(address=k.address, symbol=k.symbol, decimals=k.decimals, haircut_bps=k.haircut_bps)
                for k in tokens
            ),
            markets=tuple(sorted(markets, key=lambda m: (m.holder, m.market_id))),
            cover_ratio_bps=t.cover_ratio_bps,
            value_token=t.value_token,
            unsettled_limit=t.unsettled_limit,
            prices=tuple((token.address, token.price) for token in tokens),
            grace_s=t.grace_s,
            evidence_s=t.evidence_s,
            verdict_s=t.verdict_s,
            appeal_s=t.appeal_s,
            claim_s=t.claim_s,
        )


# -- exact numbers


def price_of(text: object, decimals: int, value_decimals: int) -> int:
    """Base units of the value token per 10^18 base units of a token, from the worth of one whole token in whole value
    tokens. Raises ValueError with what would be right, PeerFault AMOUNT."""
    digits = _PRICE_DIGITS + value_decimals - decimals
    price = parse_amount(text, max(digits, 0), "the price")
    if digits < 0:
        price, rest = divmod(price, 10**-digits)
        if rest:
            raise ValueError(f"a multiple of 10^{-digits}: the token has {decimals} decimals")
    if not 0 < price <= UINT256_MAX:
        raise ValueError("a price above 0")
    return price


def market_units(tick: object, lot: object, base_decimals: int, quote_decimals: int) -> tuple[int, int]:
    """(tick_quote, lot_base) from a tick in whole quote per whole base token and a lot in whole base tokens.

    Raises ValueError with what would be right, PeerFault AMOUNT: notional must be exact.
    """
    lot_base = parse_amount(lot, base_decimals, "the lot")
    if not 0 < lot_base <= MAX_LOT_BASE:
        raise ValueError("a lot above 0 and below 2^128 base units")
    ticks = parse_amount(tick, MAX_PRICE_DIGITS, "the tick")
    tick_quote, rest = divmod(ticks * lot_base * 10**quote_decimals, 10 ** (MAX_PRICE_DIGITS + base_decimals))
    if rest or tick_quote == 0:
        raise ValueError(
            f"such that tick × lot is a whole number of base units of the quote token: {tick} × {lot} has more than"
            f" its {quote_decimals} decimals; take a larger tick or lot"
        )
    if tick_quote > UINT64_MAX:
        raise ValueError("such that tick × lot stays below 2^64 base units of the quote token")
    return tick_quote, lot_base


# -- reading


def _network(table: Table) -> NetworkConfig:
    return NetworkConfig(
        chain_url=table.url("chain_url"),
        chain_id=table.integer("chain_id", low=1, high=2**53 - 1),
        adjudicator=table.address("adjudicator"),
        factory=table.address("factory"),
        collateral=table.address("collateral"),
        xln=table.address("xln"),
        from_block=table.integer("from_block", 0),
        confirmations=table.integer("confirmations", 3, low=1, high=256),
        poll_ms=table.integer("poll_ms", 500, low=20, high=60_000),
    )


def _read_tokens(file: Config) -> tuple[tuple[TokenConfig, ...], TokenConfig]:
    """All tokens, and the value token, which section [terms] names."""
    tables = file.tables("tokens", low=1, high=MAX_TOKENS)
    symbols = [t.text("symbol", pattern=_SYMBOL, right="a symbol of 1 to 16 letters and digits") for t in tables]
    if len({symbol.lower() for symbol in symbols}) != len(symbols):
        _fail(f"{file.path}: two sections [[tokens]] have the same symbol")
    named = file.table("terms").text("value_token", choices=symbols)
    decimals = [t.integer("decimals", high=36) for t in tables]
    value_decimals = decimals[symbols.index(named)]
    tokens = tuple(
        TokenConfig(
            symbol=symbol,
            address=table.address("address"),
            decimals=places,
            haircut_bps=table.integer("haircut_bps", 0, high=BPS - 1),
            price=table.get("price", lambda value, places=places: price_of(value, places, value_decimals)),  # type: ignore[misc]
        )
        for table, symbol, places in zip(tables, symbols, decimals, strict=True)
    )
    if len({token.address for token in tokens}) != len(tokens):
        _fail(f"{file.path}: two sections [[tokens]] have the same address")
    return tokens, tokens[symbols.index(named)]


def _markets(file: Config, tokens: Sequence[TokenConfig]) -> tuple[MarketConfig, ...]:
    by_symbol = {token.symbol: token for token in tokens}
    markets: list[MarketConfig] = []
    for table in file.tables("markets", high=MAX_MARKETS // 2):
        base = by_symbol[table.text("base", choices=list(by_symbol))]
        quote = by_symbol[table.text("quote", choices=list(by_symbol))]
        if base is quote:
            _fail(f"{file.path}: base and quote in section [{table.name}] must be two tokens")
        tick, lot = table.text("tick"), table.text("lot")
        try:
            tick_quote, lot_base = market_units(tick, lot, base.decimals, quote.decimals)
            shape = Market(
                holder=ZERO_ADDRESS, chain_id=1, base=base.address, quote=quote.address,
                tick_quote=tick_quote, lot_base=lot_base,
            )  # fmt: skip
            tick_scale(shape, base.decimals, quote.decimals)
        except ValueError as error:
            _fail(f"{file.path}: tick and lot in section [{table.name}] must be {error}")
        except XlnError as error:
            _fail(f"{file.path}: section [{table.name}]: {error.message}")
        markets.append(MarketConfig(base=base, quote=quote, tick_quote=tick_quote, lot_base=lot_base))
    names = [market.name for market in markets]
    if len(set(names)) != len(names):
        _fail(f"{file.path}: each market is listed once, by base and quote")
    return tuple(markets)


def _terms(table: Table, value_token: TokenConfig) -> TermsConfig:
    windows = {name: table.integer(name, default, high=MONTH_S) for name, default, _ in _WINDOWS}
    shortest = windows["evidence_s"] + windows["verdict_s"] + windows["appeal_s"]
    challenge = table.integer("challenge_duration_s", max(shortest, 1), low=1, high=MONTH_S)
    if challenge < shortest:
        _fail(
            f"{table.config.path}: challenge_duration_s in section [terms] must be at least evidence_s + verdict_s + "
            f"appeal_s = {shortest}, not {challenge}"
        )
    return TermsConfig(
        cover_ratio_bps=table.integer("cover_ratio_bps", 11_000, low=BPS, high=100 * BPS),
        value_token=value_token.address,
        unsettled_limit=table.amount("unsettled_limit", decimals=value_token.decimals),
        challenge_duration_s=challenge,
        **windows,
    )


_WINDOWS: Final = (
    ("grace_s", 10, "Seconds after a lodged cancel in which a fill still counts."),
    ("evidence_s", 600, "Seconds in a dispute to hand in journals."),
    ("verdict_s", 300, "Seconds until the verdict."),
    ("appeal_s", 300, "Seconds for an appeal."),
    ("claim_s", 3_600, "Seconds after settlement in which a claim can be made."),
)


def _channel(table: Table, tokens: Sequence[TokenConfig], value_token: TokenConfig) -> ChannelConfig:
    by_symbol = {token.symbol: token for token in tokens}
    token = by_symbol[table.text("lock_token", value_token.symbol, choices=list(by_symbol))]
    return ChannelConfig(
        accept=table.boolean("accept", True),
        lock_token=token.address,
        lock_max=table.amount("lock_max", 0, decimals=token.decimals),
    )


def _peers(file: Config) -> tuple[PeerConfig, ...]:
    peers: list[PeerConfig] = []
    for table in file.tables("peers", high=PEERS_MAX):
        address = table.address("address")
        peers.append(PeerConfig(address=address, url=table.url("url", "", schemes=("ws", "wss")) or None))
    if len({peer.address for peer in peers}) != len(peers):
        _fail(f"{file.path}: each peer is listed once in [[peers]]")
    return tuple(peers)


# -- the deployment, as its deployer wrote it


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkToken:
    symbol: str
    address: Address
    decimals: int
    haircut_bps: int
    price: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkMarket:
    base: str
    quote: str
    tick: str
    lot: str

    @property
    def name(self) -> str:
        return f"{self.base}/{self.quote}".lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFile:
    """network.json: where chain, contracts and the XLN service are, and which tokens and markets are usual there."""

    chain_url: str
    chain_id: int
    adjudicator: Address
    factory: Address
    collateral: Address
    xln: Address
    xln_url: str
    from_block: int
    tokens: tuple[NetworkToken, ...]
    markets: tuple[NetworkMarket, ...]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises PeerFault CONFIG."""
        try:
            with path.open("rb") as file:
                raw = file.read(NETWORK_BYTES_MAX + 1)
        except OSError as error:
            _fail(f"cannot read {path}: {error.strerror}")
        try:
            return cls.from_json(loads(raw, max_bytes=NETWORK_BYTES_MAX))
        except XlnError as error:
            raise PeerFault(
                Code.CONFIG, f"{path} is not a network description: {error.message}", cause=error.code.label
            ) from error

    @classmethod
    def from_json(cls, document: object) -> Self:
        """{"chainUrl", "chainId", "adjudicator", "factory", "collateral", "xln", "xlnUrl", "tokens", "markets"}, and
        optionally "fromBlock". Raises PeerFault CONFIG, ADDRESS, ENCODING."""
        o = Fields(document, "the network", Code.CONFIG)
        network = cls(
            chain_url=o.text("chainUrl", 2_048, min_len=1),
            chain_id=_chain_id(o.any("chainId")),
            adjudicator=o.address("adjudicator"),
            factory=o.address("factory"),
            collateral=o.address("collateral"),
            xln=o.address("xln"),
            xln_url=o.text("xlnUrl", 2_048, min_len=1),
            from_block=o.optional_integer("fromBlock") or 0,
            tokens=tuple(_network_token(item) for item in o.list("tokens", MAX_TOKENS, min_items=1)),
            markets=tuple(_network_market(item) for item in o.list("markets", MAX_MARKETS // 2)),
        )
        o.done()
        return network


def _chain_id(value: object) -> int:
    """A JSON integer or a 0x quantity."""
    if type(value) is int and value > 0:
        return value
    return parse_quantity(value, "chainId")


def _network_token(raw: object) -> NetworkToken:
    o = Fields(raw, "a token of the network", Code.CONFIG)
    token = NetworkToken(
        symbol=o.text("symbol", 16, min_len=1),
        address=o.address("address"),
        decimals=o.integer("decimals", 0, 36),
        haircut_bps=o.integer("haircutBps", 0, BPS - 1),
        price=o.text("price", 100, min_len=1),
    )
    o.done()
    return token


def _network_market(raw: object) -> NetworkMarket:
    o = Fields(raw, "a market of the network", Code.CONFIG)
    market = NetworkMarket(
        base=o.text("base", 16, min_len=1),
        quote=o.text("quote", 16, min_len=1),
        tick=o.text("tick", 100, min_len=1),
        lot=o.text("lot", 100, min_len=1),
    )
    o.done()
    return market


# -- writing a first file


@dataclass(frozen=True, slots=True, kw_only=True)
class InitOptions:
    """What `init` decides. Amounts are decimal text; `peers`: (address, URL or None)."""

    rpc: tuple[str, int] = ("127.0.0.1", 7_100)
    api: tuple[str, int] = ("127.0.0.1", 8_100)
    public_url: str | None = None
    password_file: Path | None = None
    peers: tuple[tuple[Address, str | None], ...] = ()
    accept: bool = True
    value_token: str | None = None  # default: the token whose price is 1, else the first
    lock_token: str | None = None  # default: the value token
    lock_max: str = "0"
    unsettled_limit: str = "100000"
    confirmations: int = 3
    poll_ms: int = 500
    cover_ratio_bps: int = 11_000
    windows_s: Mapping[str, int] | None = None  # any of grace_s, evidence_s, verdict_s, appeal_s, claim_s
    log_level: str = "info"


def write_config(folder: Path, network: NetworkFile, options: InitOptions) -> Path:
    """Writes `<folder>/broker.toml`, mode 0600. Raises LocalRefusal CONFIG when there is one."""
    path = folder / CONFIG_FILE
    write_template(path, "Configuration of an XLN broker.", _sections(network, options))
    return path


def _sections(network: NetworkFile, options: InitOptions) -> list[Section]:
    value_token = options.value_token or next((t.symbol for t in network.tokens if t.price == "1"), "")
    value_token = value_token or network.tokens[0].symbol
    password = None if options.password_file is None else str(options.password_file.absolute())
    windows = {**{name: default for name, default, _ in _WINDOWS}, **(options.windows_s or {})}
    return [
        Section(
            name="network",
            comment="The chain, and the contracts of this deployment.",
            fields=(
                Field(key="chain_url", comment="JSON-RPC endpoint.", value=network.chain_url),
                Field(key="chain_id", comment="The endpoint must serve this chain.", value=network.chain_id),
                Field(key="adjudicator", comment="Adjudicator.", value=format_address(network.adjudicator)),
                Field(key="factory", comment="CustodyFactory.", value=format_address(network.factory)),
                Field(key="collateral", comment="XlnCollateral.", value=format_address(network.collateral)),
                Field(key="xln", comment="Who signs for the XLN service.", value=format_address(network.xln)),
                Field(key="from_block", comment="No event of these contracts is older.", value=network.from_block),
                Field(key="confirmations", comment="Blocks until an event counts.", value=options.confirmations),
                Field(key="poll_ms", comment="How often the chain is asked.", value=options.poll_ms),
            ),
        ),
        Section(
            name="xln",
            comment="The collateral service.",
            fields=(Field(key="url", comment="Its WebSocket.", value=network.xln_url),),
        ),
        Section(
            name="rpc",
            comment="Where peers connect (WebSocket).",
            fields=(
                Field(key="host", comment="Address to listen on.", value=options.rpc[0]),
                Field(key="port", comment="Port to listen on.", value=options.rpc[1]),
                Field(
                    key="public_url",
                    comment="What the registry on chain tells peers; without it, from host and port.",
                    value=options.public_url,
                    example="wss://broker.example/xln",
                ),
            ),
        ),
        Section(
            name="api",
            comment="Where traders and the operator connect (HTTP). Port 0 takes a free one.",
            fields=(
                Field(key="host", comment="Address to listen on.", value=options.api[0]),
                Field(key="port", comment="Port to listen on.", value=options.api[1]),
            ),
        ),
        Section(
            name="keys",
            comment="The key that signs states, entries and transactions.",
            fields=(
                Field(key="keyfile", comment="Encrypted keyfile.", value=KEY_FILE),
                Field(
                    key="password_file",
                    comment="File of mode 0600 with its password; without one, `run` asks.",
                    value=password,
                    example="password",
                ),
            ),
        ),
        *(_token_section(token) for token in network.tokens),
        *(_market_section(market) for market in network.markets),
        _terms_section(options, value_token, windows),
        _channel_section(options, value_token),
        *_peer_sections(options),
        Section(
            name="limits",
            comment="Bounds of the trader API.",
            fields=(
                Field(key="requests_max", comment="Requests at work at once.", value=512),
                Field(key="ws_clients_max", comment="WebSocket clients.", value=256),
                Field(key="ws_queue_max", comment="Messages that may wait for one of them.", value=256),
                Field(key="book_levels_max", comment="Levels a side in answers.", value=200),
            ),
        ),
        Section(
            name="log",
            comment="JSON lines, rotating.",
            fields=(
                Field(key="level", comment=f"One of {', '.join(logs.LEVELS)}.", value=options.log_level),
                Field(key="file", comment="Without it, standard error.", value=LOG_FILE),
            ),
        ),
    ]


def _token_section(token: NetworkToken) -> Section:
    return Section(
        name="tokens",
        comment=f"{token.symbol}.",
        array=True,
        fields=(
            Field(key="symbol", comment="Its name here.", value=token.symbol),
            Field(key="address", comment="Its contract; the zero address is the native token.",
                  value=format_address(token.address)),
            Field(key="decimals", comment="As its contract says.", value=token.decimals),
            Field(key="haircut_bps", comment="How much less it counts as collateral.", value=token.haircut_bps),
            Field(key="price", comment="What a whole one is worth, in whole value tokens.", value=token.price),
        ),
    )  # fmt: skip


def _market_section(market: NetworkMarket) -> Section:
    return Section(
        name="markets",
        comment=f"The market {market.name} of this broker.",
        array=True,
        fields=(
            Field(key="base", comment="What is traded.", value=market.base),
            Field(key="quote", comment="What it is paid with.", value=market.quote),
            Field(key="tick", comment="Smallest step of the price: whole quote per whole base.", value=market.tick),
            Field(key="lot", comment="Smallest step of the amount, in whole base.", value=market.lot),
        ),
    )


def _terms_section(options: InitOptions, value_token: str, windows: Mapping[str, int]) -> Section:
    challenge_s = windows["evidence_s"] + windows["verdict_s"] + windows["appeal_s"]
    return Section(
        name="terms",
        comment="What this broker asks for in a channel.",
        fields=(
            Field(key="value_token", comment="The token in which cover is counted.", value=value_token),
            Field(key="cover_ratio_bps", comment="Collateral for what is owed.", value=options.cover_ratio_bps),
            Field(
                key="unsettled_limit",
                comment="The most that may be matched and not co-signed yet, in whole value tokens.",
                value=options.unsettled_limit,
            ),
            *(Field(key=name, comment=comment, value=windows[name]) for name, _, comment in _WINDOWS),
            Field(
                key="challenge_duration_s",
                comment="Seconds until a challenge on chain is final; at least evidence_s + verdict_s + appeal_s.",
                value=max(challenge_s, 1),
            ),
        ),
    )


def _channel_section(options: InitOptions, value_token: str) -> Section:
    return Section(
        name="channel",
        comment="What this broker does when a peer asks for a channel.",
        fields=(
            Field(key="accept", comment="Whether it opens one.", value=options.accept),
            Field(key="lock_token", comment="What it locks.", value=options.lock_token or value_token),
            Field(key="lock_max", comment="The most it locks, in whole tokens.", value=options.lock_max),
        ),
    )


def _peer_sections(options: InitOptions) -> list[Section]:
    def section(address: str, url: str | None, *, example: bool) -> Section:
        return Section(
            name="peers",
            comment="A broker to trade with.",
            array=True,
            example=example,
            fields=(
                Field(key="address", comment="Its signing address.", value=address),
                Field(key="url", comment="Where it listens; without it, it dials.", value=url),
            ),
        )

    if not options.peers:
        return [section("0x00000000000000000000000000000000000000b2", "ws://127.0.0.1:7001", example=True)]
    return [section(format_address(address), url, example=False) for address, url in options.peers]


def parse_peer(text: str) -> tuple[Address, str | None]:
    """ADDRESS or ADDRESS=URL, of a command line. Raises PeerFault ADDRESS."""
    address, _, url = text.partition("=")
    return parse_address(address, "the peer's address"), url or None
