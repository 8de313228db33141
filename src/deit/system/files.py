"""Reading and writing of whole files: a reader of a half-written file cannot exist, and nothing saved is lost.

And the names of the files that several rooms share.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deit.errors import CheckpointError

# A model directory.
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
EMA_NAME = "ema.safetensors"  # beside the weights, in a training checkpoint
PROCESSOR_NAME = "preprocessor_config.json"
NESTED_PROCESSOR_NAME = "processor_config.json"  # transformers 5.x: {"image_processor": {...}}
RECORD_NAME = "training.json"
CARD_NAME = "README.md"

# An exported model.
BUNDLE_NAME = "bundle.json"

# A stored teacher's directory.
CACHE_NAME = "cache.json"

# A run directory.
RECIPE_NAME = "recipe.toml"
RUN_NAME = "run.json"
LOG_NAME = "log.jsonl"
EVALUATION_NAME = "evaluation.json"
BEST_NAME = "best"
LAST_NAME = "last"

MAX_JSON_BYTES = 16 * 2**20
MAX_JSON_DEPTH = 64
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape one that stands alone; UTF-8 has no bytes for it


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step: a crash leaves either the old file or the new one."""
    write_files({path: content})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """As :func:`write_bytes`, of files that belong together: none is replaced before all are written."""
    drafts: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
            drafts[path] = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            drafts[path].chmod(0o666 & ~_umask())
        for path, draft in drafts.items():
            draft.replace(path)
    except BaseException:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """As :func:`write_bytes`, in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """As :func:`write_bytes`, as :func:`json_text`."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """Indented JSON that keeps non-Latin letters readable, and a newline."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        CheckpointError: the file is missing, too large, too deeply nested, or holds anything but one object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}", error.strerror or "check the path") from error
    if len(raw) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB", "it is no configuration file")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} holds no valid JSON", "the file is damaged; copy or save it again") from error
    if _depth(content) > MAX_JSON_DEPTH:
        raise CheckpointError(f"{path} is nested deeper than {MAX_JSON_DEPTH} levels", "it is no configuration file")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object", "the file is damaged; copy or save it again")
    return content


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Fill a directory beside ``path`` and put it in the place of ``path`` once it is whole.

    What stood at ``path`` before is removed only after the new directory stands there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:100]}."))
    try:
        yield draft
        draft.chmod(0o777 & ~_umask())
        if path.exists():
            old = path.with_name(f"{draft.name}.old")
            path.rename(old)
            draft.rename(path)
            shutil.rmtree(old)
        else:
            draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _depth(content: Any) -> int:
    """How many lists and objects stand inside each other; without recursion, since the content may be hostile."""
    depth, level = 0, [content]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
