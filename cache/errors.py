"""Every error that swaptide raises on purpose, classified by what the caller can do about it."""

from typing import Final

# Longer words are cut: what somebody pasted by mistake would hide what is wrong with it.
_WORD_CHARS: Final = 300
_LAST_CHARS: Final = 20


def plain(text: str) -> str:
    """`text` in one line, without what would move a cursor, and without endless words."""
    shown = (_shortened(word) for word in text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in " ".join(shown))


def _shortened(word: str) -> str:
    return word if len(word) <= _WORD_CHARS else f"{word[:_WORD_CHARS]}...{word[-_LAST_CHARS:]}"


class SwaptideError(Exception):
    """Base of all errors of this package; str() is one line that names the thing and the remedy."""


class UsageError(SwaptideError):
    """What was asked for cannot be: ask for something else (a bad size, a name that exists)."""


class SetupError(SwaptideError):
    """The host lacks what is needed (space, permission, a tool): mend that and try again."""


class StateError(SwaptideError):
    """A state or spill file is damaged, of another version or not ours; it is left alone."""


class BusyError(SwaptideError):
    """Somebody else owns the thing right now: wait, or use force where that is offered."""
