"""Names of models -> files on this machine: a path, a variant's name, or a repository of the Hugging Face hub.

Nothing heavy is imported here, and ``huggingface_hub`` only once a name is no path.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit.errors import CheckpointError
from deit.system.files import CONFIG_NAME, INDEX_NAME, NESTED_PROCESSOR_NAME, PROCESSOR_NAME, WEIGHTS_NAME, read_json
from deit.variants import VARIANTS

HUB_ARGUMENTS = frozenset({"revision", "cache_dir", "local_files_only", "token", "force_download", "subfolder"})
WEIGHTS = (WEIGHTS_NAME, INDEX_NAME, "pytorch_model.bin", "pytorch_model.bin.index.json")
PROCESSORS = (PROCESSOR_NAME, NESTED_PROCESSOR_NAME)
MAX_SHARDS = 1024
FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".json", ".tar")  # of no repository
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


def hub_arguments(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a ``from_pretrained`` -> those of :func:`fetch`, and the rest."""
    options = {name: value for name, value in arguments.items() if name in HUB_ARGUMENTS}
    return options, {name: value for name, value in arguments.items() if name not in HUB_ARGUMENTS}


def fetch(
    name: str | Path,
    files: Sequence[str] | None = None,
    *,
    optional: Sequence[str] = (),
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
    force_download: bool = False,
    subfolder: str | None = None,
) -> Path:
    """The file or directory that a name stands for; from the hub it is downloaded first, into the hub's cache.

    Args:
        name: a path, which wins over all else (``local-dir:`` before it is allowed); a variant's name in our spelling or
            timm's, which stands for the authors' weights; or ``organization/name`` on the hub, with ``hf-hub:`` before it and
            ``@revision`` after it if you like.
        files: which must be there; None means a whole model: its configuration, weights, and preprocessing if it has one.
        optional: which are taken along where they exist; one must, where ``files`` are none.
        revision: branch, tag or commit on the hub; ``main`` when None. A path has none.
        cache_dir: the hub's cache when None.
        local_files_only: only the cache is looked at, as with the environment's HF_HUB_OFFLINE.
        token: for private and gated models; the one that ``hf auth login`` stored when None.
        force_download: load again what is in the cache.
        subfolder: of the directory or repository, if the files are not at its top.

    Returns:
        The path itself, or the directory in the cache that holds the files of one commit.

    Raises:
        CheckpointError: there is no such thing, or it could not be reached; the message says where it was looked for.
    """
    text, subfolder = str(name), subfolder or ""
    _check_relative(subfolder, "subfolder")
    for file in (*(files or ()), *optional):
        _check_relative(file, "file name")
    local = Path(text.removeprefix("local-dir:"))
    if text.strip() and _exists(local):
        if revision not in (None, "main"):  # which scripts pass by default
            raise CheckpointError(f"{local} is a path, and a path has no revision", "leave out the revision")
        if subfolder and not (local / subfolder).exists():
            raise CheckpointError(f"{local} has no {subfolder}", "check the subfolder")
        return local / subfolder if subfolder else local
    if text.startswith("local-dir:"):
        raise CheckpointError(f"{local} does not exist", "check the path")
    repository, revision = _repository(text, revision)
    options = {"cache_dir": cache_dir, "token": token, "force_download": force_download, "subfolder": subfolder or None}
    source = _Source(text, repository, revision or "main", local_files_only, options)
    if files is None:
        return source.model()
    for file in files:
        source.need(file)
    for file in optional:
        source.get(file)
    if source.directory is None:
        raise source.missing(" or ".join(optional))
    return source.directory


