"""Completion in real shells, by the scripts that packages install: click's, made anew here."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.hygiene import tree

BEHIND = {
    "bash": "COMP_WORDS=(swaptide {words}); COMP_CWORD={at}; _swaptide_completion swaptide;"
    ' printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": 'complete -C "swaptide {words}"',
}
FILES = {"bash": "swaptide", "zsh": "_swaptide", "fish": "swaptide.fish"}
# The prompt says that a key is taken for what it is; what is typed before may not be.
ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'autoload -U compinit; compinit -D; source {script}; PROMPT=REA""DY'
zpty -r shell line '*READY*'
zpty -n -w shell $'swaptide disk fre\\t'
zpty -r shell line '*freeze*'
print -r -- $line
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("completion")
    subprocess.run([tree.ROOT / "debian/completion.sh", sys.executable, place], check=True)
    return place


def run(shell: str, script: str, home: pathlib.Path) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is missing (Debian package {shell})")
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [shell, "-c", script],
        env={**os.environ, "PATH": path, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize("shell", BEHIND)
def test_commands_options_and_values_are_offered(
    shell: str, scripts: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for words, offered in (
        ("disk ''", {"add", "clear", "freeze", "ls", "rm", "set", "show", "thaw"}),
        ("disk add --sw", {"--swap-label"}),
        ("serve --log-format ''", {"json", "text"}),
    ):
        at = len(words.split())
        behind = BEHIND[shell].format(words=words if shell == "bash" else words.removesuffix("''"), at=at)
        told = run(shell, f"source {scripts / FILES[shell]}; {behind}", tmp_path)
        # A description may follow, after a tab.
        assert {line.split("\t")[0] for line in told.splitlines()} >= offered, told


def test_zsh_completes(scripts: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert "freeze" in run("zsh", ZSH.format(script=scripts / FILES["zsh"]), tmp_path)
