"""Configuring a network: what is written is what the nodes read, and its ports stay the same."""

import socket
from pathlib import Path

from broker.config import BrokerConfig
from channel.units import Address
from contracts.network import NetworkAddresses, TokenAddress
from devnet.network import MARKET, PORT_FIRST, PORT_LAST, Settings, _configure, _draw_keys, free_ports
from node import keyfile
from node.files import read_private
from xln import config as xln_config

CHAIN_URL = "http://127.0.0.1:1"


def deployment(xln: Address) -> NetworkAddresses:
    contracts = [Address(bytes([n] * 20)) for n in range(1, 6)]
    return NetworkAddresses(
        chain_id=31_337,
        adjudicator=contracts[0],
        factory=contracts[1],
        collateral=contracts[2],
        xln=xln,
        from_block=3,
        tokens=(
            TokenAddress(symbol="BTC", address=contracts[3], decimals=8),
            TokenAddress(symbol="USD", address=contracts[4], decimals=6),
        ),
    )


def test_ports_are_free_and_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(PORT_FIRST <= port < PORT_LAST for port in ports)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports[0]))


def test_the_nodes_read_what_is_written(tmp_path: Path) -> None:
    xln_signer, a_signer, b_signer = _draw_keys(tmp_path)
    assert a_signer.address < b_signer.address  # A is participant 0
    settings = Settings(btc_price="61234", lock_max="5000", unsettled_limit="77", poll_ms=120, confirmations=2)
    network = deployment(xln_signer.address)
    xln, a, b = _configure(tmp_path, settings, CHAIN_URL, network, (a_signer.address, b_signer.address))

    service = xln_config.load(tmp_path / "xln")
    assert f"ws://127.0.0.1:{service.rpc_port}" == xln.rpc_url
    assert service.collateral == network.collateral
    for broker, peer, signer in ((a, b, a_signer), (b, a, b_signer)):
        config = BrokerConfig.load(broker.folder, env={})
        assert f"ws://{config.rpc.host}:{config.rpc.port}" == broker.rpc_url
        assert f"http://{config.api.host}:{config.api.port}" == broker.api_url
        assert [(p.address, p.url) for p in config.peers] == [(peer.address, peer.rpc_url)]
        assert config.xln.url == xln.rpc_url
        assert config.network.from_block == 3
        assert (config.network.confirmations, config.network.poll_ms) == (2, 120)
        assert config.channel.lock_max == 5_000 * 10**6
        assert config.channel.lock_token == config.channel_terms.value_token == network.tokens[1].address
        assert config.channel_terms.unsettled_limit == 77 * 10**6
        (market,) = config.markets(signer.address)
        assert config.market_name(market) == MARKET
        assert (market.tick_quote, market.lot_base) == (1, 10_000)  # what the flow of the demo counts in
        assert config.keys.password_file is not None
        password = keyfile.read_password(config.keys.password_file)
        assert keyfile.load(config.keys.keyfile, password).address == signer.address == broker.address
    assert len({xln.rpc_url, a.rpc_url, b.rpc_url, a.api_url, b.api_url}) == 5


def test_what_is_secret_is_private(tmp_path: Path) -> None:
    _draw_keys(tmp_path)
    for name in ("xln", "a", "b"):
        for file in ("key.json", "password"):
            assert read_private(tmp_path / name / file)
