"""A file system of its own for the index of a chaos run, small enough to be filled."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_DISK_BYTES: Final = 512 << 20


class SmallDisk:
    """A small file system of its own where we may mount one, else a limit on the size of files; both can be full."""

    def __init__(self, path: Path, mounted: bool) -> None:
        self.path = path
        self.mounted = mounted

    @contextmanager
    def full(self, pid: int) -> Iterator[None]:
        """No room for the process ``pid`` within the block."""
        if not self.mounted:
            size = (self.path / "index" / "data.mdb").stat().st_size
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                yield
            finally:
                with suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return
        ballast = self.path / "ballast"
        try:
            # Unbuffered: what did not fit would be written again by close, outside of what is suppressed.
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 20))
            yield
        finally:
            ballast.unlink()


@contextmanager
def small_disk(path: Path) -> Iterator[SmallDisk]:
    """A directory for the index, on a tmpfs of half a gigabyte if this user may mount one."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(path)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield SmallDisk(path, mounted)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)
