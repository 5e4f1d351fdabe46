"""Fewer threads while other processes want the cores: what a team spent decides what the next ones get."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused_rnn import _C

pytestmark = pytest.mark.cpu_only("threads are the CPU's")

MS = 1_000_000


def run(now, duration=25 * MS, threads=2, worked=1.0, slept=0.0):
    """A team at work from `now` on; shares of its time."""
    wall = threads * duration
    return (now, threads, duration, wall, int(worked * wall), int(slept * wall))


def test_whole_teams_while_the_cores_are_ours():
    assert _C.threads_in_crowd([run(k * 25 * MS, worked=0.97) for k in range(20)]) == [2] * 20


def half(now, duration, worked):
    """One thread of a team of two, kept from a core for the rest of its time."""
    return (now, 2, duration, duration, int(worked * duration), 0)


CROWDED = {"worked": 0.4, "slept": 0.3}


def test_half_of_the_threads_after_cores_were_taken():
    """For 64 times the time of that look, where cores are taken from that half too; then a look at the whole team."""
    kept_off = half(26 * MS, 200 * MS, worked=0.6)
    runs = [run(0, **CROWDED), kept_off, half(1624 * MS, MS, 0.6), run(1626 * MS, worked=0.97), run(1652 * MS)]
    assert _C.threads_in_crowd(runs) == [2, 1, 1, 2, 2]


def test_still_crowded_at_the_next_look():
    """Which takes less to see than the first time."""
    again, kept_off = run(1700 * MS, 6 * MS, **CROWDED), half(1710 * MS, 20 * MS, 0.6)
    runs = [run(0, **CROWDED), again, kept_off, half(2700 * MS, MS, 0.6), run(2710 * MS)]
    assert _C.threads_in_crowd(runs) == [2, 2, 1, 1, 2]


def test_others_gone():
    """Nobody keeps the half from its core: that was a moment's work."""
    runs = [run(0, **CROWDED), half(25 * MS, 10 * MS, 1.0), half(35 * MS, 11 * MS, 0.99), run(46 * MS), run(71 * MS)]
    assert _C.threads_in_crowd(runs) == [2, 1, 1, 2, 2]


def test_another_on_one_core():
    """It lets the half alone and is there again for the whole: each time it is looked for after twice as long."""
    now, runs, expected = 0, [], []
    for k in range(6):
        for one, threads in ((run(now, 25 * MS, **CROWDED), 2), (half(now + 25 * MS, 19 * MS << k, 1.0), 1)):
            runs.append(one)
            expected.append(threads)
        now += 25 * MS + (19 * MS << k)
        runs.append(half(now, MS << k, 1.0))
        expected.append(1)
        now += MS << k
    assert now < 10_000 * MS
    assert _C.threads_in_crowd(runs) == expected


def test_partners_without_work_are_no_crowd():
    """A team of which only one has something to do sleeps; nobody took its cores."""
    assert _C.threads_in_crowd([run(k * 25 * MS, worked=0.5, slept=0.49) for k in range(4)]) == [2] * 4


def test_cores_taken_from_a_team_that_got_its_work_done():
    assert _C.threads_in_crowd([run(k * 25 * MS, worked=0.8, slept=0.0) for k in range(4)]) == [2] * 4


def test_short_teams_are_judged_together():
    runs = [run(k * MS, duration=MS, worked=0.4, slept=0.3) for k in range(21)]
    assert _C.threads_in_crowd(runs) == [2] * 20 + [1]


def test_large_teams_shrink_by_halves():
    expected = [16, 8, 4, 2, 1, 1]
    spent = [run(30 * k * MS, threads=got, worked=0.3, slept=0.1) for k, got in enumerate(expected)]
    assert _C.threads_in_crowd([(now, 16, *rest) for now, _, *rest in spent]) == expected


@given(st.lists(st.tuples(st.integers(0, 10**10), st.integers(1, 64), *[st.integers(0, 10**9)] * 4), max_size=30))
def test_never_none_and_never_more(runs):
    given = _C.threads_in_crowd([(sum(r[0] for r in runs[:k]), *run[1:]) for k, run in enumerate(runs)])
    assert all(1 <= got <= run[1] for got, run in zip(given, runs, strict=True))
