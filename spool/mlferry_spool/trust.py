"""Which files of a spool are opened, and into which directory a spool is put: the answer to links, pipes and other users.

Owns the checks, and nothing that they are made for. Reading goes down from the spool's root by directory descriptors, one
plain name a step, so no link stands in between whenever it was put there; what is looked at is the open file itself.
Everything below the root belongs to one user: a file that somebody else could put there is refused, not read.

The root is the user's own choice. A reader follows it as it was given; a writer looks who else could put files into it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from mlferry_spool.errors import UntrustedFile
from mlferry_spool.layout import place_in_spool

__all__ = ["check_root", "open_directory", "open_trusted"]

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW


def open_trusted(path: Path) -> int:
    """Open a file of the spool for reading, or refuse it. The checks are on the open file, so none can be swapped in.

    Raises:
        UntrustedFile: a link at any step, a pipe, a socket, a device, a file with several names or of another owner than
            the directories above it.
        OSError: it cannot be opened.
    """
    directory = open_directory(path.parent)
    try:
        fd = _open(path.name, _FILE, directory, path)
        reason = _distrust(os.fstat(fd), os.fstat(directory))
    finally:
        os.close(directory)
    if reason:
        os.close(fd)
        raise UntrustedFile(reason, path=path)
    return fd


def open_directory(path: Path) -> int:
    """Open a directory of the spool, as a place to name files in, or refuse it. Raises as ``open_trusted``."""
    root, names = place_in_spool(path)
    if not names:
        return _open(path, _DIRECTORY | os.O_NOFOLLOW, None, path)
    above = _open(root, _DIRECTORY, None, root)
    owner: int | None = None
    for name in names:
        try:
            here = _open(name, _DIRECTORY | os.O_NOFOLLOW, above, path)
        finally:
            os.close(above)
        above = here
        found = os.fstat(here).st_uid
        if owner is not None and found != owner:
            os.close(here)
            raise UntrustedFile("a directory with another owner than the one above it", path=path)
        owner = found
    return above


def _open(name: str | Path, flags: int, directory: int | None, path: Path) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            raise UntrustedFile("a link, a socket, or not a directory where one must be", path=path) from error
        raise


def _distrust(status: os.stat_result, directory: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_nlink > 1:
        return "it has several names"
    if status.st_uid != directory.st_uid:
        return "it has another owner than its directory"
    return ""


# -- where a spool is put -------------------------------------------------------------------------------------------------


def check_root(directory: Path) -> None:
    """Whether others could put files into the spool that holds ``directory``; what does not exist yet is fine.

    Looked at are the root and what is directly below it. A volume that root has mounted there is taken as it is: in a
    container everybody may write to it, and there is nobody else.

    Raises:
        PermissionError: it belongs to another user, or others may write there; the message says what to do.
    """
    root, names = place_in_spool(directory)
    if not names:
        return
    for path in (root, root / names[0]):
        reason = _exposed(path, may_be_shared=path is root)
        if reason:
            raise PermissionError(errno.EACCES, f"not a safe place for a spool: {reason}", os.fspath(path))


def _exposed(path: Path, *, may_be_shared: bool) -> str:
    """What is wrong with a directory to log into, in words; empty if nothing is."""
    mine = (os.geteuid(), 0)
    try:
        link, found = path.lstat(), path.stat()
    except OSError:
        return ""  # not there yet, or whoever opens it is told why not
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in mine:
        return f"it is a link that user {link.st_uid} has put there; name another directory with MLFERRY_DIR"
    if found.st_uid == 0 and may_be_shared and path.is_mount():
        return ""
    if found.st_uid not in mine and not (os.geteuid() == 0 and not _anybody_may_name(path)):
        return f"it belongs to user {found.st_uid}; name a directory of your own with MLFERRY_DIR"
    if found.st_mode & stat.S_ISVTX and may_be_shared:
        return ""  # others may add names, but not replace ours
    if found.st_mode & stat.S_IWOTH:
        return "every user may write there; run chmod go-w on it, or name another directory with MLFERRY_DIR"
    if found.st_mode & stat.S_IWGRP and not _is_private(found.st_gid, found.st_uid):
        return "its group may write there; run chmod g-w on it, or name another directory with MLFERRY_DIR"
    return ""


def _anybody_may_name(path: Path) -> bool:
    """Whether the directory above is one like ``/tmp``, where any user may have made this one beforehand. Root in a
    container logs into directories of the host's users as a matter of course, but not into these."""
    try:
        return bool(path.parent.stat().st_mode & stat.S_IWOTH)
    except OSError:
        return True


def _is_private(gid: int, uid: int) -> bool:
    """Whether a group is the one that many systems make for each user, with nobody else in it."""
    import grp  # name services may be slow, and are asked for group-writable directories alone
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
