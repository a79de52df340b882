"""Models of the hub, against a stand-in on the loopback: pinned, hashed, locked."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import hub_server
import pytest
import yaml
from museum import send, serving

from lora_atlas.hub import lock as locks
from lora_atlas.hub.models import HubError, commit, fetch, folder

FILES = {
    "config.json": b'{"architecture": "x"}',
    "model.safetensors": b"tensors" * 100,
    "pytorch_model.bin": b"a pickle",
    "README.md": b"words",
}


@pytest.fixture
def museum(monkeypatch, tmp_path):
    """The hub's client, whose address and cache are ours for a test."""
    from huggingface_hub import constants

    with serving() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield found


def refused(*arguments, **options) -> str:
    with pytest.raises(HubError) as caught:
        fetch(*arguments, **options)
    return str(caught.value)


def test_only_the_files_that_are_used_are_fetched_and_named_with_their_hashes(museum, tmp_path):
    hub_server.serve_repository(museum, "models", "timm/vit", FILES)
    found = fetch("timm/vit", hub_server.COMMIT, "timm")
    assert set(found["files"]) == {"config.json", "model.safetensors"} and found["commit"] == hub_server.COMMIT
    weights = FILES["model.safetensors"]
    assert found["files"]["model.safetensors"] == {"sha256": sha256(weights).hexdigest(), "bytes": len(weights)}
    assert Path(found["folder"], "model.safetensors").read_bytes() == weights
    asked = {path.rsplit("/", 1)[1] for path, _ in museum.log if "/resolve/" in path}
    assert asked == {"config.json", "model.safetensors"}
    museum.log.clear()
    there = folder("timm/vit", hub_server.COMMIT, "timm")
    assert there == found["folder"] and museum.log == []  # what is there needs no network


@pytest.mark.fault("downloads", "a branch moves between two runs", "the lock keeps the first commit")
def test_a_branch_is_resolved_once_and_then_read_from_the_lock(museum, tmp_path):
    hub_server.serve_repository(museum, "models", "timm/vit", FILES)
    lock = str(tmp_path / "study.lock.yaml")
    found = fetch("timm/vit", "main", "timm", lock=lock)
    assert found["commit"] == hub_server.COMMIT
    said = yaml.safe_load(Path(lock).read_text())["hub"]
    assert said["timm/vit@main"] == {"commit": hub_server.COMMIT}
    assert said[f"timm/vit@{hub_server.COMMIT}"]["files"] == found["files"]
    assert commit("timm/vit", "main", lock) == commit("timm/vit", None, lock) == hub_server.COMMIT  # without a network
    with pytest.raises(HubError, match="no commit; name one"):
        commit("timm/vit", "main", None)


@pytest.mark.fault("downloads", "a hub sends other bytes than it lists", "refused, with the file to delete")
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_bytes_that_are_not_those_of_the_listing_are_refused(museum, tmp_path, file):
    lies = {file: FILES[file][:-1] + b"?"}
    hub_server.serve_repository(museum, "models", "timm/vit", FILES, lies)
    found = refused("timm/vit", hub_server.COMMIT, "timm")
    assert "delete it and run again" in found and file in found


@pytest.mark.fault(
    "downloads", "a model's weights are not those of the lock, or of the configuration", "refused, with the hashes"
)
def test_a_hash_of_the_config_or_of_the_lock_is_held_to(museum, tmp_path):
    hub_server.serve_repository(museum, "models", "timm/vit", FILES)
    wrong = refused("timm/vit", hub_server.COMMIT, "timm", sha256="0" * 64)
    assert f"names sha256 {'0' * 64}" in wrong
    lock = tmp_path / "l.yaml"
    file = {"model.safetensors": {"sha256": "0" * 64, "bytes": 1}}
    locks.settled(lock, "hub", f"timm/vit@{hub_server.COMMIT}", {"commit": hub_server.COMMIT, "files": file})
    wrong = refused("timm/vit", hub_server.COMMIT, "timm", lock=str(lock))
    assert "model.safetensors changed" in wrong


def test_a_repository_without_the_files_says_which(museum, tmp_path):
    hub_server.serve_repository(museum, "models", "timm/vit", {"README.md": b"x", "pytorch_model.bin": b"x"})
    found = refused("timm/vit", hub_server.COMMIT, "timm")
    assert "none of config.json, model.safetensors" in found
    gone = refused("no/such", hub_server.COMMIT, "timm")
    assert "no/such@" in gone


def test_a_base_is_fetched_without_its_other_precisions_and_formats(museum, tmp_path):
    wanted = {
        "model_index.json": b"{}",
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": b"unet",
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": b"vae",
        "text_encoder_2/config.json": b"{}",
        "text_encoder_2/model.safetensors": b"text",
        "tokenizer_2/vocab.json": b"{}",
        "scheduler/scheduler_config.json": b"{}",
    }
    others = ["v1-5.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin"]
    others += ["safety_checker/model.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors", "unet/model.onnx"]
    files = wanted | dict.fromkeys(others, b"other")
    hub_server.serve_repository(museum, "models", "o/base", files)
    found = fetch("o/base", hub_server.COMMIT, "base")
    assert set(found["files"]) == set(wanted)


