"""The command line: init writes what load reads, traders trade through a real API, errors are one line and say what."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from broker import api, cli
from broker.config import BrokerConfig
from channel.signing import Signer
from channel.units import format_address, format_hex
from node import keyfile
from tests.support.memory_node import MemoryNode, network_json, write_and_load
from tests.support.pair import BTC, USD, Pair, user

ALICE, BOB = user(100), user(101)


def run(*arguments: object, **how: Any) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], **how)


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def bad(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    return result.stderr


def private(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


# -- init


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "network.json"
    path.write_text(json.dumps(network_json()))
    return path


def test_init_makes_key_and_configuration(tmp_path: Path, network: Path) -> None:
    folder, password = tmp_path / "a", tmp_path / "a" / "password"
    peer = format_address(BOB.address)
    printed = good(
        "init", "--dir", folder, "--network", network, "--new-password-file", password, "--light-key",
        "--peer", f"{peer}=ws://127.0.0.1:7101", "--rpc", "127.0.0.1:7200", "--api", "127.0.0.1:0",
        "--lock-max", "1000.5", "--window", "evidence=5", "--window", "verdict=5", "--window", "appeal=5",
    ).strip()  # fmt: skip
    config = BrokerConfig.load(folder, env={})
    signer = keyfile.load(config.keys.keyfile, keyfile.read_password(config.keys.password_file))
    assert format_address(signer.address) == printed == good("address", "--dir", folder).strip()
    assert config.channel.lock_max == 1_000_500_000
    assert (config.rpc.port, config.channel_terms.challenge_duration_s) == (7200, 15)
    assert [(p.address, p.url) for p in config.peers] == [(BOB.address, "ws://127.0.0.1:7101")]
    assert "is not overwritten" in bad("init", "--dir", folder, "--network", network)
    assert "is kept" in bad("init", "--dir", folder, "--secret-file", password)


def test_init_in_two_steps_keeps_the_key(tmp_path: Path, network: Path) -> None:
    folder = tmp_path / "a"
    password = private(tmp_path / "password", "correct horse\n")
    secret = private(tmp_path / "secret", "0x" + "11" * 32)
    first = good("init", "--dir", folder, "--password-file", password, "--secret-file", secret, "--light-key")
    assert first.strip() == format_address(Signer(b"\x11" * 32).address)
    answer = json.loads(good("init", "--dir", folder, "--network", network, "--token", "usd", "--json"))
    assert answer == {
        "address": first.strip(), "keyfile": str(folder / "key.json"), "config": str(folder / "broker.toml")
    }  # fmt: skip
    config = BrokerConfig.load(folder, env={})
    assert [token.symbol for token in config.tokens] == ["USD"]
    assert config.own_markets == ()


def test_init_refuses_what_cannot_be(tmp_path: Path, network: Path) -> None:
    folder = tmp_path / "a"
    password = private(tmp_path / "password", "x")
    base = ("init", "--dir", folder, "--network", network, "--password-file", password, "--light-key")
    assert run(*base, "--token", "EUR").exit_code == 2
    assert run(*base, "--market", "eth/usd").exit_code == 2
    assert run(*base, "--rpc", "7100").exit_code == 2
    assert run(*base, "--window", "lunch=5").exit_code == 2
    assert "EIP-55" in bad(*base, "--peer", "0x7e5F4552091A69125d5DfCb7b8C2659029395Bdf")
    assert "lock_max" in bad(*base, "--lock-max", "0.0000001")
    assert not (folder / "broker.toml").exists()
    assert "config.invalid" in bad("init", "--dir", folder, "--network", tmp_path / "none.json")


def test_the_operators_commands_say_that_no_node_runs(tmp_path: Path, network: Path) -> None:
    for command in (("status",), ("audit",), ("channel", "list"), ("channel", "close"), ("state", "export")):
        assert "no node runs" in bad(*command, "--dir", tmp_path)
    assert "there is no configuration file" in bad("run", "--dir", tmp_path)


# -- help


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), list(commands(cli.main)), ids=str)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], command: click.Command) -> None:
    text = good(*path, "--help")
    assert "Examples:" in text
    assert f"xln-broker {' '.join(path)}" in text
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    if path[0] in ("trade", "channel") or path == ("status",):
        assert "--json" in text


# -- a node behind it


class Served:
    """A node in memory, served from a thread, because commands run their own event loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pair = Pair()
        self.pair.open()
        self.node = MemoryNode(write_and_load(folder), self.pair)
        path = folder / "broker.toml"
        path.write_text(path.read_text().replace("8100", "0"))
        self.node.config = BrokerConfig.load(folder, env={})
        self.url = ""
        self._up, self._loop = threading.Event(), asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        async with api.serve(self.node, self.folder) as self.url:
            self._up.set()
            await self._stop.wait()

    def __enter__(self) -> "Served":
        self._thread.start()
        assert self._up.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    folder = tmp_path / "node"
    with Served(folder) as served:
        for who in (ALICE, BOB):
            served.pair.deposit(served.pair.a, who, USD, 100_000 * 10**6)
            served.pair.deposit(served.pair.a, who, BTC, 2 * 10**8)
        # Commands sign with the wall clock; the pair's own goes on from there.
        served.pair.now = time.time_ns() // 1_000_000
        monkeypatch.setenv("XLN_BROKER_URL", served.url)
        yield served


@pytest.fixture
def alice(tmp_path: Path) -> Path:
    return private(tmp_path / "alice.key", "0x" + (100).to_bytes(32, "big").hex() + "\n")


