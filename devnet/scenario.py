"""The demo: the whole road of two brokers, from users' deposits to their last withdrawal, and whether it adds up.

    plan -> network -> deposits, collateral -> channel opened by A's operator -> order flow, both ways -> quiet
         -> closed by A's operator -> final state -> attestations, payouts -> SETTLED -> locks released -> withdrawals

Everything is asked of the nodes over their public interfaces: traders' API with signed orders, operators' API, chain.
At every stage `reconcile` compares chain and ledgers; the report collects what does not hold, and never hides it.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson

from broker.client import BrokerClient
from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.hashing import keccak
from channel.signing import Signer, eth_sign_digest, recover
from channel.units import Address, ChannelId, format_address, format_amount, format_hex, parse_hash, parse_hex
from contracts import events
from contracts.network import Adjudicator, TokenAddress
from devnet import plan as plans
from devnet.network import BrokerNode, Network, Settings
from devnet.plan import Deposit, Plan
from devnet.reconcile import Reconciler, Stage
from devnet.report import ChannelFigures, Gas, Inspection, Party, Report, sizing_text
from devnet.trading import Trading
from node.cli import progress
from node.files import write_private

DEFAULT_EVENTS: Final = 5_000
DEFAULT_EVERY: Final = 5
DEFAULT_SEED: Final = 1
COVER_RATIO_BPS: Final = 11_000
POLL_S: Final = 0.2
CREDIT_DEADLINE_S: Final = 90.0
OPEN_DEADLINE_S: Final = 120.0
QUIET_DEADLINE_S: Final = 60.0
FINAL_DEADLINE_S: Final = 60.0
SETTLE_DEADLINE_S: Final = 300.0
WITHDRAW_DEADLINE_S: Final = 120.0
INSPECT_DEADLINE_S: Final = 30.0
LOG_BLOCKS: Final = 32  # of one eth_getLogs
LAST_WORDS_S: Final = 1.0  # for the watch to see why a node does not answer

_ROOT: Final = str(Path(__file__).resolve().parents[1])
_GAS_OF: Final[Mapping[type, str]] = {
    events.CustodyCreated: "create a custody",
    events.BrokerRegistered: "register a broker",
    events.CollateralDeposited: "deposit collateral",
    events.Deposited: "deposit (ERC-20)",
    events.LockRegistered: "register a lock",
    events.Concluded: "conclude a channel",
    events.PayoutExecuted: "payout to the peer's custody",
    events.LockReleased: "release a lock",
    events.Withdrawn: "withdraw (ERC-20)",
}

T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run. `events` None: all rows of `flow`."""

    flow: Path | None = None
    events: int | None = DEFAULT_EVENTS
    every: int = DEFAULT_EVERY
    seed: int = DEFAULT_SEED
    keep: bool = False
    block_time_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A trader with what he brings."""

    name: str
    role: str
    signer: Signer
    deposit: Deposit


async def run(options: Options, folder: Path, say: Say, keep: Callable[["Demo"], Awaitable[None]]) -> Report:
    """The whole demo in `folder` (new or empty). With `options.keep` it ends after trading, when `keep` returns.

    Raises XlnError when something does not work at all; what works and does not add up is in the report's problems.
    """
    started_s = time.monotonic()
    plan = await asyncio.to_thread(
        plans.make_plan,
        options.flow,
        options.events,
        every=options.every,
        seed=options.seed,
        cover_ratio_bps=COVER_RATIO_BPS,
    )
    report = Report(plan=plan)
    say(
        f"flow from {plan.source}: {plan.stats.rows} rows, {plan.stats.emitted} operations of makers, {plan.takers}"
        f" takers; the dry run has {plan.expected_fills} fills"
    )
    say(sizing_text(plan))
    users_a, users_b = _users("a", plan), _users("b", plan)
    settings = Settings(
        block_time_s=options.block_time_s,
        btc_price=str(plan.mid_ticks // 100),
        lock_max=_whole(plan.sizing.lock),
        unsettled_limit=_whole(plan.sizing.unsettled_limit),
        cover_ratio_bps=COVER_RATIO_BPS,
    )
    fund = [user.signer.address for user in (*users_a, *users_b)]
    async with Network.start(folder, settings, fund=fund, say=say) as net:
        report.seconds["set-up"] = time.monotonic() - started_s
        demo = Demo(net, report, users_a, users_b, say)
        await _beside_watch(net, demo.work(keep if options.keep else None))
    report.seconds["in all"] = time.monotonic() - started_s
    return report


async def _beside_watch(net: Network, work: Awaitable[None]) -> None:
    """Runs `work`; a node that ends unasked is the better reason of the two."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(net.watch())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done() and not working.cancelled() and working.exception() is not None:
            await asyncio.wait((watching,), timeout=LAST_WORDS_S)
        if watching.done():
            watching.result()
        working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def _users(broker: str, plan: Plan) -> list[User]:
    """Users of a broker. Their keys follow from the seed: keys of a test network, known to everybody."""
    if broker == "a":
        roles, deposits = ["taker"] * plans.TAKERS + ["rests in B's spread"] * plans.RESTERS, plan.deposits_a
    else:
        roles, deposits = ["maker"] * plans.MAKERS + ["taker on A"] * plans.CROSS_TAKERS, plan.deposits_b
    return [
        User(name=f"{broker.upper()}{number}", role=role, signer=user_key(plan.seed, broker, number), deposit=deposit)
        for number, (role, deposit) in enumerate(zip(roles, deposits, strict=True))
    ]


