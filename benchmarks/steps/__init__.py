"""Small training and inference steps, written as users of each library write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Program:
    """A step with what it starts from.

    Attributes:
      step: (state, batch) -> (state, metrics).
      init: a key -> the state.
      batch: a key -> a batch.
    """

    name: str
    library: str
    step: Callable[[Any, Any], Any]
    init: Callable[[Any], Any]
    batch: Callable[[Any], Any]
