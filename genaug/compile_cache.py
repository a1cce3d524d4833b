"""JAX's folder of compiled programs, where the user turned it on (JAX_COMPILATION_CACHE_DIR).

What is in it is run as it is: who can write there runs code as the user. It is therefore the user's
alone. A damaged entry is compiled again where JAX notices; one that kills the process would kill it
at every start, so whoever starts it again empties the folder first (`genaug.supervise`).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from genaug.types import UserError

NAME = "JAX_COMPILATION_CACHE_DIR"


def keep_private(folder: str | None) -> None:
    """Make the folder for this user alone; refuse one that others may write to.

    folder: None: there is no cache. An address (gs://...) is left to who owns the bucket.

    Raises:
        UserError: it is another user's, or others may write to it.
    """
    if not folder or "://" in folder:
        return
    path = Path(folder)
    if not path.exists():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise UserError(
            f"{NAME} is {path}, which belongs to another user, who could run code as you: name a "
            "folder of your own."
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"{NAME} is {path}, which others may write to, and what is in it is run: empty it, and "
            f"chmod 700 {path}"
        )


def wipe(folder: str | None) -> bool:
    """Remove JAX's entries, and nothing else; whether none is left (an address cannot be seen)."""
    if not folder:
        return True
    if "://" in folder:
        return False
    entries = [p for end in ("-cache", "-atime") for p in Path(folder).glob(f"*{end}")]
    try:
        for entry in entries:
            entry.unlink(missing_ok=True)
    except OSError:
        return False
    return True
