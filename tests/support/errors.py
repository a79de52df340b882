"""docs/errors.md: every error of the library, provoked. `python tests/support/errors.py FOLDER` writes the page.

tests/unit/test_errors.py provokes each again and holds its type and its words to the page.
"""

import contextlib
import os
import resource
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
if str(ROOT / "workflow") not in sys.path:
    sys.path.insert(0, str(ROOT / "workflow"))


@dataclass(frozen=True)
class Provoked:
    """What an error is about, the words that its message must name, and how it comes about in an empty folder."""

    about: str
    words: tuple[str, ...]
    provoke: Callable[[Path], object]


FOUND: dict[str, Provoked] = {}


def provoked(about: str, *words: str) -> Callable:
    """The function's name is the error's."""

    def keep(function: Callable[[Path], object]) -> Callable[[Path], object]:
        FOUND[function.__name__] = Provoked(about, words, function)
        return function

    return keep


@contextlib.contextmanager
def unlimited_after() -> Iterator[None]:
    """Put the limit of this process's memory back to what it was."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


# --- LoRA files


@provoked("a LoRA file that is cut", "x.safetensors", "cut short")
def LoraFileError(folder: Path) -> None:
    from lora_atlas.loras.files import read_lora

    save_file({"unet.conv_in.lora_A.weight": np.ones((2, 3), np.float32)}, folder / "x.safetensors")
    os.truncate(folder / "x.safetensors", 40)
    read_lora(folder / "x.safetensors")


@provoked("a factor with a number that is none", "x.safetensors", "unet.conv_in.lora_A.weight")
def NotFiniteError(folder: Path) -> None:
    from lora_atlas.loras.files import read_lora

    A, B = np.full((2, 3), np.nan, np.float32), np.ones((4, 2), np.float32)
    save_file({"unet.conv_in.lora_A.weight": A, "unet.conv_in.lora_B.weight": B}, folder / "x.safetensors")
    read_lora(folder / "x.safetensors")


@provoked("a pickle whose records are packed, within the process that looks into it", "records are packed")
def Refused(folder: Path) -> None:
    from lora_atlas.loras.unpickle import look

    with zipfile.ZipFile(folder / "x.bin", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
    # It limits the memory of its process, which is this one here: whatever comes after would find none.
    with unlimited_after():
        look(folder / "x.bin")


@provoked("a pickle on which the process that looks into it ends; the file's error goes on with it", "memory or time")
def PickleError(folder: Path) -> None:
    from lora_atlas.loras import pickles

    (folder / "x.bin").write_bytes(b"\x80\x02}.")
    reader = pickles._Reader()
    with mock.patch.object(sys, "executable", shutil.which("true")):  # a process that ends at once
        reader.ask(folder / "x.bin")


@provoked("a folder without LoRA files", "FOLDER", "looked for .safetensors")
def FolderError(folder: Path) -> None:
    from lora_atlas.loras.folder import find

    find(folder)


@provoked("a LoRA to be exported that has other keys", "x.safetensors", "expected keys", "found")
def ExportError(folder: Path) -> None:
    from lora_atlas.diffusion.kohya import export

    save_file({"lora_unet_conv_in.alpha": np.ones(1, np.float32)}, folder / "x.safetensors")
    export(folder / "x.safetensors", folder / "y.safetensors")


# --- pictures


@provoked("a web page in place of a picture", "html", "a web page")
def PictureError(folder: Path) -> None:
    from lora_atlas.pictures.decode import decode

    decode(b"<!doctype html><p>are you human?", min_side=64)


@provoked("pictures of the network without a contact", "pictures.contact", "name a mail address")
def FetchError(folder: Path) -> None:
    from lora_atlas.pictures.fetch import Client

    Client(None)


@provoked("an address that is not public; the picture's error goes on with it", "127.0.0.1", "public address")
def PrivateAddress(folder: Path) -> None:
    from lora_atlas.pictures import connect

    connect._PublicConnection("127.0.0.1", 9).connect()


@provoked("an artist that the source does not have", "pictures.artists", "monett")
def SourceError(folder: Path) -> None:
    from asked import FOLDER

    from lora_atlas.pictures.sources import artists

    for artist in ("monet", "repin"):
        (folder / artist).mkdir()
        (folder / artist / "1.png").touch()
    artists(FOLDER | {"artists": ["monett"]}, str(folder))


@provoked("a folder without pictures to ask about", "FOLDER", "name a picture")
def QueryError(folder: Path) -> None:
    from lora_atlas.attribution.pictures import read

    read(folder, 64)


# --- models


@provoked("a base that is not there", "base.model", "models/absent", "model_index.json")
def BaseModelError(folder: Path) -> None:
    from lora_atlas.diffusion.base import load
    from lora_atlas.sections import Base

    load(Base("models/absent"), device="cpu")


@provoked("the state of another recipe in the folder of a training job", "seed was 7, is 8", "delete the folder")
def TrainingError(folder: Path) -> None:
    from lora_atlas.diffusion import state

    for seed in (7, 8):
        state.claim(folder / "state", {"recipe": {"seed": seed}})


@provoked("a job whose time is nearly over", "step 1 of 12", "maren/00", "run the same again")
def TimeBudgetSpent(folder: Path) -> None:
    import torch
    import yaml

    from lora_atlas.diffusion import pack, stacked
    from lora_atlas.sections import Training

    layer = stacked.StackedLinear(torch.nn.Linear(3, 4), 1, 2, 1.0)
    material = SimpleNamespace(denoiser=SimpleNamespace(channels=4))
    adapters = [pack.Adapter("maren/00", {(8, 8): [(0, "a"), (1, "b")]}, 1, 2)]
    training = Training(**yaml.safe_load((ROOT / "config.yaml").read_text())["training"] | {"steps": 12, "batch": 2})
    with mock.patch.object(pack, "_gradients", return_value=torch.zeros(1, training.batch)):
        pack.run(material, {"layer": layer}, adapters, training, folder / "state/pack-00.pt", pack.Limits(5, 0.0))


@provoked(
    "an extractor whose weights are not those that the configuration names", "model.safetensors", "expected sha256"
)
def FeatureError(folder: Path) -> None:
    from lora_atlas.features.extract import load
    from lora_atlas.sections import Extractor

    (folder / "model.safetensors").write_bytes(b"other weights")
    load(Extractor("timm", str(folder), None, None, "0" * 64), "cpu")


@provoked("weights of another network than the extractor's", "vgg.safetensors", "expected features.N.weight")
def StyleError(folder: Path) -> None:
    from lora_atlas.features.style import vgg_gram

    save_file({"conv.weight": np.ones((1, 1, 3, 3), np.float32)}, folder / "vgg.safetensors")
    vgg_gram(folder / "vgg.safetensors")


@provoked("a model of the hub without a commit", "timm/vit@main", "set `lock`")
def HubError(folder: Path) -> None:
    from lora_atlas.hub.models import commit

    commit("timm/vit", "main", None)


@provoked("a lock file that is none", "study.lock.yaml", "delete it")
def LockError(folder: Path) -> None:
    from lora_atlas.hub.lock import read

    (folder / "study.lock.yaml").write_text("- a list")
    read(folder / "study.lock.yaml")


# --- studies and tables


@provoked("artists with too few pictures", "bob (3)", "each artist needs 7", "Add pictures")
def StudyError(folder: Path) -> None:
    from lora_atlas.study import require

    require({"ada": 12, "bob": 3}, {"gallery": [4, 4], "query": [3]}, "pictures of the folder")


@provoked("a table that is cut", "plan.parquet", "snakemake --forcerun")
def TableError(folder: Path) -> None:
    from lora_atlas import tables

    (folder / "plan.parquet").write_bytes(b"PAR1 and no more")
    tables.read(folder / "plan.parquet", "plan")


@provoked("an action of `lora-atlas` on what is not there", "absent", "there is no such file")
def ConsoleError(folder: Path) -> None:
    from lora_atlas.console import there

    there(str(folder / "absent"))


# --- weights, descriptors, what follows


@provoked("inner products that are damaged", "gram.safetensors", "delete it and rerun")
def GramError(folder: Path) -> None:
    from lora_atlas.weights.gram import read_gram

    (folder / "gram.safetensors").write_bytes(b"junk")
    read_gram(folder / "gram.safetensors")


@provoked("a weighting by a base that has none of the modules", "weights.modules", "base.model")
def WeightingError(folder: Path) -> None:
    from lora_atlas.weights.weighting import of_base

    of_base(["transformer.blocks.0.attn.to_q"], {"unet.conv_in": 1.0})


@provoked(
    "a file of this project whose bytes changed; its reader's error goes on with it", "not those that were written"
)
def ContentError(folder: Path) -> None:
    from lora_atlas import tensors

    tensors.write(folder / "x.safetensors", {"x": np.ones(4, np.float32)}, {})
    data = bytearray((folder / "x.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "x.safetensors").write_bytes(data)
    tensors.check(folder / "x.safetensors")


@provoked("pictures to pretrain on that are damaged", "corpus.safetensors", "delete it and rerun")
def CorpusError(folder: Path) -> None:
    from lora_atlas.mini.corpus import load

    (folder / "corpus.safetensors").write_bytes(b"junk")
    load(folder / "corpus.safetensors")


@provoked("a base's sensitivity that is absent", "base.safetensors", "delete it and rerun")
def MetricError(folder: Path) -> None:
    from lora_atlas.weights.metric import read_metric

    read_metric(folder / "base.safetensors")


@provoked("gradients' products that are absent", "products.safetensors", "delete it and rerun")
def AttributionError(folder: Path) -> None:
    from lora_atlas.attribution.study import read

    read(folder / "products.safetensors")


@provoked("features that lack a LoRA of the plan", "joris/00", "rerun the features stage")
def DescriptorError(folder: Path) -> None:
    from lora_atlas.embeddings.describe import lora_means

    lora_means(_features("maren/00"), _plan("maren/00", "joris/00"), "generated", unit=True)


@provoked("LoRAs that have not as many generated pictures each", "joris/00 has 0", "rerun the generated stage")
def WorthError(folder: Path) -> None:
    from lora_atlas.metrics.worth import _cube

    _cube(_features("maren/00"), ["maren/00", "joris/00"], "clip")


@provoked("a gallery whose LoRAs are one and the same; the descriptor's error goes on with it", "all alike")
def AlikeError(folder: Path) -> None:
    from lora_atlas.embeddings.components import together

    together(np.ones((4, 4)), 2)


@provoked("studies to compare where there are none", "results/", "run `snakemake findings`")
def AcrossError(folder: Path) -> None:
    from lora_atlas.findings.across import write

    write([], folder / "ACROSS.md", permutations=1, confidence=0.95, seed=0)


def _features(*loras: str):
    from lora_atlas import tables

    rows = [{"picture": lora, "artist": lora[:5], "lora": lora, "vector": [1.0, 0.0]} for lora in loras]
    return tables.table("features", rows)


def _plan(*loras: str):
    import pyarrow as pa

    return pa.table({"lora": list(loras), "pictures": [[] for _ in loras]})


# --- what is said


def said(name: str, folder: Path) -> tuple[BaseException, str]:
    """The error that is provoked in an empty folder, and its message with paths named FOLDER."""
    try:
        FOUND[name].provoke(folder)
    except Exception as error:  # noqa: BLE001 - whichever it is: the test holds its type
        return error, str(error).replace(str(folder), "FOLDER").replace(str(ROOT), "PROJECT")
    raise AssertionError(f"{name} is not raised")


_HEAD = """# Errors

Every error that the library raises by a name of its own, provoked: its message names the file, key or LoRA, what was
expected and what to do, in less than 400 characters. A bad file of many is no error but a row with its reason. This
page is made by `make docs`; tests/unit/test_errors.py provokes each again and holds it to the page.

| error | raised for | example | test |
| --- | --- | --- | --- |"""


def page() -> str:
    """docs/errors.md."""
    lines = [_HEAD]
    for name in sorted(FOUND):
        with tempfile.TemporaryDirectory() as folder:
            lines.append(row(name, said(name, Path(folder))[1]))
    return "\n".join(lines) + "\n"


def row(name: str, message: str) -> str:
    """The line of an error with its message."""
    words = " ".join(message.replace("`", "'").replace("|", "·").split())
    return (
        f"| {name} | {FOUND[name].about} | `{words}` | [it_is_as_on_the_page[{name}]](../tests/unit/test_errors.py) |"
    )


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        text = page()
    Path(sys.argv[1], "errors.md").write_text(text, encoding="utf-8")
