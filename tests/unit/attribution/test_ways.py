"""Other ways to ask: each against the sum that it stands for, and scores that are known."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from painters import BASE, PAINTERS, SETTINGS, pictures
from PIL import Image
from safetensors.numpy import save_file

from lora_atlas import tables
from lora_atlas.attribution.measure_ways import measure, saved_again
from lora_atlas.attribution.study import AttributionError, summed
from lora_atlas.attribution.ways import (
    CAPTION,
    CLASSIFIER,
    GENERATED,
    LESS,
    NATURAL,
    OWN,
    SAME,
    SAMPLES,
    Way,
    ask,
    read,
)
from lora_atlas.diffusion import stacked
from lora_atlas.diffusion.attribution import of_files, products, samples
from lora_atlas.loras.files import open_lora, read_lora, write_lora
from lora_atlas.pictures.decode import encode_png
from lora_atlas.sections import Training, Ways
from lora_atlas.weights.gram import gram
from lora_atlas.weights.modules import write_modules

TRAINING = {
    "resolution": 64, "aspect_ratio_buckets": False, "caption": "a painting", "rank": 4, "alpha": 4.0,
    "targets": ["attention", "feed_forward"], "init": "shared", "noise": "shared", "steps": 1, "batch": 1,
    "learning_rate": 1e-3, "warmup": 0, "lr_schedule": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0,
    "loss": "mse", "min_snr_gamma": 5.0,
}  # fmt: skip
WAYS = Ways(samples=[2, 6], captions=["", "a painting", "a {subject}"], powers=[0.5], classifier=3, generated=3)


class Study:
    """Three painters' LoRAs as the gallery, and a query of two other pictures of each of two painters."""

    def __init__(self, case, folder):
        self.case, self.folder = case, folder
        # So small that losses under them are linear.
        self.loras = {}
        for i, (lora, file) in enumerate(zip(case.known.loras, case.known.files, strict=True)):
            self.loras[lora] = folder / f"{i}.safetensors"
            updates = read_lora(file.path).updates.items()
            write_lora(self.loras[lora], {n: replace(u, B=u.B * np.float32(0.01)) for n, u in updates}, {})
        gallery = [lora for lora in self.loras if lora.split("/")[0] in PAINTERS[:3]]
        self.shown = {f"{p}{i}": x for p in PAINTERS[:2] for i, x in enumerate(pictures(p, range(2)))}
        rows = [self.row(lora, "gallery", []) for lora in gallery]
        rows += [self.row(f"{p}/02", "query", [f"{p}0", f"{p}1"]) for p in PAINTERS[:2]]
        self.plan = tables.table("plan", sorted(rows, key=lambda row: row["lora"]))
        self.gallery = gallery

    @staticmethod
    def row(lora: str, split: str, shown: list[str]) -> dict:
        artist = lora.split("/")[0]
        return {"lora": lora, "artist": artist, "genre": None, "split": split, "seed": 0, "pictures": shown,
                "overlap": 0.0}  # fmt: skip

    def pictures(self, subject: str | None = "still-life"):
        rows = [
            {
                "picture": name, "artist": name[:-1], "genre": None, "image": {"bytes": encode_png(x), "path": name},
                "width": 64, "height": 64, "source": "test", "licence": None, "subject": subject,
                "status": "kept", "reason": None,
            }
            for name, x in self.shown.items()
        ]  # fmt: skip
        return tables.table("pictures", rows)

    def generated(self):
        """What the gallery's LoRAs "generated": paintings of their painters, two of one prompt."""
        rows = []
        for lora in self.gallery:
            painted = pictures(lora.split("/")[0], range(60, 63))
            for x, (prompt, seed) in zip(painted, [("a", 0), ("a", 1), ("b", 0)], strict=True):
                rows.append(
                    {"lora": lora, "prompt": prompt, "seed": seed, "image": {"bytes": encode_png(x), "path": prompt}}
                )
        tables.write(self.folder / "s8.parquet", "generated", rows)
        return {"s8_g1": [self.folder / "s8.parquet"]}

    def moments(self, case):
        """K-FAC factors that are no metric: identities."""
        unet = case.ask.denoiser.module
        names = stacked.targeted(unet, TRAINING["targets"], case.ask.denoiser.targets)
        tensors, prefix = {}, case.ask.denoiser.prefix
        for name in names:
            out, width = unet.get_submodule(name).weight.shape
            tensors |= {
                f"sigma/{prefix}{name}": np.eye(width, dtype="f4"),
                f"G/{prefix}{name}": np.eye(out, dtype="f4"),
            }
        header = {"weights": dict.fromkeys([prefix + name for name in names], 1.0)}
        save_file(tensors, self.folder / "base.safetensors", metadata={"lora_atlas": json.dumps(header)})
        return self.folder / "base.safetensors"

    def measure(self, **changes):
        options = {"generated": self.generated(), "moments": self.moments(self.case), "device": "cpu"}
        shown = changes.pop("pictures", None) or self.pictures()
        return measure(
            self.plan, shown, self.loras, BASE, SETTINGS, changes.pop("ways", WAYS), Training(**TRAINING),
            output=self.folder / "ways.safetensors", **options | changes,
        )  # fmt: skip


