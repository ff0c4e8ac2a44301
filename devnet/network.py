"""A whole network on one machine: a chain, the contracts, the XLN service and two brokers, each its own process.

    async with Network.start(folder) as net:
        async with net.client(net.a, trader) as broker, net.admin(net.a) as operator: …
        await net.kill9(net.a); await net.restart(net.a)

Each node has its own folder, key, database and ports; ports are drawn once, so that a node that is started again is
where it was. Broker A has the lower address: it is participant 0 of a channel. All ends with the block, in order.

Invariants: nothing is shared with the nodes but their configuration files; whoever uses this talks to them over their
public interfaces. A process that ends unasked makes `watch` raise, with the end of its log. Keys are drawn afresh and
kept in cheap keyfiles: for test networks. Source: DESIGN section 2 (devnet), issue of the first version.
"""

import asyncio
import contextlib
import json
import random
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

from broker import config as broker_config
from broker.admin import BrokerAdmin
from broker.client import BrokerClient
from channel.errors import Code, LocalRefusal
from channel.signing import Signer
from channel.units import Address, Hash, format_address, parse_address, parse_hash
from contracts.client import ChainClient, Sender
from contracts.network import (
    Collateral,
    Custody,
    NetworkAddresses,
    Token,
    TokenAddress,
    deploy_network,
    deploy_test_token,
)
from node import keyfile
from node.files import write_private
from node.http import AdminClient
from node.process import Child, Children
from xln import config as xln_config

