"""Batches made ahead: while one is worked on, a thread makes the next one."""

import atexit
import threading
import time
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


def make_ahead(items: Generator[T], note_wait: Callable[[float], None]) -> Generator[T]:
    """The same items, none of them None, each made by a thread while the caller works on the one before.

    An error comes where its item would have come. When the caller leaves, for whatever reason, the thread ends.
    `note_wait` is called with the seconds that the caller waited for each item.
    """
    maker = _Maker(items)
    atexit.register(maker.leave)  # where the program ends and nobody has closed this, no thread may run on
    try:
        maker.ask()
        while True:
            began_at_s = time.perf_counter()
            item = maker.take()
            note_wait(time.perf_counter() - began_at_s)
            if item is None:
                return
            maker.ask()
            yield item
    finally:
        maker.leave()
        atexit.unregister(maker.leave)


def is_abandoned() -> bool:
    """Whether the thread that asks makes an item that nobody waits for any more."""
    thread = threading.current_thread()
    return isinstance(thread, _Maker) and thread.is_abandoned


def use_one_core() -> None:
    """Have torch use one core in the thread that calls this.

    torch takes it for the number of all threads that have not computed yet, and does so in each of its libraries:
    whoever started this thread has to set it back to what it was.
    """
    torch.set_num_threads(1)
    torch.get_num_threads()  # from here on, what others set does not count in this thread


class _Maker(threading.Thread, Generic[T]):
    """A thread that makes an item whenever it is asked to, and leaves the other cores to whoever asks."""

    def __init__(self, items: Generator[T]) -> None:
        super().__init__(daemon=True)  # or the end of the program would wait for it before `atexit` ends it
        self.is_abandoned = False
        self._items = items
        self._wishes: SimpleQueue[bool] = SimpleQueue()
        self._made: SimpleQueue[T | _Problem | None] = SimpleQueue()
        self._gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._has_one_core = threading.Event()
        num_threads = torch.get_num_threads()
        self.start()
        self._has_one_core.wait()
        torch.set_num_threads(num_threads)

    def run(self) -> None:
        """Make what is asked for."""
        use_one_core()
        self._has_one_core.set()
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)  # or pinned memory would take room on the first GPU
        while self._wishes.get():
            try:
                self._made.put(next(self._items, None))
            except BaseException as error:
                self._made.put(_Problem(error))

    def ask(self) -> None:
        """Have the next item made."""
        self._wishes.put(True)

    def take(self) -> T | None:
        """The item that was asked for, None behind the last one.

        Raises:
            BaseException: what there was instead of the item.
        """
        made = self._made.get()
        if isinstance(made, _Problem):
            raise made.error
        return made

    def leave(self) -> None:
        """End the thread, behind the item that it may be making, and then the items."""
        self.is_abandoned = True
        self._wishes.put(False)
        if self is threading.current_thread():  # which happens to collect the garbage that its caller left
            return
        self.join()
        self._items.close()


class _Problem:
    """An error in place of an item."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