@pytest.fixture(scope="module")
def study(case, tmp_path_factory) -> Study:
    made = Study(case, tmp_path_factory.mktemp("ways"))
    made.count, made.device = made.measure()
    made.ways, made.ids = read(made.folder / "ways.safetensors")
    return made


def values(study: Study, question, latents) -> np.ndarray:
    denoiser = study.case.ask.denoiser
    names = stacked.targeted(denoiser.module, TRAINING["targets"], denoiser.targets)
    files = [open_lora(study.loras[lora]) for lora in study.gallery]
    with of_files(files, denoiser.prefix) as loras:
        return products(question, latents, names, loras, len(files)).values.sum(0)


def way(study: Study, name: str, setting: str) -> Way:
    (found,) = [each for each in study.ways if (each.name, each.setting) == (name, setting)]
    return found


def test_every_way_is_asked(study):
    assert [(each.name, each.setting) for each in study.ways] == [
        (SAMPLES, "2"), (SAMPLES, "4"), (SAMPLES, "6"),
        (CAPTION, "''"), (CAPTION, "'a painting'"), (CAPTION, "'a {subject}'"), (NATURAL, "power 0.5"),
        (SAME, "3 samples"), (CLASSIFIER, "3 samples"), (LESS, "3 samples"),
        (GENERATED, "s8_g1"), (GENERATED, "s8_g1, JPEG 75"), (GENERATED, "s8_g1, rescaled by 0.75, JPEG 50"),
    ]  # fmt: skip
    assert study.ids == study.gallery and study.device == "cpu"
    assert study.count == 4 + 3 * 3 * 2  # pictures of queries; of three LoRAs, each prompt once, three times


def test_more_samples_go_on_from_fewer(study):
    """Oracle: the mean over the noisy samples of all parts, asked at once."""
    ask_ = study.case.ask
    latents = ask_.latents(list(study.shown.values()))
    parts = [samples(2, ask_.denoiser.latent_shape(64), seed) for seed in (0, 1)]
    both = replace(parts[0], epsilon=torch.cat([p.epsilon for p in parts]), u=torch.cat([p.u for p in parts]))
    expected = values(study, replace(ask_.question, asked=both), latents)
    np.testing.assert_allclose(way(study, SAMPLES, "4").values, expected, rtol=1e-3, atol=1e-7)


def test_captions_are_what_they_say(study):
    ask_ = study.case.ask
    latents = ask_.latents(list(study.shown.values()))
    own = way(study, CAPTION, "'a painting'").values
    np.testing.assert_allclose(own, values(study, ask_.question, latents), rtol=1e-3, atol=1e-7)
    text = ask_.denoiser.encode_text(ask_.pipeline, ["a still life"], (64, 64))
    told = values(study, replace(ask_.question, text=text), latents)
    np.testing.assert_allclose(way(study, CAPTION, "'a {subject}'").values, told, rtol=1e-3, atol=1e-7)
    assert not np.allclose(own, told, rtol=1e-2)


def test_a_caption_of_what_is_not_known_is_refused(study):
    with pytest.raises(AttributionError, match=r"ways\.captions: 'a \{subject\}' needs a subject.* has none"):
        study.measure(pictures=study.pictures(subject=None), moments=None, ways=WAYS | {"samples": [1]})


