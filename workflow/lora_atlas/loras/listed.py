"""The list of a study's LoRAs: what the files hold that many stages read.

Stages that read all LoRAs depend on this one file. Snakemake looks for the producer of every input of every job: six
stages with 10,000 inputs each took it longer than all else of a plan (benchmarks/RESULTS.md).
"""

from collections.abc import Iterable
from pathlib import Path

from .. import keys, tables
from .container import LoraFileError


def write_list(path: str | Path, files: Iterable[str | Path], digests: keys.Digests = keys.DIGESTS) -> None:
    """List LoRAs, which lie beside the list under their ids: each one's SHA-256 and bytes.

    Raises OSError where a file cannot be read, ValueError where one lies elsewhere.
    """
    rows = []
    for file in map(Path, files):
        lora = file.relative_to(Path(path).parent).with_suffix("").as_posix()
        rows.append({"lora": lora, "sha256": digests.file(file), "bytes": file.stat().st_size})
    tables.write(path, "lora_list", rows)


def listed(path: str | Path, digests: keys.Digests = keys.DIGESTS) -> dict[str, str]:
    """Id → file of the LoRAs of a list, in its order: files lie beside it, under their ids.

    Raises TableError where the list is damaged, LoraFileError where a file is gone or is not the one that was listed.
    """
    files, wrong = {}, []
    for row in tables.read(path, "lora_list").to_pylist():
        file = Path(path).parent / f"{row['lora']}.safetensors"
        files[row["lora"]] = str(file)
        try:
            same = digests.file(file) == row["sha256"]
        except OSError as error:
            wrong.append(f"{file}: {error.strerror}")
        else:
            if not same:
                wrong.append(f"{file}: not the file that was listed")
    if wrong:
        more = f"\nand {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise LoraFileError("\n".join(wrong[:3]) + f"{more}\nRun the same again: what differs is made anew")
    return files
