"""The card of a base that was pretrained on drawings of icons (icons.py): what it is, what it learnt from, samples."""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..pictures.sources.iconify import families
from ..seeds import derive_seed
from . import base, flow
from .autoencoder import psnr
from .card import count_parameters, grid, reconstructions
from .corpus import Corpus
from .icons import NOUN, WORDS, Used


@dataclass(frozen=True)
class Network:
    """A kind of base that is pretrained on icons too, and where it comes from."""

    module: ModuleType
    name: str
    sister: str  # the same, pretrained on the procedural pictures
    target: str
    written: str


NETWORKS = {
    "base": Network(base, "UNet", "workflow/resources/mini", "pretrain_icons", "results/mini-icons"),
    "flow": Network(
        flow, "transformer", "workflow/resources/mini-flow", "pretrain_flow_icons", "results/mini-flow-icons"
    ),
}

CARD = """\
# The mini {network} of icons

A latent text-to-image base of {parameters:,} parameters that has seen icons: the mini {network} of
{sister}, pretrained on other pictures. The autoencoder is the same. No family that a study of
workflow/studies uses was seen.

![samples of the base: {contents}](samples.png)

*Samples, one row a content ({contents}); 30 steps, guidance 3.*

![drawings that it learnt from above, their reconstructions below](reconstructions.png)

*Drawings, and what the autoencoder makes of them: {psnr:.1f} dB mean PSNR.*

## Data
{count:,} drawings of {size} pixels of {families} families of icons (package @iconify/json), on white, those of one
colour in dark grey; captions by the {words} commonest words of their names ("an icon of a cat face"), a sixth only "an
icon", a tenth nothing. {steps:,} steps of batches of 32 in {seconds:,.0f} s; loss {first:.3f} → {last:.3f}.

## Made by
`make extras`, then `snakemake {target}`, which writes to `{written}/`. Licence of the
weights: Apache-2.0, as the project. The drawings are their authors', under these licences; of these authors, studies
use other families: {known}.

| family | author | licence | drawings |
|---|---|---|---:|
{rows}
"""


def write_card(
    corpus: Corpus,
    used: str | Path,
    model: str | Path,
    log: str | Path,
    folder: Path,
    *,
    source: str | Path,
    avoid: Collection[str],
    seed: int,
    network: str,
) -> None:
    """The card and pictures of the base, beside it in `folder`; `source`: the families; `avoid`: those of studies;
    `network`: one of NETWORKS."""
    kind = NETWORKS[network]
    pipeline = kind.module.load_pipeline(model)
    common = [name for name, _ in Counter(name for name in corpus.contents if name).most_common(6)]
    grid(kind.module.samples(pipeline, tuple(common), 10, derive_seed("card", seed), NOUN), 10, 2).save(
        folder / "samples.png"
    )
    theirs = families(str(source))
    studied_authors = {theirs[name].author for name in avoid if name in theirs}
    first = corpus.pictures[:: max(1, len(corpus.pictures) // 24)][:24]
    reconstructions(pipeline.vae, first, 12, folder / "reconstructions.png")
    rows = [Used(**each) for each in json.loads(Path(used).read_text())]
    losses = json.loads(Path(log).read_text())
    text = CARD.format(
        network=kind.name,
        sister=kind.sister,
        target=kind.target,
        written=kind.written,
        parameters=sum(count_parameters(Path(model) / part) for part in kind.module.PARTS),
        contents=", ".join(common),
        psnr=float(psnr(pipeline.vae, corpus.pictures[:: max(1, len(corpus.pictures) // 512)]).mean()),
        count=len(corpus.pictures),
        size=corpus.pictures.shape[1],
        families=len(rows),
        words=WORDS,
        known=", ".join(sorted({each.author for each in rows} & studied_authors)) or "none",
        steps=losses[-1]["step"],
        seconds=losses[-1]["seconds"],
        first=losses[0]["loss"],
        last=losses[-1]["loss"],
        rows="\n".join(f"| {each.title} | {each.author} | {each.licence} | {each.drawings} |" for each in rows),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    about = (
        f"{len(corpus.pictures):,} drawings of {len(rows)} icon families that no study uses, captioned by their names"
    )
    (folder / "about.yaml").write_text(f"base: {about}\n", encoding="utf-8")
