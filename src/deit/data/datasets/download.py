"""Files of public data sets: fetched where there is a network, checked, and unpacked so that nothing lands elsewhere."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import ssl
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from deit.errors import DataError
from deit.system.progress import Progress, print_status

TIMEOUT = 30.0  # seconds without a byte
BLOCK = 2**20
UNPACKED = 20  # times its size: an archive that wants to become larger is no archive of images
ARCHIVE_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError)


@dataclass(frozen=True)
class Remote:
    """One file that a data set is made of.

    Attributes:
        url: where its authors keep it.
        md5: of its content; None where its authors name none.
        size: in bytes; roughly, and at most twice as much is taken.
        holds: the file or folder that it becomes, in the data set's folder.
    """

    url: str
    md5: str | None
    size: int
    holds: str

    @property
    def file(self) -> str:
        """Its name on disk."""
        return self.url.rpartition("/")[2]

    @property
    def packed(self) -> bool:
        """Whether it is an archive."""
        return self.file != self.holds


def ensure(root: Path, name: str, *remotes: Remote) -> None:
    """Put into a data set's folder what is missing there: from a file that lies in it already, or from the network.

    Args:
        name: of the data set, for a person.

    Raises:
        DataError: no network, too little room on the disk, or a file that is not what its authors published.
    """
    missing = [remote for remote in remotes if not (root / remote.holds).exists()]
    needed = sum(remote.size * (2 if remote.packed else 1) for remote in missing)
    absent = [remote for remote in missing if not (root / remote.file).is_file()]
    if absent:
        _prepare(root, name, absent[0], needed)
    for remote in missing:
        file = root / remote.file
        fetched = remote in absent
        if fetched:
            download(remote, file, name)
        elif remote.md5 is not None and _md5(file) != remote.md5:
            raise DataError(f"{file} is not the file that the authors of {name} published", "remove it or copy it again")
        if remote.packed:
            unpack(file, root, remote.holds)
            if fetched:
                file.unlink()


def download(remote: Remote, target: Path, name: str) -> None:
    """Fetch one file and check it; a file at ``target`` is always whole.

    Raises:
        DataError: as :func:`ensure`.
    """
    get_it = _remedy(remote, target.parent)
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(remote.url, timeout=TIMEOUT) as answer, draft.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or remote.size)
            print_status(f"Downloading {target.name} of {name}, {total / 1e6:,.1f} MB, to {target.parent}.")
            with Progress(f"Downloading {target.name}", -(-total // BLOCK), unit="MiB") as progress:
                taken = 0
                while block := answer.read(BLOCK):
                    taken += len(block)
                    if taken > 2 * remote.size + BLOCK:
                        raise DataError(f"{remote.url} is far larger than {name}", get_it)
                    digest.update(block)
                    file.write(block)
                    progress.advance(1)
        if taken < total or (remote.md5 is not None and digest.hexdigest() != remote.md5):
            raise DataError(f"What came from {remote.url} is cut off or another file", f"try again, or {get_it}")
        draft.replace(target)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{name} cannot be downloaded ({reason})", get_it) from error
    finally:
        draft.unlink(missing_ok=True)


def unpack(archive: Path, root: Path, holds: str, flat: bool = False) -> None:
    """Take ``holds``, a file or a folder, out of a tar archive into ``root``; only plain files and folders are made.

    ``holds`` stands there whole or not at all.

    Args:
        flat: the archive has no folder around its files: ``holds`` is the folder that gets all of them.

    Raises:
        DataError: the archive is damaged, has no such thing in it, or wants to become too large.
    """
    packed = archive.stat().st_size
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking.") as draft:
        content = Path(draft) / "content"
        content.mkdir()
        try:
            with (
                archive.open("rb") as raw,
                tarfile.open(fileobj=raw) as tar,
                Progress(f"Unpacking {archive.name}", packed // BLOCK, unit="MiB") as progress,
            ):
                taken = done = 0
                for member in tar:
                    if not (member.isfile() or member.isdir()):
                        continue
                    taken += member.size
                    if taken > UNPACKED * packed + BLOCK:
                        raise DataError(f"{archive} unpacks to far more than its size", "it is no archive of images")
                    tar.extract(member, content, filter="data")
                    progress.advance(raw.tell() // BLOCK - done)
                    done = raw.tell() // BLOCK
        except ARCHIVE_ERRORS as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{archive} cannot be unpacked ({str(error)[:160]})", "remove it or copy it again") from error
        found = content if flat else content / holds
        if not found.exists():
            raise DataError(f"{archive} holds no {holds}", "remove it or copy it again")
        found.rename(root / holds)


def _prepare(root: Path, name: str, first: Remote, needed: int) -> None:
    """Make the folder, where there may be a download and there is room for it."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        problem = f"{name} is not in {root}, and the network is switched off by HF_HUB_OFFLINE"
        raise DataError(problem, _remedy(first, root))
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DataError(
            f"{name} needs {needed / 1e9:,.1f} GB in {root}, where {free / 1e9:,.1f} GB are free",
            "name a folder on another disk: NAME:FOLDER, or DEIT_DATA in the environment",
        )


def _remedy(remote: Remote, root: Path) -> str:
    return f"fetch {remote.url} elsewhere and put it into {root}"


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
