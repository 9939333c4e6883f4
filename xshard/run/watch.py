"""One failing process ends the job on all, and says why, where they would wait for it forever.

Each process tells JAX's coordination service every second that it lives, and an uncaught exception
when it dies of one. A thread in each process reads what the others say.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import jax

from xshard._jax import coordination_client

SILENCE_S = 15.0
"""A process that was not heard of for so long is taken to be dead."""
BEAT_S = 1.0
EXIT_CODE = 1

_LOOK_S = 5.0
"""How long a process that fails looks whether another one is silent."""
_FOLDER = "xshard/watch"
_ENDED, _FAILED = "ended", "failed "
_watch: _Watch | None = None


def watch() -> None:
    """Watches over the other processes, from the first call on."""
    global _watch
    if _watch is None and jax.process_count() > 1 and coordination_client() is not None:
        _watch = _Watch(jax.process_index(), coordination_client())
        threading.Thread(target=_watch.run, name="xshard-watch", daemon=True).start()
        atexit.register(_watch.end)


@dataclass(slots=True)
class _Watch:
    me: int
    client: Any
    told: dict[int, str] = field(default_factory=dict)
    heard_at: dict[int, float] = field(default_factory=dict)
    count: int = 0
    over: bool = False

    def run(self) -> None:
        """Until this process ends, or another has died."""
        while not self.over:
            try:
                self.count += 1
                self._say(str(self.count))
                self._listen()
            except Exception:  # the service is shutting down with the job, or its process died
                return
            time.sleep(BEAT_S)

    def end(self) -> None:
        """This process ends, well or not; says so to the others."""
        self.over = True
        error = sys.__dict__.get("last_value")
        try:
            self._say(
                _ENDED if error is None else f"{_FAILED}{type(error).__name__}: {error}"[:2000]
            )
            if error is not None:
                self._read()
                time.sleep(_LOOK_S)
                self._read()
        except Exception:  # nobody is there to be told
            return
        if error is not None:
            self._blame()

    def _blame(self) -> None:
        """Ends a process that failed, perhaps since another had died: JAX would wait for that."""
        now = time.monotonic()
        for process, at in self.heard_at.items():
            if now - at > _LOOK_S - BEAT_S and not self.told[process].startswith((_ENDED, _FAILED)):
                self._print(f"process {process} had died before: it is the cause")
        sys.stdout.flush()
        os._exit(EXIT_CODE)

    def _say(self, text: str) -> None:
        self.client.key_value_set(f"{_FOLDER}/{self.me}", text, allow_overwrite=True)

    def _read(self) -> None:
        now = time.monotonic()
        for key, text in self.client.key_value_dir_get(_FOLDER):
            process = int(key.rsplit("/", 1)[1])
            if self.told.get(process) != text:
                self.told[process], self.heard_at[process] = text, now

    def _listen(self) -> None:
        self._read()
        for process, text in self.told.items():
            if process == self.me or text == _ENDED:
                continue
            silence = time.monotonic() - self.heard_at[process]
            if text.startswith(_FAILED):
                self._exit(f"process {process} failed: {text.removeprefix(_FAILED)}")
            if silence > SILENCE_S:
                self._exit(
                    f"process {process} was not heard of for {silence:.0f} s: it was killed, ran "
                    "out of memory, or its host is gone"
                )

    def _exit(self, why: str) -> None:
        self._print(f"{why}. Process {self.me} ends, too, as it would wait for it forever")
        os._exit(EXIT_CODE)

    def _print(self, text: str) -> None:
        print(f"xshard: {text}.", file=sys.stderr, flush=True)
