"""What chance does where the nearest of all was looked for: p that keeps its promise, and is small where it may be."""

import numpy as np
import pytest

from lora_atlas.collection.chance import FEWEST, MANY, Chance


def cosines(X: np.ndarray) -> np.ndarray:
    X = X / np.linalg.norm(X, axis=1, keepdims=True)
    return X @ X.T


def unrelated(seed: int, n: int, kind: str) -> np.ndarray:
    """Cosines of unrelated LoRAs: of one width, of several (ranks, parts), of few modules of rank one."""
    rng = np.random.default_rng([seed, n])
    if kind == "rank one":
        return cosines(np.einsum("nmi,nmj->nmij", *rng.normal(size=(2, n, 6, 9))).reshape(n, -1))
    X = rng.normal(size=(n, 300))
    if kind == "some narrow":
        X[rng.random(n) < 0.3, 40:] *= 1e-3
    return cosines(X)


def test_p_by_hand():
    """Four LoRAs, none related: each reaches 0.2, 0.2, 0.1 and 0.05."""
    C = np.eye(4)
    for i, j, c in ((0, 1, 0.2), (2, 0, 0.1), (3, 0, 0.05), (1, 2, 0.0), (1, 3, 0.0), (2, 3, 0.0)):
        C[i, j] = C[j, i] = c
    chance = Chance(C, [None] * 4)
    assert chance.count() == 4
    assert chance.p(np.array([0.3, 0.15, 0.08, 0.05, -1])).tolist() == [2 / 5, 4 / 5, 1, 1, 1]
    assert chance.limit() == chance.cut == 0.5  # three times 0.2 would be more
    # Of LoRA 0 itself three others are left, and without it none of them reaches more than 0.
    assert chance.p(np.array([0.2, 0.0]), 0).tolist() == [2 / 4, 1]


def test_one_of_them_is_asked_about_as_if_from_outside():
    """p, limit and evidence of a LoRA in its own folder are those of the folder without it: no pair is its own
    chance."""
    rng = np.random.default_rng(9)
    X = np.concatenate([rng.normal(size=(40, 900)), family(rng, 2, 0.3, 900)])
    X[1] += 0.4 * X[0]  # related, and no family
    C = cosines(X)
    for i in (0, 1, 7, 41):
        rest = np.delete(np.arange(len(C)), i)
        inside, outside = Chance(C, [None] * len(C)), Chance(C[np.ix_(rest, rest)], [None] * len(rest))
        if i < 40:
            assert inside.limit(i) == outside.limit()
            assert inside.p(C[i, rest], i).tolist() == outside.p(C[i, rest]).tolist()
            assert inside.evidence(C[i, rest], i).tolist() == outside.evidence(C[i, rest]).tolist()
        assert inside.evidence(C[i, rest], i).any() == (i != 7)
    assert inside.limit() > C[0, 1] - 1e-12 > 2 * inside.limit(0)


@pytest.mark.parametrize("copies", [1, 3, 6])
def test_copies_of_a_neighbour_change_no_p(copies):
    """Files of the same bytes have one p, and it is that of one of them: a family counts as one LoRA."""
    rng = np.random.default_rng(11)
    X = rng.normal(size=(30, 900))
    X[1] += 0.4 * X[0]
    alone, C = cosines(X), cosines(np.concatenate([X, np.repeat(X[1:2], copies, 0)]))
    p = Chance(alone, [None] * 30).p(alone[0, 1:], 0)
    with_copies = Chance(C, [None] * len(C)).p(C[0, 1:], 0)
    assert with_copies[:29] == pytest.approx(p, rel=1e-12)
    assert (
        with_copies[29:] == pytest.approx(p[0], rel=1e-12) and len(set(with_copies[[0, *range(29, 29 + copies)]])) == 1
    )


