"""`xln-service`: the command line of the collateral service's operator."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import orjson

from channel.errors import Code, LocalRefusal, PeerFault
from channel.units import format_address
from contracts.network import NetworkAddresses
from node import keyfile, logs, supervise
from node.cli import XlnGroup, examples, json_option, note, print_json, table, version_option
from node.files import read_private, write_private
from node.http import AdminClient
from node.process import announce
from xln import config, process

NETWORK_BYTES_MAX = 64 * 1024

DIR_OPTION = click.option(
    "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="The service's folder."
)
PASSWORD_OPTION = click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File of mode 0600 with the password of the keyfile; without it, a prompt.",
)


@click.group(cls=XlnGroup, context_settings={"help_option_names": ["-h", "--help"]})
@version_option()
def main() -> None:
    """The XLN collateral service: locks brokers' collateral behind channels, attests what custodies may pay, releases.

    Set up: `init` makes the key and prints its address; XlnCollateral is deployed with that address; `init` again, with
    --chain-url and --network, writes the configuration; `run` serves.
    """


@main.command(
    epilog=examples(
        """
        xln-service init --dir ./xln --password-file ./password
        xln-service init --dir ./xln --password-file ./password --chain-url http://127.0.0.1:8545 --network network.json
        """
    )
)
@DIR_OPTION
@PASSWORD_OPTION
@click.option("--secret-file", type=click.Path(path_type=Path, dir_okay=False),
              help="File of mode 0600 with a private key as 64 hex digits, instead of a fresh one.")  # fmt: skip
@click.option("--chain-url", help="JSON-RPC endpoint of the chain.")
@click.option("--network", "network_file", type=click.Path(path_type=Path, dir_okay=False),
              help="JSON of the deployment, as the deployer wrote it.")  # fmt: skip
@click.option("--confirmations", type=click.IntRange(1, 256), default=3, show_default=True,
              help="Blocks until an event counts.")  # fmt: skip
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="Where brokers connect; port 0: a free one.")
@click.option("--admin", default="127.0.0.1:0", show_default=True, help="Where `status` connects; keep it local.")
@click.option("--light-key", is_flag=True, help="A keyfile that is cheap to open: for test networks.")
@json_option
def init(
    folder: Path,
    password_file: Path | None,
    secret_file: Path | None,
    chain_url: str | None,
    network_file: Path | None,
    confirmations: int,
    listen: str,
    admin: str,
    light_key: bool,
    as_json: bool,
) -> None:
    """Make what is missing: the key, and with --chain-url and --network the configuration.

    An existing key is kept and an existing configuration never overwritten.
    """
    if (chain_url is None) != (network_file is None):
        raise click.UsageError("--chain-url and --network go together")
    network = None if network_file is None else _read_network(network_file)
    key_path = folder / config.KEY_FILE
    if key_path.exists():
        if secret_file is not None:
            raise LocalRefusal(Code.KEYFILE, f"{key_path} is there already; --secret-file would replace it")
        address = keyfile.address_in(key_path)
    else:
        password = keyfile.read_password(password_file, prompt="New password of the keyfile: ", confirm=True)
        secret = None if secret_file is None else _read_secret(secret_file)
        scrypt_n = keyfile.SCRYPT_LIGHT_N if light_key else keyfile.SCRYPT_STANDARD_N
        address = keyfile.create(key_path, password, secret, scrypt_n=scrypt_n)
    written: Path | None = None
    if network is not None and chain_url is not None:
        if network.xln != address:
            raise LocalRefusal(
                Code.CONFIG,
                f"the network takes the signatures of {format_address(network.xln)}, and this key is"
                f" {format_address(address)}: deploy it with this address, or take that key with --secret-file",
            )
        written = config.write(
            folder,
            network,
            chain_url=chain_url,
            confirmations=confirmations,
            rpc=_host_port(listen, "--listen"),
            admin=_host_port(admin, "--admin"),
            password_file=password_file,
        )
        config.load(folder)  # what was written must be right
    if as_json:
        print_json({"address": format_address(address), "config": None if written is None else str(written)})
        return
    click.echo(format_address(address))
    if written is not None:
        note(f"configuration written to {written}; start it with: xln-service run --dir {folder}")
    elif not (folder / config.CONFIG_FILE).exists():
        note("deploy XlnCollateral with this address, then run init again with --chain-url and --network")


def _read_network(path: Path) -> NetworkAddresses:
    try:
        with path.open("rb") as file:
            raw = file.read(NETWORK_BYTES_MAX)
        return NetworkAddresses.from_json(orjson.loads(raw))
    except OSError as error:
        raise PeerFault(Code.CONFIG, f"cannot read {path}: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise PeerFault(Code.CONFIG, f"{path} is not JSON: {error}") from error


def _read_secret(path: Path) -> bytes:
    text = read_private(path, what="secret file", code=Code.KEYFILE).decode(errors="replace").strip()
    try:
        secret = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise PeerFault(Code.KEYFILE, f"{path} must hold a private key as 64 hex digits")
    return secret


def _host_port(text: str, option: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise click.BadParameter(f"{text} is not host:port, such as 127.0.0.1:7100", param_hint=option)
    return host.strip("[]"), int(port)


@main.command(epilog=examples("xln-service address --dir ./xln"))
@DIR_OPTION
def address(folder: Path) -> None:
    """Print the address of the service's key: the `xln` of XlnCollateral, and an attestor of custodies."""
    click.echo(format_address(keyfile.address_in(folder / config.KEY_FILE)))


