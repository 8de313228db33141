"""A model directory -> a repository of the Hugging Face hub. Nothing leaves the machine but the model's own files."""

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
from deit.checkpoints.reading import model_path
from deit.errors import CheckpointError, DeiTError, UserError, WorkError
from deit.system.files import (
    CARD_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    PROCESSOR_NAME,
    RECORD_NAME,
    WEIGHTS_NAME,
    json_text,
    read_json,
)

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

CLASS_TABLES = ("id2label", "label2id")  # a class may be called /m/01g317
NAME = r"\w(?:\w|[.-](?![.-])){0,95}\b"  # the hub's own rule, but for mixtures of . and - in a row
MAX_CARD_BYTES = 2**20
MAX_REASON = 200  # characters of what the hub says
BUSY = (408, 429)

# status -> what is wrong with the call, and what to do about it
REFUSALS = {
    401: ("The hub does not accept the token", "make one at https://huggingface.co/settings/tokens and run `hf auth login`"),
    403: ("The token may not write to {repo}", "take one with write access, of an account that may, or another OWNER/NAME"),
    404: ("The hub has no {repo}, or hides it from the token", "check its owner, its name and the revision"),
}


@dataclass(frozen=True)
class Publication:
    """What a push sends.

    Attributes:
        repo_id: ``OWNER/NAME``.
        files: name in the repository -> the file, or its content where it differs from what is on disk.
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
        """Bytes of each file."""
        return {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()}

    def lay_out(self, directory: Path) -> None:
        """Put the files, and no others, into an empty directory; those that are sent as they are, as links."""
        for name, file in self.files.items():
            if isinstance(file, bytes):
                (directory / name).write_bytes(file)
            else:
                (directory / name).symlink_to(file.resolve())


def plan_push(directory: Path, repo_id: str, license: str | None = None) -> Publication:
    """What :func:`push_to_hub` would send, checked without the network.

    Args:
        directory: a model directory, or a run's, which stands for its best model. A card in it is sent as it is, unless
            training wrote it: then it is written again with the repository's name.
        repo_id: ``OWNER/NAME``.
        license: the hub's identifier of a licence, which goes into the card.

    Raises:
        CheckpointError: the directory holds no whole model.
        UserError: no name of a repository, or no identifier of a licence.

    Example:
        >>> plan_push(Path("runs/photos"), "me/photos").sizes  # doctest: +SKIP
        {'config.json': 812, 'model.safetensors': 22873456, 'preprocessor_config.json': 421, 'README.md': 3010}
    """
    _check_name(repo_id)
    if license is not None:
        license = license.lower()
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", license):
            raise UserError(f"{license!r} identifies no licence", "pass such as apache-2.0, mit or cc-by-4.0, or `other`")
    model = model_path(directory)
    if not (model / CONFIG_NAME).is_file():
        raise CheckpointError(f"{model} holds no {CONFIG_NAME}", "pass a model directory, or a run with a finished epoch")
    files: dict[str, Path | bytes] = {CONFIG_NAME: _clean_json(model / CONFIG_NAME)}
    weights = open_weights(model)
    if not (model / WEIGHTS_NAME).is_file():
        files[INDEX_NAME] = _clean_json(model / INDEX_NAME)
    files |= {file.path.name: file.path for file in weights}
    if (model / PROCESSOR_NAME).is_file():
        files[PROCESSOR_NAME] = _clean_json(model / PROCESSOR_NAME)
    if (model / RECORD_NAME).is_file() and isinstance(record := _clean_json(model / RECORD_NAME), Path):
        files[RECORD_NAME] = record
    files[CARD_NAME] = _card(model, repo_id, license).encode()
    return Publication(repo_id, files)


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
    """Send a model to the hub; the repository is made if it is not there.

    Args:
        directory: as :func:`plan_push` takes it, likewise ``repo_id`` and ``license``. It is not changed.
        private: make the repository private; refused where it is public already.
        token: in place of the one that ``hf auth login`` or HF_TOKEN left.
        revision: a branch, made if it is not there.
        create_pr: open a pull request instead of writing to the main branch.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        UserError: anything that does not fit before or at the hub: the model, a name, the token, a permission.
        WorkError: the network or the hub failed.

    Example:
        >>> push_to_hub(Path("runs/photos"), "me/photos", private=True)  # doctest: +SKIP
        'https://huggingface.co/me/photos/commit/...'
    """
    publication = plan_push(directory, repo_id, license)
    if create_pr and revision is not None:
        raise UserError("A pull request goes to the main branch", "leave out either the revision or the pull request")

    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if not token:
        raise UserError("There is no token for the Hugging Face hub", "run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="deit-push-") as draft, _explained(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(repo_id).private:
            raise UserError(f"{repo_id} is there already, and public", "make it private on the hub, or pass another name")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        publication.lay_out(Path(draft))
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=draft,
            allow_patterns=list(publication.files),
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


def _check_name(repo_id: str) -> None:
    if not re.fullmatch(f"{NAME}/{NAME}(?<!\\.git)", repo_id, re.ASCII):
        remedy = "write OWNER/NAME, in letters, digits, and single - _ or . between them"
        raise UserError(f"{repo_id!r} is no name of a repository", remedy)


def _clean_json(path: Path) -> Path | bytes:
    """A JSON file as it is, or its content without values that are paths of this machine."""
    _refuse_link(path)
    content = read_json(path)
    clean = _without_paths(content)
    if clean == content:
        return path
    return json_text(clean).encode()


def _without_paths(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_paths(value) if isinstance(value, dict) and name not in CLASS_TABLES else value
        for name, value in content.items()
        if not (isinstance(value, str) and (value.startswith(("/", "~", "\\")) or PureWindowsPath(value).drive))
    }


def _card(model: Path, repo_id: str, license: str | None) -> str:
    """The model's own card; a new one where it has none, or one that training wrote and nobody changed since."""
    path = model / CARD_NAME
    _refuse_link(path)
    own = _text(path) if path.is_file() else None
    if own is None or own == model_card(model):
        return model_card(model, repo_id=repo_id, license=license)
    return _licensed(own, license, path)


