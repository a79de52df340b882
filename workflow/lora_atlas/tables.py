"""Every table of a study: one explicit, versioned schema each; atomic, checked Parquet.

Decisions that live here:
- A writer states every column. A missing, extra or mistyped column is an error at the writer, never a column of
  type ``null`` that a later reader meets.
- A table is written under a temporary name in the same folder, flushed to disk and renamed: a reader sees the
  whole old table or the whole new one.
- Pages carry checksums and readers verify them: Parquet otherwise decodes a flipped bit without a word. They do not
  cover the footer: the number of rows and a digest of the values stand in the metadata, and readers verify them too.
- The same rows give the same bytes: no dates, no pandas metadata, one compression level.
- Not-a-number and null are different things: a metric that is not defined is null.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .atomic import replacing as replacing
from .labels import printable

VERSION = 1

# Scenarios. Of principal components: the basis is fitted on all LoRAs and nothing is unseen; on the gallery, which has
# other LoRAs of the query's artist; or on other artists than those that are ranked. Without a basis: vectors have the
# very inner products of the LoRAs, and nothing is fitted; with artists in two halves, as where they are unseen (what is
# fitted before, such as a consensus of modules, then never saw the half that is ranked).
TOGETHER, KNOWN, UNSEEN = "together", "known artist", "unseen artist"
WHOLE, WHOLE_UNSEEN = "whole", "whole, unseen artist"

_text, _real, _whole = pa.string(), pa.float64(), pa.int64()
_image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the Hugging Face convention
_vector = pa.list_(pa.float32())
_part = pa.struct([("component", _text), ("norm", _real)])


def _schema(about: str, *columns: tuple[str, pa.DataType] | tuple[str, pa.DataType, str]) -> tuple[str, pa.Schema]:
    """What a row is, and the columns, which are required unless marked "optional"."""
    return about, pa.schema([pa.field(c[0], c[1], nullable=len(c) == 3) for c in columns])


_score = (("value", _real, "optional"), ("low", _real, "optional"), ("high", _real, "optional"))
# A way to ask pictures for LoRAs, and what the nearest of an answer vote for.
_way: tuple[tuple[str, pa.DataType] | tuple[str, pa.DataType, str], ...] = (
    ("scenario", _text),
    ("pictures", _whole, "optional"),
    ("modules", _text),
    ("centring", _text),
    ("metric", _text),
)
_other_way: tuple[tuple[str, pa.DataType] | tuple[str, pa.DataType, str], ...] = (
    ("way", _text),
    ("setting", _text),
    ("pictures", _whole, "optional"),
    ("metric", _text),
)
_votes = (
    ("artist_vote", _text, "optional"),
    ("artist_share", _real, "optional"),
    ("genre_vote", _text, "optional"),
    ("genre_share", _real, "optional"),
)

_DECLARED: dict[str, tuple[str, pa.Schema]] = {
    "pictures": _schema(
        "one row a picture, kept or refused",
        ("picture", _text),
        ("artist", _text),
        ("genre", _text, "optional"),
        ("image", _image, "optional"),
        ("width", _whole, "optional"),
        ("height", _whole, "optional"),
        ("source", _text),
        ("licence", _text, "optional"),
        ("subject", _text, "optional"),
        ("status", _text),
        ("reason", _text, "optional"),
    ),
    "duplicates": _schema(
        "one row a kept picture that is not used, since other is nearly the same; other_artist may be another",
        ("picture", _text),
        ("artist", _text),
        ("other", _text),
        ("other_artist", _text),
        ("distance", _whole),
        ("correlation", _real),
        ("reason", _text),
    ),
    "plan": _schema(
        "one row a LoRA: what it is trained on",
        ("lora", _text),
        ("artist", _text),
        ("genre", _text, "optional"),
        ("split", _text),
        ("seed", _whole),
        ("pictures", pa.list_(_text)),
        ("overlap", _real),
    ),
    "lora_list": _schema(
        "one row a trained LoRA: what its file, beside this one and under its id, holds",
        ("lora", _text),
        ("sha256", _text),
        ("bytes", _whole),
    ),
    "training_log": _schema(
        "one row a LoRA × logged step",
        ("lora", _text),
        ("step", _whole),
        ("loss", _real, "optional"),
        ("gradient_norm", _real, "optional"),
        ("seconds", _real),
    ),
    "generated": _schema(
        "one row a generated picture",
        ("lora", _text),
        ("prompt", _text),
        ("seed", _whole),
        ("image", _image),
    ),
    "features": _schema(
        "one row a picture; lora where it was generated",
        ("picture", _text),
        ("artist", _text),
        ("lora", _text, "optional"),
        ("vector", _vector),
    ),
    "embeddings": _schema(
        "one row a LoRA × scenario × calibration; vectors are comparable within one scenario, calibration and fold",
        ("scenario", _text),
        ("calibration", _text),
        ("fold", _whole),
        ("lora", _text),
        ("artist", _text),
        ("genre", _text, "optional"),
        ("split", _text),
        ("vector", _vector),
    ),
    "clustering": _schema(
        "one row a way to cluster × measure of how clusters agree with artists or genres",
        ("scenario", _text),
        ("descriptor", _text),
        ("level", _text),
        ("algorithm", _text),
        ("metric", _text),
        *_score,
        ("chance", _real, "optional"),
    ),
    "retrieval": _schema(
        "one row a setting × metric of how the LoRAs nearest to a query have its artist or genre",
        ("scenario", _text),
        ("descriptor", _text),
        ("calibration", _text),
        ("distance", _text),
        ("level", _text),
        ("metric", _text),
        *_score,
        ("chance", _real, "optional"),
        ("queries", _whole),
    ),
    "queries": _schema(
        "one row a query × setting: what the intervals, differences and seeds of retrieval are computed from",
        ("scenario", _text),
        ("descriptor", _text),
        ("calibration", _text),
        ("distance", _text),
        ("level", _text),
        ("metric", _text),
        ("lora", _text),
        ("artist", _text),
        ("value", _real),
        ("chance", _real),
    ),
    "differences": _schema(
        'one row a pair of descriptors: left − right, on the same artists; right may be "best control"',
        ("scenario", _text),
        ("level", _text),
        ("algorithm", _text, "optional"),
        ("metric", _text),
        ("left", _text),
        ("right", _text),
        *_score,
    ),
    "structure": _schema(
        "one row a pair of descriptors × level × measure of how alike their geometries are, beside its "
        "permutation null",
        ("level", _text),
        ("left", _text),
        ("right", _text),
        ("metric", _text),
        *_score,
        ("null", _real),
        ("null_high", _real),
        ("p", _real),
    ),
    "ablation": _schema(
        "one row a part of the weights; matched: random parts of as many parameters",
        ("component", _text),
        ("block", _text),
        ("factor", _text),
        ("parameters", _whole),
        ("share", _real),
        ("metric", _text),
        *_score,
        ("matched", _real, "optional"),
        ("matched_low", _real, "optional"),
        ("matched_high", _real, "optional"),
        ("chance", _real, "optional"),
    ),
    "grid": _schema(
        "one row a descriptor × point of the grid that every descriptor is given alike; remark: default, or best",
        ("descriptor", _text),
        ("dimensions", _whole),
        ("whitening", _text),
        ("calibration", _text),
        ("distance", _text),
        ("metric", _text),
        *_score,
        ("chance", _real, "optional"),
        ("remark", _text, "optional"),
    ),
    "worth": _schema(
        "one row a descriptor of generated pictures × number of them, beside a descriptor of the weights",
        ("descriptor", _text),
        ("pictures", _whole),
        ("metric", _text),
        *_score,
        ("seconds", _real, "optional"),
    ),
    "worth_queries": _schema(
        "one row a query × number of pictures: what the worth curve's intervals are computed from",
        ("descriptor", _text),
        ("pictures", _whole),
        ("metric", _text),
        ("lora", _text),
        ("artist", _text),
        ("value", _real),
    ),
    "crossings": _schema(
        "one row a pair: how many generated pictures retrieve as well as the weights; null: more than there "
        "are. never: the share of resamplings in which that is so",
        ("descriptor", _text),
        ("reference", _text),
        ("metric", _text),
        *_score,
        ("most", _whole),
        ("never", _real),
        ("reference_value", _real),
        ("reference_seconds", _real, "optional"),
        ("seconds", _real, "optional"),
    ),
    "controls": _schema(
        "one row a control × descriptor: what chance alone gives it",
        ("control", _text),
        ("descriptor", _text),
        ("level", _text),
        ("metric", _text),
        *_score,
        ("expected", _real),
        ("observed", _real),
        ("p", _real),
    ),
    "claims": _schema(
        "one row a claim of FINDINGS.md; claim is the same in every study, sentence names what is this study's own",
        ("claim", _text),
        ("sentence", _text),
        ("verdict", _text),
        ("numbers", _text),
        ("p", _real),
        ("seeds", _whole),
    ),
    "bases": _schema(
        "one row a pair of studies on two bases × replicate × descriptor × level × measure of how alike the same LoRAs "
        "lie in both weight spaces, beside the null of renamed LoRAs or artists",
        ("left", _text),
        ("right", _text),
        ("replicate", _text),
        ("descriptor", _text),
        ("level", _text),
        ("metric", _text),
        *_score,
        ("null", _real),
        ("null_high", _real),
        ("p", _real),
    ),
    "crowd": _schema(
        "one row a descriptor × number of artists: how often the nearest LoRA is the artist's own, known artists",
        ("descriptor", _text),
        ("artists", _whole),
        *_score,
        ("law", _real, "optional"),
        ("separation", _real, "optional"),
        ("spread", _real, "optional"),
        ("chance", _real),
        ("queries", _whole),
    ),
    "drift": _schema(
        "one row a principal component × calibration: root mean square of query scores over that of gallery "
        "scores; before calibration also the ratio of left-out gallery LoRAs, measured and in closed form",
        ("descriptor", _text),
        ("calibration", _text),
        ("component", _whole),
        ("explained", _real),
        *_score,
        ("held_out", _real, "optional"),
        ("predicted", _real, "optional"),
    ),
    "loras": _schema(
        "one row a LoRA file that was found, imported or refused",
        ("lora", _text),
        ("file", _text),
        ("artist", _text, "optional"),
        ("genre", _text, "optional"),
        ("sha256", _text, "optional"),
        ("bytes", _whole, "optional"),
        ("format", _text, "optional"),
        ("kinds", pa.list_(_text)),
        ("family", _text, "optional"),
        ("header_family", _text, "optional"),
        ("space", _text, "optional"),
        ("modules", _whole),
        ("parameters", _whole),
        ("ranks", pa.list_(_whole)),
        ("components", pa.list_(_part)),
        ("norm", _real, "optional"),
        ("zero_share", _real, "optional"),
        ("tokens", _whole),
        ("copy_of", _text, "optional"),
        ("relation", _text, "optional"),
        ("remark", _text, "optional"),
        ("status", _text),
        ("reason", _text, "optional"),
    ),
    "neighbours": _schema(
        "one row a LoRA × one of its nearest, within one space; distances are between updates at norm one",
        ("space", _text),
        ("lora", _text),
        ("rank", _whole),
        ("neighbour", _text),
        ("artist", _text, "optional"),
        ("genre", _text, "optional"),
        ("distance", _real),
        ("cosine", _real),
        ("p", _real),
    ),
    "query": _schema(
        "one row a query × one of the nearest known LoRAs, or one row that says why a query was refused",
        ("query", _text),
        ("sha256", _text, "optional"),
        ("space", _text, "optional"),
        ("rank", _whole, "optional"),
        ("lora", _text, "optional"),
        ("artist", _text, "optional"),
        ("genre", _text, "optional"),
        ("distance", _real, "optional"),
        ("cosine", _real, "optional"),
        ("p", _real, "optional"),
        ("chance", _real, "optional"),
        ("relation", _text, "optional"),
        *_votes,
        ("status", _text),
        ("reason", _text, "optional"),
    ),
    "attribution": _schema(
        "one row a way to ask × metric: pictures of a query LoRA find the gallery LoRAs of its artist by one gradient "
        "of the base. pictures: of each query, null: all that it was trained on. absent artist: without the LoRAs of "
        "the artist, where p ≤ 0.05 is a false alarm",
        *_way,
        *_score,
        ("chance", _real),
        ("queries", _whole),
    ),
    "attribution_queries": _schema(
        "one row a query × way to ask: what the intervals of attribution are computed from",
        *_way,
        ("lora", _text),
        ("artist", _text),
        ("value", _real),
        ("chance", _real),
    ),
    "attribution_ways": _schema(
        "one row another way to ask × its setting × number of pictures × measure, over queries or LoRAs that painted",
        *_other_way,
        *_score,
        ("chance", _real),
        ("queries", _whole),
    ),
    "attribution_way_queries": _schema(
        "one row a query, or a LoRA that painted, × way to ask: what attribution_ways has the means of",
        *_other_way,
        ("lora", _text),
        ("artist", _text),
        ("value", _real),
        ("chance", _real),
    ),
    "attributions": _schema(
        "one row a set of pictures, or one of them (picture), × one of the known LoRAs that it speaks most for; or one "
        "row that says why a picture was refused",
        ("query", _text),
        ("picture", _text, "optional"),
        ("sha256", _text, "optional"),
        ("pictures", _whole),
        ("space", _text, "optional"),
        ("rank", _whole, "optional"),
        ("lora", _text, "optional"),
        ("artist", _text, "optional"),
        ("genre", _text, "optional"),
        ("prominence", _real, "optional"),
        ("p", _real, "optional"),
        ("loss", _real, "optional"),
        *_votes,
        ("status", _text),
        ("reason", _text, "optional"),
    ),
    "module_weights": _schema(
        "one row a module × weighting: how much it counts, the largest at one, beside its share of the squared norms",
        ("kernel", _text),
        ("weighting", _text),
        ("module", _text),
        ("component", _text),
        ("block", _text),
        ("weight", _real),
        ("share", _real),
        ("weighted_share", _real),
    ),
    "cost": _schema(
        "one row a costly job",
        ("stage", _text),
        ("item", _text),
        ("count", _whole),
        ("seconds", _real),
        ("device", _text),
    ),
}
SCHEMAS: dict[str, pa.Schema] = {name: schema for name, (_, schema) in _DECLARED.items()}
ABOUT: dict[str, str] = {name: about for name, (about, _) in _DECLARED.items()}  # what a row is


class TableError(ValueError):
    """A table is absent, damaged, or not the table it should be; the message names the file."""


def table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table of the named schema; raises TableError for a missing, extra or mistyped column."""
    schema = SCHEMAS[name]
    rows = list(rows)
    wanted = set(schema.names)
    for number, row in enumerate(rows):
        if set(row) != wanted:
            missing, extra = sorted(wanted - set(row)), sorted(set(row) - wanted)
            raise TableError(f"table {name!r}, row {number}: missing columns {missing}, unknown columns {extra}")
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        try:
            columns.append(pa.array(_exact(values, field.type), field.type))
        except (TypeError, ValueError, OverflowError, NotImplementedError) as error:  # Arrow's own are among them
            raise TableError(f"table {name!r}, column {field.name!r}: {error}") from error
    built = pa.Table.from_arrays(columns, schema=schema)
    _check_required(built, name, f"table {name!r}")
    return built