CHAIN_ID: Final = 31_337
ETHER: Final = 10**18
GAS_FUNDS_WEI: Final = 1_000 * ETHER
GAS_MINT, GAS_APPROVE, GAS_DEPOSIT = 120_000, 80_000, 200_000  # given, so that one block takes all three
WITHDRAWAL_DELAY_S: Final = 60
PORT_FIRST, PORT_LAST = 20_000, 30_000  # below what systems hand out for outgoing connections
PORT_ATTEMPTS: Final = 1_000
READY_FILE: Final = "ready.json"
WATCH_EVERY_S: Final = 0.2
READY_DEADLINE_S: Final = 60.0
STOP_DEADLINE_S: Final = 8.0
MARKET: Final = "btc/usd"
# Seconds. Short enough for a test network; nothing in the demo waits for any of them.
WINDOWS_S: Final = {"grace_s": 5, "evidence_s": 60, "verdict_s": 30, "appeal_s": 30, "claim_s": 600}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What differs from one network to the next. Amounts are decimal text, in whole USD; prices USD for one BTC."""

    block_time_s: float = 1.0
    confirmations: int = 2
    poll_ms: int = 250
    btc_price: str = "60000"
    btc_haircut_bps: int = 1_000
    tick: str = "0.01"
    lot: str = "0.0001"
    lock_max: str = "1000000000"
    unsettled_limit: str = "1000000"
    cover_ratio_bps: int = 11_000
    log_level: str = "info"


@dataclass(slots=True, kw_only=True)
class Node:
    """A process of the network: XLN or a broker. `arguments` start it, now and after a kill."""

    name: str
    folder: Path
    module: str
    arguments: tuple[str, ...]
    address: Address
    rpc_url: str
    child: Child | None = None
    is_meant_to_run: bool = False

    @property
    def label(self) -> str:
        """Its name for people."""
        return "XLN" if self.name == "xln" else f"broker {self.name.upper()}"

    @property
    def ready_file(self) -> Path:
        return self.folder / READY_FILE

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid


@dataclass(slots=True, kw_only=True)
class BrokerNode(Node):
    """A broker. `custody` is known once it has run."""

    api_url: str
    custody: Address = field(default=Address(bytes(20)))


class Network:
    """See the module docstring. Made by `start`."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        children: Children,
        chain_child: Child,
        chain_url: str,
        chain: ChainClient,
        deployer: Sender,
        addresses: NetworkAddresses,
        nodes: tuple[Node, BrokerNode, BrokerNode],
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.chain_url = chain_url
        self.chain = chain
        self.deployer = deployer
        self.addresses = addresses
        self.xln, self.a, self.b = nodes
        self.collateral = Collateral(chain, addresses.collateral)
        self._children = children
        self._chain_child = chain_child

    # -- set-up

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        folder: Path,
        settings: Settings | None = None,
        *,
        fund: Iterable[Address] = (),
        say: Say = lambda _: None,
    ) -> AsyncIterator[Self]:
        """Brings everything up in `folder`, which must be new or empty; `fund` gets native currency for gas.

        Returns when both brokers listen. They have no channel yet, and no collateral. Raises LocalRefusal with the end
        of the log of whatever did not start.
        """
        settings = settings or Settings()
        _make_folder(folder)
        async with Children() as children:
            say("starting the chain")
            chain_child, url = await _start_chain(children, folder, settings)
            async with await ChainClient.connect(url, CHAIN_ID) as chain:
                xln_signer, a_signer, b_signer = _draw_keys(folder)
                deployer = Signer(secrets.token_bytes(32))
                addresses = [s.address for s in (deployer, xln_signer, a_signer, b_signer)]
                await fund_gas(chain, [*addresses, *fund])
                say("deploying the contracts")
                sender = Sender(chain, deployer)
                deployment, *tokens = await asyncio.gather(
                    deploy_network(sender, xln_signer.address, WITHDRAWAL_DELAY_S),
                    deploy_test_token(sender, "Test Bitcoin", "BTC", 8),
                    deploy_test_token(sender, "Test Dollar", "USD", 6),
                )
                deployment = replace(deployment, tokens=tuple(tokens))
                nodes = _configure(folder, settings, url, deployment, (a_signer.address, b_signer.address))
                net = cls(folder, settings, children, chain_child, url, chain, sender, deployment, nodes)
                say("starting XLN and the brokers")
                await asyncio.gather(*(net._start_node(node) for node in nodes))
                try:
                    yield net
                finally:
                    await net._stop_nodes()

    async def _start_node(self, node: Node) -> None:
        node.child = await self._children.start(
            node.name,
            node.module,
            node.arguments,
            folder=node.folder,
            env={"XLN_SERVICE_POLL_MS": str(self.settings.poll_ms)} if node is self.xln else None,
            ready_file=node.ready_file,
            deadline_s=READY_DEADLINE_S,
        )
        node.is_meant_to_run = True
        if isinstance(node, BrokerNode):
            node.custody = parse_address(json.loads(node.ready_file.read_bytes())["custody"])

    async def _stop_nodes(self) -> None:
        """All at once, before the chain that they use."""
        running = [node for node in self.nodes if node.child is not None and node.child.alive]
        for node in running:
            node.is_meant_to_run = False
        await asyncio.gather(*(node.child.terminate(STOP_DEADLINE_S) for node in running if node.child is not None))

    # -- what is there

    @property
    def brokers(self) -> tuple[BrokerNode, BrokerNode]:
        return self.a, self.b

    @property
    def nodes(self) -> tuple[Node, ...]:
        return self.xln, self.a, self.b

    @property
    def btc(self) -> TokenAddress:
        return self.addresses.tokens[0]

    @property
    def usd(self) -> TokenAddress:
        return self.addresses.tokens[1]

    @property
    def tokens(self) -> tuple[TokenAddress, ...]:
        return self.addresses.tokens

    def custody(self, broker: BrokerNode) -> Custody:
        return Custody(self.chain, broker.custody)

    def other(self, broker: BrokerNode) -> BrokerNode:
        return self.b if broker is self.a else self.a

    def client(self, broker: BrokerNode, user: Signer | None = None) -> BrokerClient:
        """A trader's client; `async with`."""
        return BrokerClient(broker.api_url, user)

    def admin(self, broker: BrokerNode) -> BrokerAdmin:
        """The operator's client of a broker; `async with`. It is of one run of the process: make a new one after."""
        return BrokerAdmin(broker.folder)

    def xln_admin(self) -> AdminClient:
        return AdminClient(self.xln.folder)

    # -- processes

    async def kill9(self, node: Node) -> None:
        """Ends a node as a crash would."""
        assert node.child is not None
        node.is_meant_to_run = False
        await node.child.kill9()

    async def restart(self, node: Node) -> None:
        """Starts a node again that was killed or stopped: same folder, same command, same ports."""
        if node.child is not None and node.child.alive:
            node.is_meant_to_run = False
            await node.child.terminate(STOP_DEADLINE_S)
        await self._start_node(node)

    async def watch(self) -> None:
        """Runs until a process ends that should not: raises LocalRefusal PEER_UNAVAILABLE with the end of its log."""
        while True:
            running = [(node.label, node.child) for node in self.nodes if node.is_meant_to_run]
            for label, child in (("the chain", self._chain_child), *running):
                if child is not None and not child.alive:
                    raise LocalRefusal(
                        Code.PEER_UNAVAILABLE,
                        f"{label} has ended with status {child.returncode}; the end of {child.log_path}:"
                        f"\n{child.tail()}",
                    )
            await asyncio.sleep(WATCH_EVERY_S)

    # -- money

    async def mint(self, token: TokenAddress, to: Address, amount: int) -> None:
        """`amount` base units of a test token."""
        await Token(self.chain, token.address).mint(self.deployer, to, amount)

    async def deposit(self, broker: BrokerNode, user: Signer, amounts: Sequence[tuple[TokenAddress, int]]) -> None:
        """Mints test tokens to `user`, who deposits them into the broker's custody; all in one block if it can be.

        `user` has gas. The broker credits it after the confirmations.
        """
        calls = []
        custody = self.custody(broker)
        for token, amount in amounts:
            contract = Token(self.chain, token.address)
            calls.append(replace(contract.mint_call(user.address, amount), gas=GAS_MINT))
            calls.append(replace(contract.approve_call(custody.address, amount), gas=GAS_APPROVE))
            calls.append(replace(custody.deposit_call(token.address, amount), gas=GAS_DEPOSIT))
        await Sender(self.chain, user).send_many(calls)


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


