"""The man pages name what there is, no more and no less; as a program, writes the commands of swaptide(1)."""

import os
import pathlib
import re
import shutil
import subprocess
import textwrap

import click
import msgspec
import pytest

from swaptide.cache import engine, exports, layout
from swaptide.host import cli, config, usage
from swaptide.nbdkit_plugin import parameters
from tests.hygiene import tree
from tests.real.words import commands

PAGES = tuple(sorted((tree.ROOT / "docs/man").iterdir()))
COMMANDS = tree.ROOT / "docs/man/swaptide.1"
CONFIG = tree.ROOT / "docs/man/swaptide.toml.5"
PLUGIN = tree.ROOT / "docs/man/nbdkit-swaptide-plugin.1"
BEGIN, END = '.\\" the commands, ', '.\\" end of the commands\n'
WIDTH = 78
MAN = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}


def prose(text: str) -> str:
    """Text as roff takes it: a sentence begins on a line of its own, and no line is an instruction."""
    text = text.replace("\\", "\\e")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    text = re.sub(r"(?<![\w-])-(?=[\w-])", r"\\-", text).replace("\\--", "\\-\\-")
    lines: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\\])", " ".join(text.split())):
        lines += textwrap.wrap(sentence, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"\\&{line}" if line[0] in ".'" else line for line in lines)


def value_of(parameter: click.Parameter) -> str:
    """What stands for the value of an option or argument."""
    if parameter.metavar:
        return parameter.metavar
    if isinstance(parameter.type, click.Choice):
        return " | ".join(parameter.type.choices)
    return "N" if isinstance(parameter, click.Option) else (parameter.name or "").upper()


def item(option: click.Option) -> list[str]:
    names = " , ".join(f"Fl Fl {name.removeprefix('--')}" for name in option.opts)
    lines = [f".It {names}" + ("" if option.is_flag else f" Ar {value_of(option)}")]
    if option.help:
        lines.append(prose(option.help))
    if option.show_default:
        lines.append(prose(f"Default: {option.default}."))
    return lines


def heading(words: tuple[str, ...], command: click.Command) -> str:
    taken = [value_of(each) for each in command.params if isinstance(each, click.Argument)]
    return " ".join([*words, *taken])


def examples(words: tuple[str, ...]) -> list[str]:
    """As they are typed; a line that is too long goes on in the next."""
    lines = []
    for line in usage.EXAMPLES[" ".join(words)]:
        wrapped = textwrap.wrap(
            f"swaptide {line}", WIDTH - 8, break_on_hyphens=False, subsequent_indent="    "
        )
        lines += [f"{each} \\e" for each in wrapped[:-1]] + wrapped[-1:]
    return [line.replace("-", "\\-") for line in lines]


def section() -> str:
    """All commands: what they do, and what they take."""
    lines = ["Every command takes", ".Fl Fl help ."]
    for words, command in commands(cli.cli):
        lines.append(f".Ss {heading(words, command)}".replace("...", "...\\&"))
        for number, paragraph in enumerate((command.help or "").split("\n\n")):
            lines += [".Pp"] * bool(number) + [prose(paragraph)]
        options = [each for each in command.params if isinstance(each, click.Option)]
        if options:
            lines.append(".Bl -tag -width Ds")
            for option in options:
                lines += item(option)
            lines.append(".El")
        lines += [".Bd -literal -offset indent", *examples(words), ".Ed"]
    return "\n".join(lines) + "\n"


def parts() -> tuple[str, str, str]:
    """The page of the command up to the commands, these, and the rest."""
    text = COMMANDS.read_text()
    start = text.index("\n", text.index(BEGIN)) + 1
    end = text.index(END)
    return text[:start], text[start:end], text[end:]


def items(page: pathlib.Path) -> dict[str, str]:
    """What a page says of each key that it lists."""
    section = page.read_text().split(".Bl -tag -width Ds\n")[1].split(".El\n")[0]
    found = [each.partition("\n") for each in section.split(".It Cm ")[1:]]
    assert len({first.split()[0] for first, _, _ in found}) == len(found)
    return {first.split()[0].rstrip("="): f"{first}\n{rest}" for first, _, rest in found}


def test_every_command_is_there_as_it_is() -> None:
    assert parts()[1] == section(), "write it anew: python -m tests.hygiene.test_man"


def test_every_key_of_the_configuration_is_there() -> None:
    fields = {field.name: field for field in msgspec.structs.fields(config._File)}
    told = items(CONFIG)
    assert told.keys() == fields.keys()
    for name, field in fields.items():
        if field.default is None:
            assert "Where it is not said" in told[name] or "Where neither" in told[name], name
        else:
            default = str(field.default).lower() if isinstance(field.default, bool) else field.default
            assert f"Default:\n.Ql {default} .\n" in told[name], name


def test_every_parameter_of_the_plugin_is_there() -> None:
    assert set(items(PLUGIN)) == {*parameters._PARAMETERS, parameters.METRICS, parameters.LOG_FORMAT}


def test_defaults_of_the_plugin_are_as_it_has_them() -> None:
    told = items(PLUGIN)
    assert f"Without it: {exports.DEFAULT_TIMEOUT_SECONDS:g}." in told["spill-timeout"]
    assert f"Without it: {engine.DEFAULT_CLEAN_AHEAD:.0%}." in told["clean-ahead"]
    choices = told["compress"].splitlines()[0].removeprefix("compress= Ns Cm ").split(" | ")
    assert sorted(choices) == sorted(layout.COMPRESS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_without_fault(page: pathlib.Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is missing (Debian package mandoc)")
    done = subprocess.run(["mandoc", "-T", "lint", page], capture_output=True, text=True, check=False)
    # Which other pages are installed here says nothing of this one.
    assert [line for line in done.stdout.splitlines() if "referenced manual not found" not in line] == []
    assert done.returncode <= 1  # no more than style


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_without_warning_of_man(page: pathlib.Path) -> None:
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("man or groff is missing (Debian packages man-db, groff)")
    command = ["man", "--warnings", "-E", "UTF-8", "-l", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=MAN)
    assert (done.returncode, done.stderr) == (0, "")
    assert page.name.split(".")[0].upper() in done.stdout.splitlines()[0].upper()


def test_pages_refer_to_each_other_and_no_page_of_ours_is_missing() -> None:
    ours = {page.name for page in PAGES}
    assert ours == {"swaptide.1", "swaptide.toml.5", "nbdkit-swaptide-plugin.1"}
    text = "".join(page.read_text() for page in PAGES)
    named = {f"{name}.{number}" for name, number in re.findall(r"^\.Xr (\S+) (\d)", text, re.MULTILINE)}
    assert ours == {name for name in named if "swaptide" in name}


if __name__ == "__main__":
    before, _, after = parts()
    COMMANDS.write_text(before + section() + after)
