"""Source "commons": files in categories of Wikimedia Commons, or of another wiki that runs MediaWiki.

The category's files are listed once, by the rules of its API (a User-Agent with a contact, one request at a time,
`maxlag`, Retry-After), into a manifest with SHA-1, licence and author. Commons changes; a manifest that is committed
does not, and a rerun fetches the same bytes or says that they changed.
"""

import html
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from ...sections import Pictures
from . import manifest
from .listing import Source, SourceError, choose, names_of, slug

API = "https://commons.wikimedia.org/w/api.php"
MIMES = frozenset(("image/jpeg", "image/png", "image/tiff", "image/webp"))
LISTED = 50  # files a request: more would need the rights of a bot
FIELDS = "LicenseShortName|Artist|ObjectName"


def listed(pictures: Pictures, client: Any) -> list[dict[str, Any]]:
    """Rows of the manifest of all categories; a file without a licence, or that is no picture, is left out aloud.

    Raises SourceError for a category without pictures, and FetchError when the API does not answer.
    """
    entries: dict[str, dict[str, Any]] = {}
    for artist, asked in _categories(pictures).items():
        before = len(entries)
        for category in asked["categories"]:
            for page in _pages(pictures.api or API, category, client):
                entry, reason = _entry(page, artist, asked["genre"])
                if reason is None and entry["url"] in entries and entries[entry["url"]]["artist"] != artist:
                    reason = f"also in a category of {entries[entry['url']]['artist']}"
                if reason is None:
                    entries.setdefault(entry["url"], entry)
                else:
                    print(f"{page.get('title')!a} of {artist}: left out, {reason}", flush=True)
        if len(entries) == before:
            raise SourceError(f"pictures.categories: no picture of {artist} in {names_of(asked['categories'])}")
    return list(entries.values())


def _categories(pictures: Pictures) -> dict[str, dict[str, Any]]:
    """Artist id → its categories and genre; a category alone may stand for them."""
    if not pictures.categories:
        raise SourceError(
            "pictures.source is commons: set pictures.categories, as {monet: {categories: [Paintings by Claude Monet], "
            "genre: impressionism}} or {monet: Paintings by Claude Monet}"
        )
    found: dict[str, dict[str, Any]] = {}
    for artist, asked in pictures.categories.items():
        asked = {"categories": [asked], "genre": None} if isinstance(asked, str) else {"genre": None, **asked}
        if slug(artist) in found:
            raise SourceError(f"pictures.categories: two artists would both be called {slug(artist)!r}")
        found[slug(artist)] = {
            "categories": [name.removeprefix("Category:") for name in asked["categories"]],
            "genre": asked["genre"] and slug(asked["genre"]),
        }
    return found


def _pages(api: str, category: str, client: Any):
    """Every file of a category, as the API describes it."""
    asked = {
        "action": "query",
        "generator": "categorymembers",
        "gcmtitle": f"Category:{category}",
        "gcmtype": "file",
        "gcmlimit": LISTED,
        "prop": "imageinfo",
        "iiprop": "url|sha1|size|mime|extmetadata",
        "iiextmetadatafilter": FIELDS,
        "maxlag": 5,
        "format": "json",
        "formatversion": 2,
    }
    onward: dict[str, Any] = {}
    pages: dict[str, dict[str, Any]] = {}
    while True:
        try:
            answer = json.loads(client.get(f"{api}?{urlencode(asked | onward)}", _no_error))
        except ValueError as error:
            raise SourceError(f"{api}: the answer is no JSON ({error})") from error
        if "error" in answer:
            raise SourceError(f"{api}: {answer['error'].get('code')}: {answer['error'].get('info')}")
        for page in answer.get("query", {}).get("pages", []):
            pages.setdefault(page["title"], {}).update(page)  # one page may come in parts
        if answer.get("continue") in (None, onward):
            break
        onward = answer["continue"]
    yield from pages.values()


def _no_error(data: bytes) -> None:
    """A lagging wiki says so with status 200: that is a busy server, to be asked again."""
    from ..fetch import FetchError

    try:
        error = json.loads(data).get("error", {})
    except (ValueError, AttributeError):
        return
    if error.get("code") in ("maxlag", "ratelimited", "readonly"):
        raise FetchError(f"{error['code']}: {error.get('info', '')}", busy=True)


def _entry(page: Mapping[str, Any], artist: str, genre: str | None) -> tuple[dict[str, Any], str | None]:
    info = (page.get("imageinfo") or [{}])[0]
    said = {key: value.get("value") for key, value in (info.get("extmetadata") or {}).items()}
    entry = {
        "artist": artist,
        "genre": genre,
        "url": info.get("url"),
        "sha256": None,
        "sha1": info.get("sha1"),
        "title": _plain(said.get("ObjectName")) or page.get("title", "").removeprefix("File:"),
        "author": _plain(said.get("Artist")),
        "licence": _plain(said.get("LicenseShortName")),
    }
    if not (entry["url"] and entry["sha1"]):
        return entry, "it has no file"
    if info.get("mime") not in MIMES:
        return entry, f"it is {info.get('mime')}"
    if not entry["licence"]:
        return entry, "it names no licence"
    return entry, None


def _plain(text: Any) -> str | None:
    """Text of what the API gives as HTML."""
    plain = html.unescape(re.sub(r"<[^>]*>", " ", str(text or "")))
    return " ".join("".join(c if c.isprintable() else " " for c in plain).split())[:300] or None


def _artists(pictures: Pictures, folder: str | None) -> dict[str, str | None]:
    asked = {artist: each["genre"] for artist, each in _categories(pictures).items()}
    return choose(asked, pictures) if not manifest.is_there(pictures) else manifest.artists(pictures, folder)


SOURCE = Source(
    _artists,
    manifest.planned(_artists, manifest.count),
    manifest.planned(_artists, manifest.digests, ""),
    manifest.collect,
    list_pictures=lambda pictures: listed(pictures, manifest.client_of(pictures)),
    fetch=manifest.SOURCE.fetch,
    titled_by="url",
    about="photographs of works in categories of Wikimedia Commons",
)
