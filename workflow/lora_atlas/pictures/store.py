"""The store of fetched pictures: what was fetched once is never asked for again, by any study, after any crash.

Decisions:

- Bytes lie under their own SHA-256, and a record under the SHA-256 of the URL: no name of a server ever becomes a
  path. Both are written under a temporary name and renamed, bytes first: a record never names bytes that are absent.
- Bytes are hashed again when they are used. Damaged ones are fetched again, and must then be the same ones: what
  changed upstream is refused with both hashes, and the old record stays.
- An opt-out or a picture that is gone (404) is final: it is recorded and not asked for again. Other failures are
  asked for again by the next run.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import machine
from ..tables import replacing

Entry = Mapping[str, Any]  # a row of a manifest: `url`, and hashes where it names them


class Store:
    """The store in a folder, made when something is put there."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def record(self, entry: Entry) -> dict[str, Any] | None:
        """What is known of a URL: `sha256`, `sha1`, `size` of its bytes, or `reason` and `final`; None: nothing."""
        found = self._found(entry)
        # A record that names other bytes than the manifest wants is of an older manifest.
        agrees = found and all(not entry.get(k) or found[k] in (None, entry[k]) for k in ("sha256", "sha1"))
        return found if agrees else None

    def asked(self, entry: Entry) -> bool:
        """Whether this URL was ever asked for, by whatever manifest."""
        return self._found(entry) is not None

    def wants(self, entry: Entry) -> bool:
        """Whether this URL is still to be asked for."""
        found = self.record(entry)
        if found is None:
            return True
        return self.bytes_of(entry)[0] is None and not found.get("final")

    def bytes_of(self, entry: Entry) -> tuple[bytes | None, str | None]:
        """(bytes, None), or (None, why there are none)."""
        found = self.record(entry)
        if found is None:
            return None, (self._found(entry) or {}).get("reason") or "not fetched"
        if found["sha256"] is None:
            return None, found["reason"]
        try:
            data = self._blob_path(found["sha256"]).read_bytes()
        except OSError as error:
            if machine.at_fault(error):
                raise
            data = b""
        if hashlib.sha256(data).hexdigest() != found["sha256"]:
            return None, found["reason"] or "the stored bytes are damaged or gone"
        return data, None

    def put(self, entry: Entry, data: bytes) -> str | None:
        """Store bytes; or, where they are not the expected ones, nothing. Returns why not, or None."""
        got = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "sha1": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
        }
        before = self.record(entry) or {}
        for kind in ("sha256", "sha1"):
            expected = entry.get(kind) or before.get(kind)
            if expected and expected != got[kind]:
                return f"changed: expected {kind} {expected}, got {got[kind]}"
        blob = self._blob_path(got["sha256"])
        if not blob.exists() or hashlib.sha256(blob.read_bytes()).hexdigest() != got["sha256"]:
            with replacing(blob) as temporary:
                temporary.write_bytes(data)
        self._write(entry, got | {"size": len(data), "reason": None, "final": False})
        return None

    def refuse(self, entry: Entry, reason: str, *, final: bool) -> None:
        """Record why there are no bytes; hashes of bytes that are there, be they of an older manifest, stay."""
        before = self._found(entry) or {"sha256": None, "sha1": None, "size": None}
        self._write(entry, before | {"reason": reason, "final": final and before["sha256"] is None})

    def _found(self, entry: Entry) -> dict[str, Any] | None:
        try:
            return json.loads(self._record_path(entry["url"]).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _write(self, entry: Entry, found: dict[str, Any]) -> None:
        with replacing(self._record_path(entry["url"])) as temporary:
            temporary.write_text(json.dumps({"url": entry["url"], **found}))

    def _record_path(self, url: str) -> Path:
        name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / "records" / name[:2] / f"{name}.json"

    def _blob_path(self, sha256: str) -> Path:
        return self.folder / "bytes" / sha256[:2] / sha256
