"""Configuration of the collateral service: `xln.toml` in its folder, and the environment over it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from channel.errors import Code, PeerFault
from channel.units import Address, format_address
from contracts.network import NetworkAddresses
from node import logs
from node.config import Config, Field, Section, write_template

CONFIG_FILE: Final = "xln.toml"
KEY_FILE: Final = "key.json"
DATABASE_FILE: Final = "xln.sqlite"
LOG_FILE: Final = "xln.log"

DAY_S: Final = 24 * 3600
JOURNAL_BYTES_MAX: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Times in seconds of block time, `poll_ms` of the machine's clock. `folder` is where everything is kept."""

    folder: Path
    chain_url: str
    chain_id: int
    adjudicator: Address
    factory: Address
    collateral: Address
    from_block: int
    confirmations: int
    rpc_host: str
    rpc_port: int
    admin_host: str
    admin_port: int
    keyfile: Path
    password_file: Path | None
    expiry_s: int = 7 * DAY_S
    open_by_s: int = 600
    stale_s: int = 120
    poll_ms: int = 500
    journal_bytes_max: int = JOURNAL_BYTES_MAX
    log_level: str = "info"


def load(folder: Path) -> Settings:
    """Raises PeerFault CONFIG with file, section, key and what would be right."""
    config = Config.load(folder / CONFIG_FILE)
    network, rpc, admin = config.table("network"), config.table("rpc"), config.table("admin")
    key, service, log = config.table("key"), config.table("service"), config.table("log")
    settings = Settings(
        folder=folder,
        chain_url=network.url("chain_url"),
        chain_id=network.integer("chain_id", low=1, high=2**53 - 1),
        adjudicator=network.address("adjudicator"),
        factory=network.address("factory"),
        collateral=network.address("collateral"),
        from_block=network.integer("from_block", 0),
        confirmations=network.integer("confirmations", 3, low=1, high=256),
        rpc_host=rpc.text("host", "127.0.0.1"),
        rpc_port=rpc.integer("port", 0, high=65_535),
        admin_host=admin.text("host", "127.0.0.1"),
        admin_port=admin.integer("port", 0, high=65_535),
        keyfile=key.path("keyfile", folder / KEY_FILE),
        password_file=key.optional_path("password_file"),
        expiry_s=service.integer("expiry_s", 7 * DAY_S, low=60, high=365 * DAY_S),
        open_by_s=service.integer("open_by_s", 600, low=1, high=DAY_S),
        stale_s=service.integer("stale_s", 120, low=1, high=DAY_S),
        poll_ms=service.integer("poll_ms", 500, low=50, high=60_000),
        journal_bytes_max=service.integer("journal_bytes_max", JOURNAL_BYTES_MAX, low=64 * 1024, high=2**40),
        log_level=log.text("level", "info", choices=logs.LEVELS),
    )
    if settings.open_by_s >= settings.expiry_s:
        # A lock must outlive the time in which its channel is opened; the contract wants it too.
        raise PeerFault(Code.CONFIG, f"{config.path}: open_by_s in section [service] must be below expiry_s")
    config.finish()
    return settings


def write(
    folder: Path,
    network: NetworkAddresses,
    *,
    chain_url: str,
    confirmations: int,
    rpc: tuple[str, int],
    admin: tuple[str, int],
    password_file: Path | None,
) -> Path:
    """Writes a first configuration. Raises LocalRefusal CONFIG when there is one."""
    path = folder / CONFIG_FILE
    password = None if password_file is None else str(password_file.absolute())
    sections = (
        Section(
            name="network",
            comment="The chain and the contracts of this deployment.",
            fields=(
                Field(key="chain_url", comment="JSON-RPC endpoint.", value=chain_url),
                Field(key="chain_id", comment="The endpoint must serve this chain.", value=network.chain_id),
                Field(key="adjudicator", comment="Adjudicator.", value=format_address(network.adjudicator)),
                Field(key="factory", comment="CustodyFactory.", value=format_address(network.factory)),
                Field(key="collateral", comment="XlnCollateral.", value=format_address(network.collateral)),
                Field(key="from_block", comment="No event of these contracts is older.", value=network.from_block),
                Field(key="confirmations", comment="Blocks until an event counts.", value=confirmations),
            ),
        ),
        Section(
            name="rpc",
            comment="Where brokers connect (WebSocket). Port 0 takes a free one.",
            fields=(
                Field(key="host", comment="Address to listen on.", value=rpc[0]),
                Field(key="port", comment="Port to listen on.", value=rpc[1]),
            ),
        ),
        Section(
            name="admin",
            comment="Where the operator's command line connects (HTTP). Keep it local.",
            fields=(
                Field(key="host", comment="Address to listen on.", value=admin[0]),
                Field(key="port", comment="Port to listen on.", value=admin[1]),
            ),
        ),
        Section(
            name="key",
            comment="The key that signs locks, releases and attestations.",
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
        Section(
            name="service",
            comment="Locks and journals. Times are seconds of block time.",
            fields=(
                Field(key="expiry_s", comment="Life of a lock, from its signature.", value=7 * DAY_S),
                Field(key="open_by_s", comment="A channel must be opened within this time.", value=600),
                Field(key="stale_s", comment="Nothing is signed when the chain's head is older.", value=120),
                Field(key="poll_ms", comment="How often the chain is asked.", value=500),
                Field(key="journal_bytes_max", comment="Per channel and broker.", value=JOURNAL_BYTES_MAX),
            ),
        ),
        Section(
            name="log",
            comment=f"The log is {LOG_FILE} in this folder.",
            fields=(Field(key="level", comment=f"One of {', '.join(logs.LEVELS)}.", value="info"),),
        ),
    )
    write_template(path, "Configuration of the XLN collateral service.", sections)
    return path