@pytest.mark.parametrize("kind", ["alike", "some narrow", "rank one"])
def test_of_unrelated_files_as_many_are_found_as_p_says(kind):
    """132 files, as of the folder of which 91 % had p ≤ 0.05: the nearest of each, and of new files."""
    own, new, least = [], [], []
    for seed in range(20):
        C = unrelated(seed, 144, kind)
        known = Chance(C[:132, :132], [str(i % 7) for i in range(132)])  # folders whose names say nothing
        new += [known.p(row).min() for row in C[132:, :132]]
        least += [known.evidence(row).any() for row in C[132:, :132]]
        for i in range(132):
            others = np.delete(np.arange(132), i)
            own.append(known.p(known.cosine[i, others], i).min())
    for found in (np.array(own), np.array(new)):
        assert np.mean(found <= 0.05) < 0.08 and 0.06 < np.mean(found <= 0.1) < 0.14
        assert 0.13 < np.mean(found <= 0.2) < 0.27
    assert np.mean(least) < 0.08


def family(rng: np.random.Generator, size: int, spread: float, width: int = 300) -> np.ndarray:
    return rng.normal(size=width) + spread * rng.normal(size=(size, width))


def test_copies_and_checkpoints_do_not_hide_one_another():
    """Half of the files are of runs: their neighbours are no chance, and no measure of chance for others."""
    rng = np.random.default_rng(0)
    X = np.concatenate(
        [*(family(rng, 6, 0.5) for _ in range(8)), rng.normal(size=(48, 300)), rng.normal(size=(30, 300))]
    )
    C = cosines(X)
    known = Chance(C[:96, :96], [None] * 96)
    assert known.count() == 8 + 48
    others = np.arange(1, 96)
    assert (known.p(C[0, others], 0)[:5] <= 0.05).all()
    p = np.array([known.p(row).min() for row in C[96:, :96]])
    assert np.mean(p <= 0.05) < 0.15 and np.median(p) > 0.2


def test_artists_whose_loras_are_nearer_each_other_are_related():
    """Of labels that say something, an artist's own LoRAs are no measure of what unrelated ones reach."""
    rng = np.random.default_rng(1)
    X = np.concatenate([family(rng, 4, 2.0) for _ in range(20)])
    C, artists = cosines(X), [str(i // 4) for i in range(80)]
    mate = 76  # of the artist of the last, which is new
    blind, told = Chance(C[:79, :79], [None] * 79), Chance(C[:79, :79], artists[:79])
    assert blind.count() == told.count() == 79  # a cosine of 0.2 makes no family
    assert told.p(C[79, :79])[mate] == pytest.approx(2 / 80) and blind.p(C[79, :79])[mate] > 0.05
    assert told.limit() < C[79, mate] < blind.limit()
    assert told.evidence(C[79, :79])[mate] == pytest.approx(C[79, mate] - told.limit())


@pytest.mark.parametrize("artists", [[None] * 20, ["a"] * 20, ["a"] * 19 + ["b"]])
def test_a_folder_that_holds_everything_is_no_artist(artists):
    C = unrelated(3, 20, "alike")
    assert (
        Chance(C, artists).p(np.array([0.3, 0.9])).tolist() == Chance(C, [None] * 20).p(np.array([0.3, 0.9])).tolist()
    )


def test_of_few_loras_only_a_family_is_evidence():
    C = unrelated(4, FEWEST - 1, "alike")
    chance = Chance(C, [None] * len(C))
    assert chance.limit() is None and not chance.evidence(np.array([0.4])).any()
    assert chance.evidence(np.array([0.9]))[0] > 0
    few = Chance(unrelated(5, MANY - 1, "alike"), [None] * (MANY - 1))
    largest = (few.cosine - np.eye(MANY - 1)).max()
    assert few.limit() == pytest.approx(2 * largest) and few.evidence(np.array([3 * largest]))[0] == pytest.approx(
        largest
    )
    one = Chance(np.eye(1), ["a"])
    assert one.p(np.array([0.9])).tolist() == [1] and one.evidence(np.array([0.2, 0.9]))[0] == 0
