"""Uploaded files and error messages of a push. The hub is replaced by a recorder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._validators import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from deit.checkpoints.model_card import model_card
from deit.checkpoints.publishing import REPO_NAME, _check_name, plan_push, push_to_hub
from deit.errors import CheckpointError, DeiTError, UserError, WorkError
from deit.system.files import write_json
from tests.unit.checkpoints.model_files import RECORD, make_model, make_run, make_timm_model

TOKEN = "hf_secret"
FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "training.json", "README.md"}


@dataclass
class Hub:
    """Records calls to the hub.

    Attributes:
        calls: names of the called functions, in order.
        arguments: function -> arguments of its last call.
        files: uploaded files.
        tokens: tokens that were used.
        private: whether the repository is private.
        error: exception that an upload raises.
    """

    calls: list[str] = field(default_factory=list)
    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[Any] = field(default_factory=set)
    private: bool = True
    error: Exception | None = None

    @property
    def card(self) -> Any:
        return ModelCard(self.files["README.md"].decode())

    def record(self, api: HfApi, name: str, arguments: dict[str, Any]) -> None:
        self.calls.append(name)
        self.arguments[name] = arguments
        self.tokens.add(api.token)

    def upload(self, api: HfApi, arguments: dict[str, Any]) -> CommitInfo:
        self.record(api, "upload_folder", arguments)
        if self.error is not None:
            raise self.error
        folder = Path(arguments["folder_path"])
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        url = f"https://huggingface.co/{arguments['repo_id']}"
        pr_url = f"{url}/discussions/1" if arguments["create_pr"] else None
        return CommitInfo(f"{url}/commit/abc", "message", "", "abc", pr_url=pr_url)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()

    def recorded(name: str) -> Any:
        def call(api: HfApi, repo_id: str, **arguments: Any) -> Any:
            hub.record(api, name, {"repo_id": repo_id, **arguments})
            return SimpleNamespace(private=hub.private)

        return call

    for name in ("create_repo", "model_info", "create_branch"):
        monkeypatch.setattr(HfApi, name, recorded(name))
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **arguments: hub.upload(api, arguments))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    return hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "a run")


def read_files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_run_uploads_its_best_model_with_a_card(hub: Hub, run: Path) -> None:
    previous = read_files(run)
    url = push_to_hub(run, "me/photos", license="Apache-2.0")
    assert url == "https://huggingface.co/me/photos/commit/abc"
    assert set(hub.files) == FILES
    for name in FILES - {"README.md"}:
        assert hub.files[name] == previous[f"best/{name}"], name
    assert (hub.card.data.license, hub.card.data.model_name) == ("apache-2.0", "photos")
    assert "Data set: `holiday photos`" in hub.card.text
    assert read_files(run) == previous
    assert hub.calls == ["create_repo", "upload_folder"]
    assert hub.arguments["create_repo"] == {"repo_id": "me/photos", "private": None, "exist_ok": True}
    assert hub.tokens == {TOKEN}


def test_other_files_are_not_uploaded(hub: Hub, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    for name in (".env", "optimizer.safetensors", "model.safetensors.bak", "id_rsa", "notes.txt", "pytorch_model.bin"):
        (model / name).write_text("secret")
    (model / "checkpoints").mkdir()
    (model / "checkpoints" / "config.json").write_text("secret")
    push_to_hub(model, "me/photos")
    assert set(hub.files) == FILES
    assert set(hub.arguments["upload_folder"]["allow_patterns"]) == FILES


def test_sharded_weights_are_uploaded(hub: Hub, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    shard = (model / "model.safetensors").rename(model / "model-1-of-1.safetensors")
    weight_map = dict.fromkeys(("deit.layernorm.weight", "cls_classifier.weight"), shard.name)
    write_json(model / "model.safetensors.index.json", {"weight_map": weight_map, "from": "/home/alice"})
    push_to_hub(model, "me/photos")
    assert set(hub.files) == FILES - {"model.safetensors"} | {"model.safetensors.index.json", "model-1-of-1.safetensors"}
    assert json.loads(hub.files["model.safetensors.index.json"]) == {"weight_map": weight_map}


def test_timm_model_is_uploaded(hub: Hub, tmp_path: Path) -> None:
    push_to_hub(make_timm_model(tmp_path / "network"), "me/teacher")
    assert set(hub.files) == {"config.json", "model.safetensors", "README.md"}
    assert hub.card.data.library_name == "timm"


def test_local_paths_are_not_uploaded(hub: Hub, tmp_path: Path) -> None:
    classes = ("/m/01g317", "C:")
    model = make_model(tmp_path / "model", classes, _name_or_path="/home/alice/model", inner={"file": "C:\\alice", "depth": 3})
    write_json(model / "training.json", {**RECORD, "root": "/home/alice/photos"})
    push_to_hub(model, "me/photos")
    assert set(hub.files) == FILES - {"training.json"}
    assert b"alice" not in b"".join(hub.files.values())
    config = json.loads(hub.files["config.json"])
    assert config["id2label"] == dict(zip("01", classes, strict=True))
    assert config["inner"] == {"depth": 3}


def test_class_names_are_not_escaped_in_a_cleaned_file(hub: Hub, tmp_path: Path) -> None:
    classes = ("кошка", "鳥", "\ud800 alone")
    push_to_hub(make_model(tmp_path / "model", classes, _name_or_path="/home/alice/model"), "me/photos")
    assert '"кошка"' in hub.files["config.json"].decode()
    assert tuple(json.loads(hub.files["config.json"])["id2label"].values()) == classes


def test_card_of_training_is_rewritten_and_card_of_the_user_is_kept(hub: Hub, run: Path) -> None:
    card = run / "best" / "README.md"
    card.write_text(model_card(run / "best"))
    push_to_hub(run, "me/photos")
    assert b'Predictor.from_pretrained("me/photos")' in hub.files["README.md"]
    user_card = "---\ntags:\n- mine\n---\n\n# My own words\n"
    card.write_text(user_card)
    push_to_hub(run, "me/photos")
    assert hub.files["README.md"].decode() == user_card
    push_to_hub(run, "me/photos", license="mit")
    assert hub.card.data.to_dict() == {"tags": ["mine"], "license": "mit"}
    assert "# My own words" in hub.card.text
    assert card.read_text() == user_card


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"---\ntags: [\n---\n", "is invalid"),
        (b"---\n- a list\n---\n", "is invalid"),
        (b"\xff", "UTF-8"),
        (b"a" * (2**20 + 1), "larger than 1 MiB"),
    ],
)
def test_invalid_card_is_refused(run: Path, content: bytes, problem: str) -> None:
    (run / "best" / "README.md").write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        plan_push(run, "me/photos")


@pytest.mark.parametrize("name", ["README.md", "config.json", "preprocessor_config.json", "training.json"])
def test_symbolic_link_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    file, secret = run / "best" / name, tmp_path / "secret"
    secret.write_bytes(file.read_bytes() if file.exists() else b"secret")
    file.unlink(missing_ok=True)
    file.symlink_to(secret)
    with pytest.raises(CheckpointError, match="is a link"):
        plan_push(run, "me/photos")


def test_private_repository_is_private_before_the_upload(hub: Hub, run: Path) -> None:
    push_to_hub(run, "me/photos", private=True)
    assert hub.calls == ["create_repo", "model_info", "upload_folder"]
    assert hub.arguments["create_repo"]["private"] is True
    hub.private = False
    hub.calls.clear()
    with pytest.raises(UserError, match="exists and is public"):
        push_to_hub(run, "me/photos", private=True)
    assert "upload_folder" not in hub.calls


def test_branch_and_pull_request(hub: Hub, run: Path) -> None:
    push_to_hub(run, "me/photos", revision="v2", commit_message="The second")
    assert hub.arguments["create_branch"] == {"repo_id": "me/photos", "branch": "v2", "exist_ok": True}
    upload = hub.arguments["upload_folder"]
    assert (upload["revision"], upload["commit_message"]) == ("v2", "The second")
    assert push_to_hub(run, "me/photos", create_pr=True) == "https://huggingface.co/me/photos/discussions/1"
    hub.calls.clear()
    with pytest.raises(UserError, match="main branch"):
        push_to_hub(run, "me/photos", create_pr=True, revision="v2")
    assert not hub.calls


def test_token_is_required(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub(run, "me/photos", token="hf_other")
    assert hub.tokens == {"hf_other"}
    hub.calls.clear()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        push_to_hub(run, "me/photos")
    assert not hub.calls


@pytest.mark.parametrize(
    "name", ["photos", "", "me/", "/me", "me/a/b", "me/ph otos", "me/фото", "me/a--b", "me/a..b", "me/.a", "me/a-", "me/a.git"]
)
def test_invalid_repository_name_is_refused_before_reading(name: str) -> None:
    with pytest.raises(UserError, match="is not a repository name"):
        plan_push(Path("no such folder"), name)


@pytest.mark.parametrize("name", ["me/photos", "my-org/a_b.c-2", "0/1", f"{'a' * 96}/{'b' * 96}"])
def test_valid_repository_name_is_accepted(run: Path, name: str) -> None:
    assert plan_push(run, name).repo_id == name


@given(st.from_regex(f"{REPO_NAME}/{REPO_NAME}", fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_accepted_names_are_valid_on_the_hub(name: str) -> None:
    try:
        _check_name(name)
    except UserError:
        return
    if ".-" not in name and "-." not in name:
        validate_repo_id(name)


@pytest.mark.parametrize("license", ["", "my own", "mit\n---", "../x", "a" * 65])
def test_invalid_license_is_refused(run: Path, license: str) -> None:
    with pytest.raises(UserError, match="is not a license identifier"):
        plan_push(run, "me/photos", license)


def test_run_without_a_finished_epoch_is_refused(run: Path) -> None:
    (run / "best" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no finished epoch: resume it: deit train --resume"):
        plan_push(run, "me/photos")


@pytest.mark.parametrize("name", ["model.safetensors", "shard.safetensors"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1)}, model / name)
    write_json(model / "model.safetensors.index.json", {"weight_map": {"a": name}})
    with pytest.raises(CheckpointError, match=rf"{name} is not a valid safetensors file"):
        plan_push(model, "me/photos")


def test_incomplete_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        plan_push(tmp_path / "nothing", "me/photos")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        plan_push(tmp_path, "me/photos")
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="not a valid safetensors"):
        plan_push(model, "me/photos")
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        plan_push(model, "me/photos")


def http_error(status: int, reason: str | None = None) -> HfHubHTTPError:
    response = cast(Any, SimpleNamespace(status_code=status, headers={}, request=None))
    return HfHubHTTPError(
        f"{status} for https://huggingface.co/api\n\n(Request ID: 1)", response=response, server_message=reason
    )


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (http_error(401), UserError, "does not accept the token"),
        (http_error(403), UserError, "may not write to me/photos"),
        (http_error(404), UserError, "has no me/photos"),
        (http_error(400, 'the "license"\nis unknown'), UserError, 'the "license" is unknown'),
        (http_error(409), UserError, "status 409"),
        (http_error(429), WorkError, "try again"),
        (http_error(503, "down"), WorkError, "down"),
        (
            cast("type[Exception]", HfHubHTTPError.__bases__[0])("no route\nto host"),
            WorkError,
            r"no route to host\): check the net",
        ),
        (TimeoutError(), WorkError, "TimeoutError"),
        (ValueError("Invalid metadata in README.md.\n- tags"), UserError, "Invalid metadata in README.md. - tags"),
    ],
)
def test_hub_errors_are_translated(hub: Hub, run: Path, error: Exception, kind: type[DeiTError], message: str) -> None:
    hub.error = error
    with pytest.raises(kind, match=message) as caught:
        push_to_hub(run, "me/photos")
    assert str(caught.value).count("\n") == 0
    assert TOKEN not in str(caught.value)


def test_offline_mode_is_reported(run: Path) -> None:
    with pytest.raises(UserError, match="unset HF_HUB_OFFLINE"):
        push_to_hub(run, "me/photos", token=TOKEN)


def test_other_exceptions_propagate(hub: Hub, run: Path) -> None:
    hub.error = AttributeError("a bug")
    with pytest.raises(AttributeError):
        push_to_hub(run, "me/photos")
