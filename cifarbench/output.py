"""What is printed: it ends with its reader, and nothing else does."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO


def outlive_readers() -> None:
    """Let stdout and stderr of this process drop what is written once their pipe or terminal is gone."""
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)


class _Lasting(io.FileIO):
    """A pipe or terminal that may go away: what is written afterwards is dropped, so that no training ends with it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._gone = (errno.EPIPE, errno.EIO) if self.isatty() else (errno.EPIPE,)

    def write(self, data: Any) -> int:
        """Write the bytes-like `data`, or say so where nobody is left to read it."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._gone:
                raise
            return len(data)


def _lasting(stream: TextIO) -> TextIO:
    """The same output, which outlives its reader and writes what its encoding lacks as an escape."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if os.name != "posix" or stream not in (sys.__stdout__, sys.__stderr__):
        stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    raw: Any = _Lasting(stream.fileno())
    buffer = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)  # raw: PYTHONUNBUFFERED
    line, through = stream.line_buffering, stream.write_through
    return io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=line, write_through=through)