def _refuse_link(path: Path) -> None:
    """A model from elsewhere must not publish a file of this machine; weights are safe, since nothing else has their format."""
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link to another file", "put the file itself in its place, or remove it")


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_CARD_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_CARD_BYTES >> 20} MiB", "shorten or remove it")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is no text in UTF-8", "correct or remove it") from error


def _licensed(text: str, license: str | None, path: Path) -> str:
    """A card with another licence in its metadata, which must be readable in any case."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        card = ModelCard(text)
    except (YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"The metadata at the head of {path} cannot be read", "correct or remove the file") from error
    if license is None:
        return text
    card.data["license"] = license
    return str(card)


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Errors of the hub's library as one sentence and a remedy."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # The errors of its HTTP library, which differs between its versions, and of the operating system.
    unreachable = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        yield
    except DeiTError:
        raise
    except OfflineModeIsEnabled as error:
        raise UserError("The hub is out of reach in offline mode", "unset HF_HUB_OFFLINE") from error
    except HfHubHTTPError as error:
        raise _refusal(error, repo_id) from error
    except unreachable as error:
        raise WorkError(f"The hub cannot be reached ({_line(error)})", "check the network, and try again") from error
    except ValueError as error:
        raise UserError(f"The hub does not take {repo_id} as it is ({_line(error)})", "correct what it names") from error


def _refusal(error: HfHubHTTPError, repo_id: str) -> DeiTError:
    status = error.response.status_code
    if status in REFUSALS:
        problem, remedy = REFUSALS[status]
        return UserError(problem.format(repo=repo_id), remedy)
    reason = _line(error.server_message or f"status {status}")
    if status >= 500 or status in BUSY:
        return WorkError(f"The hub is busy or out of order ({reason})", "try again in a few minutes")
    return UserError(f"The hub refuses {repo_id} ({reason})", "correct what it names")


def _line(cause: object) -> str:
    """What another library says, on one line."""
    return " ".join(str(cause).split())[:MAX_REASON] or type(cause).__name__
