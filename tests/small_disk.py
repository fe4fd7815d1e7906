"""A disk of a few MB for a test, which really can be full. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

__all__ = ["SmallDisk", "can_mount"]


def can_mount() -> bool:
    """Whether a disk of its own can be had here."""
    mounts = Path("/proc/mounts")
    return os.geteuid() == 0 and bool(shutil.which("mount")) and mounts.exists()


class SmallDisk:
    """A disk in memory, mounted on a folder; a context manager."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self._size_bytes = size_bytes
        self._filler = folder / "filler"

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = f"size={self._size_bytes}"
        command = ["mount", "-t", "tmpfs", "-o", options, "qmt-small-disk", str(self.folder)]
        subprocess.run(command, check=True, timeout=30)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Lazily: a process that is being killed may still hold a file.
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False, timeout=30)

    def fill(self) -> None:
        """Leave no byte free, though others write as well."""
        with self._filler.open("wb") as file:
            size, step = 0, os.statvfs(self.folder).f_bavail
            while step:
                try:
                    os.posix_fallocate(file.fileno(), size, step * 4096)
                    size += step * 4096
                except OSError:  # what cannot be had whole is not had at all
                    step //= 2

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)
