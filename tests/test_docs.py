"""The pages: every command parses, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tools import module_tables
from traitmill.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "docs/decisions/*.md") for path in ROOT.glob(pattern)
)
_BLOCK = re.compile(r"^ *```(?:bash|sh|console)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


def commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """Yield each traitmill command of a page, and whether it is whole.

    In a shell block it is to be pasted; in a sentence it may leave out what the reader knows.
    """
    text = page.read_text()
    outside = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    pasted = [line for block in _BLOCK.findall(text) for line in _joined(block)]
    said = re.findall(r"`(traitmill [a-z][^`]*)`", outside)
    for whole, lines in ((True, pasted), (False, said)):
        for part in (part for line in lines for part in re.split(r"&&|;|\|\|?", line)):
            words = shlex.split(part, comments=True)
            names = [index for index, word in enumerate(words[:3]) if _is_traitmill(word)]
            if names and len(words) > names[0] + 1:
                yield words[names[0] + 1 :], whole


def _joined(block: str) -> list[str]:
    return re.sub(r"\\\n", " ", block).replace("$ ", "").splitlines()


def _is_traitmill(word: str) -> bool:
    return word == "traitmill" or word.endswith("/traitmill")


FOUND = [(page, *found) for page in PAGES for found in commands(page)]


def parse(words: list[str], *, whole: bool) -> None:
    """Parse a command as click would, running nothing; of one in parts, the options' names."""
    name, *arguments = words
    if name.startswith("-") or "--help" in arguments:
        return
    name = name.replace("-", "_")
    assert name in COMMANDS, name
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    if not whole:
        options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        assert {option.replace("--no-", "--no_") for option in options} <= known | {"--help"}
        return
    command.make_context(
        name, list(arguments), token_normalize_func=lambda token: token.replace("-", "_")
    )


@pytest.mark.parametrize(
    ("page", "words", "whole"),
    FOUND,
    ids=[f"{page.name}:{' '.join(words)[:60]}" for page, words, _ in FOUND],
)
def test_every_command_parses(page: Path, words: list[str], *, whole: bool) -> None:
    parse(words, whole=whole)


def test_the_tables_of_modules_are_their_docstrings() -> None:
    text = module_tables.PAGE.read_text()
    assert module_tables.page(text) == text
    packages = {path.parent.name for path in (ROOT / "engine").glob("*/__init__.py")}
    assert packages == set(module_tables.PACKAGES)


def test_there_are_commands_to_parse() -> None:
    assert len(FOUND) > 40
    assert {words[0] for _, words, _ in FOUND} >= {"run", "generate", "vectors", "judge", "export"}


def test_a_command_that_is_none_is_found_out() -> None:
    for line in ("generat --trait x", "generate --experiment e --trait t --n_exmaples 3"):
        for whole in (True, False):
            with pytest.raises((AssertionError, click.UsageError)):
                parse(line.split(), whole=whole)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in {_anchor(head) for head in _HEADING.findall(target.read_text())}, link


def _anchor(heading: str) -> str:
    """Return a heading's anchor as GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return kept.replace(" ", "-")