@main.command(
    epilog=examples(
        """
        xln-service run --dir ./xln
        xln-service run --dir ./xln --ready-file ./xln/ready.json
        """
    )
)
@DIR_OPTION
@PASSWORD_OPTION
@click.option("--ready-file", type=click.Path(path_type=Path, dir_okay=False),
              help="Where to write {rpcUrl, adminUrl, address} as JSON once it listens.")  # fmt: skip
def run(folder: Path, password_file: Path | None, ready_file: Path | None) -> None:
    """Serve until SIGINT or SIGTERM. When it listens, prints a line `ready {"rpcUrl", "adminUrl", "address"}`."""
    settings = config.load(folder)
    password = keyfile.read_password(password_file or settings.password_file)
    signer = keyfile.load(settings.keyfile, password)
    logs.configure(settings.log_level, path=folder / config.LOG_FILE)

    def ready(fields: dict[str, object]) -> None:
        if ready_file is not None:
            write_private(ready_file, orjson.dumps(fields) + b"\n", replace=True)
        announce(**fields)

    async def serve(stop: supervise.Stop) -> None:
        await process.run(settings, signer, stop, ready)

    sys.exit(supervise.run(serve))


@main.command(epilog=examples("xln-service status --dir ./xln\nxln-service status --dir ./xln --json"))
@DIR_OPTION
@json_option
def status(folder: Path, as_json: bool) -> None:
    """Show brokers with their collateral, and channels with locks, journals, attestation and release."""
    answer = asyncio.run(_fetch_status(folder))
    if as_json:
        print_json(answer)
        return
    chain = answer["chain"]
    click.echo(f"XLN {answer['address']}, chain {chain['id']}: head {chain['head']}, confirmed {chain['confirmed']}")
    brokers = answer["brokers"]
    table("Brokers", ("broker", "custody", "url"), [(b["address"], b["custody"], b["url"]) for b in brokers])
    amounts = ("token", "deposited", "locked", "signed", "withdrawing", "free")
    rows = [(b["address"], *(row[name] for name in amounts)) for b in brokers for row in b["tokens"]]
    table("Collateral (base units)", ("broker", *amounts), rows)
    table(
        "Channels",
        ("channel", "phase", "locks", "journals", "attested", "concluded", "released"),
        [_channel_row(channel) for channel in answer["channels"]],
    )


async def _fetch_status(folder: Path) -> dict[str, Any]:
    async with AdminClient(folder) as admin:
        answer = await admin.get("/status")
    if not isinstance(answer, dict):
        raise PeerFault(Code.PARSE, "the service answered with something that is no status")
    return answer


def _channel_row(channel: dict[str, Any]) -> Sequence[object]:
    entries = "\n".join(f"{lock['owner'][:8]}… {lock['amount']} {lock['stage']}" for lock in channel["locks"])
    journals = "\n".join(
        f"{journal['broker'][:8]}… {journal['records']} records{', final' if journal['final'] else ''}"
        for journal in channel["journals"]
    )
    done = ("yes" if channel[name] else None for name in ("attested", "concluded", "released"))
    return (channel["channel"][:10] + "…", channel["phase"], entries, journals, *done)


if __name__ == "__main__":
    main()
