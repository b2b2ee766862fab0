"""What the pages name exists: linked files and headings, paths in backticks, programs and flags of every command."""

import functools
import importlib
import pathlib
import re
import shlex

import pytest
from absl import flags

from siglip_jax.cli import PROGRAMS

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TEXTS = {page.relative_to(ROOT): page.read_text(encoding="utf-8") for page in PAGES}
SOURCES = r"(?:siglip_jax|input_pipeline|eval|tools|configs|tests|docs|examples)"


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?s)```.*?```", "", text))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=str)
def test_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("page", TEXTS, ids=str)
def test_files_and_modules_that_are_named_exist(page):
    paths = re.findall(rf"(?<![\w/.-]){SOURCES}/[\w./-]*\w", TEXTS[page])
    known = [path for path in paths if not path.startswith(("docs/", "configs/NAME", "configs/my"))]
    wrong = {path for path in known if not (ROOT / path).exists()}
    wrong |= {path for path in re.findall(r"`([\w/]+/\w+\.py)`", TEXTS[page]) if not (ROOT / path).exists()}
    for module, names in re.findall(rf"(?m)^(?:>>> )?from ({SOURCES}\S*) import (.+)$", TEXTS[page]):
        wrong |= {f"{module}.{name}" for name in names.split(", ") if not _importable(f"{module}.{name}")}
    for name in re.findall(rf"`({SOURCES}(?:\.(?!json`)[A-Za-z_]\w*)+)`", TEXTS[page]):
        wrong |= set() if _importable(name) else {name}
    assert wrong == set()


def _importable(name: str) -> bool:
    """Whether a dotted name is a module or an attribute of one; no extension of a file is mistaken for one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def commands(text: str) -> list[list[str]]:
    """The words of every `siglip-jax` command of a page, in code blocks and in backticks."""
    blocks = re.findall(r"(?s)```\w*\n(.*?)```", text)
    spans = re.findall(r"`(siglip-jax [^`]+)`", re.sub(r"(?s)```.*?```", "", text))
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines() + [re.sub(r"\s+", " ", span) for span in spans]
    found = []
    for line in lines:
        match = re.search(r"(?:^|[\s/])siglip-jax ([^|;&]*)", line)
        if match and (not line.lstrip().startswith(("#", "RUN"))):
            line = re.split(r"\s#|\s\*\*\[", match[1])[0].strip()
            if line.count('"') % 2:  # the end of a command that is an argument itself
                line = line.rstrip('"')
            found += [words] if (words := shlex.split(line)) else []  # `cd siglip-jax` is no command of ours
    return found


@functools.cache
def flags_of(module: str) -> flags.FlagValues:
    values = flags.FlagValues()
    importlib.import_module(module).define_flags(values)
    return values


COMMANDS = sorted({tuple(words) for text in TEXTS.values() for words in commands(text)})


def test_commands_are_found():
    assert len(COMMANDS) > 60
    assert {words[0] for words in COMMANDS} == PROGRAMS.keys()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_programs_and_flags_of_the_commands_exist(words):
    program, *rest = words
    assert program in PROGRAMS
    module = f"tools.{program}"
    if named := getattr(importlib.import_module(module), "COMMANDS", None):
        if rest in ([], ["--help"]):
            return
        command, *rest = rest
        assert command in named
        module = f"{module}.{command}"
    known = set(flags_of(module))
    for word in rest:
        if word == "...":
            continue
        assert word.startswith("--"), word
        name = word[2:].partition("=")[0].replace("-", "_")
        assert name.partition(".")[0] in known | {f"no{flag}" for flag in known} | {"help"}, word
