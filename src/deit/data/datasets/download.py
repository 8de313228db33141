"""Downloads, verifies and unpacks the files of public data sets."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import ssl
import tarfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from deit.errors import DataError
from deit.system.files import locked_draft, new_file
from deit.system.progress import Progress, print_status

TIMEOUT = 30.0  # seconds without a byte
BLOCK = 2**20
MAX_UNPACK_RATIO = 20  # image archives do not unpack to more than this many times their size
ARCHIVE_ERRORS = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError)


@dataclass(frozen=True)
class Remote:
    """A file of a data set.

    Attributes:
        url: its address.
        md5: MD5 of its content; None if the authors publish none.
        size: approximate size in bytes; at most twice as much is downloaded.
        holds: file or folder in the data set's folder that it provides.
    """

    url: str
    md5: str | None
    size: int
    holds: str

    @property
    def file(self) -> str:
        """Name of the file on disk."""
        return self.url.rpartition("/")[2]

    @property
    def is_archive(self) -> bool:
        """Whether the file is an archive."""
        return self.file != self.holds


def ensure(root: Path, name: str, *remotes: Remote) -> None:
    """Provides the missing files of a data set, from an archive in its folder or by download.

    Args:
        root: folder of the data set.
        name: name of the data set, for messages.
        remotes: its files.

    Raises:
        DataError: the download fails, the disk is too small, or a file is not the one that the authors published.
    """
    missing = [remote for remote in remotes if not (root / remote.holds).exists()]
    needed = sum(remote.size * (2 if remote.is_archive else 1) for remote in missing)
    absent = [remote for remote in missing if not (root / remote.file).is_file()]
    if absent:
        _prepare(root, name, absent[0], needed)
    for remote in missing:
        file = root / remote.file
        downloaded = remote in absent
        if downloaded:
            download(remote, file, name)
        elif remote.md5 is not None and _md5(file) != remote.md5:
            raise DataError(f"{file} is not the file that the authors of {name} published", "remove it or copy it again")
        if remote.is_archive:
            unpack(file, root, remote.holds)
            if downloaded:
                file.unlink(missing_ok=True)  # another program may have unpacked and removed it


def download(remote: Remote, target: Path, name: str) -> None:
    """Downloads and verifies a file. It appears at ``target`` only once it is complete.

    Raises:
        DataError: as in :func:`ensure`.
        UserError: another program is downloading it.
    """
    remedy = _remedy(remote, target.parent)
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with (
            new_file(target) as draft,
            urllib.request.urlopen(remote.url, timeout=TIMEOUT) as response,
            draft.open("wb") as file,
        ):
            total = int(response.headers.get("Content-Length") or remote.size)
            print_status(f"Downloading {target.name} of {name}, {total / 1e6:,.1f} MB, to {target.parent}.")
            with Progress(f"Downloading {target.name}", -(-total // BLOCK), unit="MiB") as progress:
                received = 0
                while block := response.read(BLOCK):
                    received += len(block)
                    if received > 2 * remote.size + BLOCK:
                        raise DataError(f"{remote.url} is far larger than {name}", remedy)
                    digest.update(block)
                    file.write(block)
                    progress.advance(1)
            if received < total or (remote.md5 is not None and digest.hexdigest() != remote.md5):
                raise DataError(f"The download of {remote.url} is truncated or another file", f"try again, or {remedy}")
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError, ssl.SSLError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "reason", None) or error
        raise DataError(f"{name} cannot be downloaded ({reason})", remedy) from error


def unpack(archive: Path, root: Path, holds: str, flat: bool = False) -> None:
    """Extracts a file or folder from a tar archive. Only regular files and folders are created.

    The result appears only once it is complete. One that another program has unpacked meanwhile is kept.

    Args:
        archive: the archive.
        root: folder to extract to.
        holds: file or folder in the archive.
        flat: the archive has no top-level folder; all files are extracted to the folder ``holds``.

    Raises:
        DataError: the archive is damaged, lacks ``holds``, or would unpack to far more than its size.
        UserError: another program is unpacking it.
    """
    with locked_draft(root / holds) as draft:
        if (root / holds).exists():
            return
        archive_size = archive.stat().st_size
        content = draft / "content"
        content.mkdir()
        try:
            with (
                archive.open("rb") as raw,
                tarfile.open(fileobj=raw) as tar,
                Progress(f"Unpacking {archive.name}", archive_size // BLOCK, unit="MiB") as progress,
            ):
                received = done = 0
                for member in tar:
                    if not (member.isfile() or member.isdir()):
                        continue
                    received += member.size
                    if received > MAX_UNPACK_RATIO * archive_size + BLOCK:
                        raise DataError(f"{archive} unpacks to far more than its size", "it is not an archive of images")
                    tar.extract(member, content, filter="data")
                    progress.advance(raw.tell() // BLOCK - done)
                    done = raw.tell() // BLOCK
        except ARCHIVE_ERRORS as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{archive} cannot be unpacked ({str(error)[:160]})", "remove it or copy it again") from error
        extracted = content if flat else content / holds
        if not extracted.exists():
            raise DataError(f"{archive} holds no {holds}", "remove it or copy it again")
        extracted.rename(root / holds)


def _prepare(root: Path, name: str, first: Remote, needed: int) -> None:
    """Creates the folder, after checking that downloads are allowed and the disk is large enough."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        problem = f"{name} is not in {root}, and HF_HUB_OFFLINE disables downloads"
        raise DataError(problem, _remedy(first, root))
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DataError(
            f"{name} needs {needed / 1e9:,.1f} GB in {root}, but {free / 1e9:,.1f} GB are free",
            "use a folder on another disk: NAME:FOLDER, or set DEIT_DATA",
        )


def _remedy(remote: Remote, root: Path) -> str:
    return f"download {remote.url} elsewhere and put it into {root}"


def _md5(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
