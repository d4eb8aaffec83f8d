"""Every line of the log has the one form that JSON is made of: words, then key=value pairs.

And the events that docs/logs.md tells of are ones that the code logs.
"""

import ast
import functools
import pathlib
import re
from collections.abc import Iterator

import pytest

from swaptide.cache import logs
from tests.hygiene import tree

METHODS = ("debug", "info", "warning", "error", "exception", "critical")
COMPILED_CALL = re.compile(rf"\b_?log(ger|ging)?\.({'|'.join(METHODS)})\(")
PAGE = tree.ROOT / "docs/logs.md"


class Call:
    """One call of a logger."""

    def __init__(self, path: pathlib.Path, node: ast.Call) -> None:
        assert isinstance(node.func, ast.Attribute)
        level = node.func.attr == "log"
        self.where = f"{tree.label(path)}:{node.lineno}"
        self.template = node.args[1 if level else 0]
        self.args = node.args[2 if level else 1 :]


def is_log_call(node: ast.AST) -> bool:
    """Whether a method is called that logs, of what is called a log."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    return node.func.attr in (*METHODS, "log") and ast.unparse(node.func.value).split(".")[-1] in (
        "log",
        "_log",
        "logger",
        "logging",
    )


@functools.cache
def calls() -> tuple[Call, ...]:
    found = []
    for path in tree.named(".py", ".pyx"):
        if path.parent.name not in tree.ROOMS:
            continue
        if path.suffix == ".pyx":
            # No parser for these: what logs has to be Python.
            assert not COMPILED_CALL.search(path.read_text()), tree.label(path)
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        found += [Call(path, node) for node in nodes if isinstance(node, ast.Call) and is_log_call(node)]
    return tuple(found)


def events() -> Iterator[str]:
    for call in calls():
        if isinstance(call.template, ast.Constant):
            apart = logs.take_apart(call.template.value)
            if apart is not None:
                yield apart[0]


def trouble(call: Call) -> str | None:
    """What is wrong with a call, None if nothing is."""
    if not isinstance(call.template, ast.Constant) or not isinstance(call.template.value, str):
        return "the template is not constant"
    template = call.template.value
    apart = logs.take_apart(template)
    if apart is None:
        return "not words, then key=%s pairs, or key='fixed text'"
    keys = [key for key, _, _ in apart[1]]
    if len(set(keys)) != len(keys):
        return "a key comes twice"
    if taken := set(keys) & set(logs.RESERVED):
        return f"every line has {', '.join(taken)} of its own"
    if any(isinstance(each, ast.Starred) for each in call.args):
        return "the arguments are not spelled out"
    wanted = sum(bool(kind) for _, kind, _ in apart[1])
    return None if wanted == len(call.args) else f"{wanted} arguments wanted, {len(call.args)} given"


def test_every_line_has_the_form() -> None:
    assert len(calls()) > 80
    wrong = [f"{call.where}: {why}" for call in calls() if (why := trouble(call)) is not None]
    assert not wrong


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("log.info('disk added name=%s size_bytes=%d', name, size)", None),
        ("self._log.log(level, 'it fails why=%r', error)", None),
        ("log.warning('it fails why=%r remedy=\\'mend it\\'', error)", None),
        ("log.info('it begins')", None),
        ("log.info(f'disk {name}')", "constant"),
        ("log.info('disk %s added', name)", "pairs"),
        ("log.info('disk added name=%s; look there', name)", "pairs"),
        ("log.info('disk added name=%s, size=%d', name, size)", "pairs"),
        ("log.info('disk added Name=%s', name)", "pairs"),
        ("log.info('name=%s', name)", "pairs"),
        ("log.info('disk added url=http://%s', name)", "pairs"),
        ("log.info('disk added name=%s name=%s', name, name)", "twice"),
        ("log.info('disk added event=%s', name)", "of its own"),
        ("log.info('disk added name=%s')", "1 arguments wanted, 0 given"),
        ("log.info('disk added name=%s', *names)", "spelled out"),
    ],
)
def test_what_breaks_the_form_is_found(code: str, why: str | None) -> None:
    (node,) = [node for node in ast.walk(ast.parse(code)) if is_log_call(node)]
    assert isinstance(node, ast.Call)
    found = trouble(Call(tree.ROOT / "x.py", node))
    assert found is None if why is None else found is not None and why in found


def test_documented_events_are_logged() -> None:
    documented = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert len(documented) >= 15
    assert not set(documented) - set(events())


def test_the_daemon_finds_what_the_plugin_says() -> None:
    assert logs.NO_START in set(events())
