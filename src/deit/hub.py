"""Model names resolved to local files: a path, a variant's name, or a repository on the Hugging Face hub.

The module imports no heavy library. ``huggingface_hub`` is imported only for a name that is not a path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deit.errors import CheckpointError, did_you_mean
from deit.system.files import (
    BEST_NAME,
    BUNDLE_NAME,
    CONFIG_NAME,
    EMA_NAME,
    IMAGE_HASHES_NAME,
    INDEX_NAME,
    NESTED_PROCESSOR_NAME,
    PROCESSOR_NAME,
    RECIPE_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    read_json,
)
from deit.variants import VARIANTS

HUB_ARGUMENTS = frozenset({"revision", "cache_dir", "local_files_only", "token", "force_download", "subfolder"})
# Arguments of every ``from_pretrained`` of transformers that are accepted and have no effect.
IGNORED_HUB_ARGUMENTS = frozenset(
    {
        *("proxies", "resume_download", "local_dir_use_symlinks", "user_agent", "mirror", "trust_remote_code", "code_revision"),
        *("_from_auto", "_from_pipeline", "_commit_hash"),
    }
)
WEIGHT_FILES = (WEIGHTS_NAME, INDEX_NAME, "pytorch_model.bin", "pytorch_model.bin.index.json")  # in order of preference
PROCESSOR_FILES = (PROCESSOR_NAME, NESTED_PROCESSOR_NAME)
MAX_SHARDS = 1024
FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".json", ".tar")  # a name that ends so is not a repository
SUGGESTION_CUTOFF = 0.6
_REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


def hub_arguments(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits the arguments of a ``from_pretrained`` into those of :func:`fetch` and the rest.

    ``use_auth_token``, the older name of ``token``, is translated; ``IGNORED_HUB_ARGUMENTS`` are dropped.

    Raises:
        CheckpointError: both names of the token are given.

    Example:
        >>> hub_arguments({"use_auth_token": "t", "trust_remote_code": True, "num_labels": 3})
        ({'token': 't'}, {'num_labels': 3})
    """
    rest = {name: value for name, value in arguments.items() if name not in IGNORED_HUB_ARGUMENTS}
    hub = {name: rest.pop(name) for name in HUB_ARGUMENTS & rest.keys()}
    old_token = rest.pop("use_auth_token", None)
    if old_token is not None and hub.get("token") is not None:
        raise CheckpointError("token and use_auth_token are the same argument", "pass token only")
    return hub if old_token is None else {**hub, "token": old_token}, rest


def fetch(
    name: str | Path,
    files: Sequence[str] | None = None,
    *,
    optional: Sequence[str] = (),
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    force_download: bool = False,
    subfolder: str | None = None,
) -> Path:
    """Returns the file or directory that the name of a model refers to; every function that takes such a name calls this one.

    Files on the hub are first downloaded into its cache.

    Args:
        name: an existing path, which takes precedence, optionally prefixed with ``local-dir:``, where the directory of a run
            refers to its best model; the name of a variant, as here or as in timm, which refers to the published weights; or
            ``organization/name`` on the hub, optionally prefixed with ``hf-hub:`` and followed by ``@revision``.
        files: required files. None means a whole model: configuration, weights, and preprocessing if present.
        optional: files to download if they exist. If ``files`` is empty, at least one of them must exist.
        revision: branch, tag or commit on the hub; None means ``main``. A path has no revision.
        cache_dir: cache directory; None means the default cache of the hub.
        local_files_only: use the cache only, as with the environment variable HF_HUB_OFFLINE.
        token: token for private and gated models; None or True means the one stored by ``hf auth login``, False none.
        force_download: download files again even if they are in the cache.
        subfolder: directory of the files within the directory or repository.

    Returns:
        The path itself, or the cache directory with the files of one commit.

    Raises:
        CheckpointError: nothing was found under this name, or the hub could not be reached. The message says where it looked.
    """
    text, subfolder = str(name), subfolder or ""
    _check_relative(subfolder, "subfolder")
    for file in (*(files or ()), *optional):
        _check_relative(file, "file name")
    local = Path(text.removeprefix("local-dir:"))
    if text.strip() and _exists(local):
        if revision not in (None, "main"):  # scripts often pass "main" by default
            raise CheckpointError(f"{local} is a path, and a path has no revision", "omit the revision")
        if subfolder and not (local / subfolder).exists():
            raise CheckpointError(f"{local} has no {subfolder}", "check the subfolder")
        return model_path(local / subfolder if subfolder else local)
    if text.startswith("local-dir:"):
        raise CheckpointError(f"{local} does not exist", "check the path")
    repo_id, revision = _parse_name(text, revision)
    options = {"cache_dir": cache_dir, "token": token, "force_download": force_download, "subfolder": subfolder or None}
    repository = _Repository(text, repo_id, revision or "main", local_files_only, options)
    if files is None:
        return repository.download_model()
    for file in files:
        repository.require(file)
    for file in optional:
        repository.download(file)
    if repository.directory is None:
        raise repository.missing(" or ".join(optional))
    return repository.directory


