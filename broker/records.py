"""What a broker keeps in its database, and how an action and its effects become rows of one transaction.

    actions   everything that was executed, in order: the core is a function of this table
    journal   each channel's records (entries, co-signed states, locks, evidence), in order, as they are exported
    signed    one row per turn that this node has signed: UNIQUE keeps it from ever signing two states for one turn
    answers   the answer to each call of a peer's entry, for a repeated entry
    evidence  what a peer signed and must not have: entries with a used sequence number, forks
    channels  how this node opens a channel: peer, and the lock that it gives
    seen      deposits on chain that are not confirmed yet
    meta      the watcher's cursor

DESIGN section 4, rule 4.
"""

from collections.abc import Iterable, Sequence

from broker.actions import Action, encode
from broker.effects import Answer, Effect, Journalled, Signed
from channel.entry import Entry
from channel.errors import PeerFault
from channel.journal import record_to_json
from channel.state import FixedPart
from channel.strictjson import dumps
from channel.units import ChannelId
from node.store import Statement
from rpc.jsonrpc import error_response, response

MIGRATIONS = (
    """
    CREATE TABLE actions (n INTEGER PRIMARY KEY, ts_ms INTEGER NOT NULL, action TEXT NOT NULL);
    CREATE TABLE journal (
      channel BLOB NOT NULL, n INTEGER NOT NULL, record TEXT NOT NULL,
      sender INTEGER, seq INTEGER, hash BLOB,
      PRIMARY KEY (channel, n)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX journal_entries ON journal (channel, sender, seq) WHERE seq IS NOT NULL;
    CREATE TABLE signed (
      channel BLOB NOT NULL, turn INTEGER NOT NULL, signer BLOB NOT NULL, state_hash BLOB NOT NULL,
      is_final INTEGER NOT NULL, PRIMARY KEY (channel, turn, signer)
    ) WITHOUT ROWID;
    CREATE TABLE answers (
      channel BLOB NOT NULL, seq INTEGER NOT NULL, n INTEGER NOT NULL, answer BLOB NOT NULL,
      PRIMARY KEY (channel, seq, n)
    ) WITHOUT ROWID;
    CREATE TABLE evidence (
      id INTEGER PRIMARY KEY, channel BLOB NOT NULL, ts_ms INTEGER NOT NULL, code TEXT NOT NULL, bytes TEXT NOT NULL
    );
    CREATE TABLE channels (
      channel BLOB PRIMARY KEY, peer BLOB NOT NULL, lock_token BLOB NOT NULL, lock_amount TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE seen (
      tx BLOB NOT NULL, log_index INTEGER NOT NULL, user BLOB NOT NULL, token BLOB NOT NULL, amount TEXT NOT NULL,
      PRIMARY KEY (tx, log_index)
    ) WITHOUT ROWID;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
    # Batches are committed for themselves: after one that failed, none that was executed later may get in.
    """
    CREATE TRIGGER actions_dense BEFORE INSERT ON actions
    WHEN NEW.n <> (SELECT coalesce(max(n), 0) + 1 FROM actions)
    BEGIN SELECT RAISE(ABORT, 'an action before this one is missing'); END;
    """,
)

INSERT_ACTION = "INSERT INTO actions (n, ts_ms, action) VALUES (?, ?, ?)"
INSERT_RECORD = "INSERT INTO journal (channel, n, record, sender, seq, hash) VALUES (?, ?, ?, ?, ?, ?)"
INSERT_SIGNED = "INSERT INTO signed (channel, turn, signer, state_hash, is_final) VALUES (?, ?, ?, ?, ?)"
INSERT_ANSWER = "INSERT INTO answers (channel, seq, n, answer) VALUES (?, ?, ?, ?)"
INSERT_EVIDENCE = "INSERT INTO evidence (channel, ts_ms, code, bytes) VALUES (?, ?, ?, ?)"
INSERT_CHANNEL = "INSERT INTO channels (channel, peer, lock_token, lock_amount) VALUES (?, ?, ?, ?)"
INSERT_SEEN = "INSERT INTO seen (tx, log_index, user, token, amount) VALUES (?, ?, ?, ?, ?)"
DELETE_SEEN = "DELETE FROM seen WHERE tx = ? AND log_index = ?"
SET_META = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


class Rows:
    """Turns actions and effects into statements; keeps the number of actions and of each channel's records."""

    def __init__(self, signer: bytes) -> None:
        self._signer = signer
        self.actions = 0
        self.journal_length: dict[ChannelId, int] = {}
        self.fixed: dict[ChannelId, FixedPart] = {}

    def statements(self, action: Action, now_ms: int, effects: Sequence[Effect]) -> list[Statement]:
        self.actions += 1
        rows = [Statement(INSERT_ACTION, (self.actions, now_ms, encode(action)))]
        answered = 0
        for effect in effects:
            match effect:
                case Journalled():
                    rows.append(self._record(effect))
                case Signed():
                    final = int(effect.is_final)
                    row = (effect.channel_id, effect.turn, self._signer, effect.state_hash, final)
                    rows.append(Statement(INSERT_SIGNED, row))
                case Answer() if effect.call_id is not None:
                    answer = (effect.channel_id, effect.seq, answered, answer_bytes(effect))
                    rows.append(Statement(INSERT_ANSWER, answer))
                    answered += 1
                case _:
                    pass
        return rows

    def count(self, effects: Iterable[Effect]) -> None:
        """Advances all numbers as `statements` does for one action, for a replay that writes nothing."""
        self.actions += 1
        for effect in effects:
            if isinstance(effect, Journalled):
                self.journal_length[effect.channel_id] = self.journal_length.get(effect.channel_id, 0) + 1

    def record_text(self, effect: Journalled) -> str:
        return dumps(record_to_json(effect.record, self.fixed[effect.channel_id]))

    def _record(self, effect: Journalled) -> Statement:
        n = self.journal_length.get(effect.channel_id, 0)
        self.journal_length[effect.channel_id] = n + 1
        sender, seq, digest = None, None, None
        if isinstance(effect.record, Entry):
            sender = self.fixed[effect.channel_id].index_of(effect.record.sender)
            seq, digest = effect.record.seq, effect.record.entry_hash
        return Statement(INSERT_RECORD, (effect.channel_id, n, self.record_text(effect), sender, seq, digest))


def answer_bytes(answer: Answer) -> bytes:
    """The JSON-RPC response to one call of an entry."""
    assert answer.call_id is not None
    if answer.error is not None:
        return error_response(answer.call_id, PeerFault(*answer.error))
    return response(answer.call_id, answer.result)
