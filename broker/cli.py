"""`xln-broker`: the command line of a broker's operator, and of a trader at one.

Operators name the node's folder (`--dir`): `init` and `run` work in it, the others speak to the node that runs on it.
Traders name their key (`--key`) and the broker's API (`--url`); their orders are signed here, the key goes nowhere.
"""

import asyncio
import logging
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import click
import orjson

from broker import config as configs
from broker.admin import BrokerAdmin
from broker.client import BalanceView, Book, BrokerClient, OrderView, WithdrawalView
from broker.config import BrokerConfig, InitOptions, NetworkFile
from channel.errors import Code, LocalRefusal, PeerFault
from channel.signing import Signer
from channel.units import format_address, format_amount, format_hex, parse_address
from node import keyfile, logs, supervise
from node.cli import XlnGroup, console, examples, json_option, note, print_json, table, version_option
from node.files import read_private, write_private
from node.process import announce

ADMIN_DEADLINE_S: Final = 30.0
SLOW_DEADLINE_S: Final = 300.0  # what waits for blocks
WAIT_EVERY_S: Final = 0.5
URL_ENV: Final = "XLN_BROKER_URL"
KEY_ENV: Final = "XLN_TRADER_KEY"
_RAW_KEY_RE = re.compile(rb"(?:0x)?([0-9a-fA-F]{64})")

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, dir_okay=False)
DIR_OPTION = click.option(
    "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="The broker's folder."
)
PASSWORD_OPTION = click.option(
    "--password-file", type=FILE, help="File of mode 0600 with the password of the keyfile; without it, a prompt."
)
CHANNEL_OPTION = click.option("--channel", help="Id of the channel; may be left out when there is only one.")


def trader_options(function: F) -> F:
    """`--url`, `--key` and `--password-file`, given to the command as `url`, `key` and `password_file`."""
    for option in (
        PASSWORD_OPTION,
        click.option(
            "--key", type=FILE, required=True, envvar=KEY_ENV,
            help="Your key: a keyfile (version 3), or, for test networks only, a file of mode 0600 with the private key"
            f" itself as 0x hex. Also ${KEY_ENV}.",
        ),
        url_option,
    ):  # fmt: skip
        function = option(function)
    return function


def url_option(function: F) -> F:
    return click.option(
        "--url", default="http://127.0.0.1:8100", show_default=True, envvar=URL_ENV,
        help=f"The broker's API. Also ${URL_ENV}.",
    )(function)  # fmt: skip


@click.group(cls=XlnGroup, context_settings={"help_option_names": ["-h", "--help"]})
@version_option()
def main() -> None:
    """A broker: a small exchange that trades with its peers over state channels.

    Set up: `init` makes the key and the configuration and prints the address that needs gas; fund it; `run` serves.
    """
    logging.getLogger(logs.ROOT).addHandler(logging.NullHandler())  # until `run` says where the log goes


# -- setting up and running


@main.command(
    epilog=examples(
        """
        xln-broker init --dir ./a --new-password-file ./a/password
        xln-broker init --dir ./a --network network.json --password-file ./a/password --lock-max 500000
        xln-broker init --dir ./a --network network.json --password-file ./a/password \\
            --peer 0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf=ws://127.0.0.1:7101
        """
    )
)
@DIR_OPTION
@click.option("--network", "network_file", type=FILE, help="JSON of the deployment, as the deployer wrote it.")
@PASSWORD_OPTION
@click.option("--new-password-file", type=FILE, help="Draw a password and write it to this new file (mode 0600).")
@click.option("--secret-file", type=FILE, help="File of mode 0600 with a private key in hex, instead of a fresh one.")
@click.option("--light-key", is_flag=True, help="A keyfile that is cheap to open: for test networks.")
@click.option("--token", "tokens", multiple=True, help="Symbol of a token to list (repeat); default: all of them.")
@click.option("--market", "markets", multiple=True, help="Market to hold, as btc/usd (repeat); default: all of them.")
@click.option("--peer", "peers", multiple=True, help="A broker to trade with, as ADDRESS or ADDRESS=ws://… (repeat).")
@click.option("--rpc", default="127.0.0.1:7100", show_default=True, help="Where peers connect.")
@click.option("--public-url", help="The URL of that for the registry on chain, if it differs.")
@click.option("--api", default="127.0.0.1:8100", show_default=True, help="Where traders connect; port 0: a free one.")
@click.option("--accept/--no-accept", default=True, show_default=True, help="Open channels when peers ask.")
@click.option("--lock-token", help="What is locked when a peer asks for a channel; default: the value token.")
@click.option("--lock-max", default="0", show_default=True, help="The most that is locked then, in whole tokens.")
@click.option("--value-token", help="The token in which cover is counted; default: the one whose price is 1.")
@click.option("--unsettled-limit", default="100000", show_default=True,
              help="The most that may be matched and not co-signed yet, in whole value tokens.")  # fmt: skip
