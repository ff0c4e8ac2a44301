"""Structured logs under one root name, "xln": JSON lines, or text for people.

Invariants: no private key, no password, no full signature in a log, whatever a caller passes: fields with such names
are blanked, hex as long as a signature is cut, and keys that this process has loaded are recognised by their hash (a
key looks like any other 32 bytes) and blanked in fields, messages and tracebacks. Files are bounded: they rotate.
House rule 9.

    log = logs.get("broker.peer").bind(channel=channel_id)
    log.info("countersigned", turn=7, entries=12)
"""

import json
import logging
import logging.handlers
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Final, Literal, Self

import orjson

from channel.errors import Code, LocalRefusal, PeerFault
from channel.hashing import keccak

ROOT: Final = "xln"
LEVELS: Final = ("debug", "info", "warning", "error")
FILE_BYTES_MAX: Final = 32 * 1024 * 1024
FILES_KEPT: Final = 3
TEXT_CHARS_MAX: Final = 16 * 1024

Format = Literal["json", "text"]

_BLANK = "[redacted]"
_SECRET_NAME_RE = re.compile(
    r"secret|password|passphrase|private|mnemonic|token_value|bearer|authorization|^key$", re.I
)
_HEX_RUN_RE = re.compile(r"(?:0x)?([0-9a-fA-F]{64,})")
_SIGNATURE_HEX_DIGITS = 128  # r and s
_protected: set[bytes] = set()
_FIELDS = "xln_fields"
_handler: logging.Handler | None = None


def protect(secret: bytes) -> None:
    """Blanks this 32-byte key, written as hex, in everything logged from now on. Only its hash is kept."""
    _protected.add(keccak(secret))


def redact(text: str) -> str:
    """`text` without loaded keys, and with hex as long as a signature cut to its first bytes."""

    def cut(match: re.Match[str]) -> str:
        digits = match.group(1)
        if len(digits) == 64:
            return _BLANK if keccak(bytes.fromhex(digits)) in _protected else match.group(0)
        for start in range(0, len(digits) - 63, 2) if _protected and len(digits) < 8_192 else ():
            if keccak(bytes.fromhex(digits[start : start + 64])) in _protected:
                return _BLANK
        if len(digits) >= _SIGNATURE_HEX_DIGITS:
            return f"0x{digits[:8]}…({len(digits) // 2} bytes)"
        return match.group(0)

    text = _HEX_RUN_RE.sub(cut, text)
    return text if len(text) <= TEXT_CHARS_MAX else text[:TEXT_CHARS_MAX] + "…"


def _plain(name: str, value: object) -> object:
    """A field as JSON. Bytes become 0x hex; names that speak of secrets are blanked."""
    if _SECRET_NAME_RE.search(name):
        return _BLANK
    match value:
        case None | bool():
            return value
        case int():
            return value if abs(value) < 2**53 else str(value)
        case bytes() | bytearray() | memoryview():
            return redact("0x" + bytes(value).hex())
        case dict():
            return {redact(str(key)): _plain(str(key), item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain("", item) for item in value]
        case _:
            return redact(str(value))


class Log:
    """A logger with fields. Event names are short and fixed; what varies goes into fields."""

    __slots__ = ("_fields", "_logger")

    def __init__(self, logger: logging.Logger, fields: dict[str, object]) -> None:
        self._logger = logger
        self._fields = fields

    def bind(self, **fields: object) -> Self:
        """A logger that adds these fields to every line."""
        return type(self)(self._logger, {**self._fields, **fields})

    def debug(self, event: str, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, cause: BaseException | None = None, **fields: object) -> None:
        """An error with the traceback of `cause`, or else of the exception being handled."""
        self._write(logging.ERROR, event, fields, trace=cause or True)

    def _write(self, level: int, event: str, fields: dict[str, object], trace: bool | BaseException = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", event, exc_info=trace, extra={_FIELDS: {**self._fields, **fields}})


def get(name: str) -> Log:
    """The logger `xln.<name>`. Fields that recur have fixed names: channel (bytes), turn, peer, user, order."""
    return Log(logging.getLogger(f"{ROOT}.{name}"), {})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: t (Unix ms), level, log, event, then the fields, then trace."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "t": int(record.created * 1000),
            "level": record.levelname.lower(),
            "log": record.name,
            "event": redact(record.getMessage()),
        }
        for name, value in getattr(record, _FIELDS, {}).items():
            line[f"{name}_" if name in line else name] = _plain(name, value)
        if record.exc_info:
            line["trace"] = _trace(record)
        return orjson.dumps(line).decode() if _is_utf8(line) else json.dumps(line)


class TextFormatter(logging.Formatter):
    """Time, level, name, event, then field=value."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, _FIELDS, {})
        tail = "".join(f" {name}={_short(_plain(name, value))}" for name, value in fields.items())
        time = self.formatTime(record, "%H:%M:%S")
        name = record.name.removeprefix(f"{ROOT}.")
        text = f"{time}.{int(record.msecs):03d} {record.levelname:<7} {name}: {redact(record.getMessage())}{tail}"
        return f"{text}\n{_trace(record)}" if record.exc_info else text


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 66 and text.startswith("0x"):
        return text[:10] + "…"
    return json.dumps(text, ensure_ascii=False) if any(c.isspace() for c in text) else text


def _trace(record: logging.LogRecord) -> str:
    assert record.exc_info is not None
    return redact("".join(traceback.format_exception(*record.exc_info)).rstrip())


def _is_utf8(line: dict[str, object]) -> bool:
    """Lone surrogates, from undecodable file names say, are what orjson refuses; json escapes them."""
    try:
        orjson.dumps(line)
    except TypeError:
        return False
    return True


class _PrivateRotatingFile(logging.handlers.RotatingFileHandler):
    def _open(self):  # type: ignore[no-untyped-def]
        os.close(os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        return super()._open()


def configure(level: str = "info", *, path: Path | None = None, form: Format | None = None) -> None:
    """Sends the logs of this process to a file (rotating, mode 0600), or to stderr when `path` is None.

    `form`: default json for a file, text for stderr. Warnings of other libraries go to the same place. May be called
    again. Raises PeerFault CONFIG for an unknown level, LocalRefusal CONFIG when the file cannot be opened.
    """
    if level not in LEVELS:
        raise PeerFault(Code.CONFIG, f"log level {level!r} is unknown; it must be one of {', '.join(LEVELS)}")
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handler = _PrivateRotatingFile(
                path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise LocalRefusal(Code.CONFIG, f"cannot write the log {path}: {error.strerror}") from error
    form = form or ("text" if path is None else "json")
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    global _handler
    root = logging.getLogger()
    if _handler is not None:
        root.removeHandler(_handler)
        _handler.close()
    _handler = handler
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())
