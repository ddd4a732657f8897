"""What the documents tell people to type exists, and the configuration file knows what it speaks of."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from remora.cli import cli

_ROOT = Path(__file__).parents[2]
_DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "worker/README.md", "plugins/sagemaker/README.md"]
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def _code(document: str) -> list[str]:
    """The lines of code blocks, and the code between back quotes."""
    text = (_ROOT / document).read_text().replace("\\\n", "")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()] + inline


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):.*## ", (_ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_every_make_target_that_is_named_exists(document):
    named = {match[1] for line in _code(document) if (match := re.match(r"make ([a-z]+)\b", line))}

    assert named <= _targets()


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_every_command_that_is_named_exists_with_its_options(document):
    unknown: list[str] = []
    for line in _code(document):
        if not (match := re.match(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?remora ([a-z]+)\b(.*)", line)):
            continue
        command = cli.get_command(click.Context(cli), match[1])
        known = {name for parameter in command.params for name in parameter.opts} if command else set()
        named = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", match[2])) - {"--help"}
        if command is None or named - known:
            unknown.append(line)

    assert not unknown


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_every_link_to_a_file_leads_somewhere(document):
    links = [link for link in _LINK.findall((_ROOT / document).read_text()) if "://" not in link]

    assert not [link for link in links if not ((_ROOT / document).parent / link).exists()]


def test_every_target_of_the_makefile_is_explained():
    phony = re.search(r"^\.PHONY: (.+)$", (_ROOT / "Makefile").read_text(), re.MULTILINE)

    assert phony
    assert set(phony[1].split()) == _targets()


def test_ci_runs_what_the_readme_says_and_nothing_else():
    run = (_ROOT / ".ci/run").read_text().splitlines()
    commands = [line for line in run if line and not line.startswith(("#", "set ", "cd "))]

    assert commands
    assert set(commands) <= set(_code("README.md"))