@pytest.fixture
def bob(tmp_path: Path) -> Path:
    return private(tmp_path / "bob.key", (101).to_bytes(32, "big").hex())


def test_traders_trade(served: Served, alice: Path, bob: Path) -> None:
    sold = json.loads(good("trade", "sell", "btc/usd", "0.1", "--price", "60000", "--key", bob, "--json"))
    assert (sold["status"], sold["openLots"]) == ("open", 1000)
    assert "60000" in good("trade", "book", "btc/usd")
    bought = json.loads(
        good("trade", "buy", "btc/usd", "0.04", "--price", "60000", "--tif", "ioc", "--key", alice, "--json")
    )
    assert (bought["status"], bought["filled"], bought["filledQuote"]) == ("filled", "0.04", "2400")
    assert json.loads(good("trade", "order", bought["id"], "--json")) == bought
    amended = json.loads(good("trade", "amend", sold["id"], "--price", "60001", "--key", bob, "--json"))
    assert (amended["price"], amended["amount"]) == ("60001", "0.06")
    assert amended["id"] in good("trade", "orders", "--key", bob)
    assert json.loads(good("trade", "book", "btc/usd", "--json"))["asks"][0]["price"] == "60001"
    assert "cancelled" in good("trade", "cancel", amended["id"], "--key", bob)
    balances = json.loads(good("trade", "balances", "--key", alice, "--json"))
    assert (balances["BTC"]["free"], balances["USD"]["units"]["free"]) == ("2.04", "97600000000")
    assert "97600" in good("trade", "balances", "--key", alice)
    assert "60000" in good("trade", "trades", "btc/usd")
    assert "btc/usd" in good("trade", "markets")
    withdrawn = json.loads(good("trade", "withdraw", "usd", "1.5", "--key", alice, "--json"))
    assert (withdrawn["status"], withdrawn["amount"], withdrawn["token"]) == ("pending", "1.5", "USD")


def test_traders_are_told_what_is_wrong(served: Served, alice: Path, tmp_path: Path) -> None:
    order = ("trade", "buy", "btc/usd", "0.1", "--price")
    assert "order.tick" in bad(*order, "0.001", "--key", alice)
    assert "order.balance" in bad("trade", "buy", "btc/usd", "99", "--price", "60000", "--key", alice)
    assert "order.market" in bad("trade", "book", "eth/usd")
    assert "order.unknown" in bad("trade", "cancel", "0x" + "00" * 32, "--key", alice)
    assert "there is no key file" in bad(*order, "1", "--key", tmp_path / "nobody.key")
    assert "peer.unavailable" in bad(*order, "1", "--key", alice, "--url", "http://127.0.0.1:1")
    assert run("trade", "amend", "0x00", "--key", alice).exit_code == 2
    assert run(*order, "1", "--key", alice, "--url", "ftp://x").exit_code == 2
    alice.chmod(0o644)
    assert "chmod 600" in bad(*order, "1", "--key", alice)


def test_a_keyfile_is_a_key_too(served: Served, tmp_path: Path) -> None:
    password = private(tmp_path / "password", "secret\n")
    keyfile.create(tmp_path / "k.json", "secret", (100).to_bytes(32, "big"), scrypt_n=keyfile.SCRYPT_LIGHT_N)
    assert "100000" in good("trade", "balances", "--key", tmp_path / "k.json", "--password-file", password)
    private(password, "wrong\n")
    error = bad("trade", "balances", "--key", tmp_path / "k.json", "--password-file", password)
    assert "wrong password" in error


def test_the_operator_sees_and_acts(served: Served, tmp_path: Path) -> None:
    folder = served.folder
    assert format_address(served.node.address) in good("status", "--dir", folder)
    listed = good("channel", "list", "--dir", folder)
    assert "active" in listed
    assert "1.5 USD" in listed
    channel_id = format_hex(served.pair.fixed.channel_id)
    assert json.loads(good("channel", "list", "--dir", folder, "--json"))[0]["channelId"] == channel_id
    opened = json.loads(
        good("channel", "open", "--dir", folder, "--peer", format_address(BOB.address), "--token", "USD",
             "--amount", "2", "--peer-amount", "3", "--wait", "--json")
    )  # fmt: skip
    assert opened["phase"] == "active"
    assert served.node.opened == (BOB.address, USD, 2_000_000, 3_000_000)
    assert json.loads(good("state", "export", "--dir", folder)) == {"turnNum": 1}
    out = tmp_path / "journal.ndjson"
    good("journal", "export", "--dir", folder, "--channel", channel_id[:10], "--out", out)
    lines = out.read_text().splitlines()
    assert json.loads(lines[0])
    assert [json.loads(line) for line in lines[1:]] == [{"record": 0}, {"record": 1}, {"record": 2}]
    assert "is not overwritten" in bad("journal", "export", "--dir", folder, "--out", out)
    assert "no channel has this id" in bad("state", "export", "--dir", folder, "--channel", "0x00")
    assert "2 USD" in good("collateral", "deposit", "--dir", folder, "--token", "usd", "--amount", "2")
    assert "amount.invalid" in bad("collateral", "deposit", "--dir", folder, "--token", "usd", "--amount", "x")
    assert "Whose it is" in good("audit", "--dir", folder)
    closed = json.loads(good("channel", "close", "--dir", folder, "--json"))
    assert closed["phase"] in ("final", "settled")
