"""Every study file that can run without a network runs to its last file, small, to the end of its findings.

The two studies of ArtBench need a network and a GPU; that they plan offline is in test_pictures.py.
"""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lora_atlas import tables

pytestmark = pytest.mark.slow

# Sizes and counts alone: what the study file says of plan, variants and extractors stays as it is.
SMALL = """
training: {steps: 2, rank: 2, alpha: 2, batch: 2, warmup: 1}
generation:
  num_inference_steps: [2]
  guidance_scale: [1]
  prompts: [a painting]
  seeds: [0]
  worth: {num_inference_steps: 2, guidance_scale: 1, pictures: 2, series: [shared, own], prompts: [a painting]}
embedding: {dimensions: 4, folds: 3}
weights: {probe: {samples: 2, num_inference_steps: 1, batch: 2, seed: 0, prompts: [a painting]}}
attribution: {samples: 2, reference: 8, batch: 8}
evaluation: {bootstrap: 20, restarts: 1, permutations: 5, draws: 2, subsets: 1}
resources: {artists_per_job: 4, device: cpu}
"""
ONE = "extractors: {dino: null}\n"  # for time: the painters here, and the tiny study, have both


def run(copied, name: str, small: str, *config: str) -> str:
    (copied.root / f"small_{name}.yaml").write_text(small)
    study = ["--configfile", f"workflow/studies/{name}.yaml", f"small_{name}.yaml"]
    arguments = [*study, *(["--config", *config] if config else [])]
    copied.run(*arguments)
    again = copied.run(*arguments)
    assert "Nothing to be done" in again, again[-6000:]
    return (copied.root / "results").resolve().as_posix()


@pytest.fixture(scope="module")
def painters(tmp_path_factory) -> Path:
    """Pictures of three artists, each in colours of its own; of one so few that LoRAs share them."""
    root = tmp_path_factory.mktemp("painters")
    for number, (artist, count) in enumerate((("ada", 8), ("bob", 9), ("cy", 24), ("dot", 9))):
        (root / artist).mkdir()
        rng = np.random.default_rng(number)
        tone = rng.uniform(40, 215, 3)
        for i in range(count):
            coarse = (tone + rng.normal(0, 60, (8, 8, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC).save(root / artist / f"{i:02}.png")
    return root


def test_painters_with_gallery_and_query_loras_of_other_sizes_end_in_findings(copied, painters):
    run(copied, "painters", SMALL, f"folder={painters}")
    results = copied.root / "results/painters"
    # All gallery LoRAs have four pictures and all queries three: the number of pictures knows nothing of the gallery.
    found = tables.read(results / "embeddings/set_size.parquet", "embeddings")
    assert set(found["scenario"].to_pylist()) >= {tables.KNOWN, tables.WHOLE, tables.UNSEEN}
    assert not np.any(np.stack(found["vector"].to_numpy(zero_copy_only=False)))
    frame = tables.read(results / "tables/retrieval.parquet", "retrieval").to_pandas()
    chance = frame[(frame.descriptor == "set_size") & (frame.metric == "mAP") & (frame.scenario == tables.WHOLE)]
    assert len(chance) and np.allclose(chance.value, chance.chance, atol=0.25)
    text = (results / "FINDINGS.md").read_text()
    assert "files of a folder" in text and "procedural painters" not in text
    assert "LoRAs that share pictures" in text
    # Of eight pictures three are left for the queries: both query LoRAs are made of the same.
    assert "ada (query LoRAs share up to 100% of their pictures, 2 of 2 from the very same pictures)" in text


def trimmed(copied, study: str, *names: str) -> None:
    """Only these variants of a study, for time; all of them are checked in tests/unit/test_variants.py."""
    path = copied.root / f"workflow/studies/{study}.yaml"
    whole = yaml.safe_load(path.read_text())["variants"]
    path.write_text(yaml.safe_dump({"variants": {name: whole[name] for name in names}}))


def test_findings_end_with_verdicts_from_the_other_seeds(copied):
    trimmed(copied, "findings", "seed1", "seed2", "mixtures1")
    small = SMALL + ONE + "study: small\npictures: {artists: [maren, odile], per_artist: 12}\n"
    small += "plan: {gallery: [4, 3], query: [3]}\n"
    few = "ways: {samples: [1], powers: [1], classifier: 1, generated: 2}"
    run(copied, "findings", small.replace("reference: 8,", f"reference: 8, {few},"))
    text = (copied.root / "results/small/FINDINGS.md").read_text()
    assert "every verdict and number below comes from 2 other seeds" in text
    rows = [line.split(" | ") for line in text.split("## What is a LoRA worth?")[0].splitlines() if "**" in line]
    seeds = {row[-1].strip(" |") for row in rows if len(row) == 5}
    assert seeds == {"1", "2"}  # mixtures; the study's replicates
    assert "plan.mixtures True" in text


def test_the_sweep_trains_its_variants_and_asks_them(copied):
    kept = ("rank8", "pictures20")  # one that trains again, and one that plans again
    trimmed(copied, "sweep", *kept)
    small = SMALL + ONE + "study: swept\npictures: {artists: [maren, odile], per_artist: 48}\n"
    small += "plan: {gallery: [4, 4], query: [3]}\n"
    small = small.replace("weights: {", "weights: {kernels: [delta], modules: [plain], controls: [norm], ")
    run(copied, "sweep", small)
    variants = sorted((copied.root / "results/swept/variants").iterdir())
    assert {variant.name for variant in variants} == set(kept)
    for variant in variants:
        assert len(tables.read(variant / "tables/retrieval.parquet", "retrieval")) > 0, variant.name
    text = (copied.root / "results/swept/FINDINGS.md").read_text()
    assert "training.rank 8" in text
