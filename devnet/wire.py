"""How JSON-RPC spells numbers, bytes and errors, for the embedded chain.

Source: execution-apis (quantities and data); the error codes are those of JSON-RPC 2.0 and of geth.
"""

import re

INVALID_PARAMS = -32602
SERVER_ERROR = -32000
REVERTED = 3  # what geth answers for a reverted call
_QUANTITY_RE = re.compile(r"0x[0-9a-fA-F]{1,64}", re.ASCII)


class RpcError(Exception):
    """A refusal with a JSON-RPC code; `data` is 0x text of revert data, when there is any."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


def invalid(message: str) -> RpcError:
    return RpcError(INVALID_PARAMS, message)


def to_hex(raw: bytes) -> str:
    return "0x" + raw.hex()


def quantity(value: int) -> str:
    return hex(value)


def parse_int(text: object) -> int:
    """A quantity; leading zeros are tolerated."""
    if isinstance(text, str) and _QUANTITY_RE.fullmatch(text):
        return int(text, 16)
    raise invalid(f"expected a 0x quantity, not {str(text)[:40]!r}")


def parse_bytes(text: object, size: int | None = None) -> bytes:
    """Bytes from 0x text; `size` in bytes, when fixed. Raises RpcError, as `parse_int` does."""
    if isinstance(text, str) and text.startswith("0x"):
        try:
            raw = bytes.fromhex(text[2:])
        except ValueError as error:
            raise invalid("expected 0x and an even number of hex digits") from error
        if size is None or len(raw) == size:
            return raw
    raise invalid(f"expected 0x and {'bytes' if size is None else f'{size} bytes'} in hex")
