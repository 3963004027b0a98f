"""Whether an event loop stays free: a heart on the loop, and one on a plain thread to compare it with.

A pause of the whole process (garbage collection, a busy machine) stops both hearts and says nothing of the loop; what
stops the loop's alone was work done on the loop.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

EVERY_S = 0.05


class Hearts:
    """Times of the beats, in seconds, of the loop's heart and of the thread's."""

    def __init__(self) -> None:
        self.loop, self.thread = [monotonic()], [monotonic()]

    @property
    def spent_s(self) -> float:
        """Seconds from the first beat to the last."""
        return self.loop[-1] - self.loop[0]

    @property
    def held_s(self) -> float:
        """The longest that the loop stood still while the thread's heart went on."""
        pauses = zip(self.loop, self.loop[1:], strict=False)
        return EVERY_S * max(sum(begun < beat < ended for beat in self.thread) for begun, ended in pauses)


@asynccontextmanager
async def hearts() -> AsyncIterator[Hearts]:
    """Both hearts beat until the end of the block."""
    beats, ended = Hearts(), threading.Event()

    async def on_the_loop() -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            beats.loop.append(monotonic())

    def on_a_thread() -> None:
        while not ended.wait(EVERY_S):
            beats.thread.append(monotonic())

    thread = threading.Thread(target=on_a_thread)
    thread.start()
    task = asyncio.create_task(on_the_loop())
    try:
        yield beats
    finally:
        beats.loop.append(monotonic())  # a loop that stood still until the end had no beat of its own
        task.cancel()
        ended.set()
        thread.join()
