"""Scores of LoRAs for pictures, and p-values that mean what they say."""

import numpy as np
import pytest

from lora_atlas.attribution import scores


def test_scores_are_cosines_less_the_norm_of_the_gradient():
    """Of LoRAs and gradients as plain vectors: centred by the LoRAs' mean and by a mean gradient."""
    rng = np.random.default_rng(0)
    W, g, own = rng.normal(size=(7, 20)), rng.normal(size=(3, 20)), rng.normal(size=(5, 20))
    found = scores.scored(-g @ W.T, (-own @ W.T).mean(0), W @ W.T)
    C = W - W.mean(0)
    expected = -(g - own.mean(0)) @ C.T / np.linalg.norm(C, axis=1)
    np.testing.assert_allclose(found, expected)
    plain = scores.scored(-g @ W.T, None, W @ W.T, centred=False)
    np.testing.assert_allclose(plain, -g @ W.T / np.linalg.norm(W, axis=1))


def test_a_lora_of_nothing_scores_nothing():
    W = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    found = scores.scored(np.array([[1.0, 0.0, 1.0]]), None, W @ W.T, centred=False)
    np.testing.assert_array_equal(found, [[1.0, 0.0, 0.5]])
    same = np.ones((3, 2))
    np.testing.assert_array_equal(scores.scored(np.ones((1, 3)), None, same @ same.T), [[0.0, 0.0, 0.0]])


def test_prominence_knows_no_scale_and_no_offset():
    rng = np.random.default_rng(1)
    s = rng.normal(size=(4, 30))
    np.testing.assert_allclose(scores.prominence(5 + 3 * s), scores.prominence(s))
    assert np.median(np.abs(scores.prominence(s)), 1) == pytest.approx(1)
    np.testing.assert_array_equal(scores.prominence(np.ones((1, 5))), np.zeros((1, 5)))


@pytest.mark.parametrize("size", [1, 5])
def test_p_values_are_uniform_for_pictures_like_the_base_s_own(size):
    """Sets like those of the null have any LoRA at p ≤ .1 a tenth of the time, whatever the scores' own spread."""
    rng = np.random.default_rng(2)
    spread, alike = rng.gamma(2.0, size=40), rng.normal(size=(40, 40))

    def values(count: int) -> np.ndarray:
        return rng.gamma(3.0, size=(count, 1)) * (rng.normal(size=(count, 40)) @ alike) * spread

    null = scores.null(lambda x: x, values(400), size, seed=0)
    asked = values(2000 * size).reshape(2000, size, 40).mean(1)
    best = scores.prominence(asked).max(1)
    p = scores.p_values(best, null)
    assert (p <= 0.1).mean() == pytest.approx(0.1, abs=0.03)
    assert p.min() >= 1 / (1 + len(null)) and p.max() <= 1


def test_a_lora_that_stands_out_is_seen():
    rng = np.random.default_rng(3)
    null = scores.null(lambda x: x, rng.normal(size=(99, 50)), 1, seed=0)
    asked = rng.normal(size=(1, 50))
    asked[0, 7] += 20
    p = scores.p_values(scores.prominence(asked)[0], null)
    assert p[7] == pytest.approx(0.01) and (np.delete(p, 7) > 0.01).all()
    assert p.argmin() == 7


def test_sets_larger_than_the_null_are_drawn_with_repetition():
    rng = np.random.default_rng(4)
    assert len(scores.null(lambda x: x, rng.normal(size=(6, 12)), 10, seed=0)) == scores.DRAWS
    same = scores.null(lambda x: x, rng.normal(size=(6, 12)), 3, seed=0)
    assert (np.diff(same) >= 0).all()


def test_a_set_of_nearly_all_pictures_has_a_null_of_its_own_size():
    """Drawn without repetition, sets of 90 of 96 are the mean less next to nothing, and what any other 90 pictures have
    stood out: .18 of sets that are nothing were found at .05."""
    rng = np.random.default_rng(1)
    alarms = []
    for study in range(12):
        W = rng.normal(size=(24, 300))

        def values(count: int, W=W) -> np.ndarray:
            return (rng.exponential(size=(count, 300)) - 1) @ W.T

        reference = values(96)

        def scores_of(asked: np.ndarray, reference=reference, W=W) -> np.ndarray:
            return scores.scored(asked, reference.mean(0), W @ W.T)

        null = scores.null(scores_of, reference, 90, study)
        sets = np.stack([values(90).mean(0) for _ in range(40)])
        alarms.append((scores.p_values(scores.prominence(scores_of(sets)).max(1), null) <= 0.05).mean())
    assert np.mean(alarms) < 0.1
