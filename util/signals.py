"""SIGINT and SIGTERM: a run stops between two batches, with its state saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from util import distributed
from util.errors import Interrupted


class Stop:
    """SIGINT and SIGTERM raise Interrupted: at once, or inside `deferred` between two batches, when all processes check
    together, so that the state can be saved first."""

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal's number
        self.waiting = False

    def __enter__(self) -> "Stop":
        self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self.asked = number
        if not self.waiting:
            raise Interrupted(number)

    def asked_anywhere(self, or_else: bool = False) -> bool:
        """Whether any process of the run received a signal, or `or_else` holds on the main process."""
        wish = distributed.maximum(self.asked or (or_else and distributed.is_main()))
        if wish > 1:  # a signal's number; SIGHUP, which is 1, is not handled
            self.asked = wish
        return bool(wish)

    def raise_if_asked(self) -> None:
        if self.asked is not None:
            raise Interrupted(self.asked)

    def raise_if_asked_anywhere(self) -> None:
        self.asked_anywhere()
        self.raise_if_asked()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self.waiting = True
        try:
            yield
        finally:
            self.waiting = False
