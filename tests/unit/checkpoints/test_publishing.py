"""What leaves the machine in a push, and what a user reads when it cannot be. The hub is replaced by a recorder."""

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
from deit.checkpoints.publishing import NAME, _check_name, plan_push, push_to_hub
from deit.errors import CheckpointError, DeiTError, UserError, WorkError
from deit.system.files import write_json
from tests.unit.checkpoints.model_files import RECORD, make_model, make_network, make_run

TOKEN = "hf_secret"
FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "training.json", "README.md"}


@dataclass
class Hub:
    """What was asked of the hub, in order; ``error`` is what it answers an upload with."""

    calls: list[str] = field(default_factory=list)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[Any] = field(default_factory=set)
    private: bool = True
    error: Exception | None = None

    @property
    def card(self) -> Any:
        return ModelCard(self.files["README.md"].decode())

    def note(self, api: HfApi, name: str, arguments: dict[str, Any]) -> None:
        self.calls.append(name)
        self.asked[name] = arguments
        self.tokens.add(api.token)

    def upload(self, api: HfApi, arguments: dict[str, Any]) -> CommitInfo:
        self.note(api, "upload_folder", arguments)
        if self.error is not None:
            raise self.error
        folder = Path(arguments["folder_path"])
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        address = f"https://huggingface.co/{arguments['repo_id']}"
        request = f"{address}/discussions/1" if arguments["create_pr"] else None
        return CommitInfo(f"{address}/commit/abc", "message", "", "abc", pr_url=request)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()

    def noted(name: str) -> Any:
        def call(api: HfApi, repo_id: str, **arguments: Any) -> Any:
            hub.note(api, name, {"repo_id": repo_id, **arguments})
            return SimpleNamespace(private=hub.private)

        return call

    for name in ("create_repo", "model_info", "create_branch"):
        monkeypatch.setattr(HfApi, name, noted(name))
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **arguments: hub.upload(api, arguments))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    return hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "a run")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_run_stands_for_its_best_model_and_gets_a_card(hub: Hub, run: Path) -> None:
    before = contents(run)
    address = push_to_hub(run, "me/photos", license="Apache-2.0")
    assert address == "https://huggingface.co/me/photos/commit/abc"
    assert set(hub.files) == FILES
    for name in FILES - {"README.md"}:
        assert hub.files[name] == before[f"best/{name}"], name
    assert (hub.card.data.license, hub.card.data.model_name) == ("apache-2.0", "photos")
    assert "Data set: `holiday photos`" in hub.card.text
    assert contents(run) == before
    assert hub.calls == ["create_repo", "upload_folder"]
    assert hub.asked["create_repo"] == {"repo_id": "me/photos", "private": None, "exist_ok": True}
    assert hub.tokens == {TOKEN}


