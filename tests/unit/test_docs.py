"""Documents tell the truth: error codes, commands and targets that they name exist."""

import re
from pathlib import Path

from channel.errors import Code

ROOT = Path(__file__).parents[2]


def test_every_error_code_is_documented_in_the_order_of_precedence() -> None:
    rows = re.findall(r"^\| (-\d+) \| `([a-z_.0-9]+)` \|$", (ROOT / "docs/protocol.md").read_text(), re.M)
    assert [(int(number), label) for number, label in rows] == [(c.number, c.label) for c in Code]


def test_codes_are_unique() -> None:
    assert len({c.number for c in Code}) == len({c.label for c in Code}) == len(list(Code))


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"make ([a-z]+)", (ROOT / "README.md").read_text())) - {"and"}
    assert named
    assert named <= targets


def test_links_between_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "contracts/SECURITY.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
