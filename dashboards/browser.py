"""A headless Chromium, for tests and pictures of the page: driven over DevTools' pipe, so it opens no port.

One thread uses it.  All its files lie below one directory, and it is ended with everything that it started.
"""

import base64
import contextlib
import fcntl
import json
import os
import pathlib
import select
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any, Final

PROGRAMS: Final = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_ANSWER_SECONDS: Final = 90.0
_END_SECONDS: Final = 10.0
_OPTIONS: Final = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
)


class BrowserError(Exception):
    """It does not run, or does not do as asked; str() is one line that says why."""


def program() -> str | None:
    """Where a Chromium is; None if there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Pipe:
    """Requests and answers; what a page complains of meanwhile is kept in `complaints`."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._number = 0
        self._unread = b""
        self.complaints: list[str] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of one request; raises BrowserError if it fails, or is not answered."""
        self._number += 1
        request: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            request["sessionId"] = session
        self._write(json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_SECONDS
        while (said := self._next(deadline, method)).get("id") != self._number:
            self._note(said)
        if "error" in said:
            raise BrowserError(f"{method}: {said['error'].get('message')}")
        result: dict[str, Any] = said["result"]
        return result

    def close(self) -> None:
        """Hang up, at which Chromium ends."""
        os.close(self._to)
        os.close(self._back)

    def _write(self, text: bytes) -> None:
        try:
            while text:
                text = text[os.write(self._to, text) :]
        except BrokenPipeError:
            raise BrowserError("Chromium has ended") from None

    def _next(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._back], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BrowserError(f"Chromium does not answer {method} within {_ANSWER_SECONDS:.0f} s")
            more = os.read(self._back, 1 << 20)
            if not more:
                raise BrowserError("Chromium has ended")
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\0")
        said: dict[str, Any] = json.loads(line)
        return said

    def _note(self, said: dict[str, Any]) -> None:
        told = said.get("params", {})
        if said.get("method") == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif said.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}".strip())


class Page:
    """One page in a window of its own size."""

    def __init__(self, pipe: Pipe, session: str) -> None:
        self._pipe = pipe
        self._session = session

    @property
    def complaints(self) -> list[str]:
        """Errors of scripts, and of what they asked for, in all pages so far."""
        return self._pipe.complaints

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A request about this page; raises BrowserError."""
        return self._pipe.call(method, self._session, **parameters)

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """A window of that size in CSS pixels, and what its user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, script: str) -> Any:
        """What an expression of JavaScript yields there, waited for; raises BrowserError if it throws."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            thrown = found["exceptionDetails"]
            raise BrowserError(thrown.get("exception", {}).get("description", thrown["text"]))
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = _ANSWER_SECONDS) -> None:
        """Wait until an expression is true there; raises BrowserError if it does not become so."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(script):
            if time.monotonic() > deadline:
                raise BrowserError(f"not within {seconds:.0f} s: {script}")
            time.sleep(0.1)

    def picture(self, height: int | None = None) -> bytes:
        """A PNG of the page in full, or of its upper `height` pixels."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        made = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        return base64.b64decode(made["data"])


class Browser:
    """One that runs."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def open(self, url: str, width: int = 1280, height: int = 900, *, dark: bool = False) -> Page:
        """A page that begins to load; raises BrowserError if nothing answers there."""
        target = self._pipe.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._pipe.call("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(self._pipe, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.look(width, height, dark=dark)
        failed = page.call("Page.navigate", url=url).get("errorText")
        if failed:
            raise BrowserError(f"{url}: {failed}")
        return page


@contextlib.contextmanager
def running(root: pathlib.Path) -> Iterator[Browser]:
    """One with all its files below `root`; raises BrowserError if there is none."""
    found = program()
    if found is None:
        raise BrowserError("no Chromium here: on Debian `apt-get install chromium-headless-shell`")
    pipe, pid = _start(found, root)
    try:
        yield Browser(pipe)
    finally:
        with contextlib.suppress(BrowserError):
            pipe.call("Browser.close")
        pipe.close()
        _reap(pid)


def _start(found: str, root: pathlib.Path) -> tuple[Pipe, int]:
    """Start it with our pipe as its descriptors 3 and 4, in a process group of its own."""
    # The sandbox needs another user than root.
    unboxed = ["--no-sandbox"] if os.geteuid() == 0 else []
    words = [found, *_OPTIONS, *unboxed, f"--user-data-dir={root / 'profile'}", "about:blank"]
    theirs_in, ours_out = _pipe()
    ours_in, theirs_out = _pipe()
    log = (os.POSIX_SPAWN_OPEN, 1, str(root / "browser.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    pid = os.posix_spawn(
        *(found, words, {**os.environ, "HOME": str(root), "TMPDIR": str(root)}),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            log,
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, theirs_in, 3),
            (os.POSIX_SPAWN_DUP2, theirs_out, 4),
        ],
        setpgroup=0,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    return Pipe(ours_out, ours_in), pid


def _pipe() -> tuple[int, int]:
    """Two ends that are out of the way of 3 and 4."""
    made = os.pipe()
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in made)
    for end in made:
        os.close(end)
    return read, write


def _reap(pid: int) -> None:
    """Wait for its end, or bring it about; then nothing of its group is left."""
    deadline = time.monotonic() + _END_SECONDS
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    # Not waited for yet, so that the number is still its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
