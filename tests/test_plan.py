"""How a time loop is divided among threads: plain arithmetic, so its properties hold for any size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fused_rnn import _C

pytestmark = pytest.mark.cpu_only("threads are the CPU's")

FIELDS = ("directions", "rows", "panels", "weight_bytes", "steps", "flops_per_step")


@st.composite
def loops(draw):
    """Sizes of real layers, from one unit to more than any cache holds."""
    H, rows, gates = draw(st.integers(1, 5000)), draw(st.integers(1, 600)), draw(st.sampled_from([1, 3, 4]))
    W = draw(st.sampled_from([2, 4, 8, 16]))
    blocks = -(-H // W)
    return {
        "directions": draw(st.integers(1, 2)),
        "rows": rows,
        "panels": blocks if gates > 1 else -(-blocks // 4),
        "weight_bytes": 4 * gates * H * blocks * W,
        "steps": draw(st.integers(1, 3000)),
        "flops_per_step": 2 * rows * H * H * gates,
    }


def divide(loop, threads, **options):
    return _C.divide_loop(*(loop[k] for k in FIELDS), threads, **options)


@settings(max_examples=400, deadline=None)
@given(loops(), st.integers(1, 256))
def test_parts_fit_threads_and_work(loop, threads):
    d = divide(loop, threads)
    assert d["threads"] == d["directions"] * d["row_parts"] * d["unit_parts"]
    assert 1 <= d["threads"] <= max(threads, 1)
    assert d["directions"] in (1, loop["directions"])
    # Rows or units, never both: a team that shares rows meets at a barrier, one that splits them does not.
    assert d["row_parts"] == 1 or d["unit_parts"] == 1
    # Nobody is left without work, and a part of rows is more than one of them.
    assert d["unit_parts"] <= loop["panels"]
    assert d["row_parts"] == 1 or 2 * d["row_parts"] <= loop["rows"]
    assert d == divide(loop, threads)


@given(loops(), st.integers(2, 256))
def test_tiny_work_is_serial(loop, threads):
    tiny = loop | {"steps": 1, "flops_per_step": 1000, "weight_bytes": 1000}
    serial = {"threads": 1, "directions": 1, "row_parts": 1, "unit_parts": 1, "layers": 1}
    assert divide(tiny, threads) == serial
    assert divide(tiny | {"directions": 1}, threads, layers=4) == serial


@given(loops(), st.integers(2, 8), st.integers(1, 64))
def test_layers_side_by_side(loop, layers, threads):
    """Each in one thread, and nothing else divided; never where a core's cache would not hold the weights of one."""
    d = divide(loop | {"directions": 1}, threads, layers=layers)
    assert d["layers"] in (1, min(layers, threads))
    if d["layers"] > 1:
        assert d["threads"] == d["layers"]
        assert d["row_parts"] == d["unit_parts"] == d["directions"] == 1
        assert loop["weight_bytes"] <= 1 << 20
    else:
        assert d == divide(loop | {"directions": 1}, threads)


def test_long_loops_of_single_rows_go_side_by_side():
    small = {"directions": 1, "rows": 1, "panels": 4, "weight_bytes": 1 << 16, "steps": 500, "flops_per_step": 1 << 15}
    assert divide(small, 2, layers=3)["layers"] == 2
    assert divide(small | {"steps": 5}, 2, layers=3)["layers"] == 1  # less than it takes to call up a thread
    assert divide(small | {"rows": 64, "flops_per_step": 1 << 21}, 2, layers=3)["row_parts"] == 2


def test_empty_batches_have_a_plan():
    empty = {"directions": 1, "rows": 0, "panels": 4, "weight_bytes": 1 << 16, "steps": 500, "flops_per_step": 1 << 15}
    assert divide(empty, 2, layers=3)["threads"] >= 1


@given(loops())
def test_one_thread_is_serial(loop):
    for threads in (-1, 0, 1):
        assert divide(loop, threads)["threads"] == 1


@given(loops(), st.integers(2, 64))
def test_more_steps_never_mean_fewer_threads(loop, threads):
    longer = loop | {"steps": loop["steps"] * 2}
    assert divide(longer, threads)["threads"] >= divide(loop, threads)["threads"]