def user_key(seed: int, broker: str, number: int) -> Signer:
    return Signer(user_secret(seed, broker, number))


def user_secret(seed: int, broker: str, number: int) -> bytes:
    """32 bytes that anybody can work out: never for a key that holds anything of worth."""
    return keccak(f"xln demo user {seed} {broker} {number}".encode())


def _whole(units: int) -> str:
    return format_amount(units, 6)


class Demo:
    """The stages, in order, over a network that is up."""

    def __init__(self, net: Network, report: Report, users_a: list[User], users_b: list[User], say: Say) -> None:
        self.net = net
        self.report = report
        self.users_a = users_a
        self.users_b = users_b
        self.channel_id = ""
        self._say = say
        self._reconciler = Reconciler(net, [user.signer.address for user in (*users_a, *users_b)])

    @property
    def mid_price(self) -> str:
        """USD for one BTC when the flow began, as a multiple of the tick."""
        return format_amount(self.report.plan.mid_ticks, 2)

    @property
    def _by_broker(self) -> tuple[tuple[BrokerNode, list[User]], ...]:
        return (self.net.a, self.users_a), (self.net.b, self.users_b)

    async def work(self, keep: Callable[["Demo"], Awaitable[None]] | None) -> None:
        """All stages; with `keep`, those until after trading, and then that."""
        async with self._stage("deposits"):
            await self._deposits()
        async with self._stage("channel open"):
            await self._open()
        async with self._stage("trading"):
            await self._trade()
        if keep is not None:
            await keep(self)
            return
        async with self._stage("final state"):
            await self._close()
        async with self._stage("settlement"):
            await self._settle()
        async with self._stage("withdrawals"):
            await self._withdraw()
        async with self._stage("report"):
            await self._collect()

    @asynccontextmanager
    async def _stage(self, name: str) -> AsyncIterator[None]:
        started_s = time.monotonic()
        yield
        self.report.seconds[name] = time.monotonic() - started_s

    # -- the stages

    async def _deposits(self) -> None:
        net = self.net
        lock = self.report.plan.sizing.lock
        self._say(
            f"{len(self.users_a)} users of A and {len(self.users_b)} of B deposit; the brokers deposit collateral"
        )
        await asyncio.gather(
            *(self._deposit(broker, user) for broker, users in self._by_broker for user in users),
            *(self._deposit_collateral(broker, lock) for broker in net.brokers),
        )
        for broker, users in self._by_broker:
            expected = {
                net.btc.address: sum(user.deposit.btc for user in users),
                net.usd.address: sum(user.deposit.usd for user in users),
            }
            await self._until(
                f"{broker.label} has credited all deposits",
                lambda broker=broker, expected=expected: self._credited(broker, expected),  # type: ignore[misc]
                CREDIT_DEADLINE_S,
            )
        await self._reconcile("deposits")

    async def _deposit(self, broker: BrokerNode, user: User) -> None:
        deposit = user.deposit
        await self.net.deposit(broker, user.signer, [(self.net.btc, deposit.btc), (self.net.usd, deposit.usd)])

    async def _deposit_collateral(self, broker: BrokerNode, lock: int) -> None:
        await self.net.mint(self.net.usd, broker.address, lock)
        async with self.net.admin(broker) as admin:
            await admin.post("/collateral", {"token": "USD", "amount": _whole(lock)})

    async def _credited(self, broker: BrokerNode, expected: Mapping[Address, int]) -> bool:
        tokens = (await self._admin(broker, "/audit"))["tokens"]
        users = {address: tokens[format_address(address)]["users"] for address in expected}
        return all(
            int(users[address]["free"]) == amount and users[address]["deposited"] == "0"
            for address, amount in expected.items()
        )

    async def _open(self) -> None:
        net, lock = self.net, _whole(self.report.plan.sizing.lock)
        await self._until("the brokers are connected", self._connected, OPEN_DEADLINE_S)
        self._say(f"A's operator opens the channel: both lock {lock} USD")
        async with net.admin(net.a) as admin:
            body = {"peer": format_address(net.b.address), "token": "USD", "amount": lock, "peerAmount": lock}
            opened = _object(await admin.post("/channels", body))
        self.channel_id = str(opened["channelId"])
        await self._until("the channel is active on both", lambda: self._phases("active"), OPEN_DEADLINE_S)
        await self._reconcile("channel open")

    async def _connected(self) -> bool:
        statuses = await asyncio.gather(*(self._admin(broker, "/status") for broker in self.net.brokers))
        return all(status["xln"] and all(peer["connected"] for peer in status["peers"]) for status in statuses)

    async def _trade(self) -> None:
        plan = self.report.plan
        trading = Trading(
            self.net, plan, [user.signer for user in self.users_a], [user.signer for user in self.users_b]
        )
        self.report.trading = trading.stats
        with progress("trading", len(plan.operations)) as shown:
            await trading.run(shown.update, lambda: self._reconcile("in the middle of trading"))
        await self._until("nothing is on its way between the brokers", self._is_quiet, QUIET_DEADLINE_S)
        await self._reconcile("after trading")
        await self._count_trades()
        stats = trading.stats
        self._say(
            f"{self.report.remote_trades} remote trades in {stats.seconds:.1f} s; {stats.taken} takers of A,"
            f" {stats.crosses} of B"
        )

    async def _is_quiet(self) -> bool:
        first, second = await self._channels()
        return first["turn"] == second["turn"] and all(
            channel["pendingEntries"] == 0 and channel["openOrders"] == 0 for channel in (first, second)
        )

    async def _count_trades(self) -> None:
        """A trade of two users of one broker is local; one with a peer's user is local at the venue, remote at home."""
        a, b = await asyncio.gather(*(self._admin(broker, "/status") for broker in self.net.brokers))
        self.report.trades = {
            "A to B": a["trades"]["remote"],
            "B to A": b["trades"]["remote"],
            "A": a["trades"]["local"] - b["trades"]["remote"],
            "B": b["trades"]["local"] - a["trades"]["remote"],
        }
        self.report.node_latency_ms = {"A": a["remoteLatencyMs"], "B": b["remoteLatencyMs"]}
        self.report.expect(self.report.trades["A to B"] > 0, "no user of A has traded in B's book")

    async def _close(self) -> None:
        net = self.net
        before = (await net.chain.head()).number  # nothing of the settlement is in this block
        self._say("A's operator closes the channel")
        async with net.admin(net.a) as admin:
            await admin.post(f"/channels/{self.channel_id}/close")
        await self._until(
            "both have signed the final state", lambda: self._phases("final", "settled"), FINAL_DEADLINE_S
        )
        # Ledgers follow the chain by its confirmations, so they are still where the chain was before the payouts.
        await self._reconcile("final state", block=before)
        for broker in net.brokers:
            state = await self._admin(broker, f"/channels/{self.channel_id}/state")
            path = broker.folder / "final-state.json"
            write_private(path, orjson.dumps(state, option=orjson.OPT_INDENT_2) + b"\n", replace=True)
            self.report.inspections.append(await _inspect(broker.name.upper(), path))
        hashes = {inspection.state_hash for inspection in self.report.inspections}
        self.report.expect(len(hashes) == 1, "xln-dispute inspect: the exports of A and B have different state hashes")
        for seen in self.report.inspections:
            self.report.expect(
                seen.is_final and seen.fully_signed,
                f"xln-dispute inspect: the last state of {seen.broker} is not final, or not signed by both",
            )
        self._say(f"final state at turn {self.report.inspections[0].turn}, the same on both sides")

    async def _settle(self) -> None:
        self._say("XLN attests the outcome from both journals; the custodies pay each other")
        await self._until("both brokers are settled", lambda: self._phases("settled"), SETTLE_DEADLINE_S)
        await self._reconcile("payouts")
        net, channel_id = self.net, ChannelId(parse_hash(self.channel_id))
        concluded = await Adjudicator(net.chain, net.addresses.adjudicator).outcome_of(channel_id)
        self.report.settlement["outcome on chain"] = format_hex(concluded) if concluded else "NO"
        self.report.expect(concluded is not None, "the channel is settled, but not concluded on chain")

    async def _withdraw(self) -> None:
        net = self.net
        self._say("every user cancels what is open and withdraws everything")
        with progress("withdrawals", len(self.users_a) + len(self.users_b)) as shown:

            async def leave(broker: BrokerNode, user: User) -> None:
                await self._leave(broker, user)
                shown.advance()

            await asyncio.gather(
                *(leave(broker, user) for broker, users in self._by_broker for user in users),
                self._until("XLN has released both locks", self._released, SETTLE_DEADLINE_S),
            )
        await self._until("both ledgers have seen the last withdrawal", self._nothing_left, WITHDRAW_DEADLINE_S)
        await self._reconcile("withdrawals")
        for broker in net.brokers:
            for token in net.tokens:
                left = await net.chain.balance(token.address, broker.custody)
                self.report.expect(
                    left == 0, f"custody of {broker.name.upper()} still has {left} base units of {token.symbol}"
                )

    async def _leave(self, broker: BrokerNode, user: User) -> None:
        async with self.net.client(broker, user.signer) as client:
            for order in await client.open_orders():
                await client.cancel(order.order_id)
            withdrawals = [
                await client.withdraw(balance.symbol, balance.free)
                for balance in (await client.balances()).values()
                if balance.units["free"]
            ]
            for made in withdrawals:
                await self._until(
                    f"{user.name} has his {made.amount} {made.symbol}",
                    lambda made=made: _is_done(client, made.withdrawal_id),  # type: ignore[misc]
                    WITHDRAW_DEADLINE_S,
                )

    async def _released(self) -> bool:
        locked = [
            await self.net.collateral.locked(broker.address, token.address)
            for broker in self.net.brokers
            for token in self.net.tokens
        ]
        self.report.settlement["locks released"] = "NO" if any(locked) else "yes, both"
        return not any(locked)

    async def _nothing_left(self) -> bool:
        audits = await asyncio.gather(*(self._admin(broker, "/audit") for broker in self.net.brokers))
        return all(int(token["users"]["withdrawing"]) == 0 for audit in audits for token in audit["tokens"].values())

    async def _collect(self) -> None:
        report = self.report
        report.channel = await self._channel_figures()
        report.expect(
            report.channel.cosigned == report.channel.states, "a state in a journal is not signed by both brokers"
        )
        report.expect(report.channel.journals_agree, "the journals of A and B have different states")
        report.parties = await self._parties()
        for token in self.net.tokens:
            change = sum(party.change for party in report.parties if party.token == token.symbol)
            report.expect(
                change == 0, f"all parties together have {change:+d} base units of {token.symbol} more than before"
            )
        report.gas = await self._gas()

    # -- asking

    async def _admin(self, broker: BrokerNode, path: str) -> dict[str, Any]:
        async with self.net.admin(broker) as admin:
            return _object(await admin.get(path))

    async def _channels(self) -> list[dict[str, Any]]:
        """The channel as A and as B see it. Raises LocalRefusal when a node has stopped signing."""
        found = []
        for broker in self.net.brokers:
            status = await self._admin(broker, "/status")
            if status["failure"]:
                raise LocalRefusal(Code.PEER_UNAVAILABLE, f"{broker.label} has stopped signing: {status['failure']}")
            for channel in status["channels"]:
                if channel["frozen"]:
                    raise LocalRefusal(
                        Code.CHANNEL_FROZEN, f"{broker.label} has frozen the channel: {channel['frozen']}"
                    )
                if channel["channelId"] == self.channel_id:
                    found.append(channel)
        return found

    async def _phases(self, *wanted: str) -> bool:
        channels = await self._channels()
        return len(channels) == 2 and all(channel["phase"] in wanted for channel in channels)

    async def _until(self, what: str, probe: Callable[[], Awaitable[bool]], deadline_s: float) -> None:
        """Waits until `probe` is true. Raises LocalRefusal TIMEOUT with where the channel stands."""
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    if await probe():
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            where = [f"{c['phase']}, turn {c['turn']}, {c['pendingEntries']} pending" for c in await self._channels()]
            raise LocalRefusal(
                Code.TIMEOUT,
                f"not within {deadline_s:.0f} s: {what} (channel: {'; '.join(where) or 'none'}); logs are in"
                f" {self.net.folder}",
            ) from None

    async def _reconcile(self, name: str, *, block: int | None = None) -> None:
        stage: Stage = await self._reconciler.check(name, block=block)
        self.report.add_stage(stage)
        self._say(f"reconciliation, {name}: {'to the unit' if stage.is_reconciled else 'DOES NOT ADD UP'}")

    # -- figures for the report

    async def _channel_figures(self) -> ChannelFigures:
        net = self.net
        participants = (net.a.address, net.b.address)
        journals = [await self._journal(broker) for broker in net.brokers]
        states = [[(s["turn"], s["hash"]) for s in journal.states] for journal in journals]
        cosigned = {
            state["hash"] for journal in journals for state in journal.states if _is_cosigned(state, participants)
        }
        everything = {state["hash"] for journal in journals for state in journal.states}
        seen = journals[0]
        return ChannelFigures(
            channel_id=self.channel_id,
            turns=max((turn for turn, _ in states[0]), default=0),
            states=len(everything),
            cosigned=len(cosigned),
            entries_a=seen.entries[0],
            entries_b=seen.entries[1],
            journal_bytes=seen.size_bytes,
            entry_bytes=seen.entry_bytes,
            journals_agree=states[0] == states[1] and journals[0].entries == journals[1].entries,
        )

    async def _journal(self, broker: BrokerNode) -> "_Journal":
        journal = _Journal()
        async with self.net.admin(broker) as admin:
            async for line in admin.stream(f"/channels/{self.channel_id}/journal"):
                journal.add(line)
        return journal

    async def _parties(self) -> list[Party]:
        """Users: what they brought, and what is in their wallets now. Brokers: their collateral, and their wallets."""
        net = self.net
        lock = self.report.plan.sizing.lock
        parties: list[Party] = []

        def add(name: str, role: str, token: TokenAddress, before: int, after: int) -> None:
            parties.append(
                Party(party=name, role=role, token=token.symbol, decimals=token.decimals, before=before, after=after)
            )

        for _, users in self._by_broker:
            for user in users:
                for token, before in ((net.btc, user.deposit.btc), (net.usd, user.deposit.usd)):
                    add(
                        user.name, user.role, token, before, await net.chain.balance(token.address, user.signer.address)
                    )
        for broker in net.brokers:
            for token, before in ((net.btc, 0), (net.usd, lock)):
                own = await net.chain.balance(token.address, broker.address)
                own += await net.collateral.deposited(broker.address, token.address)
                add(broker.label, "collateral and own funds", token, before, own)
            for token in net.tokens:
                left = await net.chain.balance(token.address, broker.custody)
                add(broker.label, "custody", token, 0, left)
        return parties

    async def _gas(self) -> list[Gas]:
        """From the receipts of every transaction in which one of our contracts told an event."""
        net = self.net
        addresses = net.addresses
        contracts = [addresses.collateral, addresses.adjudicator, addresses.factory]
        contracts += [broker.custody for broker in net.brokers]
        head = (await net.chain.head()).number
        found: dict[str, dict[bytes, None]] = {name: {} for name in _GAS_OF.values()}
        for first in range(addresses.from_block, head + 1, LOG_BLOCKS):
            for log in await net.chain.logs_in_range(first, min(first + LOG_BLOCKS - 1, head), contracts):
                name = _GAS_OF.get(type(events.decode_log(log)))
                if name is not None:
                    found[name][log.ref.tx_hash] = None
        return [Gas(operation=name, used=await self._gas_of(list(hashes))) for name, hashes in found.items() if hashes]

    async def _gas_of(self, hashes: Sequence[bytes]) -> tuple[int, ...]:
        answers = await self.net.chain.batch([("eth_getTransactionReceipt", (format_hex(h),)) for h in hashes])
        return tuple(int(str(_object(answer)["gasUsed"]), 16) for answer in answers)


