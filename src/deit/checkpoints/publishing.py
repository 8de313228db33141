"""Publishes models on the Hugging Face hub. Only the files of the model are uploaded."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, cast

from deit.checkpoints.metadata import open_weights
from deit.checkpoints.model_card import model_card
from deit.errors import CheckpointError, DeiTError, UserError, WorkError
from deit.hub import model_path
from deit.system.files import (
    CARD_NAME,
    CONFIG_NAME,
    IMAGE_HASHES_NAME,
    INDEX_NAME,
    PROCESSOR_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    json_bytes,
    read_json,
)

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

CLASS_MAPS = ("id2label", "label2id")  # class names may look like paths, such as /m/01g317
REPO_NAME = r"\w(?:\w|[.-](?![.-])){0,95}\b"  # as on the hub, except that . and - may not follow each other
MAX_CARD_BYTES = 2**20
MAX_REASON_LENGTH = 200  # characters of an error message of the hub
RETRY_STATUSES = (408, 429)

# HTTP status -> problem and remedy
STATUS_ERRORS = {
    401: ("The hub does not accept the token", "make one at https://huggingface.co/settings/tokens and run `hf auth login`"),
    403: ("The token may not write to {repo}", "use a token with write access, or another OWNER/NAME"),
    404: ("The hub has no {repo} that the token can access", "check owner, name and revision"),
}


@dataclass(frozen=True)
class PushPlan:
    """Files to upload to a repository.

    Attributes:
        repo_id: ``OWNER/NAME``.
        files: name in the repository -> local file, or the content to upload if it differs from the file.
    """

    repo_id: str
    files: dict[str, Path | bytes]

    @property
    def card(self) -> str:
        """The model card."""
        content = self.files[CARD_NAME]
        return (content if isinstance(content, bytes) else content.read_bytes()).decode()

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each file in bytes."""
        return {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()}

    def write_to(self, directory: Path) -> None:
        """Creates the files in an empty directory. Unmodified files become symbolic links."""
        for name, file in self.files.items():
            if isinstance(file, bytes):
                (directory / name).write_bytes(file)
            else:
                (directory / name).symlink_to(file.resolve())


def plan_push(directory: Path, repo_id: str, license: str | None = None) -> PushPlan:
    """Returns the files that :func:`push_to_hub` would upload, checked without network access.

    Args:
        directory: model directory, or directory of a run, which refers to its best model. A model card in it is uploaded
            unchanged, unless training wrote it: then it is written again for the repository.
        repo_id: ``OWNER/NAME``.
        license: identifier of a license on the hub, which is added to the card.

    Raises:
        CheckpointError: the directory does not contain a complete model.
        UserError: invalid repository name or license identifier.

    Example:
        >>> plan_push(Path("runs/photos"), "me/photos").sizes  # doctest: +SKIP
        {'config.json': 812, 'model.safetensors': 22873456, 'preprocessor_config.json': 421, 'README.md': 3010}
    """
    _check_name(repo_id)
    if license is not None:
        license = license.lower()
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", license):
            raise UserError(f"{license!r} is not a license identifier", "pass one, such as apache-2.0 or mit, or `other`")
    model = model_path(directory)
    if not (model / CONFIG_NAME).is_file():
        raise CheckpointError(f"{model} has no {CONFIG_NAME}", "pass a model directory, or a run with a finished epoch")
    files: dict[str, Path | bytes] = {CONFIG_NAME: _clean_json(model / CONFIG_NAME)}
    weights = open_weights(model)
    if not (model / WEIGHTS_NAME).is_file():
        files[INDEX_NAME] = _clean_json(model / INDEX_NAME)
    files |= {file.path.name: file.path for file in weights}
    if (model / PROCESSOR_NAME).is_file():
        files[PROCESSOR_NAME] = _clean_json(model / PROCESSOR_NAME)
    if (model / RECORD_NAME).is_file() and isinstance(record := _clean_json(model / RECORD_NAME), Path):
        files[RECORD_NAME] = record
    if (model / IMAGE_HASHES_NAME).is_file():
        _refuse_link(model / IMAGE_HASHES_NAME)
        files[IMAGE_HASHES_NAME] = model / IMAGE_HASHES_NAME
    files[CARD_NAME] = _card(model, repo_id, license).encode()
    return PushPlan(repo_id, files)


