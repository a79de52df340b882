"""Models from the Hugging Face hub: pinned by commit, only the files that are used, each held to its hash.

The hub's own cache keeps them ($HF_HOME), so that other programs and other studies find them there. What is a branch in
the config is resolved once, by the first fetch, and from then on read from the lock file (`lock`).
"""

import fnmatch
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from . import lock as locks
from . import pipelines, tokens

COMMIT = re.compile(r"[0-9a-f]{40}")
# What each kind of model is made of. Never a pickle where there are safetensors.
FILES = {
    "open_clip": ("open_clip_config.json", "open_clip_model.safetensors"),
    "timm": ("config.json", "model.safetensors"),
    "csd": ("model.safetensors", "pytorch_model.bin"),
    "vgg_gram": ("model.safetensors",),
    "base": (
        "model_index.json",
        "scheduler/*.json",
        "tokenizer*/*",
        "text_encoder*/config.json",
        "text_encoder*/model.safetensors",
        "text_encoder*/model.safetensors.index.json",
        "text_encoder*/model-*-of-*.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "transformer/diffusion_pytorch_model-*-of-*.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ),
}


class HubError(RuntimeError):
    """A model cannot be had from the hub; the message names it, and what to do."""


class File(TypedDict):
    """What the lock says of a file."""

    sha256: str
    bytes: int


def commit(repository: str, revision: str | None, lock: str | Path | None) -> str:
    """The commit of a revision: itself, what the lock says, or what the hub says now, which the lock then keeps."""
    if revision and COMMIT.fullmatch(revision):
        return revision
    name = f"{repository}@{revision or 'main'}"
    known = locks.read(lock)["hub"].get(name)
    if known:
        return known["commit"]
    if lock is None:
        raise HubError(f"{name}: no commit; name one as its revision, or set `lock` to a file that keeps what is found")
    found = _info(repository, revision or "main")
    return locks.settled(lock, "hub", name, {"commit": found.sha})["commit"]


def fetch(
    repository: str,
    revision: str | None,
    kind: str,
    *,
    lock: str | Path | None = None,
    sha256: str | None = None,
    variant: str | None = None,
) -> dict[str, Any]:
    """Download a model and check every file; returns `repository`, `commit`, `folder` and `files` (name → hash, bytes).

    `kind`: a key of FILES. `sha256`: of the file of weights. `variant`: of a base's weights, instead of the plain ones
    where a part has it, as diffusers loads them. Raises HubError; a file with another hash stays in the cache, and is
    named.
    """
    from huggingface_hub import snapshot_download

    found = commit(repository, revision, lock)
    listed = {each.rfilename: each for each in _info(repository, found).siblings}
    names = _used(sorted(listed), kind, variant)
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise HubError(f"{repository}@{found}: none of {', '.join(FILES[kind])} among its {len(listed)} files")
    try:
        if kind == "base":  # a few bytes say whether the rest is of any use
            index = snapshot_download(repository, revision=found, allow_patterns=["model_index.json"])
            if (refused := pipelines.problem(index, repository)) is not None:
                raise HubError(refused)
        folder = Path(snapshot_download(repository, revision=found, allow_patterns=names))
    except HubError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever its transport raised; it is raised again in other words
        raise HubError(
            f"{repository}@{found}: {type(error).__name__}: {_short(error)}; run again, it goes on"
        ) from tokens.cause(error)
    files: dict[str, File] = {}
    for name in names:
        data = folder / name
        digest, size = locks.sha256_of(data), data.stat().st_size
        stated = listed[name].lfs.sha256 if listed[name].lfs else None
        if stated and stated != digest:
            raise HubError(f"{data}: the hub names sha256 {stated}, this file has {digest}; delete it and run again")
        if not stated and listed[name].blob_id and listed[name].blob_id != _git_id(data):
            raise HubError(f"{data}: it is not the file that the hub names; delete it and run again")
        files[name] = {"sha256": digest, "bytes": size}
    weights = [each["sha256"] for name, each in files.items() if name.endswith((".safetensors", ".bin"))]
    if sha256 and sha256 not in weights:
        raise HubError(f"{repository}@{found}: the config names sha256 {sha256}, its weights have {', '.join(weights)}")
    kept = locks.settled(lock, "hub", f"{repository}@{found}", {"commit": found, "files": files})
    changed = [
        name for name in files if kept.get("files", {}).get(name, files[name])["sha256"] != files[name]["sha256"]
    ]
    if changed:
        raise HubError(f"{repository}@{found}: {', '.join(changed)} changed: {lock} names other hashes")
    return {"repository": repository, "commit": found, "folder": str(folder), "files": files}


def folder(repository: str, revision: str | None, kind: str, *, lock: str | Path | None = None) -> str:
    """The folder of a model in the hub's cache, fetched first where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = commit(repository, revision, lock)
    for name in FILES[kind]:
        if name.endswith((".safetensors", ".bin")) and "*" not in name:
            there = try_to_load_from_cache(repository, name, revision=found)
            if isinstance(there, str):
                return str(Path(there).parent)
    return fetch(repository, found, kind, lock=lock)["folder"]


def _used(names: Sequence[str], kind: str, variant: str | None = None) -> list[str]:
    found = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in FILES[kind])]
    if kind == "csd" and "model.safetensors" in found:
        found = ["model.safetensors"]
    if variant is not None:
        plain = {name for name in found if name.endswith((".safetensors", ".safetensors.index.json"))}
        of_variant = [name for name in names if _plain(name, variant) is not None]
        of_variant = [
            name for name in of_variant if any(fnmatch.fnmatch(str(_plain(name, variant)), p) for p in FILES[kind])
        ]
        having = {name.rpartition("/")[0] for name in of_variant}
        found = sorted(
            {name for name in found if name not in plain or name.rpartition("/")[0] not in having} | {*of_variant}
        )
    return found


def _plain(name: str, variant: str) -> str | None:
    """The name of a file of weights without its variant, as diffusers puts it in (fp16): model.fp16.safetensors,
    model.fp16-00001-of-00002.safetensors, model.safetensors.index.fp16.json; None for one without it."""
    for ending in (f".{variant}.safetensors", f".index.{variant}.json"):
        if name.endswith(ending):
            return name.removesuffix(ending) + ending.replace(f".{variant}", "")
    match = re.fullmatch(rf"(.+)\.{re.escape(variant)}(-\d+-of-\d+\.safetensors)", name)
    return match[1] + match[2] if match else None


def _info(repository: str, revision: str) -> Any:
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:  # noqa: BLE001 - the same
        raise HubError(f"{repository}@{revision}: {type(error).__name__}: {_short(error)}") from tokens.cause(error)


def _git_id(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _short(error: BaseException) -> str:
    return tokens.hidden(" ".join(str(error).split()))[:300]
