"""Lines of progress: few, true, and none where nobody asked."""

import pytest

from lora_atlas import progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def said(monkeypatch):
    lines, clock = [], Clock()
    monkeypatch.setattr(progress, "_clock", clock)
    progress.to(lines.append, 60)
    yield lines, clock
    progress.to(None)


def test_a_line_at_once_and_then_one_a_minute_with_the_time_that_is_left(said):
    lines, clock = said
    with progress.task("18 LoRAs together", 320, unit="steps") as advance:
        assert lines == ["18 LoRAs together: 0 of 320 steps"]
        for _ in range(319):
            clock.now += 1.5
            advance(1)
    # Every 40 steps are a minute.
    assert lines[1:] == [
        f"18 LoRAs together: {n} of 320 steps, {left} left"
        for n, left in [(40, "7 min"), (80, "6 min"), (120, "5 min"), (160, "4 min"), (200, "3 min"), (240, "2 min")]
        + [(280, "60 s")]
    ]


def test_what_was_done_before_tells_nothing_of_the_rate(said):
    lines, clock = said
    with progress.task("joris/00", 1000, 900, "steps") as advance:
        clock.now += 60
        advance(10)
    assert lines == ["joris/00: 900 of 1000 steps", "joris/00: 910 of 1000 steps, 9 min left"]


def test_nothing_is_said_of_the_last_and_nothing_without_anybody_to_say_it_to(said):
    lines, clock = said
    with progress.task("generated", 4, unit="pictures") as advance:
        clock.now += 100
        advance(4)
    assert lines == ["generated: 0 of 4 pictures"]
    progress.to(None)
    with progress.task("generated", 4) as advance:
        clock.now += 100
        advance(2)
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h"), (400000, "4.6 days")]
)
def test_times_are_said_as_people_ask_for_them(seconds, text):
    assert progress.duration(seconds) == text


def test_jobs_are_told_how_many_loras_each_study_will_have(monkeypatch):
    monkeypatch.delenv(progress.LORAS, raising=False)
    assert progress.expected("demo") is None
    progress.expect("demo", 72)
    progress.expect("demo/variants/seed1", 36)
    assert (progress.expected("demo"), progress.expected("demo/variants/seed1")) == (72, 36)