def test_a_variant_is_fetched_where_a_part_has_it_as_diffusers_loads_it(museum, tmp_path):
    wanted = [
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json", "text_encoder/model.safetensors.index.fp16.json",
        "text_encoder/model.fp16-00001-of-00002.safetensors", "text_encoder/model.fp16-00002-of-00002.safetensors",
    ]  # fmt: skip
    others = ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "unet/x.fp16.safetensors"]
    hub_server.serve_repository(museum, "models", "o/base", dict.fromkeys([*wanted, *others], b"{}"))
    assert set(fetch("o/base", hub_server.COMMIT, "base", variant="fp16")["files"]) == set(wanted)


def test_a_transformer_is_fetched_with_all_its_shards(museum, tmp_path):
    wanted = {
        "model_index.json": b'{"_class_name": "FluxPipeline"}',
        "transformer/config.json": b"{}",
        "transformer/diffusion_pytorch_model-00001-of-00002.safetensors": b"one",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors": b"two",
        "transformer/diffusion_pytorch_model.safetensors.index.json": b"{}",
        "text_encoder_2/model-00001-of-00002.safetensors": b"text",
        "text_encoder_2/model.safetensors.index.json": b"{}",
    }
    others = ["flux1-dev.safetensors", "text_encoder_2/model.fp16-00001-of-00002.safetensors"]
    hub_server.serve_repository(museum, "models", "o/base", wanted | dict.fromkeys(others, b"other"))
    assert set(fetch("o/base", hub_server.COMMIT, "base")["files"]) == set(wanted)


def test_a_base_that_cannot_be_trained_is_refused_before_its_weights_are_fetched(museum, tmp_path, monkeypatch):
    import huggingface_hub

    files = {"model_index.json": b'{"_class_name": "MochiPipeline"}', "transformer/config.json": b"{}",
             "transformer/diffusion_pytorch_model.safetensors": b"large"}  # fmt: skip
    hub_server.serve_repository(museum, "models", "o/base", files)
    through, asked = huggingface_hub.snapshot_download, []

    def recorded(*args, allow_patterns, **rest):
        asked.append(allow_patterns)
        return through(*args, allow_patterns=allow_patterns, **rest)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", recorded)
    said = refused("o/base", hub_server.COMMIT, "base")
    assert "'o/base' holds a MochiPipeline" in said and "QwenImagePipeline" in said and len(said) < 400
    assert asked == [["model_index.json"]]


# --- tokens

TOKEN = "hf_aTokenThatOpensWhatIsPrivate0123456789"
FETCHES = """
import json, sys, traceback
from lora_atlas.hub.models import HubError, fetch
try:
    print(json.dumps(fetch("lab/private", "main", "timm", lock=sys.argv[1])))
except HubError as error:
    print(error)
    traceback.print_exc()
"""


def repeated(handler):
    send(handler, b"{}", 401, X_Error_Message=f"Invalid credentials: {handler.headers['Authorization']}")


@pytest.mark.fault(
    "downloads",
    "a hub refuses a token, and repeats it in its answer",
    "the token is in no message, traceback, log, receipt or lock, whether it came by the environment or by its file",
)
@pytest.mark.parametrize("given", ["HF_TOKEN", "file"])
@pytest.mark.parametrize("echoes", [False, True])
def test_a_token_is_sent_and_never_written(tmp_path, given, echoes):
    home, lock = tmp_path / "home", tmp_path / "study.lock.yaml"
    home.mkdir()
    with serving() as museum:
        hub_server.serve_repository(museum, "models", "lab/private", FILES)
        if echoes:
            hub_server.answer_all(museum, repeated)
        environment = hub_server.environment(museum, home) | {"HF_HUB_VERBOSITY": "debug"}
        if given == "file":
            (home / "token").write_text(TOKEN + "\n")
        else:
            environment[given] = TOKEN
        done = subprocess.run(
            [sys.executable, "-c", FETCHES, str(lock)], env=environment, capture_output=True, text=True, check=True
        )
        assert {headers.get("Authorization") for _, headers in museum.log} == {f"Bearer {TOKEN}"}
    out = done.stdout + done.stderr
    assert ("lab/private@main" in out and "[token]" in out) if echoes else '"commit"' in out
    written = {path for path in tmp_path.rglob("*") if path.is_file() and path != home / "token"}
    assert (lock in written) != echoes
    assert TOKEN not in out and not [path for path in written if TOKEN.encode() in path.read_bytes()]


# --- the lock file


def test_a_lock_is_never_changed_only_added_to(tmp_path):
    path = tmp_path / "s.lock.yaml"
    assert locks.settled(path, "files", "http://x", {"sha256": "a"}) == {"sha256": "a"}
    assert locks.settled(path, "files", "http://x", {"sha256": "b"}) == {"sha256": "a"}
    assert locks.settled(path, "hub", "o/d@main", {"commit": "c"}) == {"commit": "c"}
    assert locks.read(path) == {"files": {"http://x": {"sha256": "a"}}, "hub": {"o/d@main": {"commit": "c"}}}
    assert locks.settled(None, "files", "http://x", {"sha256": "b"}) == {"sha256": "b"}


@pytest.mark.fault("downloads", "a lock file that is damaged", "refused by name")
@pytest.mark.parametrize("text", ["[", "a list: [x]\nfiles: [1]", "- x"])
def test_a_damaged_lock_is_named(tmp_path, text):
    (tmp_path / "s.lock.yaml").write_text(text)
    with pytest.raises(locks.LockError, match=r"s\.lock\.yaml: "):
        locks.read(tmp_path / "s.lock.yaml")
