"""The short form of `make fuzz`: the same targets, with a seed that stays."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks/fuzz.py"
CASES = 60


@pytest.fixture(scope="module")
def fuzz():
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("fuzz", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.mark.fault(
    "configuration",
    "LoRA files, PEFT's configurations, pickles, pictures, manifests, config.yaml and tables, damaged at random",
    "each is read, or refused by its reader's own error; `make fuzz` goes on with it for as long as you like",
)
@pytest.mark.parametrize("name", ["lora", "peft", "pickle", "picture", "manifest", "config", "table"])
def test_what_is_damaged_at_random_is_read_or_refused(fuzz, name):
    seen = Counter(fuzz.case(name, 0, number) for number in range(CASES))
    assert set(seen) == {"read", "refused"}


def test_every_target_is_run_here(fuzz):
    marks = test_what_is_damaged_at_random_is_read_or_refused.pytestmark
    (named,) = [mark.args[1] for mark in marks if mark.name == "parametrize"]
    assert sorted(named) == sorted(fuzz.TARGETS)


def test_a_case_is_made_again_from_its_seed_and_a_fault_is_seen(fuzz, monkeypatch, capsys):
    monkeypatch.setitem(fuzz.TARGETS, "peft", lambda rng, _: "refused" if rng.integers(2) else 1 / 0)
    first = [fails(fuzz, number) for number in range(40)]
    assert first == [fails(fuzz, number) for number in range(40)] and set(first) == {True, False}
    clock = iter(range(100))
    monkeypatch.setattr(fuzz.time, "monotonic", lambda: next(clock))
    seen, _ = fuzz.run("peft", 4, 30)
    assert sum(seen.values()) == 29 and seen["faults"] == sum(first[1:30])
    assert "--targets peft --seed 4 --case" in capsys.readouterr().out


def fails(fuzz, number):
    try:
        return fuzz.case("peft", 4, number) != "refused"
    except ZeroDivisionError:
        return True
