"""A headless Chromium, driven over its debugging pipe by the standard library alone.

The browser is the one that `make test` put into the environment, or one that is installed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

OWN = Path(sys.prefix) / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
         "--remote-debugging-pipe")  # fmt: skip
LAUNCH = """
import os, sys
there, back, *command = sys.argv[1:]
os.dup2(int(there), 103), os.dup2(int(back), 104)
os.dup2(103, 3), os.dup2(104, 4)  # where the browser looks for its pipe
os.execv(command[0], command)
"""


def find_browser() -> str | None:
    """The path of a browser, or None."""
    own = OWN / "chromium"
    return str(own) if own.exists() else next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One window; a context manager that ends the browser."""

    def __init__(self, path: str, profile: Path) -> None:
        """Starts the browser with an empty profile in that folder."""
        there, self._out = os.pipe()
        self._in, back = os.pipe()
        libraries = [str(OWN / "al2023" / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        env = {**os.environ, "LD_LIBRARY_PATH": ":".join(filter(None, libraries))}
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(there), str(back), path, *FLAGS,
             f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(there, back), env=env if path.startswith(str(OWN)) else None,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(there)
        os.close(back)
        self._replies, self._count, self._session = b"", 0, None
        pages = self._call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def look(self, width: int, scheme: str) -> None:
        """How wide the window is and whether the user likes it "light" or "dark"."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=800,
                   deviceScaleFactor=1, mobile=False)  # fmt: skip
        liked = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=liked)

    def open(self, path: Path) -> None:
        """Shows a file, and waits until it is loaded."""
        self._call("Page.navigate", url=path.as_uri())
        ready = "new Promise(done => {const again = () => document.readyState == 'complete'"
        ready += f" && location.href == {json.dumps(path.as_uri())} ? done(true)"
        self.evaluate(ready + " : setTimeout(again, 10); again()})")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; promises are waited for."""
        reply = self._call("Runtime.evaluate", expression=script, returnByValue=True,
                           awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def screenshot(self) -> bytes:
        """A PNG image of the whole page."""
        taken = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(taken["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._count, "method": method, "params": params, **session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._replies:
                more = os.read(self._in, 1 << 16)
                assert more, "the browser has ended"
                self._replies += more
            text, _, self._replies = self._replies.partition(b"\0")
            reply = json.loads(text)
            if reply.get("id") == self._count:
                assert "error" not in reply, reply
                return reply["result"]