def test_nothing_else_that_lies_there_is_sent(hub: Hub, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    for name in (".env", "optimizer.safetensors", "model.safetensors.bak", "id_rsa", "notes.txt", "pytorch_model.bin"):
        (model / name).write_text("secret")
    (model / "checkpoints").mkdir()
    (model / "checkpoints" / "config.json").write_text("secret")
    push_to_hub(model, "me/photos")
    assert set(hub.files) == FILES
    assert set(hub.asked["upload_folder"]["allow_patterns"]) == FILES


def test_weights_in_parts_are_sent_whole(hub: Hub, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    part = (model / "model.safetensors").rename(model / "model-1-of-1.safetensors")
    places = dict.fromkeys(("deit.layernorm.weight", "cls_classifier.weight"), part.name)
    write_json(model / "model.safetensors.index.json", {"weight_map": places, "from": "/home/alice"})
    push_to_hub(model, "me/photos")
    assert set(hub.files) == FILES - {"model.safetensors"} | {"model.safetensors.index.json", "model-1-of-1.safetensors"}
    assert json.loads(hub.files["model.safetensors.index.json"]) == {"weight_map": places}


def test_a_network_of_timm_is_sent_too(hub: Hub, tmp_path: Path) -> None:
    push_to_hub(make_network(tmp_path / "network"), "me/teacher")
    assert set(hub.files) == {"config.json", "model.safetensors", "README.md"}
    assert hub.card.data.library_name == "timm"


def test_paths_of_the_machine_stay_on_it(hub: Hub, tmp_path: Path) -> None:
    classes = ("/m/01g317", "C:")
    model = make_model(tmp_path / "model", classes, _name_or_path="/home/alice/model", inner={"file": "C:\\alice", "depth": 3})
    write_json(model / "training.json", {**RECORD, "root": "/home/alice/photos"})
    push_to_hub(model, "me/photos")
    assert set(hub.files) == FILES - {"training.json"}
    assert b"alice" not in b"".join(hub.files.values())
    config = json.loads(hub.files["config.json"])
    assert config["id2label"] == dict(zip("01", classes, strict=True))
    assert config["inner"] == {"depth": 3}


def test_names_stay_readable_where_a_path_was_taken_out(hub: Hub, tmp_path: Path) -> None:
    classes = ("кошка", "鳥", "\ud800 alone")
    push_to_hub(make_model(tmp_path / "model", classes, _name_or_path="/home/alice/model"), "me/photos")
    assert '"кошка"' in hub.files["config.json"].decode()
    assert tuple(json.loads(hub.files["config.json"])["id2label"].values()) == classes


def test_a_card_of_training_is_written_anew_and_one_of_the_user_is_kept(hub: Hub, run: Path) -> None:
    card = run / "best" / "README.md"
    card.write_text(model_card(run / "best"))
    push_to_hub(run, "me/photos")
    assert b'Predictor.from_pretrained("me/photos")' in hub.files["README.md"]
    own = "---\ntags:\n- mine\n---\n\n# My own words\n"
    card.write_text(own)
    push_to_hub(run, "me/photos")
    assert hub.files["README.md"].decode() == own
    push_to_hub(run, "me/photos", license="mit")
    assert hub.card.data.to_dict() == {"tags": ["mine"], "license": "mit"}
    assert "# My own words" in hub.card.text
    assert card.read_text() == own


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"---\ntags: [\n---\n", "cannot be read"),
        (b"---\n- a list\n---\n", "cannot be read"),
        (b"\xff", "UTF-8"),
        (b"a" * (2**20 + 1), "larger than 1 MiB"),
    ],
)
def test_a_damaged_card_is_refused(run: Path, content: bytes, words: str) -> None:
    (run / "best" / "README.md").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        plan_push(run, "me/photos")


@pytest.mark.parametrize("name", ["README.md", "config.json", "preprocessor_config.json", "training.json"])
def test_a_link_to_another_file_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    file, secret = run / "best" / name, tmp_path / "secret"
    secret.write_bytes(file.read_bytes() if file.exists() else b"secret")
    file.unlink(missing_ok=True)
    file.symlink_to(secret)
    with pytest.raises(CheckpointError, match="is a link"):
        plan_push(run, "me/photos")


def test_a_private_repository_is_private_before_anything_is_sent(hub: Hub, run: Path) -> None:
    push_to_hub(run, "me/photos", private=True)
    assert hub.calls == ["create_repo", "model_info", "upload_folder"]
    assert hub.asked["create_repo"]["private"] is True
    hub.private = False
    hub.calls.clear()
    with pytest.raises(UserError, match="and public"):
        push_to_hub(run, "me/photos", private=True)
    assert "upload_folder" not in hub.calls


def test_a_branch_is_made_and_a_pull_request_opened(hub: Hub, run: Path) -> None:
    push_to_hub(run, "me/photos", revision="v2", commit_message="The second")
    assert hub.asked["create_branch"] == {"repo_id": "me/photos", "branch": "v2", "exist_ok": True}
    assert (hub.asked["upload_folder"]["revision"], hub.asked["upload_folder"]["commit_message"]) == ("v2", "The second")
    assert push_to_hub(run, "me/photos", create_pr=True) == "https://huggingface.co/me/photos/discussions/1"
    hub.calls.clear()
    with pytest.raises(UserError, match="main branch"):
        push_to_hub(run, "me/photos", create_pr=True, revision="v2")
    assert not hub.calls