@click.option("--cover-ratio-bps", type=click.IntRange(10_000, 1_000_000), default=11_000, show_default=True,
              help="Collateral for what is owed.")  # fmt: skip
@click.option("--window", "windows", multiple=True,
              help="Seconds of a window of the terms, as evidence=600 (grace, verdict, appeal, claim).")  # fmt: skip
@click.option("--confirmations", type=click.IntRange(1, 256), default=3, show_default=True,
              help="Blocks until an event counts.")  # fmt: skip
@click.option("--poll-ms", type=click.IntRange(20, 60_000), default=500, show_default=True,
              help="How often the chain is asked.")  # fmt: skip
@click.option("--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True, help="What is logged.")
@json_option
def init(folder: Path, network_file: Path | None, as_json: bool, **options: Any) -> None:
    """Make what is missing: the key, and with --network the configuration. Prints the address that needs gas.

    An existing key is kept and an existing configuration never overwritten.
    """
    network = None if network_file is None else _narrowed(NetworkFile.load(network_file), options)
    key_path, config_path = folder / configs.KEY_FILE, folder / configs.CONFIG_FILE
    if network is not None and config_path.exists():
        raise LocalRefusal(Code.CONFIG, f"{config_path} is there already and is not overwritten; move it away first")
    settings = _init_options(options)  # before anything is written
    address = _address_of(key_path, options)
    if network is not None:
        configs.write_config(folder, network, settings)
        try:
            BrokerConfig.load(folder, env={})  # what was written must be right
        except PeerFault:
            config_path.unlink()
            raise
    if as_json:
        written = None if network is None else str(config_path)
        print_json({"address": format_address(address), "keyfile": str(key_path), "config": written})
        return
    click.echo(format_address(address))
    if network is not None:
        note(f"configuration written to {config_path}")
        note(f"send native currency for gas to {format_address(address)}, then: xln-broker run --dir {folder}")
    elif not config_path.exists():
        note("now run init again with --network network.json, which writes the configuration")


def _address_of(key_path: Path, options: Mapping[str, Any]) -> bytes:
    """Of the keyfile, which is made if there is none."""
    if key_path.exists():
        if options["secret_file"] is not None or options["new_password_file"] is not None:
            raise LocalRefusal(
                Code.KEYFILE, f"{key_path} is there already and is kept: leave out --secret-file, --new-password-file"
            )
        return keyfile.address_in(key_path)
    secret = None
    if options["secret_file"] is not None:
        secret = _raw_key(options["secret_file"])
        if secret is None:
            raise PeerFault(Code.KEYFILE, f"{options['secret_file']} must hold a private key as 64 hex digits")
    if options["new_password_file"] is not None:
        password = keyfile.create_password_file(options["new_password_file"])
    else:
        prompt = "New password of the keyfile: "
        password = keyfile.read_password(options["password_file"], prompt=prompt, confirm=True)
    scrypt_n = keyfile.SCRYPT_LIGHT_N if options["light_key"] else keyfile.SCRYPT_STANDARD_N
    return keyfile.create(key_path, password, secret, scrypt_n=scrypt_n)


def _narrowed(network: NetworkFile, options: Mapping[str, Any]) -> NetworkFile:
    """The network with the tokens and markets that were named."""
    tokens = _chosen("--token", options["tokens"], {t.symbol.lower(): t for t in network.tokens})
    symbols = {t.symbol for t in tokens}
    within = {m.name: m for m in network.markets if {m.base, m.quote} <= symbols}
    return replace(network, tokens=tokens, markets=_chosen("--market", options["markets"], within))


def _chosen(option: str, names: Sequence[str], all_of_them: Mapping[str, T]) -> tuple[T, ...]:
    unknown = [name for name in names if name.lower() not in all_of_them]
    if unknown:
        raise click.BadParameter(f"{unknown[0]} is not one of {', '.join(all_of_them)}", param_hint=option)
    return tuple(all_of_them[name.lower()] for name in names) if names else tuple(all_of_them.values())


def _init_options(options: Mapping[str, Any]) -> InitOptions:
    windows: dict[str, int] = {}
    for text in options["windows"]:
        name, _, seconds = text.partition("=")
        known = ("grace", "evidence", "verdict", "appeal", "claim")
        if name not in known or not seconds.isascii() or not seconds.isdigit():
            raise click.BadParameter(f"{text} is not like evidence=600", param_hint="--window")
        windows[f"{name}_s"] = int(seconds)
    return InitOptions(
        rpc=_host_port(options["rpc"], "--rpc"),
        api=_host_port(options["api"], "--api"),
        public_url=options["public_url"],
        password_file=options["password_file"] or options["new_password_file"],
        peers=tuple(configs.parse_peer(peer) for peer in options["peers"]),
        accept=options["accept"],
        value_token=options["value_token"],
        lock_token=options["lock_token"],
        lock_max=options["lock_max"],
        unsettled_limit=options["unsettled_limit"],
        confirmations=options["confirmations"],
        poll_ms=options["poll_ms"],
        cover_ratio_bps=options["cover_ratio_bps"],
        windows_s=windows,
        log_level=options["log_level"],
    )


def _host_port(text: str, option: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise click.BadParameter(f"{text} is not host:port, such as 127.0.0.1:7100", param_hint=option)
    return host.strip("[]"), int(port)


@main.command(epilog=examples("xln-broker address --dir ./a"))
@DIR_OPTION
def address(folder: Path) -> None:
    """Print the address of the broker's key: what peers list, and what needs gas."""
    click.echo(format_address(keyfile.address_in(folder / configs.KEY_FILE)))


@main.command(
    epilog=examples(
        """
        xln-broker run --dir ./a
        xln-broker run --dir ./a --password-file ./a/password --ready-file ./a/ready.json
        """
    )
)
@DIR_OPTION
@PASSWORD_OPTION
@click.option("--ready-file", type=FILE, help="Where to write the ready line as JSON, too.")
def run(folder: Path, password_file: Path | None, ready_file: Path | None) -> None:
    """Serve until SIGINT or SIGTERM. When it is ready, prints `ready {"apiUrl", "rpcUrl", "address", "custody"}`."""
    from broker.node import BrokerNode  # the whole node: not needed to trade

    config = BrokerConfig.load(folder)
    signer = keyfile.load(config.keys.keyfile, keyfile.read_password(password_file or config.keys.password_file))
    logs.configure(config.log.level, path=config.log.file)

    def ready(fields: dict[str, Any]) -> None:
        if ready_file is not None:
            write_private(ready_file, orjson.dumps(fields) + b"\n", replace=True)
        announce(**fields)

    async def serve(stop: supervise.Stop) -> None:
        await BrokerNode(config, signer, folder).run(stop, ready)

    sys.exit(supervise.run(serve))


# -- the operator, to a running node


@main.command(epilog=examples("xln-broker status --dir ./a\nxln-broker status --dir ./a --json"))
@DIR_OPTION
@json_option
def status(folder: Path, as_json: bool) -> None:
    """Show the node: who it is, whom it is connected to, its channels, users and trades."""
    answer = _object(_admin(folder, lambda admin: admin.get("/status")))
    if as_json:
        print_json(answer)
        return
    simple = {key: value for key, value in answer.items() if not isinstance(value, (list, dict))}
    nested = {key: value for key, value in answer.items() if isinstance(value, dict)}
    rows = [
        *simple.items(),
        *((f"{key}.{name}", value) for key, item in nested.items() for name, value in item.items()),
    ]
    table("Broker", ("", ""), [(key, _yes(value) if isinstance(value, bool) else value) for key, value in rows])
    if answer.get("peers"):
        table("Peers", ("address", "connected"), [(p["address"], _yes(p["connected"])) for p in answer["peers"]])
    _print_channels(folder, answer.get("channels", []))


@main.command(epilog=examples("xln-broker audit --dir ./a"))
@DIR_OPTION
@json_option
def audit(folder: Path, as_json: bool) -> None:
    """Show what the custody must hold, and whose it is, per token, at one moment."""
    answer = _object(_admin(folder, lambda admin: admin.get("/audit")))
    if as_json:
        print_json(answer)
        return
    rows = []
    for token in answer["tokens"].values():

        def shown(units: object, decimals: int = token["decimals"]) -> str:
            return format_amount(int(str(units)), decimals)

        users = token["users"]
        net = sum(int(value) for value in token["owedToPeers"].values())
        names = ("deposited", "free", "locked", "withdrawing")
        rows.append((token["symbol"], *(shown(users[name]) for name in names), shown(token["house"]), shown(net),
                     shown(token["custody"])))  # fmt: skip
    columns = ("token", "deposited", "free", "locked", "withdrawing", "house", "owed to peers", "custody")
    table("Whose it is (custody = the sum of the others)", columns, rows)


@main.group()
def channel() -> None:
    """Channels with peers: open, list, close."""


@channel.command(
    "open",
    epilog=examples(
        "xln-broker channel open --dir ./a --peer 0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf --token USD"
        " --amount 500000 --peer-amount 500000 --wait"
    ),
)
@DIR_OPTION
@click.option("--peer", required=True, help="Address of the peer, which must be in [[peers]] of the configuration.")
@click.option("--token", required=True, help="What both lock, by symbol or address.")
@click.option("--amount", required=True, help="What this broker locks, in whole tokens; it must be deposited before.")
@click.option("--peer-amount", required=True, help="What the peer is asked to lock, in whole tokens.")
@click.option("--wait", is_flag=True, help="Return when it trades: both locks are on chain, and XLN has turn 1.")
@json_option
def channel_open(folder: Path, peer: str, token: str, amount: str, peer_amount: str, wait: bool, as_json: bool) -> None:
    """Ask a peer for a channel."""
    body = {
        "peer": format_address(parse_address(peer, "--peer")), "token": token, "amount": amount,
        "peerAmount": peer_amount,
    }  # fmt: skip

    async def work(admin: BrokerAdmin) -> object:
        made = _object(await admin.post("/channels", body))
        return await _until(admin, str(made["channelId"]), ("active",)) if wait else made

    _show_channel(folder, _object(_admin(folder, work, SLOW_DEADLINE_S)), as_json)


@channel.command("list", epilog=examples("xln-broker channel list --dir ./a\nxln-broker channel list --dir ./a --json"))
@DIR_OPTION
@json_option
def channel_list(folder: Path, as_json: bool) -> None:
    """Show all channels: phase, turn, entries, and what both owe."""
    channels = _object(_admin(folder, lambda admin: admin.get("/channels")))["channels"]
    if as_json:
        print_json(channels)
    else:
        _print_channels(folder, channels)


@channel.command(
    "close", epilog=examples("xln-broker channel close --dir ./a\nxln-broker channel close --dir ./a --wait")
)
@DIR_OPTION
@CHANNEL_OPTION
@click.option("--wait", is_flag=True, help="Return when it is settled: both custodies have paid.")
@json_option
def channel_close(folder: Path, channel: str | None, wait: bool, as_json: bool) -> None:
    """End a channel: open orders are cancelled, the final state is signed, the custodies pay each other."""

    async def work(admin: BrokerAdmin) -> object:
        channel_id = await _channel_id(admin, channel)
        closed = _object(await admin.post(f"/channels/{channel_id}/close"))
        return await _until(admin, channel_id, ("settled",)) if wait else closed

    _show_channel(folder, _object(_admin(folder, work, SLOW_DEADLINE_S)), as_json)


@main.group()
def state() -> None:
    """Signed states of channels."""


@state.command(
    "export", epilog=examples("xln-broker state export --dir ./a --out state.json\nxln-dispute inspect state.json")
)
@DIR_OPTION
@CHANNEL_OPTION
@click.option("--out", type=FILE, help="File to write, which must not exist; default: standard output.")
def state_export(folder: Path, channel: str | None, out: Path | None) -> None:
    """Write the last co-signed state of a channel as JSON, for `xln-dispute inspect`."""

    async def work(admin: BrokerAdmin) -> object:
        return await admin.get(f"/channels/{await _channel_id(admin, channel)}/state")

    answer = _admin(folder, work)
    if out is None:
        print_json(answer)
    else:
        write_private(out, orjson.dumps(answer, option=orjson.OPT_INDENT_2) + b"\n")
        note(f"written to {out}")


@main.group()
def journal() -> None:
    """Journals of channels: what was signed, in order."""


@journal.command("export", epilog=examples("xln-broker journal export --dir ./a --out journal.ndjson"))
@DIR_OPTION
@CHANNEL_OPTION
@click.option("--out", type=FILE, help="File to write, which must not exist; default: standard output.")
def journal_export(folder: Path, channel: str | None, out: Path | None) -> None:
    """Write a channel's journal as lines of JSON: a header with the terms, then every record in order."""

    async def work(admin: BrokerAdmin, sink: BinaryIO) -> int:
        lines = 0
        async for line in admin.stream(f"/channels/{await _channel_id(admin, channel)}/journal"):
            sink.write(line + b"\n")
            lines += 1
        sink.flush()
        return lines

    if out is None:
        count = _admin(folder, lambda admin: work(admin, sys.stdout.buffer))
    else:
        partial = out.with_name(f".{out.name}.partial")
        try:
            with partial.open("wb") as file:
                count = _admin(folder, lambda admin: work(admin, file))
            out.hardlink_to(partial)  # unlike a rename, it fails when the name is taken
        except FileExistsError:
            raise LocalRefusal(
                Code.CONFIG, f"{out} is there already and is not overwritten; move it away first"
            ) from None
        except OSError as error:
            raise LocalRefusal(Code.STORAGE, f"cannot write {out}: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)
    note(f"{count} lines")


@main.group()
def collateral() -> None:
    """The broker's own funds in XlnCollateral."""


@collateral.command("deposit", epilog=examples("xln-broker collateral deposit --dir ./a --token USD --amount 500000"))
@DIR_OPTION
@click.option("--token", required=True, help="By symbol or address.")
@click.option("--amount", required=True, help="In whole tokens; the broker's address must hold it.")
@json_option
def collateral_deposit(folder: Path, token: str, amount: str, as_json: bool) -> None:
    """Deposit collateral, which channels then lock."""
    body = {"token": token, "amount": amount}
    answer = _object(_admin(folder, lambda admin: admin.post("/collateral", body), SLOW_DEADLINE_S))
    if as_json:
        print_json(answer)
        return
    known = BrokerConfig.load(folder).token_named(token)
    shown = {
        name: f"{format_amount(int(value), known.decimals)} {known.symbol}" if name in ("deposited", "free") else value
        for name, value in answer.items()
    }
    table("Collateral", ("", ""), list(shown.items()))


def _admin(folder: Path, work: Callable[[BrokerAdmin], Awaitable[T]], deadline_s: float = ADMIN_DEADLINE_S) -> T:
    async def run_it() -> T:
        async with BrokerAdmin(folder, deadline_s=deadline_s) as admin:
            return await work(admin)

    return asyncio.run(run_it())


def _object(answer: object) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise PeerFault(Code.PARSE, "the node answered with something that is no object; is it of another version?")
    return answer


async def _channel_id(admin: BrokerAdmin, channel: str | None) -> str:
    """The channel that was named, by its id or an unambiguous beginning of it, or the only one."""
    channels = [str(c["channelId"]) for c in _object(await admin.get("/channels"))["channels"]]
    found = [c for c in channels if channel is None or c.startswith(channel.lower())]
    if len(found) == 1:
        return found[0]
    if not channels:
        raise PeerFault(Code.CHANNEL_UNKNOWN, "there is no channel yet; open one with: xln-broker channel open")
    which = "no channel has this id" if not found else "say which with --channel"
    raise PeerFault(Code.CHANNEL_UNKNOWN, f"{which}; there are: {', '.join(channels)}")


async def _until(admin: BrokerAdmin, channel_id: str, phases: tuple[str, ...]) -> dict[str, Any]:
    """Waits until the channel is in one of the phases. Raises LocalRefusal CHANNEL_FROZEN, TIMEOUT."""
    try:
        async with asyncio.timeout(SLOW_DEADLINE_S):
            while True:
                for found in _object(await admin.get("/channels"))["channels"]:
                    if found["channelId"] == channel_id and found["phase"] in phases:
                        return _object(found)
                    if found["channelId"] == channel_id and found["phase"] == "frozen":
                        raise LocalRefusal(Code.CHANNEL_FROZEN, f"the channel is frozen: {found.get('frozen')}")
                await asyncio.sleep(WAIT_EVERY_S)
    except TimeoutError:
        raise LocalRefusal(
            Code.TIMEOUT, f"the channel is not {' or '.join(phases)} after {SLOW_DEADLINE_S:.0f} s; see channel list"
        ) from None


def _show_channel(folder: Path, described: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(described)
    else:
        _print_channels(folder, [described])


def _print_channels(folder: Path, channels: Sequence[Mapping[str, Any]]) -> None:
    if not channels:
        click.echo("no channels yet; open one with: xln-broker channel open")
        return
    config = BrokerConfig.load(folder)

    def amounts(owed: Mapping[str, str]) -> str:
        rows = []
        for text, units in owed.items():
            token = config.token(parse_address(text))
            if int(units):
                rows.append(
                    f"{format_amount(int(units), token.decimals if token else 0)} {token.symbol if token else text}"
                )
        return "\n".join(rows) or "0"

    columns = ("channel", "peer", "connected", "phase", "turn", "sent", "received", "orders", "owes", "is owed")
    table(
        "Channels",
        columns,
        [
            (
                c["channelId"], c["peer"], _yes(c["connected"]), c.get("frozen") or c["phase"], c["turn"],
                c["entriesSent"], c["entriesReceived"], c["openOrders"], amounts(c["owes"]), amounts(c["isOwed"]),
            )
            for c in channels
        ],
    )  # fmt: skip


def _yes(value: object) -> str:
    return "yes" if value else "no"


# -- the trader


@main.group()
def trade() -> None:
    """Trade at a broker: orders, balances, the book, withdrawals.

    Orders are signed with your key on this machine. Prices are in whole quote tokens per whole base token, amounts in
    whole base tokens; both are multiples of the market's tick and lot (see `trade markets`).
    """


def _order_command(name: str, side: str, verb: str) -> None:
    @trade.command(
        name,
        epilog=examples(
            f"""
            xln-broker trade {name} btc/usd 0.1 --price 60000 --key alice.key
            xln-broker trade {name} btc/usd 0.1 --price 60000 --tif IOC --key alice.key
            xln-broker trade {name} btc/usd 0.1 --key alice.key --url http://127.0.0.1:8100
            """
        ),
        help=f"{verb} AMOUNT in MARKET at --price or better; without a price, at the market, at once.",
    )
    @click.argument("market")
    @click.argument("amount")
    @click.option("--price", help="The limit; without it, a market order.")
    @click.option("--tif", type=click.Choice(["GTC", "IOC"], case_sensitive=False), default="GTC", show_default=True,
                  help="What is not filled rests (GTC) or is cancelled (IOC).")  # fmt: skip
    @click.option("--valid-s", type=click.IntRange(1, 90 * 24 * 3600), help="Seconds it is valid; default: a day.")
    @trader_options
    @json_option
    def command(
        market: str, amount: str, price: str | None, tif: str, valid_s: int | None, as_json: bool, **access: Any
    ) -> None:
        def work(broker: BrokerClient) -> Awaitable[OrderView]:
            return broker.create_order(market, side, amount, price, tif.upper(), valid_s=valid_s)

        _show_order(_trader(access, work), as_json)


_order_command("buy", "b", "Buy")
_order_command("sell", "s", "Sell")


@trade.command(epilog=examples("xln-broker trade amend 0x5c50…9d63 --price 60100 --amount 0.05 --key alice.key"))
@click.argument("order_id", metavar="ORDER")
@click.option("--price", help="The new limit; default: as it is.")
@click.option("--amount", help="What shall be open from now on; default: what is.")
@trader_options
@json_option
def amend(order_id: str, price: str | None, amount: str | None, as_json: bool, **access: Any) -> None:
    """Replace an open order by one with another price or amount; it gets a new id."""
    if price is None and amount is None:
        raise click.UsageError("say what to change, with --price or --amount")
    _show_order(_trader(access, lambda broker: broker.amend(order_id, price=price, amount=amount)), as_json)


@trade.command(epilog=examples("xln-broker trade cancel 0x5c50…9d63 --key alice.key"))
@click.argument("order_id", metavar="ORDER")
@trader_options
@json_option
def cancel(order_id: str, as_json: bool, **access: Any) -> None:
    """Cancel what is open of an order."""
    _show_order(_trader(access, lambda broker: broker.cancel(order_id)), as_json)


@trade.command(epilog=examples("xln-broker trade order 0x5c50…9d63"))
@click.argument("order_id", metavar="ORDER")
@url_option
@json_option
def order(order_id: str, url: str, as_json: bool) -> None:
    """Show an order, by its id."""
    _show_order(_reader(url, lambda broker: broker.order(order_id)), as_json)


@trade.command(epilog=examples("xln-broker trade orders --key alice.key"))
@trader_options
@json_option
def orders(as_json: bool, **access: Any) -> None:
    """Show your open orders."""
    found = _trader(access, lambda broker: broker.open_orders())
    if as_json:
        print_json([_order_json(view) for view in found])
    else:
        _print_orders("Open orders", found)


@trade.command(epilog=examples("xln-broker trade balances --key alice.key"))
@trader_options
@json_option
def balances(as_json: bool, **access: Any) -> None:
    """Show what you have: free, behind open orders, on its way in or out."""
    found: dict[str, BalanceView] = _trader(access, lambda broker: broker.balances())
    names = ("free", "locked", "deposited", "withdrawing", "total")
    if as_json:
        print_json(
            {
                symbol: {
                    "token": format_address(view.token),
                    **{name: getattr(view, name) for name in names},
                    "units": {name: str(units) for name, units in view.units.items()},
                }
                for symbol, view in found.items()
            }
        )
        return
    rows = [(symbol, *(getattr(view, name) for name in names)) for symbol, view in found.items()]
    table("Balances", ("token", "free", "in orders", "arriving", "leaving", "total"), rows)


@trade.command(epilog=examples("xln-broker trade markets\nxln-broker trade markets --url http://127.0.0.1:8100 --json"))
@url_option
@json_option
def markets(url: str, as_json: bool) -> None:
    """Show the broker's markets, and those of its peers."""
    info = _reader(url, lambda broker: broker.info())
    rows = [
        (m.name, m.tick, m.lot, "here" if m in info.markets else format_address(m.market.holder),
         format_hex(m.market_id))
        for m in (*info.markets, *info.peer_markets)
    ]  # fmt: skip
    columns = ("market", "tick", "lot", "holder", "id")
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table(f"Broker {format_address(info.broker)}, custody {format_address(info.custody)}", columns, rows)


@trade.command(
    epilog=examples(
        """
        xln-broker trade book btc/usd
        xln-broker trade book btc/usd --depth 5 --watch
        """
    )
)
@click.argument("market")
@click.option("--depth", type=click.IntRange(1, 200), default=10, show_default=True, help="Levels a side.")
@click.option("--watch", is_flag=True, help="Print it again after every change, until Ctrl-C.")
@url_option
@json_option
def book(market: str, depth: int, watch: bool, url: str, as_json: bool) -> None:
    """Show the book of a market: the broker's own orders and its peers' as one."""

    async def follow(broker: BrokerClient) -> None:
        async for view in broker.watch_book(market):
            _show_book(view, depth, as_json)

    if watch:
        _reader(url, follow)
    else:
        _show_book(_reader(url, lambda broker: broker.book(market, depth)), depth, as_json)


@trade.command(epilog=examples("xln-broker trade trades btc/usd"))
@click.argument("market")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="How many.")
@url_option
@json_option
def trades(market: str, limit: int, url: str, as_json: bool) -> None:
    """Show the last trades of a market, newest first."""
    found = _reader(url, lambda broker: broker.trades(market, limit))
    if as_json:
        print_json(
            [{"t": t.t_ms, "side": t.side, "price": t.price, "amount": t.amount, "remote": t.remote} for t in found]
        )
        return
    rows = [(t.t_ms, _SIDE[t.side], t.price, t.amount, "peer" if t.remote else "here") for t in found]
    table(f"Trades in {market}", ("time (ms)", "taker", "price", "amount", "where"), rows)


@trade.command(
    epilog=examples(
        """
        xln-broker trade withdraw USD 100 --key alice.key
        xln-broker trade withdraw BTC 0.5 --to 0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf --wait --key alice.key
        """
    )
)
@click.argument("token")
@click.argument("amount")
@click.option("--to", help="Who gets it; default: your own address.")
@click.option("--wait", is_flag=True, help="Return when it is done on chain.")
@trader_options
@json_option
def withdraw(token: str, amount: str, to: str | None, wait: bool, as_json: bool, **access: Any) -> None:
    """Take AMOUNT whole TOKENs out of the broker's custody."""
    receiver = None if to is None else parse_address(to, "--to")

    async def work(broker: BrokerClient) -> WithdrawalView:
        view = await broker.withdraw(token, amount, receiver)
        try:
            async with asyncio.timeout(SLOW_DEADLINE_S):
                while wait and view.status == "pending":
                    await asyncio.sleep(WAIT_EVERY_S)
                    view = await broker.withdrawal(view.withdrawal_id)
        except TimeoutError:
            raise LocalRefusal(Code.TIMEOUT, f"withdrawal {format_hex(view.withdrawal_id)} is still pending") from None
        if view.status == "failed":
            raise LocalRefusal(Code.WITHDRAWAL, "the chain refused the withdrawal; the funds are in your balance again")
        return view

    view = _trader(access, work)
    fields = {
        "id": format_hex(view.withdrawal_id),
        "status": view.status,
        "amount": view.amount,
        "token": view.symbol,
        "to": format_address(view.to),
    }
    if as_json:
        print_json(fields)
    else:
        table("Withdrawal", ("", ""), list(fields.items()))


_SIDE: Final = {"b": "buy", "s": "sell"}


def load_key(path: Path, password_file: Path | None) -> Signer:
    """A trader's key: a keyfile, or a file of mode 0600 with the key itself in hex. Raises PeerFault KEYFILE."""
    secret = _raw_key(path)
    if secret is None:
        return keyfile.load(path, keyfile.read_password(password_file))
    try:
        signer = Signer(secret)
    except ValueError:
        raise PeerFault(Code.KEYFILE, f"{path} holds 32 bytes that are no key") from None
    logs.protect(secret)
    return signer


def _raw_key(path: Path) -> bytes | None:
    """The key in a file of mode 0600 that holds nothing else, as hex; None when it holds something else."""
    match = _RAW_KEY_RE.fullmatch(read_private(path, what="key file", code=Code.KEYFILE).strip())
    return None if match is None else bytes.fromhex(match.group(1).decode())


def _trader(access: Mapping[str, Any], work: Callable[[BrokerClient], Awaitable[T]]) -> T:
    return _reader(access["url"], work, load_key(access["key"], access["password_file"]))


def _reader(url: str, work: Callable[[BrokerClient], Awaitable[T]], signer: Signer | None = None) -> T:
    async def run_it() -> T:
        async with BrokerClient(url, signer) as broker:
            return await work(broker)

    if not url.startswith(("http://", "https://")):
        raise click.BadParameter(f"{url} is not an http:// URL", param_hint="--url")
    return asyncio.run(run_it())


def _order_json(view: OrderView) -> dict[str, Any]:
    return {
        "id": format_hex(view.order_id),
        "owner": format_address(view.owner),
        "market": view.name,
        "side": _SIDE[view.side],
        "type": view.order_type,
        "tif": view.tif,
        "status": view.status,
        "price": view.price,
        "amount": view.amount,
        "filled": view.filled,
        "filledQuote": view.filled_quote,
        "amountLots": view.amount_lots,
        "filledLots": view.filled_lots,
        "openLots": view.open_lots,
        "remoteLots": view.remote_lots,
        "cancelledLots": view.cancelled_lots,
        "validUntilMs": view.valid_until_ms,
    }


def _show_order(view: OrderView, as_json: bool) -> None:
    if as_json:
        print_json(_order_json(view))
    else:
        _print_orders("", [view])


def _print_orders(title: str, views: Sequence[OrderView]) -> None:
    table(
        title,
        ("order", "market", "side", "price", "amount", "filled", "paid or got", "status"),
        [
            (format_hex(v.order_id), v.name, _SIDE[v.side], v.price or "market", v.amount, v.filled, v.filled_quote,
             v.status)
            for v in views
        ],
    )  # fmt: skip


def _show_book(view: Book, depth: int, as_json: bool) -> None:
    bids, asks = view.bids[:depth], view.asks[:depth]
    if as_json:
        rows = {
            name: [{"price": v.price, "amount": v.amount, "lots": v.lots, "localLots": v.local_lots} for v in levels]
            for name, levels in (("bids", bids), ("asks", asks))
        }
        print_json({"market": view.name, "seq": view.seq, **rows})
        return
    shown = [("sell", v) for v in reversed(asks)] + [("buy", v) for v in bids]
    table(
        f"{view.name} (best prices in the middle)",
        ("side", "price", "amount", "where"),
        [(side, v.price, v.amount, _where(v.lots, v.local_lots)) for side, v in shown],
    )
    if not shown:
        console(stderr=True).print("the book is empty")


def _where(lots: int, local_lots: int) -> str:
    return "here" if lots == local_lots else "peer" if local_lots == 0 else "here and peer"


if __name__ == "__main__":
    main()
