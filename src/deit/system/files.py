"""Atomic file writing, JSON reading with limits, and the file names that several packages share."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deit.errors import CheckpointError, UserError, WorkError
from deit.system.locking import locked_file
from deit.system.replacing import clean_up_drafts, draft_directory, draft_name, lock_name, replace_directory, sync

# Files of a model directory.
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
EMA_NAME = "ema.safetensors"  # in a training checkpoint, beside the weights
PROCESSOR_NAME = "preprocessor_config.json"
NESTED_PROCESSOR_NAME = "processor_config.json"  # transformers 5.x: {"image_processor": {...}}
RECORD_NAME = "training.json"
IMAGE_HASHES_NAME = "training_images.bin"
CARD_NAME = "README.md"

# Files of an exported model.
BUNDLE_NAME = "bundle.json"

# Files of a cached teacher.
CACHE_NAME = "cache.json"

# Files and directories of a training run.
RECIPE_NAME = "recipe.toml"
RUN_NAME = "run.json"
LOG_NAME = "log.jsonl"
NON_FINITE_NAME = "non_finite_steps.jsonl"
EVALUATION_NAME = "evaluation.json"
PREDICTIONS_NAME = "predictions.jsonl"
BEST_NAME = "best"
LAST_NAME = "last"

MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 1_000_000
MAX_TOML_BYTES = 32 * 2**10  # a recipe has 3,000
MAX_TOML_DOTS = 200  # of a line; a key takes time that is quadratic in its dots
_NUMBERS = re.compile(r"\[\n[-+\w.,\s]*\]")  # a raw line break cannot be inside a string
_SURROGATE = re.compile("[\ud800-\udfff]")  # a lone surrogate can be escaped in JSON and cannot be encoded in UTF-8


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: a crash leaves either the old file or the new one."""
    write_files({path: content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Writes several files, each atomically. None is replaced before all are on the disk."""
    drafts: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            drafts[path] = path.with_name(draft_name(path))
            with drafts[path].open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, draft in drafts.items():
            _replace_file(draft, path)
        for folder in {path.parent for path in drafts}:
            sync(folder)
    except BaseException:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
        raise


def _replace_file(draft: Path, path: Path) -> None:
    try:
        draft.replace(path)
    except OSError as error:
        if error.errno != errno.EBUSY:  # a single file that is mounted into a container
            raise
        shutil.copyfile(draft, path)
        draft.unlink()


def write_text(path: Path, content: str) -> None:
    """Writes a UTF-8 text file atomically."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically, formatted by :func:`json_text`.

    Raises:
        WorkError: the file would be too large for :func:`read_json`.
    """
    write_bytes(path, json_bytes(content, path))


def json_bytes(content: Any, path: Path) -> bytes:
    """Returns the content of a JSON file that :func:`read_json` can read.

    Raises:
        WorkError: it would be too large.
    """
    raw = json_text(content).encode()
    if len(raw) > MAX_JSON_BYTES:
        raise WorkError(f"{path} would be larger than {MAX_JSON_BYTES >> 20} MiB", "use fewer classes or shorter class names")
    return raw


def json_text(content: Any) -> str:
    """Returns indented JSON with a final newline; a list of numbers is on one line.

    Non-ASCII characters are not escaped. JSON has no NaN and no infinity: both become ``null``.
    """
    return _NUMBERS.sub(lambda match: f"[{' '.join(match[0][1:-1].split())}]", _dumps(content, 2)) + "\n"


def json_line(content: Any) -> str:
    """Returns the same as :func:`json_text`, on one line: a row of a JSON Lines file."""
    return _dumps(content, None) + "\n"


def _dumps(content: Any, indent: int | None) -> str:
    try:
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number is not finite
        text = json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(content: Any) -> Any:
    """Replaces numbers that are not finite by None."""
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: the file is missing, too large, too deeply nested, or not a JSON object.
    """
    return json_object(read_limited(path), str(path))


def json_object(raw: bytes, path: str) -> dict[str, Any]:
    """Parses a JSON object.

    Args:
        raw: content of a file.
        path: of the file, for messages.

    Raises:
        CheckpointError: it has too many values, is too deeply nested, or is not a JSON object.
    """
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:  # each becomes an object, which is larger than its text
        raise CheckpointError(f"{path} has more than {MAX_JSON_VALUES:,} values", "it is not a configuration file")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON", "the file is corrupt; copy or save it again") from error
    if _depth(content) > MAX_JSON_DEPTH:
        raise CheckpointError(f"{path} is nested deeper than {MAX_JSON_DEPTH} levels", "it is not a configuration file")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object", "the file is corrupt; copy or save it again")
    return content


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        CheckpointError: the file is missing, too large, or not valid TOML.
    """
    raw = read_limited(path, MAX_TOML_BYTES)
    if max((line.count(b".") for line in raw.splitlines()), default=0) > MAX_TOML_DOTS:
        raise CheckpointError(f"{path} has a line with more than {MAX_TOML_DOTS} dots", "it is not a recipe")
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        reason = str(error).split("\n")[0][:200]
        raise CheckpointError(f"{path} is not valid TOML ({reason})", "correct it, or copy or save it again") from error


def read_limited(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """Reads a file of limited size.

    Raises:
        CheckpointError: the file is missing, cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}", getattr(error, "strerror", None) or "check the path") from error
    if len(raw) > limit:
        size = f"{limit >> 20} MiB" if limit >= 2**20 else f"{limit >> 10} KiB"
        raise CheckpointError(f"{path} is larger than {size}", "it is not a configuration file")
    return raw


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory that replaces ``path`` on success, when all of it is on the disk.

    An existing directory at ``path`` is removed only after the new one has taken its place. A symbolic link stays, and the
    directory that it names is replaced.

    Raises:
        UserError: another program is writing to ``path``.
    """
    path = path.resolve() if path.is_symlink() else path
    with locked_draft(path) as draft:
        yield draft
        replace_directory(draft, path)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """As :func:`new_directory`, for a file: yields a path of the same name in a temporary directory, to be written there."""
    path = path.resolve() if path.is_symlink() else path
    with locked_draft(path) as folder:
        draft = folder / path.name
        yield draft
        sync(draft)
        _replace_file(draft, path)
        sync(path.parent)


@contextmanager
def locked_draft(path: Path) -> Iterator[Path]:
    """Yields a temporary directory beside ``path``, and removes it at the end. One program at a time has one for a path.

    Raises:
        UserError: another program is writing to ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_directory(path)
    try:
        problem, remedy = f"Another program is writing to {path}", "wait for it, or choose another destination"
        with locked_file(draft.with_name(lock_name(path)), problem, remedy):
            clean_up_drafts(path, draft)
            draft.mkdir(exist_ok=True)  # the program that held the lock may have taken it for the draft of a killed one
            yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_writable(directory: Path) -> None:
    """Checks that a directory can be written to, or created if it does not exist.

    Raises:
        UserError: it cannot.
    """
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{directory} cannot be created, because {existing} is a file", "pass another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"There is no permission to write to {existing}", "change its permissions, or pass another --out")


def sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _depth(content: Any) -> int:
    """Returns the nesting depth of lists and objects. Iterative, since hostile content could exhaust the stack."""
    depth, level = 0, [content]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth
