"""A broker's configuration: what init writes is what load reads; markets are exact or refused; terms are the same."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config import BrokerConfig, InitOptions, NetworkFile, market_units, price_of, write_config
from channel.errors import Code, LocalRefusal, PeerFault
from channel.terms import Market, Terms, terms_from_json, terms_to_json
from channel.units import Address, format_address
from tests.support.memory_node import network_json, write_and_load
from tests.support.pair import ADJUDICATOR, BTC, CHAIN_ID, COLLATERAL, USD, XLN, custody_of, market_of, signers

ME, PEER = (signer.address for signer in signers())


def refusal(folder: Path, old: str, new: str, env: dict[str, str] | None = None) -> str:
    """The message after replacing one text of the file."""
    if not (folder / "broker.toml").exists():
        write_config(folder, NetworkFile.from_json(network_json()), InitOptions())
    path = folder / "broker.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(PeerFault) as error:
        BrokerConfig.load(folder, env=env or {})
    assert error.value.code is Code.CONFIG
    return error.value.message


def test_what_init_writes_is_read_back(tmp_path: Path) -> None:
    options = InitOptions(
        rpc=("0.0.0.0", 7),
        api=("::1", 0),
        public_url="wss://a.example/x",
        password_file=tmp_path / "pw",
        peers=((PEER, "ws://127.0.0.1:7101"), (Address(b"\x05" * 20), None)),
        accept=False,
        lock_token="BTC",
        lock_max="1.5",
        unsettled_limit="250.5",
        windows_s={"evidence_s": 10, "verdict_s": 5, "appeal_s": 5},
        poll_ms=50,
    )
    config = write_and_load(tmp_path, options, fromBlock=9)
    net = config.network
    assert (net.chain_url, net.chain_id, net.adjudicator) == ("http://127.0.0.1:8545", CHAIN_ID, ADJUDICATOR)
    assert (net.collateral, net.xln, net.from_block, net.confirmations) == (COLLATERAL, XLN.address, 9, 3)
    assert net.poll_s == 0.05
    assert (config.rpc.host, config.rpc.port, config.rpc.public_url) == ("0.0.0.0", 7, "wss://a.example/x")
    assert (config.api.host, config.api.port, config.xln.url) == ("::1", 0, "ws://127.0.0.1:7000")
    assert [(p.address, p.url) for p in config.peers] == [(PEER, "ws://127.0.0.1:7101"), (Address(b"\x05" * 20), None)]
    assert (config.channel.accept, config.channel.lock_token, config.channel.lock_max) == (False, BTC, 150_000_000)
    terms = config.channel_terms
    assert (terms.value_token, terms.unsettled_limit, terms.challenge_duration_s) == (USD, 250_500_000, 20)
    assert (config.keys.keyfile, config.keys.password_file) == (tmp_path / "key.json", tmp_path / "pw")
    assert config.log.file == tmp_path / "broker.log"
    assert (tmp_path / "broker.toml").stat().st_mode & 0o777 == 0o600
    with pytest.raises(LocalRefusal):
        write_config(tmp_path, NetworkFile.from_json(network_json()), options)


def test_markets_and_terms_are_those_of_the_channel(tmp_path: Path) -> None:
    config = write_and_load(tmp_path)
    assert config.markets(ME) == (market_of(ME),)
    assert config.market_name(market_of(PEER)) == "btc/usd"
    assert config.peers == ()
    mine = config.terms(ME, PEER, (custody_of(ME), custody_of(PEER)), [market_of(PEER)])
    theirs = config.terms(PEER, ME, (custody_of(PEER), custody_of(ME)), [market_of(ME)])
    assert mine == theirs
    assert mine.terms_hash == theirs.terms_hash
    assert terms_from_json(terms_to_json(mine)) == mine
    assert mine.custodies == (custody_of(min(ME, PEER)), custody_of(max(ME, PEER)))
    assert {m.market_id for m in mine.markets} == {market_of(ME).market_id, market_of(PEER).market_id}
    # 1 BTC = 10^8 base units is worth 60000 USD = 6 x 10^10 base units
    assert mine.price(BTC) * 10**8 == 60_000 * 10**6 * 10**18
    assert mine.price(USD) == 10**18


def test_markets_of_the_peer_in_unknown_tokens_are_left_out(tmp_path: Path) -> None:
    other = Market(holder=PEER, chain_id=CHAIN_ID, base=Address(b"\x0e" * 20), quote=USD, tick_quote=1, lot_base=1)
    custodies = (custody_of(ME), custody_of(PEER))
    terms: Terms = write_and_load(tmp_path).terms(ME, PEER, custodies, [market_of(PEER), other])
    assert other not in terms.markets
    assert len(terms.markets) == 2


def test_tokens_are_found_by_symbol_and_address(tmp_path: Path) -> None:
    config = write_and_load(tmp_path)
    assert config.token_named("btc").address == BTC
    assert config.token_named(format_address(USD)).symbol == "USD"
    with pytest.raises(PeerFault):
        config.token_named("EUR")


def test_the_environment_beats_the_file(tmp_path: Path) -> None:
    write_and_load(tmp_path)
    env = {"XLN_API_PORT": "9", "XLN_NETWORK_CHAIN_URL": "http://chain:1", "XLN_CHANNEL_ACCEPT": "false"}
    config = BrokerConfig.load(tmp_path, env=env)
    assert (config.api.port, config.network.chain_url, config.channel.accept) == (9, "http://chain:1", False)


def test_a_market_that_cannot_be_exact_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, 'tick = "0.01"', 'tick = "0.001"')
    assert "tick × lot" in message
    assert "[markets.1]" in message


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('lot = "0.0001"', 'lot = "0.000000001"', "8 are allowed"),
        ('lot = "0.0001"', 'lot = "0"', "lot above 0"),
        ('tick = "0.01"', 'tick = "0"', "tick × lot"),
        ('quote = "USD"', 'quote = "BTC"', "two tokens"),
        ('quote = "USD"', 'quote = "EUR"', "one of BTC, USD"),
        ('symbol = "USD"', 'symbol = "btc"', "same symbol"),
        ('value_token = "USD"', 'value_token = "EUR"', "one of BTC, USD"),
        ('price = "60000"', 'price = "0"', "a price above 0"),
        ('price = "60000"', "price = 60000.0", "decimal number in quotes"),
        ("challenge_duration_s = 1200", "challenge_duration_s = 1199", "at least"),
        ('chain_url = "http', 'chain_url = "ftp', "http://"),
        ("confirmations = 3", "confirmation = 3", "did you mean 'confirmations'"),
        ('unsettled_limit = "100000"', 'unsettled_limit = "0.0000001"', "6 are allowed"),
        ('level = "info"', 'level = "loud"', "debug"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, old: str, new: str, part: str) -> None:
    message = refusal(tmp_path, old, new)
    assert part in message
    assert "broker.toml" in message


def test_an_unknown_variable_of_the_environment_is_named(tmp_path: Path) -> None:
    assert "XLN_API_PROT" in refusal(tmp_path, "8100", "8101", env={"XLN_API_PROT": "1"})


@pytest.mark.parametrize(
    "changes",
    [
        {"chainId": 0},
        {"chainId": "31337"},
        {"xln": "0x12"},
        {"tokens": []},
        {"tokens": [{"symbol": "USD"}]},
        {"extra": 1},
        {"markets": [{"base": "BTC", "quote": "USD", "tick": 1, "lot": "1"}]},
    ],
)
def test_a_network_description_that_is_wrong_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "network.json"

    path.write_text(json.dumps({**network_json(), **changes}))
    with pytest.raises(PeerFault) as error:
        NetworkFile.load(path)
    assert error.value.code is Code.CONFIG
    assert "network.json" in error.value.message


@given(st.integers(0, 18), st.integers(0, 18), st.integers(1, 10**6), st.integers(0, 6), st.integers(0, 4))
def test_market_units_are_exact_or_refused(base: int, quote: int, tick: int, places: int, lot_places: int) -> None:
    tick_text = f"{tick // 10**places}.{tick % 10**places:0{places}d}" if places else str(tick)
    lot_text = "0." + "0" * (lot_places - 1) + "1" if lot_places else "1"
    exact = tick * 10 ** (quote + 18) // 10 ** (places + lot_places)
    try:
        tick_quote, lot_base = market_units(tick_text, lot_text, base, quote)
    except (ValueError, PeerFault):
        assert lot_places > base or exact % 10**18 or exact >> 64
        return
    assert lot_base * 10**lot_places == 10**base
    assert tick_quote * 10 ** (places + lot_places) == tick * 10**quote


def test_prices_scale_as_terms_have_them() -> None:
    assert price_of("1", 6, 6) == 10**18
    assert price_of("2000.5", 18, 6) == 2000_500_000
    assert price_of("3000000000000", 36, 6) == 3
    with pytest.raises(ValueError, match="multiple"):
        price_of("3000000000001", 36, 6)
