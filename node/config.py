"""Configuration: a TOML file and the environment, read into strict types by whoever owns the section.

    config = Config.load(path)
    api = config.table("api")
    settings = ApiConfig(listen=api.host_port("listen", "127.0.0.1:8100"), orders_max=api.integer("orders_max", 10))
    config.finish()          # refuses what nobody asked for

Invariants: a key that nobody reads is an error, with the nearest right one; so is an `XLN_<SECTION>_<KEY>` of the
environment that fits a section but no key. The environment beats the file. Every message names file, section, key and
what would be right. No floats. Errors are PeerFault CONFIG throughout (writing: LocalRefusal CONFIG). House rule 4.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, TypeVar
from urllib.parse import urlsplit

from channel.errors import Code, PeerFault, XlnError
from channel.units import Address, parse_address, parse_amount, parse_uint
from node.files import write_private

CONFIG_BYTES_MAX: Final = 1024 * 1024
TEXT_CHARS_MAX: Final = 4_096
LIST_ITEMS_MAX: Final = 1_024

T = TypeVar("T")


class _Required:
    """Marks a key without a default."""


REQUIRED: Final = _Required()


def _fail(message: str, **data: object) -> NoReturn:
    raise PeerFault(Code.CONFIG, message, **data)


class Config:
    """A configuration file with the environment over it. Read by sections; `finish` refuses what was not read."""

    def __init__(self, values: Mapping[str, object], *, path: Path, env: Mapping[str, str]) -> None:
        """`path` is for messages, and relative paths in the file start from its folder."""
        self.path = path
        self._values = values
        self._env = env
        self._tables: dict[str, Table] = {}
        self._arrays: dict[str, list[Table]] = {}

    @classmethod
    def load(cls, path: Path, *, env: Mapping[str, str] | None = None) -> "Config":
        """Reads a file. `env` defaults to the environment of the process."""
        try:
            with path.open("rb") as file:
                raw = file.read(CONFIG_BYTES_MAX + 1)
        except FileNotFoundError:
            _fail(f"there is no configuration file at {path}")
        except OSError as error:
            _fail(f"cannot read {path}: {error.strerror}")
        if len(raw) > CONFIG_BYTES_MAX:
            _fail(f"{path} is larger than {CONFIG_BYTES_MAX} bytes")
        try:
            values = tomllib.loads(raw.decode())
        except UnicodeDecodeError as error:
            _fail(f"{path} is not UTF-8 text (byte {error.start})")
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            _fail(f"{path} is not TOML: {error}")
        return cls(values, path=path, env=os.environ if env is None else env)

    def table(self, name: str) -> "Table":
        """The section `[name]`; dots go deeper. One that is not in the file is empty, so that defaults apply."""
        if name not in self._tables:
            value: object = self._values
            for part in name.split("."):
                value = value.get(part, {}) if isinstance(value, dict) else value
            if not isinstance(value, dict):
                _fail(f"{self.path}: {name} must be a section, [{name}]")
            prefix = f"XLN_{re.sub('[.-]', '_', name).upper()}_"
            self._tables[name] = Table(self, name, value, env=self._env, env_prefix=prefix)
        return self._tables[name]

    def tables(self, name: str, *, low: int = 0, high: int = LIST_ITEMS_MAX) -> list["Table"]:
        """The sections `[[name]]`, in order. The environment does not reach them."""
        if name not in self._arrays:
            items = self._values.get(name, [])
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                _fail(f"{self.path}: {name} must be a list of sections, [[{name}]]")
            self._arrays[name] = [Table(self, f"{name}.{i + 1}", item) for i, item in enumerate(items)]
        count = len(self._arrays[name])
        if not low <= count <= high:
            _fail(f"{self.path}: there must be {low} to {high} sections [[{name}]], not {count}")
        return self._arrays[name]

    def finish(self) -> None:
        """Refuses sections and keys that nobody read."""
        heads = {name.partition(".")[0] for name in self._tables} | set(self._arrays)
        for name, value in self._values.items():
            if name not in heads:
                kind = "section" if isinstance(value, (dict, list)) else "key"
                _fail(f"{self.path}: unknown {kind} {name!r}{_nearest(name, heads)}")
        for table in [*self._tables.values(), *(t for array in self._arrays.values() for t in array)]:
            table.finish(self._tables)
        asked = {name for table in self._tables.values() for name in table.env_asked}
        for name in sorted(self._env):
            for table in self._tables.values():
                if name.startswith(table.env_prefix) and name not in asked:
                    _fail(
                        f"the environment has {name}, but section [{table.name}] has no such key{_nearest(name, asked)}"
                    )


@dataclass(slots=True, eq=False)
class Table:
    """One section. Every getter takes the default last; without one the key is required."""

    config: Config
    name: str
    values: Mapping[str, object]
    env: Mapping[str, str] = field(default_factory=dict)
    env_prefix: str = ""
    env_asked: set[str] = field(default_factory=set)
    _asked: set[str] = field(default_factory=set)

    # ---- getters

    def text(
        self,
        key: str,
        default: str | _Required = REQUIRED,
        *,
        choices: Sequence[str] = (),
        pattern: str | None = None,
        right: str = "",
    ) -> str:
        """A text. `choices`: all that are allowed. `pattern`: a regular expression for all of it; `right`: in words."""

        def parse(value: object) -> str:
            if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX:
                raise ValueError("a text in quotes")
            if choices and value not in choices:
                raise ValueError("one of " + ", ".join(choices))
            if pattern is not None and not re.fullmatch(pattern, value, re.ASCII):
                raise ValueError(right or f"a text like {pattern}")
            return value

        return self._get(key, default, parse)

    def integer(self, key: str, default: int | _Required = REQUIRED, *, low: int = 0, high: int = 2**63 - 1) -> int:
        """An integer from `low` to `high`, both included. Put the unit into the key: `timeout_ms`."""

        def parse(value: object) -> int:
            if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value, re.ASCII) and self._from_env(key):
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"an integer from {low} to {high}")
            return value

        return self._get(key, default, parse)

    def boolean(self, key: str, default: bool | _Required = REQUIRED) -> bool:
        def parse(value: object) -> bool:
            if self._from_env(key) and value in ("true", "false", "1", "0"):
                return value in ("true", "1")
            if not isinstance(value, bool):
                raise ValueError("true or false")
            return value

        return self._get(key, default, parse)

    def path(self, key: str, default: Path | _Required = REQUIRED) -> Path:
        """A path; relative ones start from the folder of the configuration file."""

        def parse(value: object) -> Path:
            if not isinstance(value, str) or not value or "\0" in value:
                raise ValueError("a path in quotes")
            return self.config.path.parent / Path(value).expanduser()

        return self._get(key, default, parse)

    def optional_path(self, key: str) -> Path | None:
        """A path, or None when the key is not set."""
        if self.has(key):
            return self.path(key)
        self._ask(key)
        return None

    def address(self, key: str, default: Address | _Required = REQUIRED) -> Address:
        """20 bytes from EIP-55 text."""
        return self._get(key, default, lambda value: parse_address(value, "it"))

    def amount(self, key: str, default: int | _Required = REQUIRED, *, decimals: int) -> int:
        """Base units from a decimal number in quotes."""
        return self._get(key, default, lambda value: parse_amount(value, decimals, "it"))

    def uint(self, key: str, default: int | _Required = REQUIRED, *, bits: int = 256) -> int:
        """An integer too large for TOML, as digits in quotes."""
        return self._get(key, default, lambda value: parse_uint(value, bits=bits, what="it"))

    def url(self, key: str, default: str | _Required = REQUIRED, *, schemes: Sequence[str] = ("http", "https")) -> str:
        def parse(value: object) -> str:
            right = f"a URL that starts with {' or '.join(f'{scheme}://' for scheme in schemes)}"
            if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX or any(c.isspace() for c in value):
                raise ValueError(right)
            parts = urlsplit(value)
            if parts.scheme not in schemes or not parts.hostname:
                raise ValueError(right)
            _ = parts.port  # raises ValueError for a port that is none
            return value

        return self._get(key, default, parse)

    def host_port(self, key: str, default: str | _Required = REQUIRED) -> tuple[str, int]:
        """Where to listen: "127.0.0.1:8100", "[::1]:8100"; port 0 takes a free one."""

        def parse(value: object) -> tuple[str, int]:
            match = (
                re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})", value)
                if isinstance(value, str)
                else None
            )
            if match is None or int(match.group(2)) > 65_535:
                raise ValueError('host and port, such as "127.0.0.1:8100"')
            return match.group(1).strip("[]"), int(match.group(2))

        return self._get(key, default if isinstance(default, _Required) else parse(default), parse)

    def texts(
        self, key: str, default: tuple[str, ...] | _Required = REQUIRED, *, low: int = 0, high: int = LIST_ITEMS_MAX
    ) -> tuple[str, ...]:
        """A list of texts; in the environment, separated by commas."""

        def parse(value: object) -> tuple[str, ...]:
            if isinstance(value, str) and self._from_env(key):
                value = [item.strip() for item in value.split(",") if item.strip()]
            if (
                not isinstance(value, list)
                or not low <= len(value) <= high
                or not all(isinstance(item, str) and len(item) <= TEXT_CHARS_MAX for item in value)
            ):
                raise ValueError(f"a list of {low} to {high} texts")
            return tuple(value)

        return self._get(key, default, parse)

    def get(self, key: str, parse: Callable[[object], T], default: T | _Required = REQUIRED) -> T:
        """Anything else. `parse` raises ValueError with what would be right, or an XlnError."""
        return self._get(key, default, parse)

    def has(self, key: str) -> bool:
        """Whether the key is set, in the file or in the environment."""
        return self._from_env(key) or key in self.values

    # ---- inside

    def _env_name(self, key: str) -> str:
        return self.env_prefix + key.replace("-", "_").upper()

    def _from_env(self, key: str) -> bool:
        return bool(self.env_prefix) and self._env_name(key) in self.env

    def _ask(self, key: str) -> None:
        self._asked.add(key)
        if self.env_prefix:
            self.env_asked.add(self._env_name(key))

    def _get(self, key: str, default: T | _Required, parse: Callable[[object], T]) -> T:
        self._ask(key)
        from_env = self._from_env(key)
        if not from_env and key not in self.values:
            if isinstance(default, _Required):
                hint = f" (or {self._env_name(key)} in the environment)" if self.env_prefix else ""
                _fail(f"{self.config.path}: section [{self.name}] needs a key {key!r}{hint}")
            return default
        value: object = self.env[self._env_name(key)] if from_env else self.values[key]
        where = self._env_name(key) if from_env else f"{self.config.path}: {key!r} in section [{self.name}]"
        try:
            return parse(value)
        except ValueError as error:
            shown = json.dumps(value, default=str)
            _fail(f"{where} must be {error}, not {shown if len(shown) <= 80 else shown[:80] + '…'}")
        except XlnError as error:
            _fail(f"{where}: {error.message}", cause=error.code.label)

    def finish(self, tables: Mapping[str, "Table"]) -> None:
        """Refuses keys that nobody read. `tables`: the known sections, some of which may lie below this one."""
        for key in self.values:
            below = f"{self.name}.{key}"
            if key not in self._asked and not any(name == below or name.startswith(f"{below}.") for name in tables):
                _fail(f"{self.config.path}: unknown key {key!r} in section [{self.name}]{_nearest(key, self._asked)}")


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(sorted(known))}" if known else ""


# ---- writing a first file

TomlValue = str | int | bool | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A key of a template. `value` None leaves it out, with `example` in a comment."""

    key: str
    comment: str
    value: TomlValue | None = None
    example: TomlValue | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A section of a template; `array` makes it one of `[[name]]`; `example` writes all of it as a comment."""

    name: str
    comment: str
    fields: Sequence[Field]
    array: bool = False
    example: bool = False


def template(title: str, sections: Sequence[Section]) -> str:
    """A TOML text with a comment over every key, which `Config.load` reads back."""
    lines = [f"# {line}".rstrip() for line in title.splitlines()]
    lines.append(
        "# Every key of a [section] can be set in the environment as XLN_<SECTION>_<KEY>, which beats this file."
    )
    for section in sections:
        mark = "# " if section.example else ""
        lines += ["", *(f"# {line}" for line in section.comment.splitlines())]
        lines.append(mark + (f"[[{section.name}]]" if section.array else f"[{section.name}]"))
        for item in section.fields:
            lines += [f"# {line}" for line in item.comment.splitlines()]
            if item.value is not None:
                lines.append(f"{mark}{item.key} = {_toml(item.value)}")
            elif item.example is not None:
                lines.append(f"# {item.key} = {_toml(item.example)}")
    return "\n".join(lines) + "\n"


def write_template(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Writes a template to a new file, mode 0600. Raises LocalRefusal CONFIG when it exists."""
    write_private(path, template(title, sections).encode(), code=Code.CONFIG)


def _toml(value: TomlValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return "[" + ", ".join(_toml(item) for item in value) + "]"
