"""Foreign text, such as names of files and keys of headers, as it may stand in a table or on a terminal."""


def printable(text: str) -> str:
    """The text without control characters and as valid Unicode: what cannot be printed is written as its escape, a byte
    of a file's name that is no UTF-8 (PEP 383) as the byte."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