def write(
    path: str | Path, name: str, data: pa.Table | Iterable[Mapping[str, Any]], metadata: Mapping[str, Any] = {}
) -> None:
    """Write a table of the named schema atomically; `metadata` values are stored as JSON in the schema."""
    data = data if isinstance(data, pa.Table) else table(name, data)
    if not data.schema.equals(SCHEMAS[name]):
        raise TableError(f"{path}: columns are not those of table {name!r}: it {_odd(data.schema, name)}")
    _check_required(data, name, str(path))
    told = {"table": name, "version": VERSION, "rows": len(data), "sha256": digest(data)}
    header = {"lora_atlas": json.dumps(told)}
    header |= {k: json.dumps(v, sort_keys=True) for k, v in sorted(metadata.items()) if k != "lora_atlas"}
    with replacing(path) as temporary:
        pq.write_table(
            data.replace_schema_metadata(header),
            temporary,
            compression="zstd",
            compression_level=3,
            write_page_checksum=True,
            store_schema=True,
        )


def read(path: str | Path, name: str) -> pa.Table:
    """Read a table, checking page checksums, schema, version, number of rows and content; raises TableError naming the
    file and the command that makes it again."""
    again = f"make it again: snakemake --forcerun {path}"
    try:
        # One open file: of a path, Arrow opens it twice, and between the two it may be replaced. In this thread alone:
        # Arrow's pools outlive the call, and a process that forks or ends while one of their threads starts can end in
        # std::terminate.
        with open(path, "rb") as file:
            opened = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
            found = opened.read(use_threads=False)
        header = metadata(found).get("lora_atlas")
    except FileNotFoundError as error:
        raise TableError(f"{path}: the table {name!r} is absent") from error
    except (ValueError, OSError, NotImplementedError) as error:  # Arrow's own, and metadata that is no JSON
        # Arrow's words may hold bytes of the file.
        why = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())[:200]
        raise TableError(f"{path}: damaged, or not a Parquet file ({why}); {again}") from error
    header = header if isinstance(header, dict) else {}
    if (header.get("table"), header.get("version")) != (name, VERSION):
        raise TableError(
            f"{path}: expected table {name!r} version {VERSION}, found {header.get('table')!r:.100} version "
            f"{header.get('version')!r:.40}; {again}"
        )
    if not found.schema.equals(SCHEMAS[name]):
        raise TableError(
            f"{path}: columns are not those of table {name!r}: it {_odd(found.schema, name)}; it is of another version "
            f"of this project: {again}"
        )
    if "rows" in header and header["rows"] != len(found):
        raise TableError(f"{path}: damaged: {len(found)} rows, and {header['rows']} were written; {again}")
    if "sha256" in header and header["sha256"] != digest(found):
        raise TableError(f"{path}: damaged: its values are not those that were written; {again}")
    return found