def push_to_hub(
    directory: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload model",
    create_pr: bool = False,
    license: str | None = None,
) -> str:
    """Uploads a model to the hub. Creates the repository if it does not exist.

    Args:
        directory: model directory, or directory of a run, see :func:`plan_push`. It is not modified.
        repo_id: ``OWNER/NAME``.
        private: create a private repository; an error if it exists and is public.
        token: hub token; None means the one from ``hf auth login`` or the environment variable HF_TOKEN.
        revision: branch to upload to, created if it does not exist.
        commit_message: message of the commit.
        create_pr: open a pull request instead of committing to the main branch.
        license: identifier of a license on the hub, which is added to the card.

    Returns:
        The URL of the commit or the pull request.

    Raises:
        UserError: invalid model, name or token, or missing permission.
        WorkError: the network or the hub failed.

    Example:
        >>> push_to_hub(Path("runs/photos"), "me/photos", private=True)  # doctest: +SKIP
        'https://huggingface.co/me/photos/commit/...'
    """
    plan = plan_push(directory, repo_id, license)
    if create_pr and revision is not None:
        raise UserError("A pull request goes to the main branch", "omit either the revision or the pull request")

    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if not token:
        raise UserError("No token for the Hugging Face hub was found", "run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="deit-push-") as draft, _hub_errors(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise UserError(f"{repo_id} already exists and is public", "make it private on the hub, or pass another name")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        plan.write_to(Path(draft))
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=draft,
            allow_patterns=list(plan.files),
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


def _check_name(repo_id: str) -> None:
    if not re.fullmatch(f"{REPO_NAME}/{REPO_NAME}(?<!\\.git)", repo_id, re.ASCII):
        remedy = "write OWNER/NAME, in letters, digits, and single - _ or . between them"
        raise UserError(f"{repo_id!r} is not a repository name", remedy)


def _clean_json(path: Path) -> Path | bytes:
    """Returns a JSON file, or its content without values that are local paths, if it has any."""
    _refuse_link(path)
    content = read_json(path)
    clean = _without_paths(content)
    return path if clean == content else json_bytes(clean, path)


def _without_paths(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_paths(value) if isinstance(value, dict) and name not in CLASS_MAPS else value
        for name, value in content.items()
        if not (isinstance(value, str) and (value.startswith(("/", "~", "\\")) or PureWindowsPath(value).drive))
    }


def _card(model: Path, repo_id: str, license: str | None) -> str:
    """Returns the model card: the existing one, or a new one if there is none or it is as training wrote it."""
    path = model / CARD_NAME
    _refuse_link(path)
    existing = _read_text(path) if path.is_file() else None
    if existing is None or existing == model_card(model):
        return model_card(model, repo_id=repo_id, license=license)
    return _set_license(existing, license, path)


def _refuse_link(path: Path) -> None:
    """Refuses a symbolic link, with which a foreign model could publish a local file.

    Weights need no check, since no other file has their format.
    """
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link to another file", "replace it by the file, or remove it")


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_CARD_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_CARD_BYTES >> 20} MiB", "shorten or remove it")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text", "correct or remove it") from error


def _set_license(text: str, license: str | None, path: Path) -> str:
    """Returns a card with this license in its metadata. Even without a license, the metadata must be valid."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        card = ModelCard(text)
    except (YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"The metadata block of {path} is invalid", "correct or remove the file") from error
    if license is None:
        return text
    card.data["license"] = license
    return str(card)


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Translates exceptions of huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # Base classes of the HTTP library, which differs between versions of huggingface_hub, and of the operating system.
    connection_errors = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        yield
    except DeiTError:
        raise
    except OfflineModeIsEnabled as error:
        raise UserError("The hub is not available in offline mode", "unset HF_HUB_OFFLINE") from error
    except HfHubHTTPError as error:
        raise _status_error(error, repo_id) from error
    except connection_errors as error:
        raise WorkError(f"The hub cannot be reached ({_one_line(error)})", "check the network, and try again") from error
    except ValueError as error:
        raise UserError(f"The hub rejects {repo_id} ({_one_line(error)})", "correct what the message names") from error


def _status_error(error: HfHubHTTPError, repo_id: str) -> DeiTError:
    status = error.response.status_code
    if status in STATUS_ERRORS:
        problem, remedy = STATUS_ERRORS[status]
        return UserError(problem.format(repo=repo_id), remedy)
    reason = _one_line(error.server_message or f"status {status}")
    if status >= 500 or status in RETRY_STATUSES:
        return WorkError(f"The hub is temporarily unavailable ({reason})", "try again in a few minutes")
    return UserError(f"The hub rejects {repo_id} ({reason})", "correct what the message names")


def _one_line(cause: object) -> str:
    """Returns a message of another library on one line."""
    return " ".join(str(cause).split())[:MAX_REASON_LENGTH] or type(cause).__name__
