"""Contract interfaces as data: calls encoded, answers and reverts decoded, from the ABI of the artifacts.

Purpose: between `Address` (20 raw bytes) inside and the ABI outside. Addresses go in and come out as raw bytes, bytes
as bytes, numbers as ints; a tuple of the ABI is a tuple here. eth_abi does the coding.

Invariants: no function of our contracts is overloaded, so a name is enough; the errors of all our contracts are one
table, because a call of one contract may bubble up the error of another.

Source: the Solidity ABI specification; `contracts.artifacts`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError, EncodingError

from channel.errors import Code, LocalRefusal
from channel.hashing import keccak
from channel.units import Address, format_address, format_hex
from contracts import artifacts

_PANICS = {
    0x01: "assert",
    0x11: "arithmetic overflow",
    0x12: "division by zero",
    0x21: "invalid enum value",
    0x32: "index out of bounds",
    0x41: "out of memory",
}


def selector(signature: str) -> bytes:
    return keccak(signature.encode())[:4]


def topic(signature: str) -> bytes:
    return keccak(signature.encode())


def canonical_type(parameter: Mapping[str, Any]) -> str:
    """The type of an ABI parameter with tuples written out: `(uint256,address[])[2]`."""
    kind: str = parameter["type"]
    if not kind.startswith("tuple"):
        return kind
    return "(" + ",".join(canonical_type(c) for c in parameter["components"]) + ")" + kind[len("tuple") :]


def decode_values(types: Sequence[str], data: bytes) -> tuple[Any, ...]:
    """ABI values with every address as 20 bytes. Raises DecodingError.

    Text that is not UTF-8 is taken with replacement characters: anybody can put such bytes into a contract (a broker's
    URL), and they must not stop who reads them.
    """
    try:
        values = decode(["bytes" if kind == "string" else kind for kind in types], data)
    except OverflowError as error:
        raise DecodingError(str(error)) from error
    return tuple(_ours(kind, value) for kind, value in zip(types, values, strict=True))


def _ours(kind: str, value: Any) -> Any:
    if kind == "address":
        return Address(bytes.fromhex(value[2:]))
    if kind.startswith("address["):
        return tuple(Address(bytes.fromhex(item[2:])) for item in value)
    if kind == "string":
        return value.decode("utf-8", "replace")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    selector: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a contract, or a creation when `to` is None. `value_wei` goes with it; `gas` None means estimate it."""

    label: str
    to: Address | None
    data: bytes
    outputs: tuple[str, ...] = ()
    value_wei: int = 0
    gas: int | None = None

    def decode(self, raw: bytes) -> tuple[Any, ...]:
        """Raises LocalRefusal CHAIN when the answer is not what the ABI promises: there is no such contract there."""
        try:
            return decode_values(self.outputs, raw)
        except DecodingError as error:
            where = "nowhere" if self.to is None else format_address(self.to)
            raise LocalRefusal(
                Code.CHAIN,
                f"{self.label} at {where} answered {len(raw)} bytes that do not decode; is it deployed there?",
            ) from error


class Interface:
    """The functions of one contract, by name."""

    __slots__ = ("_bytecode", "_constructor", "_functions", "name")

    def __init__(self, name: str, abi: Sequence[Mapping[str, Any]], bytecode: bytes) -> None:
        self.name = name
        self._bytecode = bytecode
        self._constructor: tuple[str, ...] = ()
        self._functions: dict[str, Function] = {}
        for item in abi:
            inputs = tuple(canonical_type(p) for p in item.get("inputs", ()))
            if item["type"] == "constructor":
                self._constructor = inputs
            elif item["type"] == "function":
                function = Function(
                    name=item["name"],
                    inputs=inputs,
                    outputs=tuple(canonical_type(p) for p in item.get("outputs", ())),
                    selector=selector(f"{item['name']}({','.join(inputs)})"),
                )
                assert function.name not in self._functions, f"{name}.{function.name} is overloaded"
                self._functions[function.name] = function

    def call(self, to: Address, name: str, *values: object, value_wei: int = 0, gas: int | None = None) -> Call:
        """Raises LocalRefusal PARAMS when a value does not fit its type."""
        function = self._functions[name]
        return Call(
            label=f"{self.name}.{name}",
            to=to,
            data=function.selector + _encode(f"{self.name}.{name}", function.inputs, values),
            outputs=function.outputs,
            value_wei=value_wei,
            gas=gas,
        )

    def creation(self, *values: object) -> Call:
        label = f"new {self.name}"
        return Call(label=label, to=None, data=self._bytecode + _encode(label, self._constructor, values))


def _encode(label: str, types: tuple[str, ...], values: tuple[object, ...]) -> bytes:
    try:
        return encode(types, values)
    except (EncodingError, ValueError, TypeError) as error:
        raise LocalRefusal(Code.PARAMS, f"{label}: {error}") from error


@cache
def interface(name: str) -> Interface:
    artifact = artifacts.load(name)
    return Interface(name, artifact.abi, artifact.bytecode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revert:
    """Why a call failed. `name` is the custom error's, or Error, Panic, or empty when the data says nothing."""

    name: str
    arguments: tuple[Any, ...]
    data: bytes

    def __str__(self) -> str:
        match self.name:
            case "":
                return "no reason given" if not self.data else f"unknown error {format_hex(self.data[:4])}"
            case "Error":
                return str(self.arguments[0])
            case "Panic":
                return f"panic: {_PANICS.get(self.arguments[0], hex(self.arguments[0]))}"
        return f"{self.name}({', '.join(_show(a) for a in self.arguments)})"


def _show(value: object) -> str:
    if isinstance(value, bytes):
        return format_address(value) if len(value) == 20 else format_hex(value)
    return str(value)


@cache
def _errors() -> dict[bytes, tuple[str, tuple[str, ...]]]:
    table: dict[bytes, tuple[str, tuple[str, ...]]] = {
        selector("Error(string)"): ("Error", ("string",)),
        selector("Panic(uint256)"): ("Panic", ("uint256",)),
    }
    for artifact_name in artifacts.CONTRACT_NAMES:
        for item in artifacts.load(artifact_name).abi:
            if item["type"] == "error":
                inputs = tuple(canonical_type(p) for p in item["inputs"])
                table[selector(f"{item['name']}({','.join(inputs)})")] = (item["name"], inputs)
    return table


def decode_revert(data: bytes) -> Revert:
    """Never raises: data that says nothing gives a revert without a name."""
    name, types = _errors().get(data[:4], ("", ()))
    try:
        return Revert(name=name, arguments=decode_values(types, data[4:]) if name else (), data=data)
    except DecodingError:
        return Revert(name="", arguments=(), data=data)
