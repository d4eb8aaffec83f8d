"""Who is meant by a user's name, and with which words a command becomes that user's."""

import dataclasses
import os
import pathlib
import pwd

import pytest

from swaptide.cache.errors import SetupError, UsageError
from swaptide.host import config, isolation, uids


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
    nothing = [isolation.Servants()]
    assert isolation.choose(dataclasses.replace(plain, user="no-such-user")) == nothing
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert isolation.choose(dataclasses.replace(plain, user="root")) == nothing
    assert isolation.choose(dataclasses.replace(plain, user="0")) == nothing
    (chosen,) = isolation.choose(dataclasses.replace(plain, user="77"))
    assert chosen.user is not None and chosen.user.uid == 77 and not chosen.apart
    (chosen,) = isolation.choose(dataclasses.replace(plain, uids="70-77"))
    assert chosen.claims is not None and chosen.claims.uids == range(70, 78)
    first, *others = isolation.choose(plain)
    assert first.apart and not any(each.apart for each in others) and others[-1] == isolation.Servants()
    with pytest.raises(UsageError):
        isolation.choose(dataclasses.replace(plain, user="no-such-user"))


def test_what_was_asked_for_or_a_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Only where nothing was asked for there is a next best, down to root."""
    plain = config.load(None, tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    broken: set[str] = set()
    monkeypatch.setattr(
        isolation, "_obstacle", lambda each, *_: "it is broken" if str(each) in broken else None
    )
    found = isolation.choose(plain)
    for servants in found:
        assert isolation.settle(found, plain, []) == servants
        broken.add(str(servants))
    for chosen in (dataclasses.replace(plain, user="77"), dataclasses.replace(plain, uids="70-77")):
        (only,) = isolation.choose(chosen)
        assert isolation.settle([only], chosen, []) == only
        broken.add(str(only))
        with pytest.raises(SetupError, match="as configured: it is broken"):
            isolation.settle([only], chosen, [])


def test_names_of_users() -> None:
    assert (isolation.name_of(0), isolation.name_of(3_999_999_998)) == ("root", "3999999998")
    assert isolation.name_of(uids.DEFAULT[0]) == str(uids.DEFAULT[0])
