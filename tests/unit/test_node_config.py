"""Configuration: strict types, the environment over the file, nothing unread, messages that say what is right."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import Code, LocalRefusal, PeerFault
from node.config import Config, Field, Section, Table, template, write_template

ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"


def config(tmp_path: Path, text: str, **env: str) -> Config:
    path = tmp_path / "node.toml"
    path.write_text(text)
    return Config.load(path, env=env)


def test_types_defaults_and_environment(tmp_path: Path) -> None:
    text = f"""
    [api]
    listen = "127.0.0.1:8100"
    orders_max = 5
    fast = true
    origins = ["a", "b"]
    key = "keys/node.json"
    owner = "{ADDRESS}"
    deposit = "0.5"
    url = "http://[::1]:1/x"
    """
    read = config(tmp_path, text, XLN_API_ORDERS_MAX="7", XLN_API_ORIGINS="c, d", XLN_API_FAST="0", OTHER="x")
    api = read.table("api")
    assert api.host_port("listen") == ("127.0.0.1", 8100)
    assert api.integer("orders_max", 1, low=1, high=10) == 7
    assert api.boolean("fast") is False
    assert api.texts("origins") == ("c", "d")
    assert api.path("key") == tmp_path / "keys/node.json"
    assert api.optional_path("none") is None
    assert api.address("owner").hex() == ADDRESS[2:].lower()
    assert api.amount("deposit", decimals=6) == 500_000
    assert api.url("url") == "http://[::1]:1/x"
    assert api.integer("missing", 3) == 3
    assert read.table("absent").text("level", "info", choices=("info", "debug")) == "info"
    read.finish()


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("[a]\nlimt = 1", "unknown key 'limt' in section [a]; did you mean 'limit'?"),
        ("[aa]\nlimit = 1", "unknown section 'aa'"),
        ("limit = 1", "unknown key 'limit'"),
        ("[a.b]\nx = 1", "unknown key 'b' in section [a]"),
    ],
)
def test_what_nobody_reads_is_refused(tmp_path: Path, text: str, right: str) -> None:
    read = config(tmp_path, text)
    read.table("a").integer("limit", 1)
    with pytest.raises(PeerFault) as caught:
        read.finish()
    assert caught.value.code is Code.CONFIG
    assert right in caught.value.message


def test_a_typo_in_the_environment_is_refused(tmp_path: Path) -> None:
    read = config(tmp_path, "", XLN_A_LIMT="1", XLN_FLOW="x")
    read.table("a").integer("limit", 1)
    with pytest.raises(PeerFault, match=r"XLN_A_LIMT.*did you mean 'XLN_A_LIMIT'"):
        read.finish()


def test_sections_below_sections_and_lists_of_sections(tmp_path: Path) -> None:
    read = config(tmp_path, '[a]\nx = 1\n[a.b]\ny = 2\n[[peer]]\nname = "p"\n[[peer]]\nname = "q"', XLN_A_B_Y="3")
    assert read.table("a").integer("x") == 1
    assert read.table("a.b").integer("y") == 3
    assert [peer.text("name") for peer in read.tables("peer")] == ["p", "q"]
    read.finish()
    with pytest.raises(PeerFault, match="0 to 1 sections"):
        read.tables("peer", high=1)


def test_an_unread_key_in_a_list_is_refused(tmp_path: Path) -> None:
    read = config(tmp_path, '[[peer]]\nname = "p"\nnmae = "q"')
    read.tables("peer")[0].text("name")
    with pytest.raises(PeerFault, match=r"'nmae' in section \[peer.1\]"):
        read.finish()


@pytest.mark.parametrize(
    ("value", "get", "right"),
    [
        ('"5"', lambda t: t.integer("k"), "an integer from 0 to"),
        ("true", lambda t: t.integer("k"), "an integer"),
        ("1.5", lambda t: t.integer("k"), "an integer"),
        ("-1", lambda t: t.integer("k"), "an integer from 0"),
        ("11", lambda t: t.integer("k", high=10), "from 0 to 10, not 11"),
        ("1", lambda t: t.boolean("k"), "true or false"),
        ('"true"', lambda t: t.boolean("k"), "true or false"),
        ("5", lambda t: t.text("k"), "a text in quotes"),
        ('"c"', lambda t: t.text("k", choices=("a", "b")), "one of a, b"),
        ('"c d"', lambda t: t.text("k", pattern="[a-z]+", right="small letters"), "small letters"),
        ('"localhost"', lambda t: t.host_port("k"), "host and port"),
        ('"h:99999"', lambda t: t.host_port("k"), "host and port"),
        ('"ftp://x"', lambda t: t.url("k"), "http:// or https://"),
        ('"http://x:port"', lambda t: t.url("k"), "must be"),
        ('"0x12"', lambda t: t.address("k"), "40 hex digits"),
        ('"0.1234567"', lambda t: t.amount("k", decimals=6), "6 are allowed"),
        ("0.5", lambda t: t.amount("k", decimals=6), "decimal number in quotes"),
        ('"a"', lambda t: t.texts("k"), "a list"),
        ("[1]", lambda t: t.texts("k"), "a list"),
        ('""', lambda t: t.path("k"), "a path"),
    ],
)
def test_wrong_values(tmp_path: Path, value: str, get: Callable[[Table], object], right: str) -> None:
    table = config(tmp_path, f"[s]\nk = {value}").table("s")
    with pytest.raises(PeerFault) as caught:
        get(table)
    assert caught.value.code is Code.CONFIG
    assert right in caught.value.message
    assert "'k' in section [s]" in caught.value.message


def test_a_required_key_names_its_variable(tmp_path: Path) -> None:
    with pytest.raises(PeerFault, match="XLN_S_NEEDED"):
        config(tmp_path, "").table("s").text("needed")


@pytest.mark.parametrize("raw", [b"[a\n", b"a = \xff", b"a = 1\na = 2"])
def test_what_is_no_toml_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(raw)
    with pytest.raises(PeerFault) as caught:
        Config.load(path)
    assert caught.value.code is Code.CONFIG


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(PeerFault, match="no configuration file at"):
        Config.load(tmp_path / "none.toml")


SECTIONS = [
    Section(
        name="api",
        comment="Where traders come in.",
        fields=[
            Field(key="listen", comment="Host and port.", value="127.0.0.1:8100"),
            Field(key="orders_max", comment="Open orders of one user.", value=100),
            Field(key="origins", comment="Pages that may ask.", example=["https://example.org"]),
        ],
    ),
    Section(name="peer", comment="A broker.", fields=[Field(key="name", comment="Its name.", value="b")], array=True),
    Section(name="later", comment="Not yet.", fields=[Field(key="x", comment="It.", value=1)], example=True),
]


def test_a_template_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    write_template(path, "A node", SECTIONS)
    assert "# Open orders of one user.\norders_max = 100" in path.read_text()
    assert '# origins = ["https://example.org"]' in path.read_text()
    read = Config.load(path, env={})
    assert read.table("api").host_port("listen") == ("127.0.0.1", 8100)
    assert read.table("api").integer("orders_max") == 100
    assert read.tables("peer")[0].text("name") == "b"
    read.finish()
    with pytest.raises(LocalRefusal, match="not overwritten"):
        write_template(path, "A node", SECTIONS)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=50))
def test_any_text_survives_the_template(text: str) -> None:
    import tomllib

    section = Section(name="s", comment="c", fields=[Field(key="k", comment="c", value=text)])
    assert tomllib.loads(template("t", [section])) == {"s": {"k": text}}
