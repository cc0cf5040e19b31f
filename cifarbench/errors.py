"""Every failure that a user can cause or mend, with the exit code that it ends the command with."""

from __future__ import annotations

import errno
from types import FrameType

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
PLUGIN_MODULE = "cifarbench_plugin_"  # what the name of a module begins with that a file of the user's own becomes


class CifarbenchError(Exception):
    """One plain sentence for the user: the file or key, the value, the rule and the remedy."""

    exit_code = 1


class SweepError(CifarbenchError):
    """Some jobs of a sweep failed; the others are done."""


class ConfigError(CifarbenchError):
    """A configuration or input that breaks a stated rule."""

    exit_code = 2


class InUseError(ConfigError):
    """A run directory that another process holds."""


class IntegrityError(CifarbenchError):
    """Data or a checkpoint that is damaged, hostile, or belongs to something else."""

    exit_code = 3


def damaged(path: object, reason: object) -> IntegrityError:
    """The error for a file of a run, or a record of one, that is not what was written."""
    return IntegrityError(f"{path} is damaged: {reason}. Put a copy in its place, or train again in another folder.")


class NonFiniteError(CifarbenchError):
    """A loss or a weight that became infinite or not a number."""

    exit_code = 4


class ResourceError(CifarbenchError):
    """A disk, memory, network or device that is missing or full."""

    exit_code = 5


class Interrupted(CifarbenchError):  # noqa: N818 - a stop that was asked for is no error
    """A signal asked the run to stop; its last step is saved and can be resumed.

    `exit_code` is 128 plus the signal's number: 129 for SIGHUP, 130 for SIGINT, 138 for SIGUSR1, 143 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def explain(error: Exception) -> tuple[str, int]:
    """The sentence for an error, and its exit code."""
    if isinstance(error, CifarbenchError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        return "out of memory; take a smaller `trainer.batch_size`, or set `trainer.micro_batch`.", 5
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"a path is too long: {error.strerror}; choose a shorter one.", 2
    if isinstance(error, FileExistsError) and error.filename:
        return f"{error.filename}: a file is there, where a folder is needed; choose another folder.", 5
    if isinstance(error, OSError) and error.errno and error.filename:
        return f"{error.filename}: {error.strerror}; free space, or choose another folder or file.", 5
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f"the disk: {error.strerror}; free space or choose another folder.", 5
    plugin = _plugin_of(error)
    if plugin:
        return f"the plugin {plugin} failed ({in_a_line(error)}); add --debug for the traceback.", 2
    where = "; add --debug for the traceback, and please report it."
    return f"a bug: {in_a_line(error)}{where}", 1


def _plugin_of(error: Exception) -> str | None:
    """The file of the user's own in which an error was raised, or which called what raised it."""
    import traceback

    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [frame.f_code.co_filename for frame in frames if _module_of(frame).startswith(PLUGIN_MODULE)]
    return files[-1] if files else None


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))  # code of `eval` may have none


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory of the machine or of a GPU did not suffice."""
    is_gpus = type(error).__name__ == "OutOfMemoryError"
    return is_gpus or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def in_a_line(error: Exception) -> str:
    """An error's kind and the first line of what it says: "ValueError: it is no number"."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
