"""Sampler settings: their names and counts, and which pictures all LoRAs share."""

import pytest

from lora_atlas.settings import OWN, SHARED, Setting, settings

PROMPTS = ["a cat", "a dog", "a boat"]
GENERATION = {
    "prompts": PROMPTS[:2],
    "seeds": [0, 7],
    "num_inference_steps": [4, 8],
    "guidance_scale": [1, 7.5],
    "worth": None,
}
MANY = {"num_inference_steps": 8, "guidance_scale": 1, "prompts": PROMPTS, "series": [SHARED, OWN], "pictures": 32}


@pytest.fixture(scope="module")
def series():
    found = {setting.series: setting for setting in settings(GENERATION | {"worth": MANY}) if setting.series}
    assert set(found) == {SHARED, OWN}
    return found


def test_the_grid_comes_first_then_the_series():
    names = [setting.name for setting in settings(GENERATION | {"worth": MANY})]
    assert names == ["s4_g1", "s4_g7.5", "s8_g1", "s8_g7.5", "s8_g1_shared32", "s8_g1_own32"]
    assert [setting.name for setting in settings(GENERATION)] == names[:4]


def test_labels_say_how_and_how_many(series):
    labels = [setting.label for setting in settings(GENERATION)]
    assert labels[:2] == ["4 steps, no guidance", "4 steps, guidance 7.5"]
    assert series[OWN].label == "8 steps, no guidance, 32 pictures, prompts of its own"
    assert series[SHARED].label == "8 steps, no guidance, 32 pictures, shared prompts"


def test_a_count_is_the_number_of_tasks(series):
    grid = settings(GENERATION)[0]
    assert grid.count == 4 and series[OWN].count == series[SHARED].count == 32
    for setting in (grid, *series.values()):
        assert len(setting.tasks("a0_0")) == setting.count


@pytest.mark.parametrize(("guidance", "passes"), [(1, 8), (0, 8), (3, 16), (7.5, 16)])
def test_guidance_takes_two_passes_a_step(guidance, passes):
    assert Setting(8, guidance, ("a",), (0,)).passes == passes


def test_the_grid_is_every_prompt_with_every_number_for_all_loras():
    for setting in settings(GENERATION):
        tasks = setting.tasks("a0_0")
        assert tasks == [("a cat", 0), ("a cat", 7), ("a dog", 0), ("a dog", 7)]
        assert setting.tasks("a1_3") == tasks


def test_shared_pictures_are_the_same_for_all_loras(series):
    assert series[SHARED].tasks("a0_0") == series[SHARED].tasks("a1_3")


def test_own_pictures_are_a_loras_own(series):
    one, other = (series[OWN].tasks(lora) for lora in ("a0_0", "a1_3"))
    assert not {number for _, number in one} & {number for _, number in other}
    assert [prompt for prompt, _ in one] != [prompt for prompt, _ in other]
    assert series[OWN].tasks("a0_0") == one  # and the same at every call


def test_own_numbers_are_not_those_of_the_shared_series(series):
    shared = {number for _, number in series[SHARED].tasks("a0_0")}
    assert not shared & {number for _, number in series[OWN].tasks("a0_0")}


@pytest.mark.parametrize("kind", [SHARED, OWN])
def test_no_picture_comes_twice_for_one_lora(series, kind):
    for lora in (f"a{i}_{j}" for i in range(10) for j in range(10)):
        tasks = series[kind].tasks(lora)
        assert len(set(tasks)) == len(tasks) == 32
        assert {prompt for prompt, _ in tasks} <= set(PROMPTS)


def test_a_shared_series_takes_its_prompts_in_turn(series):
    prompts = [prompt for prompt, _ in series[SHARED].tasks("a0_0")]
    assert prompts == [PROMPTS[i % 3] for i in range(32)]
    counts = [prompts.count(prompt) for prompt in PROMPTS]
    assert max(counts) - min(counts) <= 1


def test_a_longer_series_begins_with_the_shorter_one():
    short, long = (settings(GENERATION | {"worth": MANY | {"pictures": n}})[-1] for n in (8, 32))
    assert short.series == long.series == OWN
    assert long.tasks("a0_0")[:8] == short.tasks("a0_0")
