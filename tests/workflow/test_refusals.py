"""Bad input is one clear error before any job starts, and costs nothing that is there."""

import re

import pytest
from numpy.random import default_rng

from lora_atlas.pictures.decode import encode_png

pytestmark = pytest.mark.slow


def refused(workflow, *arguments: str) -> str:
    text = workflow.run(*arguments, fails=True)
    assert "Traceback" not in text
    assert "rule " not in text
    return text


@pytest.mark.fault(
    "configuration",
    "a wrong key, a wrong value, an absent base or folder",
    "refused before any job, with the right key or what to put there",
)
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("learning_rte=0.1", ["learning_rte"]),
        ("training={learning_rte: 0.1}", ["training.learning_rte", "did you mean 'learning_rate'?"]),
        ("weights={kernels: [dleta]}", ["dleta", "did you mean 'delta'?"]),
        ("base={model: models/absent}", ["base.model", "models/absent", "model_index.json"]),
        ("plan={query: [60]}", ["each artist needs 70 pictures", "pictures.per_artist allows 48"]),
        ("pictures={source: folder}", ["`folder` is not set"]),
        ("extractors={clip: {library: open_clip, model: no/such/folder, pretrained: null}}", ["no/such/folder"]),
    ],
)
def test_a_bad_setting_is_named(copied, setting, words):
    text = refused(copied, "--config", setting)
    assert all(word in text for word in words), text


def folder(root, **numbers: int) -> str:
    for artist, number in numbers.items():
        (root / artist).mkdir(parents=True)
        for n in range(number):
            pixels = default_rng([*artist.encode(), n]).integers(0, 256, (80, 90, 3), dtype="uint8")
            (root / artist / f"{n}.png").write_bytes(encode_png(pixels))
    return str(root)


def painters(where: str) -> list[str]:
    return ["--configfile", "workflow/studies/painters.yaml", "--config", f"folder={where}"]


@pytest.mark.fault("configuration", "artists with too few pictures", "all named with their numbers, before any job")
def test_artists_with_too_few_pictures_are_all_named(copied, tmp_path):
    text = refused(copied, *painters(folder(tmp_path / "art", ada=12, bob=3, cyd=2)))
    assert "bob (3), cyd (2)" in text
    assert "ada" not in text.split("too few pictures:")[1].split(";")[0]


@pytest.mark.fault(
    "pictures",
    "so many bad files that an artist has too few pictures",
    "rows with reasons are kept; then one error names the artist and the number",
)
def test_pictures_that_turn_out_to_be_bad_are_rows_and_then_one_error(copied, tmp_path):
    where = folder(tmp_path / "art", ada=12, bob=12)
    for n in range(8):
        (tmp_path / "art/bob" / f"{n}.png").write_bytes(b"<html>too many requests</html>")
    text = copied.run("plan", *painters(where), fails=True)
    assert "bob (4)" in text
    assert "ada" not in text.split("too few pictures:")[1].split(";")[0]
    assert (copied.root / "results/painters/pictures/bob.parquet").exists()


def test_a_folder_of_painters_is_planned_whole(copied, tmp_path):
    where = folder(tmp_path / "art", ada=12, bob=12, cyd=7)
    text = copied.run("--dry-run", *painters(where))
    assert re.search(r"^train_loras +1$", text, re.MULTILINE)  # three artists are one pack
    assert re.search(r"^unpack_loras +3$", text, re.MULTILINE)
    assert re.search(r"^clustering +1$", text, re.MULTILINE)
