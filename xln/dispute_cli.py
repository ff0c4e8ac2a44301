"""`xln-dispute`: looks at what brokers signed, on any machine, with nothing but the files.

`inspect` prints one state and verifies every signature in it. It needs no network, no node and no configuration, and
uses the same code that brokers and the service sign with. DESIGN sections 3 and 6.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import click

from channel.appdata import AppData, CollateralLock, OpenOrdersSummary
from channel.errors import Code, PeerFault
from channel.jsonform import (
    MAX_STATE_FILE_BYTES,
    SignedState,
    app_data_to_json,
    signed_state_from_json,
    summary_in_text,
)
from channel.outcome import AssetExit
from channel.strictjson import loads
from channel.terms import Terms
from channel.units import ZERO_ADDRESS, Address, format_address, format_amount, format_hex
from node import logs
from node.cli import XlnGroup, examples, json_option, print_json, version_option


@click.group(cls=XlnGroup, context_settings={"help_option_names": ["-h", "--help"]})
@version_option()
def main() -> None:
    """Look at signed states of channels between brokers: offline, from files."""
    logging.getLogger(logs.ROOT).addHandler(logging.NullHandler())  # the error line says it all; there is no log


@main.command(
    epilog=examples(
        """
        xln-dispute inspect state.json
        xln-broker state export --help
        xln-dispute inspect --json - < state.json
        """
    )
)
@click.argument("file", type=click.Path(allow_dash=True))
@json_option
def inspect(file: str, as_json: bool) -> None:
    """Print one state given as JSON: channel id, hashes, who signed, and what it says in words.

    FILE is a state as `xln-broker state export` writes it, or any JSON object with fixedPart, turnNum, isFinal,
    appData (hex), outcome (encoded hex or exit rows) and signatures ({r, s, v} or 65 bytes hex); "-" is standard input.

    Status 1 and one line on standard error when the file is malformed or a signature in it is not valid.
    """
    signed = signed_state_from_json(loads(_read(file), max_bytes=MAX_STATE_FILE_BYTES))
    if as_json:
        print_json(describe(signed))
    else:
        click.echo("\n".join(in_words(signed)))


def _read(file: str) -> bytes:
    """At most one byte above the limit, which `loads` then refuses. Raises PeerFault STORAGE."""
    try:
        if file == "-":
            return sys.stdin.buffer.read(MAX_STATE_FILE_BYTES + 1)
        with Path(file).open("rb") as stream:
            return stream.read(MAX_STATE_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PeerFault(Code.STORAGE, f"{file} cannot be read: {reason}") from error


def describe(signed: SignedState) -> dict[str, Any]:
    """What `--json` prints. `appData` and `outcome` in their JSON forms where they have one, else as hex."""
    state, fixed = signed.state, signed.state.fixed
    return {
        "channelId": format_hex(fixed.channel_id),
        "appPartHash": format_hex(state.app_part_hash),
        "outcomeHash": format_hex(state.outcome_hash),
        "stateHash": format_hex(state.state_hash),
        "digest": format_hex(state.digest),
        "signers": [format_address(s) for s in signed.signers],
        "fullySigned": not signed.unsigned_by,
        "unsignedBy": [format_address(p) for p in signed.unsigned_by],
        "turnNum": state.turn,
        "isFinal": state.is_final,
        "chainId": str(fixed.chain_id),
        "participants": [format_address(p) for p in fixed.participants],
        "channelNonce": fixed.channel_nonce,
        "appDefinition": format_address(fixed.app_definition),
        "challengeDuration": fixed.challenge_duration_s,
        "appData": _app_data_form(signed),
        "outcome": (
            format_hex(state.variable.outcome) if signed.exits is None else [_exit_form(row) for row in signed.exits]
        ),
        "outcomeFollowsFromBalances": signed.outcome_follows,
    }


def _app_data_form(signed: SignedState) -> object:
    if signed.app_data is not None and signed.terms is not None:
        try:
            return app_data_to_json(signed.app_data, signed.state.fixed, signed.terms)
        except PeerFault:
            pass  # names what the terms do not list: only the bytes say it all
    return format_hex(signed.state.variable.app_data)


def _exit_form(row: AssetExit) -> dict[str, Any]:
    return {
        "asset": format_address(row.asset),
        "chainID": str(row.chain_id),
        "assetHolder": format_address(row.asset_holder),
        "allocations": [
            {
                "destination": format_hex(a.destination),
                "amount": str(a.amount),
                "allocationType": a.allocation_type,
                "metadata": format_hex(a.metadata),
            }
            for a in row.allocations
        ],
    }


def in_words(signed: SignedState) -> list[str]:
    """The lines of the readable output."""
    state, fixed = signed.state, signed.state.fixed
    count = len(fixed.participants)
    return [
        f"channel id      {format_hex(fixed.channel_id)}",
        f"state hash      {format_hex(state.state_hash)}",
        f"digest          {format_hex(state.digest)}  (what is signed)",
        f"appPart hash    {format_hex(state.app_part_hash)}",
        f"outcome hash    {format_hex(state.outcome_hash)}",
        f"turn            {state.turn}, {'final' if state.is_final else 'not final'}",
        f"chain           {fixed.chain_id}",
        f"application     {format_address(fixed.app_definition)}",
        f"challenge       {fixed.challenge_duration_s} s",
        f"nonce           {fixed.channel_nonce}",
        "",
        f"participants ({count})",
        *(f"  {index}  {format_address(p)}" for index, p in enumerate(fixed.participants)),
        "",
        *_signatures_in_words(signed),
        "",
        *_app_data_in_words(signed),
        "",
        *_outcome_in_words(signed),
    ]


def _signatures_in_words(signed: SignedState) -> list[str]:
    participants = signed.state.fixed.participants
    missing = signed.unsigned_by
    status = "fully signed" if not missing else f"NOT fully signed, {len(missing)} of {len(participants)} missing"
    lines = [f"signatures ({len(signed.signers)}): {status}"]
    lines += [
        f"  {format_address(signer)}  valid, participant {participants.index(signer)}" for signer in signed.signers
    ]
    lines += [f"  {format_address(p)}  has not signed, participant {participants.index(p)}" for p in missing]
    return lines


def _amount(value: int, token: Address, chain_id: int, signed: SignedState) -> str:
    """Decimals and symbol when the terms have them, else base units."""
    try:
        known = signed.terms.token(token) if signed.terms is not None else None
    except PeerFault:
        known = None
    if known is not None:
        text = f"{format_amount(value, known.decimals)} {known.symbol}"
    else:
        text = f"{value} base units of " + ("the native token" if token == ZERO_ADDRESS else format_address(token))
    return text if chain_id == signed.state.fixed.chain_id else f"{text} on chain {chain_id}"


def _app_data_in_words(signed: SignedState) -> list[str]:
    data = signed.app_data
    if data is None:
        raw = signed.state.variable.app_data
        what = "empty" if not raw else f"{len(raw)} bytes, not of a channel between brokers"
        return [f"appData: {what}", *([f"  {format_hex(raw)}"] if raw else [])]
    lines = [
        f"time            {data.time_ms} ms",
        f"terms           {format_hex(data.terms_hash)}{'' if signed.terms is None else '  (in the file)'}",
        f"journal head    {format_hex(data.journal_head)}",
        "",
        "balance updates (bu)",
    ]
    for update in data.balance_updates:
        total = _amount(update.available + update.locked, update.token, update.chain_id, signed)
        available = _amount(update.available, update.token, update.chain_id, signed)
        part = f" (of which {available} available)" if update.available else ""
        lines.append(f"  {format_address(update.holder)} owes {format_address(update.owner)} {total}{part}")
    lines += [] if data.balance_updates else ["  neither owes the other anything"]
    lines += ["", "open orders (oos)"]
    lines += [_orders_in_words(row, signed.terms) for row in data.open_orders] or ["  none"]
    lines += ["", "collateral locks (cl)"]
    lines += [_lock_in_words(row, signed) for row in data.collateral] or ["  none"]
    return [*lines, *_prices_in_words(data)]


def _orders_in_words(row: OpenOrdersSummary, terms: Terms | None) -> str:
    holder, owner = format_address(row.holder), format_address(row.owner)
    verb = "buys" if row.side == 0 else "sells"
    if terms is not None:
        try:
            name, (base, low, high, quote) = summary_in_text(row, terms)
        except PeerFault:
            pass
        else:
            base_symbol, quote_symbol = name.upper().split("/")
            price = low if low == high else f"{low} to {high}"
            return (
                f"  {owner} {verb} {base} {base_symbol} on {name} of {holder} at {price}, {quote} {quote_symbol} in all"
            )
    return (
        f"  {owner} {verb} {row.base} base units on market {format_hex(row.market_id)} of {holder}"
        f" at {row.low_ticks} to {row.high_ticks} ticks, {row.quote} base units of the quote token in all"
    )


def _lock_in_words(row: CollateralLock, signed: SignedState) -> str:
    locked = _amount(row.locked, row.token, row.chain_id, signed)
    part = f", {_amount(row.available, row.token, row.chain_id, signed)} available" if row.available else ""
    return f"  {locked} locked behind {format_address(row.owner)}{part}  (lock {format_hex(row.lock_id)})"


def _prices_in_words(data: AppData) -> list[str]:
    if not data.prices:
        return []
    return [
        "",
        "prices (px)",
        *(
            f"  10^18 base units of {format_address(p.asset)} are worth {p.price} base units of"
            f" {format_address(p.quote)} at {p.time_ms} ms"
            for p in data.prices
        ),
    ]


def _outcome_in_words(signed: SignedState) -> list[str]:
    if signed.exits is None:
        raw = signed.state.variable.outcome
        return [f"outcome: {len(raw)} bytes, not in the exit format", f"  {format_hex(raw)}"]
    follows = {
        True: ": what the balance updates imply",
        False: ": NOT what the balance updates imply, the state is invalid",
        None: "",
    }
    lines = [f"outcome{follows[signed.outcome_follows]}"]
    for row in signed.exits:
        for allocation in row.allocations:
            amount = _amount(allocation.amount, row.asset, row.chain_id, signed)
            destination = allocation.destination
            to = format_address(destination[12:]) if destination[:12] == bytes(12) else format_hex(destination)
            lines.append(f"  custody {format_address(row.asset_holder)} pays {amount} to {to}")
    return lines if len(lines) > 1 else [*lines, "  pays nothing"]


if __name__ == "__main__":
    main()
