"""Tokens of the Hugging Face hub, which no message, log, table or page may hold, though a server repeat them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

HIDDEN = "[token]"


def hidden(text: str) -> str:
    """The text without the tokens that the hub's client is given by its environment or its file."""
    for token in _known():
        text = text.replace(token, HIDDEN)
    return text


def cause(error: BaseException) -> BaseException | None:
    """The error, to be raised from; None where it, or what it came from, would show a token in a traceback."""
    each: BaseException | None = error
    while each is not None:
        if hidden(str(each)) != str(each):
            return None
        each = each.__cause__ or each.__context__
    return error


def _known() -> Iterator[str]:
    from huggingface_hub import constants

    named = [os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    with contextlib.suppress(OSError, ValueError):
        named.append(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8"))
    yield from {token.strip() for token in named if len(token.strip()) > 3}
