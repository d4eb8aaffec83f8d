"""Every error that swaptide raises on purpose, classified by what the caller can do about it."""


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
