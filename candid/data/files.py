"""Opening files that anybody may have made: never waiting for what is no file, never reading on and on."""

import errno
import io
import os
import stat
from pathlib import Path

MAX_FILE_BYTES = 2**30
"""More than any picture has that is decoded; a file with holes in it may claim any size."""
CALL_BYTES = 256
"""What a call counts for at least: to read byte by byte takes as long as to read so many at once."""


class ReadTooMuch(Exception):
    """More was read of a file than its reader is granted."""

    def __init__(self) -> None:
        super().__init__("it has far more data than pixels")


class Rationed(io.BufferedReader):
    """A file, or bytes, of which no more than `ration` bytes can be read before it is raised; then ReadTooMuch.

    To read the whole at once, as for WebP, costs nothing: it is one call, and takes no more than the file has.
    """

    ration = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes, or all that are left."""
        if size is None or size < 0:
            return super().read()
        data = super().read(min(size, self.ration + 1))
        self.ration -= max(CALL_BYTES, len(data))
        if self.ration < 0:
            raise ReadTooMuch
        return data


def open_file(path: str | Path) -> io.FileIO:
    """The file at `path`, or at the end of the links there; OSError where it is none, at once even for a pipe."""
    file = io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
        return file
    file.close()
    if stat.S_ISREG(status.st_mode):
        raise OSError(errno.EFBIG, f"Larger than {MAX_FILE_BYTES // 2**30} GiB", str(path))
    raise OSError(errno.EINVAL, "Not a regular file", str(path))
