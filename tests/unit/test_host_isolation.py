"""Who is meant by a user's name, and with which words a command becomes that user's."""

import dataclasses
import os
import pathlib
import pwd

import pytest

from swaptide.cache.errors import UsageError
from swaptide.host import config, isolation


def test_users_by_name_and_number() -> None:
    known = pwd.getpwuid(os.geteuid())
    user = isolation.User(known.pw_name, known.pw_uid, known.pw_gid)
    assert isolation.find(known.pw_name) == isolation.find(str(known.pw_uid)) == user
    assert isolation.find("3999999999") == isolation.User("3999999999", 3999999999, 3999999999)


@pytest.mark.parametrize(
    "name", ["no-such-user", "-1", "4294967295", "9" * 30, "", "1.5", "\N{SUPERSCRIPT TWO}"]
)
def test_nobody_of_that_name(name: str) -> None:
    with pytest.raises(UsageError, match="there is no user"):
        isolation.find(name)


def test_prefix() -> None:
    assert isolation.prefix(None) == []
    words = isolation.prefix(isolation.User("x", 7, 8))
    assert words[:5] == ["setpriv", "--reuid", "7", "--regid", "8"]
    assert {"--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"} <= set(words)


def test_the_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    plain = config.load(None, tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert isolation.choose(dataclasses.replace(plain, user="no-such-user")) is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert isolation.choose(dataclasses.replace(plain, user="root")) is None
    assert isolation.choose(dataclasses.replace(plain, user="0")) is None
    chosen = isolation.choose(dataclasses.replace(plain, user="77"))
    assert chosen is not None and chosen.uid == 77
    with pytest.raises(UsageError):
        isolation.choose(dataclasses.replace(plain, user="no-such-user"))
