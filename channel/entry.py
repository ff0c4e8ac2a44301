"""Entries: the signed envelopes that belong to a channel's history.

    {"to": address, "ch": channelId, "seq": n, "prev": entryHash, "ts": ms, "body": "<JSON-RPC text>", "sig": "0x…"}

digest = EIP-712 Entry(to, ch, seq, prev, ts, body) in the node domain; that digest is the entry's hash. `seq` is dense
from 1 per sender and channel, `prev` the hash of the sender's previous entry (zero before the first). `ts` informs; it
orders and expires nothing. DESIGN section 5.
"""

from dataclasses import dataclass, field
from typing import Any

from channel.errors import Code, PeerFault
from channel.signing import recover
from channel.typed import ENTRY, Domain
from channel.units import Address, ChannelId, Hash, format_address, format_hex, parse_address, parse_hash, parse_hex

# A record of an entry goes to XLN as text in a frame of 1 MiB: escaped twice, a byte of the body becomes at most 7. A
# longer body could keep a channel from ever being attested.
MAX_BODY_BYTES = 128 * 1024
_KEYS = {"to", "ch", "seq", "prev", "ts", "body", "sig"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One signed envelope. `sender` is who signed it; `entry_hash` the EIP-712 digest."""

    sender: Address
    to: Address
    channel_id: ChannelId
    seq: int
    prev: Hash
    ts_ms: int
    body: str
    signature: bytes
    entry_hash: Hash = field(compare=False)


def entry_digest(
    domain: Domain, *, to: Address, channel_id: ChannelId, seq: int, prev: Hash, ts_ms: int, body: str
) -> Hash:
    return domain.digest(ENTRY.hash(to, channel_id, seq, prev, ts_ms, body))


def entry_to_json(entry: Entry) -> dict[str, Any]:
    return {
        "to": format_address(entry.to),
        "ch": format_hex(entry.channel_id),
        "seq": entry.seq,
        "prev": format_hex(entry.prev),
        "ts": entry.ts_ms,
        "body": entry.body,
        "sig": format_hex(entry.signature),
    }


def entry_from_json(raw: object, domain: Domain, sender: Address, recipient: Address) -> Entry:
    """Parses and verifies that `sender` signed it for `recipient`.

    Raises PeerFault PARAMS, ENTRY_RECIPIENT, ENTRY_SIGNATURE (or SIGNATURE_HIGH_S, SIGNATURE_V).
    """
    if not isinstance(raw, dict) or set(raw) != _KEYS:
        raise PeerFault(Code.PARAMS, f"an entry is an object with exactly {', '.join(sorted(_KEYS))}")
    seq, ts_ms, body = raw["seq"], raw["ts"], raw["body"]
    if type(seq) is not int or not 0 < seq < 2**53 or type(ts_ms) is not int or not 0 <= ts_ms < 2**53:
        raise PeerFault(Code.PARAMS, "seq and ts must be whole numbers, seq from 1")
    if not isinstance(body, str) or len(body.encode()) > MAX_BODY_BYTES:
        raise PeerFault(Code.PARAMS, f"body must be text of at most {MAX_BODY_BYTES} bytes")
    to = parse_address(raw["to"], "to")
    if to != recipient:
        raise PeerFault(Code.ENTRY_RECIPIENT, f"the entry is for {format_address(to)}, not for this node")
    channel_id = ChannelId(parse_hash(raw["ch"], "ch"))
    prev = parse_hash(raw["prev"], "prev")
    signature = parse_hex(raw["sig"], what="sig")
    digest = entry_digest(domain, to=to, channel_id=channel_id, seq=seq, prev=prev, ts_ms=ts_ms, body=body)
    try:
        signer = recover(digest, signature)
    except PeerFault as fault:
        if fault.code is Code.SIGNATURE:
            raise PeerFault(Code.ENTRY_SIGNATURE, fault.message) from fault
        raise
    if signer != sender:
        raise PeerFault(
            Code.ENTRY_SIGNATURE, f"the entry is signed by {format_address(signer)}, not by {format_address(sender)}"
        )
    return Entry(
        sender=sender,
        to=to,
        channel_id=channel_id,
        seq=seq,
        prev=prev,
        ts_ms=ts_ms,
        body=body,
        signature=signature,
        entry_hash=digest,
    )