def fetch_file(name: str | Path, files: Sequence[str], **options: Any) -> Path:
    """Returns the first of several files that a model has; see :func:`fetch` for its name.

    Args:
        name: name of the model, or the path of a JSON file, which is returned itself. The path of a file of weights that
            has a name of a model directory refers to the files beside it.
        files: file names, in order of preference.
        options: keyword arguments of :func:`fetch`.

    Raises:
        CheckpointError: see :func:`fetch`; or the model has none of the files.
    """
    path = fetch(name, (), optional=files, **options)
    if path.is_file() and path.suffix == ".json" and path.name not in WEIGHT_FILES:
        return path
    directory = directory_of(path)
    if directory is None:
        raise CheckpointError(f"{path} is a single file, without {' or '.join(files)}", "pass a model directory, or a run")
    path = directory
    if found := next((path / file for file in files if (path / file).is_file()), None):
        return found
    if (path / BUNDLE_NAME).is_file() and CONFIG_NAME in files:
        raise CheckpointError(
            f"{path} is an exported model, which has no {CONFIG_NAME}", "pass the model that it was exported from"
        )
    raise CheckpointError(f"{path} has no {' or '.join(files)}", "pass a model directory, or a run with a finished epoch")


def directory_of(path: Path) -> Path | None:
    """Returns the directory whose files belong to a model: of a file of weights only if it has a name of a model directory.

    Example:
        >>> directory_of(Path("run/best/model.safetensors")), directory_of(Path("downloads/weights.pth"))
        (PosixPath('run/best'), None)
    """
    if path.is_dir():
        return path
    return path.parent if path.name in (*WEIGHT_FILES, EMA_NAME) else None


def model_path(path: Path) -> Path:
    """Returns the path of a model: for the directory of a run that of its best model, otherwise the path itself.

    Raises:
        CheckpointError: the path does not exist, or is a run without a finished epoch.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "check the path of the model, checkpoint or run")
    if not path.is_dir() or (path / CONFIG_NAME).is_file():
        return path
    if (path / BEST_NAME / CONFIG_NAME).is_file():
        return path / BEST_NAME
    if (path / RECIPE_NAME).is_file():
        raise CheckpointError(f"The run {path} has no finished epoch", "resume it: deit train --resume")
    return path


def shard_names(index: Path) -> list[str]:
    """Returns the distinct files named in an index such as ``model.safetensors.index.json``, sorted.

    Raises:
        CheckpointError: the index is corrupt, or names something other than files in its own directory.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map from tensors to files", "copy or download it again")
    names = set(map(str, weight_map.values()))
    for name in sorted(names):
        if not re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,199}", name, re.ASCII):
            raise CheckpointError(f"{index} names the shard {name[:100]!r}", "a shard is a file in the directory of its index")
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(names)} files", f"the limit is {MAX_SHARDS}")
    return sorted(names)