def digest(data: pa.Table) -> str:
    """SHA-256 of a table's values, column by column: the same however Arrow holds them, in pieces, slices or masks.

    Page checksums do not cover the file's footer, where the number of rows stands.
    """
    found = hashlib.sha256()
    for name in data.column_names:
        found.update(name.encode() + b"\0")
        for part in _bytes(data[name].combine_chunks()):
            found.update(part)
    return found.hexdigest()


def _bytes(values: pa.Array | pa.ChunkedArray) -> Iterator[bytes]:
    if isinstance(values, pa.ChunkedArray):  # what combine_chunks leaves of none
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    yield f"{len(values)}".encode()
    yield np.packbits(values.is_valid().to_numpy(zero_copy_only=False)).tobytes()
    kind = values.type
    if pa.types.is_struct(kind):
        for place in range(kind.num_fields):
            yield from _bytes(pc.struct_field(values, [place]))
    elif pa.types.is_list(kind):
        yield pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64).tobytes()
        yield from _bytes(values.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        yield pc.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64).tobytes()
        for value in values.cast(pa.binary()):
            yield value.as_py() or b""
    else:
        numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
        yield np.ascontiguousarray(numbers).tobytes()


def _odd(found: pa.Schema, name: str) -> str:
    """What distinguishes a table's columns from those of the named schema."""
    have, wanted = found.names, SCHEMAS[name].names
    missing, extra = [c for c in wanted if c not in have], [c for c in have if c not in wanted]
    said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(extra)}"] * bool(extra)
    # Names in a damaged file are anything.
    return printable(" and ".join(said))[:600] or "has them in another order, or of other types"


def metadata(found: pa.Table) -> dict[str, Any]:
    """The JSON values stored in a table's schema metadata."""
    return {
        key.decode(): json.loads(value)
        for key, value in (found.schema.metadata or {}).items()
        if not key.startswith(b"ARROW:")
    }


def _exact(values: list[Any], kind: pa.DataType) -> list[Any]:
    """Refuse what Arrow would bend into the type: 1.5 into 1, "ab" into ["a", "b"]."""
    for value in values:
        if pa.types.is_integer(kind) and not (value is None or isinstance(value, Integral)):
            raise TypeError(f"{value!r} is not a whole number")
        if pa.types.is_list(kind) and isinstance(value, str | bytes):
            raise TypeError(f"{value!r} is not a list")
    return values


def _check_required(data: pa.Table, name: str, where: str) -> None:
    # Arrow keeps "not nullable" as a note and enforces it nowhere.
    for field in SCHEMAS[name]:
        if not field.nullable and data[field.name].null_count:
            raise TableError(
                f"{where}: column {field.name!r} has {data[field.name].null_count} nulls; none are allowed"
            )