async def fund_gas(chain: ChainClient, addresses: Iterable[Address], wei: int = GAS_FUNDS_WEI) -> None:
    """Native currency from the devnet's faucet; returns when it is mined."""
    calls = [("devnet_fund", (format_address(address), hex(wei))) for address in addresses]
    hashes: list[Hash] = [parse_hash(answer) for answer in await chain.batch(calls)]
    for tx_hash in hashes:
        await chain.wait_receipt(tx_hash)


async def _start_chain(children: Children, folder: Path, settings: Settings) -> tuple[Child, str]:
    ready = folder / "chain" / "ready.json"
    arguments = ["--chain-id", str(CHAIN_ID), "--block-time", str(settings.block_time_s), "--ready-file", str(ready)]
    child = await children.start("chain", "devnet.chain", arguments, folder=folder / "chain", ready_file=ready)
    return child, str(json.loads(ready.read_bytes())["url"])


def _draw_keys(folder: Path) -> tuple[Signer, Signer, Signer]:
    """Keyfiles of XLN, A and B with their password files; A has the lower address of the two brokers."""
    drawn = [secrets.token_bytes(32) for _ in range(3)]
    xln, *brokers = drawn
    brokers.sort(key=lambda secret: Signer(secret).address)
    for name, secret in zip(("xln", "a", "b"), (xln, *brokers), strict=True):
        (folder / name).mkdir(mode=0o700)
        password = keyfile.create_password_file(folder / name / "password")
        keyfile.create(folder / name / broker_config.KEY_FILE, password, secret, scrypt_n=keyfile.SCRYPT_LIGHT_N)
    return Signer(xln), Signer(brokers[0]), Signer(brokers[1])


