"""A stand-in for the Hugging Face hub: one repository at one commit, as the hub's client asks for it."""

import json
import os
from collections.abc import Callable
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from museum import Museum, send

COMMIT = "a" * 40


def serve_repository(
    museum: Museum, kind: str, name: str, files: dict[str, bytes], lies: dict[str, bytes] = {}
) -> None:
    """`kind`: models or datasets. `lies`: files whose bytes are others than those that the listing names."""
    known = {}
    for path, data in files.items():
        large = path.endswith((".safetensors", ".parquet", ".bin"))
        blob = sha1(b"blob %d\0" % len(data) + data).hexdigest()
        known[path] = {"type": "file", "path": path, "size": len(data), "oid": blob}
        if large:
            known[path]["lfs"] = {"oid": sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    api, resolve = f"/api/{kind}/{name}", f"/{'datasets/' if kind == 'datasets' else ''}{name}/resolve/"

    def answer(handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        path = handler.path.split("?")[0]
        if path in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"):
            siblings = [
                {"rfilename": p, "size": f["size"], "blobId": f["oid"]}
                | ({"lfs": {"sha256": f["lfs"]["oid"], "size": f["size"], "pointerSize": 130}} if "lfs" in f else {})
                for p, f in known.items()
            ]
            return send(handler, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
        if path.startswith(f"{api}/tree/"):
            return send(handler, json.dumps(list(known.values())).encode())
        if path.startswith(f"{api}/paths-info/"):
            asked = (
                json.loads(body)["paths"] if body[:1] == b"{" else [p.split("=")[1] for p in body.decode().split("&")]
            )
            import urllib.parse

            asked = [urllib.parse.unquote(each) for each in asked]
            return send(handler, json.dumps([known[p] for p in asked if p in known]).encode())
        if path.startswith(resolve):
            file = path.removeprefix(resolve).split("/", 1)[1]
            if file in files:
                return send_file(handler, lies.get(file, files[file]), known[file])
        send(handler, b'{"error": "Entry not found"}', 404, X_Error_Code="EntryNotFound")

    def send_file(handler, data, entry):
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        span = handler.headers.get("Range")
        if handler.command == "HEAD":
            return send(handler, b"", Content_Length=str(len(data)), **headers)
        if span:
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data) - 1), len(data) - 1)
            part = data[int(first) : end + 1]
            return send(handler, part, 206, Content_Range=f"bytes {first}-{end}/{len(data)}", **headers)
        send(handler, data, **headers)

    answer_all(museum, answer)


def answer_all(museum: Museum, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
    """Whatever is asked for."""

    class Everything(dict):
        def get(self, path, default=None):
            return answer

    museum.paths = Everything()


def environment(museum: Museum, home: Path) -> dict[str, str]:
    """Of a process whose hub this is."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": museum.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(Path(__file__).parents[2] / "workflow"),
    }
