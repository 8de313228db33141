"""Model names to files. A local server stands in for the hub."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from deit.errors import CheckpointError
from deit.hub import fetch, fetch_file, hub_arguments, model_path, shard_names
from deit.variants import VARIANTS

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "refs/pr/1": "c" * 40}
TINY = "facebook/deit-tiny-patch16-224"


class Hub:
    """Repositories in memory, with the routes that a download needs.

    Attributes:
        files: repository -> path -> content.
        gated: repositories that refuse access.
        requests: method and path of each request.
        error_status: status of every response, if set.
        tokens: authorization headers of the requests.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.error_status: int | None = None
        self.tokens: set[str | None] = set()

    def respond(self, path: str) -> tuple[int, dict[str, str], bytes]:
        repository, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        revision = unquote(revision)
        if self.error_status:
            return self.error_status, {}, b""
        if repository not in self.files:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if repository in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        commit = COMMITS.get(revision, revision if len(revision) == 40 else None)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        content = self.files[repository].get(unquote(file))
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        content += commit[:1].encode() if file.endswith(".bin") else b""
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(file.encode() + content).hexdigest()}"'}, content


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.handle_request(body=False)

        def do_GET(self) -> None:
            self.handle_request(body=True)

        def handle_request(self, body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("authorization"))
            status, headers, content = hub.respond(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{http.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()
        http.shutdown()
        thread.join()


def model(weights: str = "model.safetensors") -> dict[str, bytes]:
    return {"config.json": b"{}", weights: b"w", "README.md": b"r"}


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


def test_path_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "facebook" / "deit-tiny-patch16-224"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.pth").touch()
    assert fetch(folder) == folder
    assert fetch(str(folder / "weights.pth"), ("config.json",)) == folder / "weights.pth"
    assert fetch(f"local-dir:{folder}", subfolder="sub") == folder / "sub"
    assert fetch(folder, subfolder=None, revision=None) == folder
    for name in (folder, f"local-dir:{folder}"):
        with pytest.raises(CheckpointError, match=rf"{folder} is a path, and a path has no revision: omit the revision"):
            fetch(name, revision="v1")
    monkeypatch.chdir(tmp_path)
    assert fetch(TINY) == Path(TINY)
    with pytest.raises(CheckpointError, match="has no other"):
        fetch(folder, subfolder="other")
    with pytest.raises(CheckpointError, match="none does not exist: check the path"):
        fetch("local-dir:none")


@pytest.mark.parametrize(
    "name",
    [
        "deit-tiny-patch16-224",
        "deit_tiny_patch16_224",
        "deit_tiny_patch16_224.fb_in1k",
        TINY,
        f"hf-hub:{TINY}",
        f"hf_hub:{TINY}",
        f"{TINY}@main",
        Path(TINY),
    ],
)
def test_variant_names(server: Hub, name: str | Path) -> None:
    server.files[TINY] = model()
    path = fetch(name)
    assert names(path) == ["config.json", "model.safetensors"]
    assert path.name == COMMITS["main"]
    assert (path / "model.safetensors").read_bytes() == b"w"


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_is_the_published_repository(server: Hub, name: str) -> None:
    server.files[VARIANTS[name].hub_name] = model()
    assert names(fetch(name)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("files", "skipped"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (["pytorch_model.bin"], []),
        (["pytorch_model.bin", "preprocessor_config.json"], []),
        (["model.safetensors", "processor_config.json", "tf_model.h5"], ["tf_model.h5"]),
    ],
)
def test_model_takes_the_first_weights_that_exist(server: Hub, files: list[str], skipped: list[str]) -> None:
    server.files["org/m"] = {"config.json": b"{}", **dict.fromkeys(files, b"x")}
    assert names(fetch("org/m")) == sorted({"config.json", *files} - set(skipped))
    assert sum("GET" in request for request in server.requests) == 1 + len(files) - len(skipped)


@pytest.mark.parametrize("record", [[], ["training.json"], ["training.json", "training_images.bin"]])
def test_record_of_the_training_images_comes_with_the_model(server: Hub, record: list[str]) -> None:
    server.files["org/m"] = {"config.json": b"{}", **dict.fromkeys(("model.safetensors", *record), b"x")}
    assert names(fetch("org/m")) == sorted({"config.json", "model.safetensors", *record})


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_index_downloads_its_shards(server: Hub, index: str) -> None:
    content = {"weight_map": {"a": "s-1.bin", "b": "s-2.bin", "c": "s-1.bin"}}
    server.files["org/m"] = {"config.json": b"{}", index: json.dumps(content).encode(), "s-1.bin": b"1", "s-2.bin": b"2"}
    assert names(fetch("org/m")) == sorted(["config.json", index, "s-1.bin", "s-2.bin"])
    del server.files["org/m"]["s-2.bin"]
    with pytest.raises(CheckpointError, match=r"org/m \(a+\) at http.* has no s-2\.bin"):
        fetch("org/m", force_download=True)
    server.files["org/n"] = {"config.json": b"{}", index: b'{"weight_map": {"a": "../../s-1.bin"}}'}
    with pytest.raises(CheckpointError, match="names the shard"):
        fetch("org/n")


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", "b" * 40])
def test_revision_is_branch_tag_or_commit(server: Hub, revision: str) -> None:
    server.files["org/m"] = model("pytorch_model.bin")
    commit = COMMITS.get(revision, revision)
    for path in (fetch("org/m", revision=revision), fetch(f"org/m@{revision}"), fetch(f"org/m@{revision}", revision=revision)):
        assert path.name == commit
        assert (path / "pytorch_model.bin").read_bytes() == b"w" + commit[:1].encode()
    with pytest.raises(CheckpointError, match="names the revision v2, and v1 was passed"):
        fetch("org/m@v2", revision="v1")


def test_all_files_come_from_one_commit(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["org/m"] = model("pytorch_model.bin")
    respond = server.respond

    def respond_then_push(path: str) -> tuple[int, dict[str, str], bytes]:
        response = respond(path)
        if path.endswith("config.json"):
            monkeypatch.setitem(COMMITS, "main", "d" * 40)
        return response

    monkeypatch.setattr(server, "respond", respond_then_push)
    path = fetch("org/m")
    assert (path / "pytorch_model.bin").read_bytes() == b"wa"


def test_subfolder(server: Hub) -> None:
    server.files["org/m"] = {"a/b/config.json": b"{}", "a/b/model.safetensors": b"w"}
    path = fetch("org/m", subfolder="a/b")
    assert (names(path), path.parts[-3:]) == (["config.json", "model.safetensors"], (COMMITS["main"], "a", "b"))
    with pytest.raises(CheckpointError, match=r"c/ of org/m \(main\) at .* has no config\.json"):
        fetch("org/m", subfolder="c")


def test_required_and_optional_files(server: Hub) -> None:
    server.files["org/m"] = {**model(), "x/y.json": b"1"}
    assert names(fetch("org/m", ("README.md",))) == ["README.md"]
    path = fetch("org/m", ("x/y.json",), optional=("nothing.json", "config.json"))
    assert names(path) == ["README.md", "config.json", "x"]
    assert fetch("org/m", (), optional=("nothing.json", "config.json")) == path
    with pytest.raises(CheckpointError, match=r"has no a\.json or b\.json"):
        fetch("org/m", (), optional=("a.json", "b.json"))
    with pytest.raises(CheckpointError, match=r"has no nothing\.json: check that it is an image classifier"):
        fetch("org/m", ("nothing.json",))


def test_cache_dir_and_token(server: Hub, tmp_path: Path) -> None:
    server.files["org/m"] = model()
    path = fetch("org/m", cache_dir=tmp_path / "mine", token="hf_secret")
    assert path.is_relative_to(tmp_path / "mine")
    assert server.tokens == {"Bearer hf_secret"}


def test_cached_files_are_available_offline(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files[TINY] = model()
    path = fetch("deit-tiny-patch16-224")
    requests = len(server.requests)
    assert fetch("deit-tiny-patch16-224", local_files_only=True) == path
    assert fetch(TINY, revision=COMMITS["main"], local_files_only=True) == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(TINY) == path
    assert len(server.requests) == requests


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_error_names_cache_and_path(server: Hub, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", how == "environment")
    with pytest.raises(CheckpointError) as caught:
        fetch(TINY, local_files_only=how == "argument")
    text = str(caught.value)
    assert f"config.json of {TINY} (main) is not in the cache at {constants.HF_HUB_CACHE}" in text
    assert f"'{TINY}' is not a path in {Path.cwd()}" in text
    assert "without HF_HUB_OFFLINE" in text
    assert server.requests == []


def test_offline_error_names_uncached_weights(server: Hub) -> None:
    server.files["org/m"] = model()
    fetch("org/m", ("config.json",))
    with pytest.raises(CheckpointError, match=r"model\.safetensors or .*pytorch_model\.bin.* of org/m .* is not in the cache"):
        fetch("org/m", local_files_only=True)


@pytest.fixture
def no_network(server: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The server, at an address where nothing listens."""
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.01)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    return server


def test_without_network_the_cache_is_used(server: Hub, request: pytest.FixtureRequest) -> None:
    server.files["org/m"] = model()
    path = fetch("org/m")
    request.getfixturevalue("no_network")
    assert fetch("org/m") == path
    with pytest.raises(
        CheckpointError, match=r"org/n at http://127\.0\.0\.1:9 cannot be reached, and config\.json is not in the cache at"
    ):
        fetch("org/n")


def test_missing_repository(server: Hub) -> None:
    with pytest.raises(CheckpointError) as caught:
        fetch("facebook/deit-tiny-patch-16-224")
    text = str(caught.value)
    assert f"is not a path in {Path.cwd()}, and there is no repository facebook/deit-tiny-patch-16-224 at http" in text
    assert "did you mean deit-tiny-patch16-224" in text
    assert len(server.requests) > 0


def test_gated_repository(server: Hub) -> None:
    server.files["org/m"] = model()
    server.gated.add("org/m")
    with pytest.raises(CheckpointError, match=r"org/m at http.* is gated: accept its conditions"):
        fetch("org/m")


def test_missing_revision(server: Hub) -> None:
    server.files["org/m"] = model()
    with pytest.raises(CheckpointError, match="has no revision 'v9': check the branch"):
        fetch("org/m", revision="v9")


def test_repository_without_weights(server: Hub) -> None:
    server.files["org/m"] = {"config.json": b"{}"}
    with pytest.raises(CheckpointError, match=r"org/m \(a+\) at http.* has no model\.safetensors or .*pytorch_model\.bin"):
        fetch("org/m")


@pytest.mark.parametrize("status", [400, 403, 404])
def test_unexpected_status_is_a_checkpoint_error(server: Hub, status: int) -> None:
    server.error_status = status
    with pytest.raises(
        CheckpointError,
        match=r"config\.json (of org/m at http.* could not be downloaded|is not in the cache)|cannot be reached",
    ):
        fetch("org/m")


def test_forced_download_offline_is_refused(server: Hub) -> None:
    server.files["org/m"] = model()
    with pytest.raises(CheckpointError, match="force_download=True"):
        fetch("org/m", local_files_only=True, force_download=True)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "deit-tiny",
        "no such folder",
        "org/..",
        "org/--x",
        "-org/m",
        "x" * 5000,
        "a\0b",
    ],
)
def test_invalid_name_makes_no_request(server: Hub, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"is not a path in .*, a variant, or an organization/name on the hub") as caught:
        fetch(name)
    assert len(str(caught.value)) < 1000
    assert server.requests == []


@pytest.mark.parametrize("name", ["a/b/c", "./runs/x", "../x", "/none/x", "~/x", "weights.pth", "runs/model.safetensors"])
def test_missing_path_makes_no_request(server: Hub, name: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist: check the path"):
        fetch(name)
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "closest"),
    [("deit-tiny-patch16-225", "deit-tiny-patch16-224"), ("deit_base_distiled_patch16_384", "deit-base-distilled-patch16-384")],
)
def test_misspelled_variant_is_suggested(name: str, closest: str) -> None:
    with pytest.raises(CheckpointError, match=f"did you mean {closest}"):
        fetch(name)


@pytest.mark.parametrize("path", ["..", "../x", "a/../b", "/etc", "a//b", "a\\b", "C:x", "a/", ".", "a\nb", "\0"])
def test_paths_out_of_the_directory_are_refused(server: Hub, tmp_path: Path, path: str) -> None:
    for arguments in ({"subfolder": path}, {"revision": path}, {"files": (path,)}, {"optional": (path,), "files": ()}):
        options: dict[str, Any] = dict(arguments)
        with pytest.raises(CheckpointError, match="is not a plain relative path"):
            fetch("org/m", **options)
    with pytest.raises(CheckpointError, match="is not a plain relative path"):
        fetch(tmp_path, subfolder=path)
    with pytest.raises(CheckpointError, match="is not a plain relative path"):
        fetch(f"org/m@{path}")
    assert server.requests == []


@given(st.text(max_size=30), st.text(max_size=10))
def test_any_name_is_a_path_or_a_checkpoint_error(name: str, subfolder: str) -> None:
    try:
        path = fetch(name, subfolder=subfolder, local_files_only=True)
    except CheckpointError as error:
        assert error.remedy
    else:
        assert path.exists()


def test_path_imports_no_heavy_library() -> None:
    heavy = ("huggingface_hub", "torch", "pydantic")
    code = f"import sys; from deit.hub import fetch; fetch('.'); print(*(x in sys.modules for x in {heavy}))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False"] * 3


def test_shard_names_are_distinct_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text('{"weight_map": {"x": "b.bin", "y": "a.bin", "z": "b.bin"}}')
    assert shard_names(tmp_path / "i.json") == ["a.bin", "b.bin"]


def test_arguments_of_the_hub_are_split_off() -> None:
    arguments = {"revision": "v1", "num_labels": 3, "token": None, "image_size": 4}
    assert hub_arguments(arguments) == ({"revision": "v1", "token": None}, {"num_labels": 3, "image_size": 4})


@pytest.mark.parametrize("name", ["use_auth_token", "token"])
def test_either_name_of_the_token_is_accepted(name: str) -> None:
    assert hub_arguments({name: "t", "proxies": None, "trust_remote_code": True, "resume_download": True}) == (
        {"token": "t"},
        {},
    )
    assert hub_arguments({name: False}) == ({"token": False}, {})
    with pytest.raises(CheckpointError, match="the same argument"):
        hub_arguments({"use_auth_token": "t", "token": "u"})


def test_run_refers_to_its_best_model(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    (tmp_path / "weights.pth").touch()
    for path in (tmp_path, tmp_path / "best", tmp_path / "weights.pth"):
        assert model_path(path) == fetch(path) == path
    (tmp_path / "recipe.toml").touch()
    for resolve in (model_path, fetch):
        with pytest.raises(CheckpointError, match=f"The run {tmp_path} has no finished epoch: resume it: deit train --resume"):
            resolve(tmp_path)
    with pytest.raises(CheckpointError, match="none does not exist: check the path of the model, checkpoint or run"):
        model_path(tmp_path / "none")
    (tmp_path / "best" / "config.json").touch()
    assert model_path(tmp_path) == fetch(str(tmp_path), ["config.json"]) == tmp_path / "best"
    (tmp_path / "config.json").touch()
    assert model_path(tmp_path) == fetch(tmp_path) == tmp_path


def test_file_of_a_model_is_found_from_every_path_of_it(tmp_path: Path) -> None:
    best = tmp_path / "best"
    best.mkdir()
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json", "other.json"):
        (best / name).touch()
    paths = [tmp_path, best, best / "config.json", best / "model.safetensors", best / "model.safetensors.index.json"]
    for path in paths:
        assert fetch_file(path, ("missing.json", "config.json")) == best / "config.json"
    assert fetch_file(best / "other.json", ("config.json",)) == best / "other.json"
    with pytest.raises(CheckpointError, match=r"best has no x\.json or y\.json"):
        fetch_file(tmp_path, ("x.json", "y.json"))
    (best / "weights.pth").touch()  # of another model, for all that is known
    with pytest.raises(CheckpointError, match=r"weights\.pth is a single file, without config\.json"):
        fetch_file(best / "weights.pth", ("config.json",))
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "bundle.json").touch()
    with pytest.raises(CheckpointError, match="is an exported model"):
        fetch_file(tmp_path / "exported", ("config.json",))