def _configure(
    folder: Path, settings: Settings, chain_url: str, deployment: NetworkAddresses, brokers: tuple[Address, Address]
) -> tuple[Node, BrokerNode, BrokerNode]:
    """Writes the files that operators would write: deployment, network, and the configuration of each node."""
    ports = free_ports(6)
    write_private(folder / "deployment.json", _json(deployment.to_json()))
    xln_config.write(
        folder / "xln",
        deployment,
        chain_url=chain_url,
        confirmations=settings.confirmations,
        rpc=("127.0.0.1", ports[0]),
        admin=("127.0.0.1", ports[1]),
        password_file=folder / "xln" / "password",
    )
    xln = Node(
        name="xln",
        folder=folder / "xln",
        module="xln.cli",
        arguments=_run_arguments(folder / "xln"),
        address=deployment.xln,
        rpc_url=f"ws://127.0.0.1:{ports[0]}",
    )
    network = _network_json(settings, chain_url, deployment, xln.rpc_url)
    write_private(folder / "network.json", _json(network))
    described = broker_config.NetworkFile.load(folder / "network.json")
    a, b = (
        BrokerNode(
            name=name,
            folder=folder / name,
            module="broker.cli",
            arguments=_run_arguments(folder / name),
            address=address,
            rpc_url=f"ws://127.0.0.1:{rpc_port}",
            api_url=f"http://127.0.0.1:{api_port}",
        )
        for name, address, rpc_port, api_port in zip(("a", "b"), brokers, ports[2:4], ports[4:6], strict=True)
    )
    for broker, peer, rpc_port, api_port in ((a, b, ports[2], ports[4]), (b, a, ports[3], ports[5])):
        options = broker_config.InitOptions(
            rpc=("127.0.0.1", rpc_port),
            api=("127.0.0.1", api_port),
            password_file=broker.folder / "password",
            peers=((peer.address, peer.rpc_url),),
            lock_max=settings.lock_max,
            unsettled_limit=settings.unsettled_limit,
            confirmations=settings.confirmations,
            poll_ms=settings.poll_ms,
            cover_ratio_bps=settings.cover_ratio_bps,
            windows_s=WINDOWS_S,
            log_level=settings.log_level,
        )
        broker_config.write_config(broker.folder, described, options)
    return xln, a, b


def _run_arguments(folder: Path) -> tuple[str, ...]:
    return "run", "--dir", str(folder), "--ready-file", str(folder / READY_FILE)


def _network_json(settings: Settings, chain_url: str, deployment: NetworkAddresses, xln_url: str) -> dict[str, object]:
    btc, usd = deployment.tokens
    figures = ((btc, settings.btc_haircut_bps, settings.btc_price), (usd, 0, "1"))
    return {
        "chainUrl": chain_url,
        "chainId": deployment.chain_id,
        "adjudicator": format_address(deployment.adjudicator),
        "factory": format_address(deployment.factory),
        "collateral": format_address(deployment.collateral),
        "xln": format_address(deployment.xln),
        "xlnUrl": xln_url,
        "fromBlock": deployment.from_block,
        "tokens": [
            {
                "symbol": token.symbol,
                "address": format_address(token.address),
                "decimals": token.decimals,
                "haircutBps": haircut_bps,
                "price": price,
            }
            for token, haircut_bps, price in figures
        ],
        "markets": [{"base": btc.symbol, "quote": usd.symbol, "tick": settings.tick, "lot": settings.lot}],
    }


def _json(document: object) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"


def free_ports(count: int) -> list[int]:
    """TCP ports on 127.0.0.1 that nobody listens on now, outside the range of outgoing connections.

    Raises LocalRefusal CONFIG when there are not as many.
    """
    draw = random.SystemRandom()
    found: list[int] = []
    for _ in range(PORT_ATTEMPTS):
        if len(found) == count:
            return found
        port = draw.randrange(PORT_FIRST, PORT_LAST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in found:
                    found.append(port)
    raise LocalRefusal(Code.CONFIG, f"there are no {count} free ports between {PORT_FIRST} and {PORT_LAST}")