def test_a_token_is_needed_and_an_own_one_goes_first(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_is_no_repository_is_refused_before_anything_is_read(name: str) -> None:
    with pytest.raises(UserError, match="is no name of a repository"):
        plan_push(Path("no such folder"), name)


@pytest.mark.parametrize("name", ["me/photos", "my-org/a_b.c-2", "0/1", f"{'a' * 96}/{'b' * 96}"])
def test_names_that_the_hub_takes_are_taken(run: Path, name: str) -> None:
    assert plan_push(run, name).repo_id == name


@given(st.from_regex(f"{NAME}/{NAME}", fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_names_that_are_taken_are_names_for_the_hub(name: str) -> None:
    try:
        _check_name(name)
    except UserError:
        return
    if ".-" not in name and "-." not in name:
        validate_repo_id(name)


@pytest.mark.parametrize("license", ["", "my own", "mit\n---", "../x", "a" * 65])
def test_what_is_no_licence_is_refused(run: Path, license: str) -> None:
    with pytest.raises(UserError, match="identifies no licence"):
        plan_push(run, "me/photos", license)


def test_a_run_that_has_only_begun_says_how_it_goes_on(run: Path) -> None:
    (run / "best" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no finished epoch: go on with it: deit train --resume"):
        plan_push(run, "me/photos")


@pytest.mark.parametrize("name", ["model.safetensors", "part.safetensors"])
def test_weights_that_were_pickled_are_refused(tmp_path: Path, name: str) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    torch.save({"a": torch.ones(1)}, model / name)
    write_json(model / "model.safetensors.index.json", {"weight_map": {"a": name}})
    with pytest.raises(CheckpointError, match=rf"{name} is no valid safetensors file"):
        plan_push(model, "me/photos")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        plan_push(tmp_path / "nothing", "me/photos")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        plan_push(tmp_path, "me/photos")
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="no valid safetensors"):
        plan_push(model, "me/photos")
    (model / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        plan_push(model, "me/photos")


def refusal(status: int, reason: str | None = None) -> HfHubHTTPError:
    response = cast(Any, SimpleNamespace(status_code=status, headers={}, request=None))
    return HfHubHTTPError(
        f"{status} for https://huggingface.co/api\n\n(Request ID: 1)", response=response, server_message=reason
    )


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (refusal(401), UserError, "does not accept the token"),
        (refusal(403), UserError, "may not write to me/photos"),
        (refusal(404), UserError, "has no me/photos"),
        (refusal(400, 'the "license"\nis unknown'), UserError, 'the "license" is unknown'),
        (refusal(409), UserError, "status 409"),
        (refusal(429), WorkError, "try again"),
        (refusal(503, "down"), WorkError, "down"),
        (
            cast("type[Exception]", HfHubHTTPError.__bases__[0])("no route\nto host"),
            WorkError,
            r"no route to host\): check the net",
        ),
        (TimeoutError(), WorkError, "TimeoutError"),
        (ValueError("Invalid metadata in README.md.\n- tags"), UserError, "Invalid metadata in README.md. - tags"),
    ],
)
def test_errors_of_the_hub_are_one_sentence(hub: Hub, run: Path, error: Exception, kind: type[DeiTError], words: str) -> None:
    hub.error = error
    with pytest.raises(kind, match=words) as caught:
        push_to_hub(run, "me/photos")
    assert str(caught.value).count("\n") == 0
    assert TOKEN not in str(caught.value)


def test_offline_mode_is_said(run: Path) -> None:
    with pytest.raises(UserError, match="unset HF_HUB_OFFLINE"):
        push_to_hub(run, "me/photos", token=TOKEN)


def test_a_bug_is_not_made_a_sentence(hub: Hub, run: Path) -> None:
    hub.error = AttributeError("a bug")
    with pytest.raises(AttributeError):
        push_to_hub(run, "me/photos")
