"""What a run of the demo showed: one value, printed as tables for people or as JSON for programs.

Amounts are base units inside and in JSON (text); tables show whole tokens. `problems` says in words what does not add
up; a run is good when it is empty.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from channel.units import format_amount
from devnet.plan import Plan
from devnet.reconcile import Stage
from devnet.trading import TradeStats
from node.cli import table

USD_DECIMALS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Somebody's funds before and after, in base units of a token."""

    party: str
    role: str
    token: str
    decimals: int
    before: int
    after: int

    @property
    def change(self) -> int:
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Gas:
    """Gas of one kind of transaction, from its receipts."""

    operation: str
    used: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        used = self.used
        return {
            "operation": self.operation,
            "transactions": len(used),
            "min": min(used),
            "mean": sum(used) // len(used),
            "max": max(used),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFigures:
    """The channel as both journals have it. `bytes` of a journal as JSON lines."""

    channel_id: str
    turns: int
    states: int
    cosigned: int
    entries_a: int
    entries_b: int
    journal_bytes: int
    entry_bytes: int
    journals_agree: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What `xln-dispute inspect --json` says of one broker's export."""

    broker: str
    state_hash: str
    turn: int
    is_final: bool
    fully_signed: bool


@dataclass(slots=True, kw_only=True)
class Report:
    """Filled as the demo goes on."""

    plan: Plan
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    trading: TradeStats | None = None
    trades: dict[str, int] = field(default_factory=dict)
    node_latency_ms: dict[str, Any] = field(default_factory=dict)  # by broker
    channel: ChannelFigures | None = None
    inspections: list[Inspection] = field(default_factory=list)
    settlement: dict[str, str] = field(default_factory=dict)
    parties: list[Party] = field(default_factory=list)
    gas: list[Gas] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.problems

    @property
    def remote_trades(self) -> int:
        return self.trades.get("A to B", 0) + self.trades.get("B to A", 0)

    def add_stage(self, stage: Stage) -> None:
        self.stages.append(stage)
        self.problems += stage.problems()

    def expect(self, fact: bool, otherwise: str) -> None:
        """Notes a problem unless `fact` holds."""
        if not fact:
            self.problems.append(otherwise)


def quantiles(values: Sequence[float]) -> dict[str, float | int | None]:
    """{"count", "p50", "p99", "max"} in the unit of the values, to a microsecond of a millisecond value."""
    if not values:
        return {"count": 0, "p50": None, "p99": None, "max": None}
    ordered = sorted(values)
    cuts = statistics.quantiles(ordered, n=100, method="inclusive") if len(ordered) > 1 else ordered * 99
    return {
        "count": len(ordered),
        "p50": round(cuts[49], 3),
        "p99": round(cuts[98], 3),
        "max": round(ordered[-1], 3),
    }


# -- JSON


def to_json(report: Report) -> dict[str, Any]:
    """Everything, as one object."""
    plan, stats = report.plan, report.trading
    return {
        "ok": report.is_good,
        "problems": report.problems,
        "seconds": {name: round(seconds, 2) for name, seconds in report.seconds.items()},
        "flow": _flow_json(plan),
        "sizing": {name: str(value) for name, value in asdict(plan.sizing).items()},
        "operations": None if stats is None else _operations_json(stats),
        "trades": report.trades | {"remote": report.remote_trades},
        "latencyMs": {
            "client": quantiles(stats.latencies_ms if stats else []),
            "node": report.node_latency_ms,
        },
        "channel": None if report.channel is None else asdict(report.channel),
        "inspect": [asdict(inspection) for inspection in report.inspections],
        "settlement": report.settlement,
        "balances": [
            asdict(p) | {"before": str(p.before), "after": str(p.after), "change": str(p.change)}
            for p in report.parties
        ],
        "gas": [gas.to_json() for gas in report.gas],
        "reconciliation": [stage.to_json() for stage in report.stages],
    }


def _flow_json(plan: Plan) -> dict[str, Any]:
    return {
        "source": plan.source,
        "seed": plan.seed,
        **asdict(plan.stats),
        "takers": plan.takers,
        "expectedFills": plan.expected_fills,
    }


def _operations_json(stats: TradeStats) -> dict[str, Any]:
    names = (
        "added", "amended", "removed", "skipped_consumed", "taken", "taken_filled", "taken_nothing",
        "crosses", "crosses_filled", "crosses_skipped",
    )  # fmt: skip
    seconds = {"seconds": round(stats.seconds, 2)}
    return {name: getattr(stats, name) for name in names} | {"refused": dict(stats.refused)} | seconds


# -- tables


def print_tables(report: Report) -> None:
    """All that there is, on standard output."""
    _print_flow(report)
    if report.trading is not None:
        _print_trades(report)
        _print_latency(report)
    _print_channel(report)
    _print_parties(report.parties)
    if report.gas:
        rows = [tuple(gas.to_json().values()) for gas in report.gas]
        table("Gas per operation", ("operation", "transactions", "least", "mean", "most"), rows)
    _print_reconciliation(report.stages)


def _print_flow(report: Report) -> None:
    stats, trading = report.plan.stats, report.trading
    rows: list[tuple[object, object]] = [
        ("rows of the flow", stats.rows),
        ("operations of makers", stats.emitted),
        ("rows skipped (make no sense)", stats.skipped),
        ("prices rounded to the tick", stats.prices_rounded),
        ("sizes rounded up to a lot", stats.sizes_rounded),
    ]
    if trading is not None:
        rows += [
            ("orders added / amended / removed", f"{trading.added} / {trading.amended} / {trading.removed}"),
            ("skipped, the order was consumed", trading.skipped_consumed),
            ("takers of A: sent / filled / nothing there",
             f"{trading.taken} / {trading.taken_filled} / {trading.taken_nothing}"),
            ("rounds of B's takers on A: made / filled / no room",
             f"{trading.crosses} / {trading.crosses_filled} / {trading.crosses_skipped}"),
            ("refused", ", ".join(f"{code}: {n}" for code, n in sorted(trading.refused.items())) or 0),
            ("seconds of trading", f"{trading.seconds:.1f}"),
        ]  # fmt: skip
    table(f"Order flow ({report.plan.source}, seed {report.plan.seed})", ("", ""), rows)


def _print_trades(report: Report) -> None:
    trades = report.trades
    rows = [
        ("users of A in B's book (remote)", trades.get("A to B")),
        ("users of B in A's book (remote)", trades.get("B to A")),
        ("remote, in one channel", report.remote_trades),
        ("among users of A (local)", trades.get("A")),
        ("among users of B (local)", trades.get("B")),
    ]
    table("Trades", ("", "trades"), rows)


def _print_latency(report: Report) -> None:
    assert report.trading is not None
    client = quantiles(report.trading.latencies_ms)
    rows = [("A's takers, from request to answer (HTTP)", client["count"], client["p50"], client["p99"])]
    for broker, seen in report.node_latency_ms.items():
        rows.append((f"broker {broker}, from order to the last notice", seen["count"], seen["p50"], seen["p99"]))
    shown = [(name, count, *(_ms(value) for value in values)) for name, count, *values in rows]
    table("Latency of a remote order (ms)", ("", "orders", "p50", "p99"), shown)


def _ms(value: float | int | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _print_channel(report: Report) -> None:
    channel = report.channel
    if channel is None:
        return
    rows: list[tuple[object, object]] = [
        ("channel", channel.channel_id),
        ("last turn", channel.turns),
        ("states signed by both", f"{channel.cosigned} of {channel.states} (signatures verified)"),
        ("entries of A / of B", f"{channel.entries_a} / {channel.entries_b}"),
        ("bytes of entries", f"{channel.entry_bytes:,}"),
        ("bytes of the journal", f"{channel.journal_bytes:,}"),
        ("journals have the same states", "yes" if channel.journals_agree else "NO"),
    ]
    for seen in report.inspections:
        signed = "signed by both" if seen.fully_signed else "NOT SIGNED BY BOTH"
        final = "final" if seen.is_final else "not final"
        rows.append((f"xln-dispute inspect, {seen.broker}'s state", f"turn {seen.turn}, {final}, {signed}"))
        rows.append(("  its state hash", seen.state_hash))
    if len(report.inspections) == 2:
        same = len({seen.state_hash for seen in report.inspections}) == 1
        rows.append(("both have the same state hash", "yes" if same else "NO"))
    rows += list(report.settlement.items())
    table("Channel", ("", ""), rows)


def _print_parties(parties: Sequence[Party]) -> None:
    for token in dict.fromkeys(party.token for party in parties):
        rows = [
            (
                p.party,
                p.role,
                format_amount(p.before, p.decimals),
                format_amount(p.after, p.decimals),
                signed_amount(p.change, p.decimals),
            )
            for p in parties
            if p.token == token
        ]
        title = f"{token} before trading and after the last withdrawal"
        table(title, ("party", "role", "before", "after", "change"), rows)


def _print_reconciliation(stages: Sequence[Stage]) -> None:
    rows = [
        (
            line.stage,
            line.broker,
            line.token,
            format_amount(line.custody, line.decimals),
            format_amount(line.deposited + line.free + line.locked + line.withdrawing, line.decimals),
            format_amount(line.house, line.decimals),
            signed_amount(line.owed_to_peers, line.decimals),
            signed_amount(line.difference, line.decimals),
        )
        for stage in stages
        for line in stage.lines
    ]
    columns = ("stage", "broker", "token", "custody on chain", "= users", "+ house", "+ owed to peers", "difference")
    if rows:
        table("Reconciliation: custody on chain = users + house + net owed to peers", columns, rows)
        totals = [
            (
                total.stage,
                total.token,
                *(format_amount(value, total.decimals) for value in (total.on_chain, total.ledgers, total.minted)),
                "yes" if total.is_equal else "NO",
            )
            for stage in stages
            for total in stage.totals
        ]
        headings = ("stage", "token", "chain", "ledgers, collateral, wallets", "minted", "equal")
        table("Everything on chain = everything in ledgers and wallets = what was minted", headings, totals)


def signed_amount(value: int, decimals: int) -> str:
    """With a plus sign above zero."""
    return ("+" if value > 0 else "") + format_amount(value, decimals)


def sizing_text(plan: Plan) -> str:
    """How collateral was sized, in a sentence."""
    s = plan.sizing

    def usd(units: int) -> str:
        return f"{-(-units // 10**USD_DECIMALS):,}"

    return (
        f"collateral: {usd(s.lock)} USD each = {s.cover_ratio_bps / 10_000:.2f} x (2 x {usd(s.peak_owed)} owed at most"
        f" in a dry run + {usd(s.in_flight)} of orders on their way, each counted in full for both sides +"
        f" {usd(s.crosses)} for B's takers), up to the next thousand; at most {usd(s.unsettled_limit)} USD matched and"
        " not co-signed"
    )