@given(loops(), st.integers(2, 64))
def test_units_are_split_only_where_a_step_outweighs_its_barrier(loop, threads):
    if divide(loop, threads)["unit_parts"] > 1:
        cheap = loop | {"flops_per_step": 100_000, "weight_bytes": 100_000}
        assert divide(cheap, threads)["unit_parts"] == 1


@given(loops(), st.integers(2, 64))
def test_much_to_exchange_never_means_more_shared_units(loop, threads):
    much, little = divide(loop, threads, exchanged=1 << 20), divide(loop, threads)
    assert much["unit_parts"] <= little["unit_parts"]
    assert much["row_parts"] >= little["row_parts"]


# (H, rows, directions) of an LSTM in f32 with 16 lanes, steps 100; the division for two and four threads
KNOWN = [
    ((64, 1, 1), {}, {}),
    ((64, 1, 2), {"directions": 2}, {"directions": 2}),
    ((256, 1, 1), {"unit_parts": 2}, {"unit_parts": 4}),
    ((64, 32, 1), {"row_parts": 2}, {"row_parts": 4}),
    ((512, 4, 1), {"unit_parts": 2}, {"unit_parts": 4}),
    ((512, 200, 1), {"row_parts": 2}, {"row_parts": 4}),
    ((512, 1, 2), {"directions": 2}, {"directions": 2, "unit_parts": 2}),
    ((256, 8, 1), {"unit_parts": 2}, {"unit_parts": 4}),
    ((256, 16, 1), {"row_parts": 2}, {"unit_parts": 4}),
    ((128, 8, 1), {"row_parts": 2}, {"row_parts": 4}),
]


@pytest.mark.parametrize(("size", "two", "four"), KNOWN, ids=str)
def test_known_sizes(size, two, four):
    H, rows, directions = size
    loop = {"directions": directions, "rows": rows, "panels": -(-H // 16), "weight_bytes": 16 * H * H, "steps": 100}
    loop["flops_per_step"] = 8 * rows * H * H
    for threads, parts in ((2, two), (4, four)):
        got = divide(loop, threads, exchanged=4 * H)
        want = {"directions": 1, "row_parts": 1, "unit_parts": 1} | parts
        assert {k: got[k] for k in want} == want


@settings(max_examples=400, deadline=None)
@given(loops(), st.integers(1, 32), st.integers(1, 8))
def test_cores_that_others_take(loop, threads, more):
    """Fewer threads where one waits for another: at a barrier, or at an end that is soon there."""
    whole, given = divide(loop, threads + more), divide(loop, threads, all=threads + more)
    assert given in (whole, divide(loop, threads))
    if whole["unit_parts"] > 1:
        assert given["threads"] <= threads


@given(loops(), st.integers(2, 8), st.integers(2, 32), st.integers(1, 8))
def test_layers_side_by_side_wait_for_each_other(loop, layers, threads, more):
    one_direction = loop | {"directions": 1}
    if divide(one_direction, threads, layers=layers)["layers"] > 1:
        given = divide(one_direction, threads, layers=layers, all=threads + more)
        assert given == divide(one_direction, threads, layers=layers)


def test_long_loops_of_rows_or_directions_apart_have_all_threads():
    """LSTM 100,32,256 in f32: 7 ms in each of two threads, but 0.7 with a tenth of the steps."""
    size = (1, 32, 16, 1 << 20, 100, 20_000_000)
    rows = dict(zip(FIELDS, size, strict=True))
    assert divide(rows, 1, all=2)["row_parts"] == 2
    assert divide(rows | {"steps": 10}, 1, all=2)["threads"] == 1
    assert divide(rows | {"directions": 2, "rows": 1, "weight_bytes": 1 << 16}, 1, all=2)["directions"] == 2
    units = rows | {"rows": 1, "flops_per_step": 2_000_000, "steps": 10_000}
    assert divide(units, 2)["unit_parts"] == 2
    assert divide(units, 1, all=2)["threads"] == 1