def test_in_a_metric_that_is_none_the_gradient_stays_what_it_is(study):
    """Identities, damped by a tenth: values divided by 1.1 for power ½ on both sides, norms as they are."""
    found = way(study, NATURAL, "power 0.5")
    plain = way(study, CAPTION, "'a painting'").values
    np.testing.assert_allclose(found.values, plain / 1.1, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(found.gram, whole_gram(study), rtol=1e-4)


def whole_gram(study: Study) -> np.ndarray:
    return sum(gram([study.loras[lora] for lora in study.gallery], "delta").values())


def test_exact_losses_agree_with_the_gradient_where_updates_are_small(study):
    """To first order the loss under a LoRA is the base's less the product: over LoRAs, the two go together."""
    exact, linear = way(study, LESS, "3 samples"), way(study, SAME, "3 samples")
    np.testing.assert_allclose(exact.values.mean(0), 0, atol=1e-7)
    np.testing.assert_allclose(exact.values, exact_values(study), atol=1e-7)
    # Of each picture less its mean over LoRAs: how hard it is under all of them.
    a, b = (x - x.mean(1, keepdims=True) for x in (exact.values, linear.values - linear.values.mean(0)))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


def exact_values(study: Study) -> np.ndarray:
    under = way(study, CLASSIFIER, "3 samples").values
    return under - under.mean(0)


def test_a_picture_saved_again_is_a_jpeg_of_the_scaled_size():
    image = encode_png(pictures(PAINTERS[0], range(1))[0])
    with Image.open(io.BytesIO(saved_again(image, 50, 0.75))) as again:
        assert (again.format, again.size) == ("JPEG", (48, 48))


def answers(study: Study):
    ids = study.plan["lora"].to_pylist()
    K = np.eye(len(ids))
    among = [ids.index(lora) for lora in study.gallery]
    K[np.ix_(among, among)] = whole_gram(study)
    path = study.folder / "modules.safetensors"
    write_modules(path, ids, {"delta": {"unet.all": K}}, {"delta": {"unet.all": 1}})
    return tables.table("attribution_way_queries", ask(study.folder / "ways.safetensors", path, study.plan))


def test_scores_are_those_of_the_values(study):
    """Oracle: centred cosines, written out for one query; and which LoRA painted, by the same."""
    found = answers(study).to_pandas()
    lora, labels = f"{PAINTERS[0]}/02", [lora.split("/")[0] for lora in study.gallery]
    K, v = whole_gram(study), way(study, SAMPLES, "6").values[:2].mean(0)
    C = np.eye(6) - 1 / 6
    order = np.argsort(-(C @ v) / np.sqrt(np.diag(C @ K @ C)))
    hits = np.array(labels)[order] == PAINTERS[0]
    expected = (np.cumsum(hits) / np.arange(1, 7))[hits].mean()
    one = found[(found["lora"] == lora) & (found["way"] == SAMPLES) & (found["setting"] == "6")]
    one = one[one["pictures"].isna() & (one["metric"] == "mAP")]
    assert one["value"].item() == pytest.approx(expected)
    painted = found[(found["way"] == GENERATED) & (found["metric"] == OWN)]
    assert set(painted["lora"]) == set(study.gallery[::2]) and set(painted["chance"]) == {1 / 6}
    of_artist = found[(found["way"] == GENERATED) & (found["metric"] == "R@1") & found["pictures"].isna()]
    assert of_artist["value"].mean() > of_artist["chance"].mean()
    rows = summed(answers(study), confidence=0.9)
    tables.table("attribution_ways", rows)
    assert {row["queries"] for row in rows if row["way"] == SAMPLES} == {2}


@pytest.mark.fault("tables and pages", "kept scores of another plan, or damaged", "refused by name")
def test_ways_of_another_plan_or_damaged_are_named(study, tmp_path):
    answers(study)
    path = study.folder / "ways.safetensors"
    other = tables.table("plan", study.plan.to_pylist()[1:])
    with pytest.raises(AttributionError, match="not those of the plan"):
        ask(path, study.folder / "modules.safetensors", other)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(AttributionError, match=f"{cut}: absent or damaged"):
        read(cut)