def shard_names(index: Path) -> list[str]:
    """The files that an index such as ``model.safetensors.index.json`` names, each once.

    Raises:
        CheckpointError: the index is damaged, or names anything but plain files beside it.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map from tensors to files", "copy or download it again")
    names = set(map(str, places.values()))
    for name in sorted(names):
        if not re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,199}", name, re.ASCII):
            raise CheckpointError(f"{index} names the shard {name[:100]!r}", "a shard is a plain file name beside its index")
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(names)} files", f"at most {MAX_SHARDS} are read")
    return sorted(names)


@dataclass
class _Source:
    """One commit of a repository. The first file fixes the commit, so that a push in between cannot mix two."""

    name: str
    repository: str
    revision: str
    offline: bool
    options: dict[str, Any]
    directory: Path | None = None

    def model(self) -> Path:
        """The files of a whole model; their directory."""
        directory = self.need(CONFIG_NAME).parent
        weights = next((path for file in WEIGHTS if (path := self.get(file))), None)
        if weights is None:
            raise self.missing(" or ".join(WEIGHTS))
        for shard in shard_names(weights) if weights.name.endswith(".index.json") else ():
            self.need(shard)
        for file in PROCESSORS:
            self.get(file)
        return directory

    def need(self, file: str) -> Path:
        """One file, which must exist."""
        if (path := self.get(file)) is None:
            raise self.missing(file)
        return path

    def get(self, file: str) -> Path | None:
        """One file; None where the repository, or offline the cache, has none of this name."""
        import huggingface_hub as hub
        from huggingface_hub import constants, errors

        where = f"{self.repository} at {constants.ENDPOINT}"
        try:
            path = hub.hf_hub_download(
                self.repository, file, revision=self.revision, local_files_only=self.offline, **self.options
            )
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{where} is gated", "accept its conditions on its page, then run `hf auth login` or pass a token"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{self.name!r} is no path from {Path.cwd()}, and there is no repository {where}",
                f"check the name{_near(self.name)}; a private one needs a token",
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(f"{where} has no revision {self.revision!r}", "check the branch, tag or commit") from error
        except errors.LocalEntryNotFoundError as error:
            if self.offline or constants.HF_HUB_OFFLINE:
                return None
            if self.directory is None:
                raise CheckpointError(
                    f"{where} cannot be reached, and {file} is not in the cache at {self._cache}",
                    "check the network, or pass the path of a model directory",
                ) from error
            self.offline = True  # the other files came from the cache: what is not there is not asked for again
            return None
        except errors.EntryNotFoundError:
            return None
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise CheckpointError(
                f"{file} of {where} could not be downloaded ({reason[0] if reason else type(error).__name__})",
                "check the network and the arguments, or pass the path of a model directory",
            ) from error
        found = Path(path)
        self.directory = found.parents[file.count("/")]
        above = len(self.options["subfolder"].split("/")) if self.options["subfolder"] else 0
        self.revision = found.parents[file.count("/") + above].name
        return found

    @property
    def _cache(self) -> Path:
        from huggingface_hub import constants

        return Path(self.options["cache_dir"] or constants.HF_HUB_CACHE)

    def missing(self, what: str) -> CheckpointError:
        """The error for a file that is not there."""
        from huggingface_hub import constants

        folder = f"{self.options['subfolder']}/ of " if self.options["subfolder"] else ""
        if self.offline or constants.HF_HUB_OFFLINE:
            return CheckpointError(
                f"{what} of {folder}{self.repository} ({self.revision}) is not in the cache at {self._cache}; "
                f"{self.name!r} is no path from {Path.cwd()} either, and the hub could not be asked",
                f"go online once (without HF_HUB_OFFLINE), or pass the path of a model directory{_near(self.name)}",
            )
        return CheckpointError(
            f"{folder}{self.repository} ({self.revision}) at {constants.ENDPOINT} holds no {what}",
            "it may be no image classifier, or lie in a subfolder",
        )


def _repository(text: str, revision: str | None) -> tuple[str, str | None]:
    """``organization/name`` on the hub, and the revision."""
    name = text.removeprefix("hf-hub:").removeprefix("hf_hub:")
    name, _, own = name.partition("@")
    if own and revision and own != revision:
        raise CheckpointError(f"{text!r} names the revision {own}, and {revision} was asked for", "leave out one of the two")
    revision = revision or own or None
    if revision is not None:
        _check_relative(revision, "revision")
    short = re.sub(r"\.fb_in1k$", "", name).replace("_", "-") if "/" not in name else name
    if short in VARIANTS:
        return VARIANTS[short].hub_name, revision
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or Path(name).suffix in FILE_ENDINGS:
        raise CheckpointError(f"{text[:200]} does not exist", "check the path")
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name:
        raise CheckpointError(
            f"{text[:200]!r} is no path from {Path.cwd()}, no variant's name and no organization/name of the hub",
            f"check the path{_near(name)}; `deit model list` shows all variants",
        )
    return name, revision


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system allows
        return False


def _near(name: str) -> str:
    """A hint at the variant that was likely meant."""
    short = name.rpartition("/")[2].replace("_", "-")
    near = difflib.get_close_matches(short, VARIANTS, n=1, cutoff=0.6)
    return f", or did you mean {near[0]}" if near and near[0] != short else ""


def _check_relative(text: str, what: str) -> None:
    """Refuse what would lead out of a directory."""
    steps = text.split("/")
    if text and (not text.isprintable() or "\\" in text or ":" in text or any(step in ("", ".", "..") for step in steps)):
        raise CheckpointError(f"The {what} {text[:200]!r} leads elsewhere", "give a relative one without '..'")
