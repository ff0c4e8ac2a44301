"""`xln-demo`: help with examples, arguments, and what it does with folders."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from channel.errors import Code, LocalRefusal
from devnet.cli import DEFAULT_EVENTS, MARKER, _Folder, main
from devnet.scenario import DEFAULT_EVENTS as SCENARIO_EVENTS


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, arguments, env={"XLN_FLOW": ""})
    return result.exit_code, result.output


def test_help_has_examples_that_parse() -> None:
    status, text = run("--help")
    assert status == 0
    assert "xln-demo run" in text
    status, text = run("run", "--help")
    assert status == 0
    examples = [line.split()[2:] for line in text.splitlines() if line.strip().startswith("xln-demo run")]
    assert len(examples) >= 4
    options = {
        option for command in main.commands.values() for parameter in command.params for option in parameter.opts
    }
    for words in examples:
        assert {word for word in words if word.startswith("--")} <= options, words


def test_one_default_everywhere() -> None:
    assert DEFAULT_EVENTS == SCENARIO_EVENTS


@pytest.mark.parametrize("events", ["0x10", "-1", "none", "", "10000001", "1.5"])
def test_events_that_are_no_number(events: str) -> None:
    status, text = run("run", "--events", events)
    assert status == 2
    assert "neither all nor a number" in text


def test_flow_that_is_not_there(tmp_path: Path) -> None:
    status, text = run("run", "--flow", str(tmp_path / "none.csv"))
    assert status == 2
    assert "does not exist" in text


def command(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    root = str(Path(__file__).parents[2])
    env = {name: value for name, value in os.environ.items() if name != "XLN_FLOW"}
    return subprocess.run(
        [sys.executable, "-m", "devnet.cli", *arguments],
        cwd=cwd, env={**env, "PYTHONPATH": root, "TMPDIR": str(cwd)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_a_failure_is_one_line_and_its_folder_is_kept(tmp_path: Path) -> None:
    done = command("run", "--events", "all", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: config.invalid: a generator has no end" in done.stderr
    assert "Traceback" not in done.stderr
    (kept,) = tmp_path.glob("xln-demo-*")
    assert str(kept) in done.stderr


def test_malformed_flow_is_refused_with_its_line(tmp_path: Path) -> None:
    flow = tmp_path / "flow.csv"
    flow.write_text("op,order_id,side,price,size\nadd,1,buy,1e5,1\n")
    done = command("run", "--flow", str(flow), "--dir", "here", cwd=tmp_path)
    assert done.returncode == 1
    assert "line 2" in done.stderr
    assert "Traceback" not in done.stderr
    logged = [json.loads(line) for line in (tmp_path / "here" / "demo.log").read_text().splitlines()]
    assert logged[-1]["event"] == "stopped"


def test_a_temporary_folder_is_removed_unless_it_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with _Folder(None) as place:
        kept = place.path
    with _Folder(None) as place:
        place.is_worth_keeping = False
        gone = place.path
    assert kept.exists()
    assert not gone.exists()


def test_the_folder_of_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    with _Folder(tmp_path / "demo") as place:
        (place.path / "a").mkdir()
        (place.path / "a" / "old").write_text("old")
        (place.path / "link").symlink_to(tmp_path, target_is_directory=True)
    with _Folder(tmp_path / "demo") as place:
        assert [item.name for item in place.path.iterdir()] == [MARKER]
    assert tmp_path.exists()


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(LocalRefusal, match="other things") as refusal, _Folder(tmp_path):
        pass
    assert refusal.value.code is Code.CONFIG
    assert (tmp_path / "precious").read_text() == "x"


def test_a_folder_in_which_another_demo_runs_is_left_alone(tmp_path: Path) -> None:
    with _Folder(tmp_path / "demo") as place:
        (place.path / "live").write_text("x")
    with (tmp_path / "demo" / MARKER).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(LocalRefusal, match="another demo"), _Folder(tmp_path / "demo"):
            pass
    assert (tmp_path / "demo" / "live").exists()
