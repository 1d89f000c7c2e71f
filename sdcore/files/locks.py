"""Who is at work in a folder: a lock that the system takes back when its owner ends in any way.

It holds between threads, processes and containers of one machine. Some file systems, and Windows,
have no such locks on folders.
"""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class FolderLock:
    """A folder that is locked until `release`, or until the process ends.

    Attributes:
        certain: False where the system or the file system has no such lock, so that nobody else is
            kept out.

    Raises:
        BlockingIOError: somebody else holds it.
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        self._handle: int | None = None
        self.certain = False
        if fcntl is None:
            return
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:  # NFS without locks on folders, some mounts in user space
            os.close(handle)
        else:
            self._handle, self.certain = handle, True

    def release(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __del__(self) -> None:
        self.release()
