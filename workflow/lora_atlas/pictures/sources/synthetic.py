"""Source "synthetic": the painters of this project, painted on demand."""

from typing import Any

from ...sections import Pictures
from ...seeds import derive_seed
from .listing import Source, SourceError, choose, names_of, row, slug, unknown, wanted

PICTURES = 48  # an artist, unless pictures.per_artist says otherwise
SIDE = 64  # pixels, unless pictures.min_side asks for more


def _artists(pictures: Pictures, folder: str | None) -> dict[str, str | None]:
    from ..synthetic import ARTISTS

    limit = pictures.artists_per_genre
    taken: dict[str, int] = {}
    listed: dict[str, str | None] = {}
    for name, style in ARTISTS.items():
        if taken.get(style.genre, 0) < limit:
            listed[name] = style.genre
            taken[style.genre] = taken.get(style.genre, 0) + 1
    beyond = [name for name in wanted(pictures) or [] if name in ARTISTS and name not in listed]
    if beyond:
        raise SourceError(
            f"pictures.artists names {names_of(beyond)}, not among the first {limit} of each genre: "
            "raise pictures.artists_per_genre"
        )
    return choose(listed, pictures)


def _count(pictures: Pictures, folder: str | None) -> dict[str, int]:
    return dict.fromkeys(_artists(pictures, folder), _number(pictures))


def _digests(pictures: Pictures, folder: str | None) -> dict[str, str]:
    return dict.fromkeys(_artists(pictures, folder), str(_number(pictures)))


def _number(pictures: Pictures) -> int:
    return PICTURES if pictures.per_artist is None else pictures.per_artist


def _collect(artist: str, genre: str | None, pictures: Pictures, folder: str | None, seed: int) -> list[dict[str, Any]]:
    from ..decode import encode_png
    from ..synthetic import ARTISTS, CONTENTS, paint

    if artist not in ARTISTS:
        raise SourceError(unknown(artist, list(ARTISTS)))
    side = max(SIDE, pictures.min_side)
    contents = list(CONTENTS)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number in range(_number(pictures)):
        content = contents[number % len(contents)]
        painted = paint(ARTISTS[artist], content, derive_seed("synthetic picture", seed, artist, number), side)
        found = row(encode_png(painted), f"{number:04}-{slug(content)}.png", artist, genre, "synthetic", "Apache-2.0")
        if found["picture"] in seen:
            raise RuntimeError(
                f"the painter {artist} painted {content!r} twice alike: its seeds do not reach the picture"
            )
        seen.add(found["picture"])
        rows.append(found | {"width": side, "height": side, "status": "kept", "subject": slug(content)})
    return rows


SOURCE = Source(
    _artists,
    _count,
    _digests,
    _collect,
    photographs=False,
    about="painted by procedural painters of this project, no works of art",
    subjects=True,
)
