"""The time left of steps, from the pace of those that were done."""

import pytest

from slicemill.common.countdown import NOTE_SECONDS, TRUST_SECONDS, Countdown, Step, show_countdown

STEPS = (Step(name="a", seconds=100.0), Step(name="b", seconds=300.0), Step(name="c", seconds=100.0))


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_before_the_first_step_the_time_left_is_that_of_the_reference(clock):
    assert Countdown(STEPS, clock).left_seconds == 500.0


@pytest.mark.parametrize("pace", [0.25, 1.0, 4.0])
def test_after_a_step_the_rest_is_estimated_by_its_pace(clock, pace):
    countdown = Countdown(STEPS, clock)
    countdown.begin("a")
    clock.now += 100 * pace
    countdown.begin("b")
    expected = (100 * pace + TRUST_SECONDS) / (100 + TRUST_SECONDS)
    assert countdown.left_seconds == pytest.approx(400 * expected)
    assert countdown.place == "2/3 b"


def test_the_share_that_a_step_reports_corrects_the_pace(clock):
    countdown = Countdown(STEPS, clock)
    countdown.begin("a")
    clock.now += 100
    countdown.begin("b")
    clock.now += 600
    countdown.report(0.5)
    pace = (700 + TRUST_SECONDS) / (250 + TRUST_SECONDS)
    assert countdown.left_seconds == pytest.approx(250 * pace)
    clock.now += 60
    assert countdown.left_seconds == pytest.approx(250 * pace - 60)


def test_a_step_that_takes_longer_than_expected_leaves_the_time_of_the_later_ones(clock):
    countdown = Countdown(STEPS, clock)
    countdown.begin("a")
    clock.now += 1e6
    assert countdown.left_seconds == 400.0


def test_a_time_limit_is_the_same_on_a_slow_machine(clock):
    countdown = Countdown([STEPS[0], Step(name="train", seconds=240.0, limited=True), STEPS[2]], clock)
    countdown.begin("a")
    clock.now += 900
    countdown.begin("train")
    pace = (900 + TRUST_SECONDS) / (100 + TRUST_SECONDS)
    assert countdown.left_seconds == pytest.approx(240 + 100 * pace)
    clock.now += 240
    countdown.begin("c")
    assert countdown.left_seconds == pytest.approx(100 * pace)


def test_at_the_end_nothing_is_left(clock):
    countdown = Countdown(STEPS, clock)
    for step in STEPS:
        countdown.begin(step.name)
        clock.now += 7
    countdown.report(1.0)
    assert countdown.left_seconds == 0.0


@pytest.mark.parametrize("names", [["b"], ["a", "c"], ["a", "b", "c", "d"]])
def test_steps_begin_in_their_order(clock, names):
    countdown = Countdown(STEPS, clock)
    for name in names[:-1]:
        countdown.begin(name)
    with pytest.raises(ValueError, match=f"{names[-1]} does not follow"):
        countdown.begin(names[-1])


def test_a_note_is_due_every_half_minute(clock):
    countdown = Countdown(STEPS, clock)
    countdown.begin("a")
    assert countdown.due_note() is None
    clock.now += NOTE_SECONDS
    assert countdown.due_note() == "about 8 min left"
    assert countdown.due_note() is None
    clock.now += NOTE_SECONDS
    assert countdown.due_note() is not None


def test_no_bar_is_shown_where_standard_error_is_no_terminal(clock, capsys):
    with show_countdown(Countdown(STEPS, clock)) as shown:
        assert not shown
    assert capsys.readouterr().err == ""