class _Journal:
    """Figures of a journal, line by line."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []
        self.entries = [0, 0]
        self.size_bytes = 0
        self.entry_bytes = 0

    def add(self, line: bytes) -> None:
        record = _object(orjson.loads(line))
        self.size_bytes += len(line) + 1
        if "state" in record:
            self.states.append(record["state"])
        elif "entry" in record:
            self.entries[record["entry"]["by"]] += 1
            self.entry_bytes += len(line) + 1


def _is_cosigned(state: Mapping[str, Any], participants: Sequence[Address]) -> bool:
    digest = eth_sign_digest(parse_hash(state["hash"]))
    try:
        return [recover(digest, parse_hex(signature)) for signature in state["sigs"]] == list(participants)
    except PeerFault:
        return False


async def _is_done(client: BrokerClient, withdrawal_id: bytes) -> bool:
    """Raises LocalRefusal WITHDRAWAL when it has failed."""
    status = (await client.withdrawal(format_hex(withdrawal_id))).status
    if status == "failed":
        raise LocalRefusal(Code.WITHDRAWAL, f"withdrawal {format_hex(withdrawal_id)} has failed on chain")
    return status == "done"


async def _inspect(broker: str, path: Path) -> Inspection:
    """What the dispute tool, as a program of its own, says of an exported state. Raises LocalRefusal."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "xln.dispute_cli", "inspect", "--json", str(path)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))},
    )
    try:
        async with asyncio.timeout(INSPECT_DEADLINE_S):
            out, err = await process.communicate()
    except TimeoutError:
        raise LocalRefusal(Code.TIMEOUT, f"xln-dispute inspect of {path} does not end") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise LocalRefusal(Code.ENCODING, f"xln-dispute inspect refuses {path}: {err.decode(errors='replace').strip()}")
    seen = _object(orjson.loads(out))
    return Inspection(
        broker=broker,
        state_hash=str(seen["stateHash"]),
        turn=int(seen["turnNum"]),
        is_final=bool(seen["isFinal"]),
        fully_signed=bool(seen["fullySigned"]),
    )


def _object(answer: object) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise XlnError(Code.PARSE, "an object was expected in the answer")
    return answer