@dataclass
class _Repository:
    """One commit of a repository on the hub.

    The first downloaded file pins the commit, so that a concurrent push cannot mix files of two commits.

    Attributes:
        name: name that the caller passed.
        repo_id: ``organization/name``.
        revision: branch, tag or commit; the commit after the first download.
        offline: use the cache only.
        options: further arguments of ``hf_hub_download``.
        directory: cache directory of the commit; None before the first download.
    """

    name: str
    repo_id: str
    revision: str
    offline: bool
    options: dict[str, Any]
    directory: Path | None = None

    def download_model(self) -> Path:
        """Downloads all files of a model and returns their directory."""
        directory = self.require(CONFIG_NAME).parent
        weights = next((path for file in WEIGHT_FILES if (path := self.download(file))), None)
        if weights is None:
            raise self.missing(" or ".join(WEIGHT_FILES))
        for shard in shard_names(weights) if weights.name.endswith(".index.json") else ():
            self.require(shard)
        for file in PROCESSOR_FILES:
            self.download(file)
        if self.download(RECORD_NAME) is not None:  # only models that were trained here have it
            self.download(IMAGE_HASHES_NAME)
        return directory

    def require(self, file: str) -> Path:
        """Downloads a file that must exist."""
        if (path := self.download(file)) is None:
            raise self.missing(file)
        return path

    def download(self, file: str) -> Path | None:
        """Downloads a file; returns None if the repository, or offline the cache, does not have it."""
        import huggingface_hub as hub
        from huggingface_hub import constants, errors

        try:
            path = Path(
                hub.hf_hub_download(self.repo_id, file, revision=self.revision, local_files_only=self.offline, **self.options)
            )
        except errors.LocalEntryNotFoundError as error:
            if self.offline or constants.HF_HUB_OFFLINE:
                return None
            if self.directory is None:
                raise CheckpointError(
                    f"{self._location} cannot be reached, and {file} is not in the cache at {self._cache}",
                    "check the network, or pass the path of a model directory",
                ) from error
            self.offline = True  # earlier files came from the cache: take the rest from there without asking the hub again
            return None
        except errors.EntryNotFoundError:
            return None
        except Exception as error:
            raise self._download_error(file, error) from error
        self.directory = path.parents[file.count("/")]
        subfolder_depth = len(self.options["subfolder"].split("/")) if self.options["subfolder"] else 0
        self.revision = path.parents[file.count("/") + subfolder_depth].name
        return path

    def missing(self, what: str) -> CheckpointError:
        """Returns the error for a file that does not exist."""
        from huggingface_hub import constants

        folder = f"{self.options['subfolder']}/ of " if self.options["subfolder"] else ""
        if self.offline or constants.HF_HUB_OFFLINE:
            return CheckpointError(
                f"{what} of {folder}{self.repo_id} ({self.revision}) is not in the cache at {self._cache}; "
                f"{self.name!r} is not a path in {Path.cwd()} either, and the hub is not available offline",
                f"go online once (without HF_HUB_OFFLINE), or pass the path of a model directory{_suggestion(self.name)}",
            )
        return CheckpointError(
            f"{folder}{self.repo_id} ({self.revision}) at {constants.ENDPOINT} has no {what}",
            "check that it is an image classifier, and whether its files are in a subfolder",
        )

    def _download_error(self, file: str, error: Exception) -> CheckpointError:
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            return CheckpointError(
                f"{self._location} is gated", "accept its conditions on its page, then run `hf auth login` or pass a token"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return CheckpointError(
                f"{self.name!r} is not a path in {Path.cwd()}, and there is no repository {self._location}",
                f"check the name{_suggestion(self.name)}; a private repository needs a token",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return CheckpointError(f"{self._location} has no revision {self.revision!r}", "check the branch, tag or commit")
        lines = str(error).strip().splitlines()
        return CheckpointError(
            f"{file} of {self._location} could not be downloaded ({lines[0] if lines else type(error).__name__})",
            "check the network and the arguments, or pass the path of a model directory",
        )

    @property
    def _location(self) -> str:
        from huggingface_hub import constants

        return f"{self.repo_id} at {constants.ENDPOINT}"

    @property
    def _cache(self) -> Path:
        from huggingface_hub import constants

        return Path(self.options["cache_dir"] or constants.HF_HUB_CACHE)


def _parse_name(text: str, revision: str | None) -> tuple[str, str | None]:
    """Returns ``organization/name`` on the hub and the revision."""
    name, _, own_revision = text.removeprefix("hf-hub:").removeprefix("hf_hub:").partition("@")
    if own_revision and revision and own_revision != revision:
        raise CheckpointError(f"{text!r} names the revision {own_revision}, and {revision} was passed", "omit one of the two")
    revision = revision or own_revision or None
    if revision is not None:
        _check_relative(revision, "revision")
    variant_name = re.sub(r"\.fb_in1k$", "", name).replace("_", "-") if "/" not in name else name
    if variant_name in VARIANTS:
        return VARIANTS[variant_name].hub_name, revision
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or Path(name).suffix in FILE_SUFFIXES:
        raise CheckpointError(f"{text[:200]} does not exist", "check the path")
    if not _REPO_ID.fullmatch(name) or ".." in name or "--" in name:
        raise CheckpointError(
            f"{text[:200]!r} is not a path in {Path.cwd()}, a variant, or an organization/name on the hub",
            f"check the path{_suggestion(name)}; `deit model list` shows all variants",
        )
    return name, revision


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system allows
        return False


def _suggestion(name: str) -> str:
    """Returns ", or did you mean X" with the closest variant, if there is one."""
    short_name = name.rpartition("/")[2].replace("_", "-")
    suggestion = did_you_mean(short_name, VARIANTS, SUGGESTION_CUTOFF) if short_name not in VARIANTS else ""
    return f", or {suggestion}" if suggestion else ""


def _check_relative(path: str, what: str) -> None:
    """Refuses a path that could lead out of its directory."""
    names = path.split("/")
    if path and (not path.isprintable() or "\\" in path or ":" in path or any(name in ("", ".", "..") for name in names)):
        raise CheckpointError(f"The {what} {path[:200]!r} is not a plain relative path", "pass one without '..'")
