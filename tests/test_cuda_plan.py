"""How a CUDA time loop is launched: plain arithmetic, so its properties hold for any size and device, without a GPU."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fused_rnn
from fused_rnn import _C
from fused_rnn.cli import main
from fused_rnn.planning import DEVICES, plans
from fused_rnn.reference import Cell

ROWS = {"few": 2, "batch": 16, "tensor": 16}  # of a tile
REGISTERS = 168  # plan.h: kMaxRegisters


@st.composite
def loops(draw):
    """Sizes of real layers, from one unit to more than any chip holds."""
    cell, H = draw(st.sampled_from(list(Cell))), draw(st.integers(1, 5000))
    return {
        "cell": int(cell),
        "backward": draw(st.booleans()),
        "T": draw(st.sampled_from([1, 2, 100, 70_000])),
        "B": draw(st.integers(1, 3000)),
        "D": draw(st.integers(1, 2)),
        "H": H,
        "P": draw(st.integers(0, H - 1)) if cell.is_lstm else 0,
        "element_size": draw(st.sampled_from([2, 4, 8])),
        "tensor": draw(st.booleans()),
        "rowwise": draw(st.booleans()),
        "clustered": draw(st.booleans()),
    }


@st.composite
def gpus(draw):
    per_sm = draw(st.sampled_from([64, 100, 164, 228])) << 10
    return {
        "sms": draw(st.integers(1, 200)),
        "shared_per_sm": per_sm,
        "shared_per_block": draw(st.sampled_from([48 << 10, per_sm - 1024])),
        "threads_per_sm": draw(st.sampled_from([1024, 1536, 2048])),
        "registers_per_sm": 1 << 16,
        "cooperative": draw(st.booleans()),
        "loops": draw(st.sampled_from([True, True, False])),
        "clusters": draw(st.sampled_from([(0,) * 5, (132, 66, 33, 16, 8), (0, 1, 0, 0, 0), (4, 2, 1, 0, 0)])),
    }


def check_cluster_plan(plan, loop, gpu):
    assert loop["clustered"]
    assert loop["tensor"]
    assert not loop["P"]
    assert not loop["rowwise"]
    assert gpu["clusters"][plan["parts"].bit_length() - 1] > 0
    assert plan["parts"].bit_count() == 1
    assert plan["threads"] == 256
    # What kernels have room for: whole tiles of units, as many rows as a product takes at once.
    assert plan["units"] in (16, 32, 48, 64)
    assert (plan["parts"] - 1) * plan["units"] < loop["H"] + 16 * plan["parts"]
    assert loop["H"] <= plan["parts"] * plan["units"]
    assert 1 <= plan["slice_rows"] <= 16


@settings(max_examples=400, deadline=None)
@given(loops(), gpus())
def test_plans_fit_device_and_work(loop, gpu):
    # What a call asks for: 16 bits go to tensor cores, f32 as TF32 where it may, f64 never.
    loop["tensor"] = loop["element_size"] == 2 or (loop["element_size"] == 4 and loop["tensor"])
    plan = _C.cuda_plan(**loop, **gpu)
    if plan["mode"] == "products" or not (gpu["loops"] or loop["rowwise"]):
        assert plan == {"mode": "products"}
        assert not loop["rowwise"]
        # Where the loop may multiply f32 as TF32, torch's own product may not.
        assert not (gpu["loops"] and loop["tensor"] and loop["element_size"] == 4)
        return
    assert plan["shared_bytes"] <= gpu["shared_per_block"]
    assert plan["threads"] in (128, 256)  # teams of four warps, whichever tile
    assert plan["blocks"] == loop["D"] * plan["slices"] * plan["parts"]
    # The slices cover the batch, none is empty, and no tile lies in two of them.
    assert (plan["slices"] - 1) * plan["slice_rows"] < loop["B"] <= plan["slices"] * plan["slice_rows"]
    if plan["mode"] == "clusters":
        check_cluster_plan(plan, loop, gpu)
        return
    assert plan["slice_rows"] % ROWS[plan["tile"]] == 0
    # Every block has units to work on in one product or the other.
    gates = Cell(loop["cell"]).gates if loop["rowwise"] and not loop["backward"] else 1
    assert (plan["parts"] - 1) * plan["units"] < max(gates * loop["H"], loop["P"])
    if plan["mode"] == "alone":
        once = loop["T"] == 1 and not (loop["backward"] or loop["P"] or loop["rowwise"])
        assert plan["parts"] == 1 or once
    else:
        assert plan["mode"] == ("cooperative" if gpu["cooperative"] else "steps")
    # Blocks that wait for each other must all be there.
    if plan["mode"] == "cooperative":
        fit = min(
            gpu["shared_per_sm"] // (-(-(plan["shared_bytes"] + 1024) // 128) * 128),  # in units of 128 bytes
            gpu["threads_per_sm"] // plan["threads"],
            gpu["registers_per_sm"] // (REGISTERS * plan["threads"]),
        )
        assert plan["blocks"] <= gpu["sms"] * fit


@pytest.mark.parametrize(
    ("B", "element_size", "tensor", "tile"),
    [
        (1, 2, True, "few"),
        (2, 4, True, "few"),
        (3, 4, False, "batch"),
        (3, 4, True, "tensor"),
        (3, 8, False, "batch"),
        (3, 2, True, "tensor"),
    ],
)
def test_tile(B, element_size, tensor, tile):
    size = {"cell": 0, "backward": False, "T": 9, "D": 1, "H": 64, "P": 0, "tensor": tensor}
    assert _C.cuda_plan(B=B, element_size=element_size, **size, **DEVICES["h200"])["tile"] == tile


def test_weights_stay_on_chip_while_they_fit():
    size = {"cell": 0, "backward": False, "T": 99, "B": 16, "D": 1, "P": 0, "element_size": 2, "tensor": True}
    size |= DEVICES["h200"]
    assert _C.cuda_plan(H=1024, **size)["resident"]
    assert not _C.cuda_plan(H=1536, **(size | {"element_size": 4}))["resident"]


@pytest.mark.parametrize("device", ["h200", "a100"])
@pytest.mark.parametrize("element_size", [2, 4])
def test_warps_of_a_multiprocessor(element_size, device):
    """Each of its four schedulers has one at least: a warp by itself waits for its own loads."""
    size = {"cell": 0, "T": 100, "D": 1, "P": 0, "element_size": element_size, "tensor": True, **DEVICES[device]}
    size["clusters"] = (0,) * 5
    for backward in (False, True):
        for H in (512, 768, 1024, 1536, 2048):
            for B in (4, 16, 32, 64, 128, 256):
                plan = _C.cuda_plan(H=H, B=B, backward=backward, **size)
                if plan["mode"] == "products":
                    continue
                assert plan["mode"] == "cooperative"
                busy = min(plan["blocks"], size["sms"])
                assert plan["threads"] * plan["blocks"] >= 128 * busy
                # And most multiprocessors have a block where there are rows enough for slices.
                assert B < 32 or busy > size["sms"] / 2


def test_chunks_that_leave_sums_as_they_are():
    """A tile adds to one of two sums by turns: of several chunks each begins with the first."""
    size = {"cell": 0, "backward": True, "T": 99, "B": 64, "D": 1, "P": 0, "tensor": True, **DEVICES["h200"]}
    for element_size in (2, 4):
        for H in (40, 100, 200, 1000, 3000):
            for shared in (20000, 30000, 48 << 10, 227 << 10):
                limits = {"shared_per_block": shared, "clusters": (0,) * 5}
                plan = _C.cuda_plan(H=H, rowwise=True, element_size=element_size, **(size | limits))
                assert plan["chunk"] >= 4 * H or plan["chunk"] * element_size % 256 == 0


def test_clusters_where_they_serve():
    """Torch's cells in f16, bf16 and TF32, while a cluster holds the weights."""
    size = {"cell": 0, "T": 200, "B": 16, "D": 1, "P": 0, "element_size": 2, "tensor": True, "clustered": True}
    for backward in (False, True):
        plan = _C.cuda_plan(H=512, backward=backward, **size, **DEVICES["h200"])
        assert (plan["mode"], plan["parts"], plan["units"], plan["slice_rows"]) == ("clusters", 16, 32, 2)
        assert _C.cuda_plan(H=64, backward=backward, **size, **DEVICES["h200"])["parts"] == 1  # a block by itself
        assert _C.cuda_plan(H=1024, backward=backward, **size, **DEVICES["h200"])["mode"] == "cooperative"
        assert _C.cuda_plan(H=512, backward=backward, **size, **DEVICES["a100"])["mode"] == "cooperative"
        for without in ("tensor", "clustered"):
            other = _C.cuda_plan(H=512, backward=backward, **(size | {without: False}), **DEVICES["h200"])
            assert other["mode"] == "cooperative"


def test_products_of_torch_where_they_serve():
    """Large ones, of every loop that looks at no whole rows; small ones only where no loop may stay on the device."""
    size = {"cell": 0, "T": 200, "D": 1, "P": 0, "tensor": True, "clustered": True}
    device = DEVICES["h200"]
    for backward in (False, True):
        of = {"backward": backward, **size}
        assert _C.cuda_plan(B=256, H=1024, element_size=2, **of, **device)["mode"] == "products"
        assert _C.cuda_plan(B=64, H=1024, element_size=2, **of, **device)["mode"] == "cooperative"
        assert _C.cuda_plan(B=256, H=1024, element_size=4, **of, **device)["mode"] == "cooperative"  # as TF32
        ieee = of | {"tensor": False}
        assert _C.cuda_plan(B=256, H=1024, element_size=4, **ieee, **device)["mode"] == "products"
        assert _C.cuda_plan(B=256, H=1024, element_size=4, rowwise=True, **ieee, **device)["mode"] == "cooperative"
        assert _C.cuda_plan(B=2, H=16, element_size=4, loops=False, **of, **device)["mode"] == "products"


def test_a_device_too_small():
    """Products of torch want no shared memory of a loop; whole rows have no other way."""
    size = {"cell": 0, "backward": False, "T": 9, "B": 9, "D": 1, "H": 64, "P": 0, "element_size": 4}
    small = {**DEVICES["h200"], "shared_per_block": 4096}
    assert _C.cuda_plan(**size, **small)["mode"] == "products"
    with pytest.raises(RuntimeError, match="not enough shared memory"):
        _C.cuda_plan(rowwise=True, **size, **small)


def test_of_a_module(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")  # torch's default
    module = fused_rnn.LSTM(3, 96, 2, bidirectional=True, proj_size=32, dtype=torch.bfloat16, device="meta")
    found = dict(plans(module, batch=20, steps=7, device="a100"))
    assert found.keys() == {"forward", "backward"}
    size = {"cell": 0, "T": 7, "B": 20, "D": 2, "H": 96, "P": 32, "element_size": 2, "tensor": True, **DEVICES["a100"]}
    assert found["backward"] == _C.cuda_plan(backward=True, **size)
    clipped = fused_rnn.GRU(3, 96, clip_grad_norm=1.0, device="meta")
    size |= {"cell": 1, "D": 1, "P": 0, "element_size": 4}
    assert dict(plans(clipped, batch=20, steps=7, device="a100")) == {
        "forward": _C.cuda_plan(backward=False, **size),
        "backward": _C.cuda_plan(backward=True, rowwise=True, **size),
    }


@pytest.mark.parametrize("option", ["--hidden", "--layers", "--batch", "--steps"])
def test_info_refuses_sizes_that_are_none(option, capsys):
    with pytest.raises(SystemExit):
        main(["info", "GRU", option, "0"])
    assert f"argument {option}: 0 is not a positive number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("LSTM --hidden 8 --projection 9", "proj_size has to be smaller than hidden_size"),
        ("GRU --projection 5", "proj_size argument is only supported for LSTM"),
        ("LSTM --hidden 2000000000", "Storage size calculation overflowed"),
    ],
)
def test_info_refuses_modules_that_are_none(options, text):
    with pytest.raises(SystemExit) as refused:
        main(["info", *options.split()])
    assert str(refused.value).startswith(f"fused-rnn info: {text}")


def test_info_refuses_a_device_that_is_not_there():
    with pytest.raises(SystemExit, match=r"fused-rnn info: no GPU 'tpu' here; known without one: h200, h100, a100"):
        main(["info", "GRU", "--on", "tpu"])


def test_info_prints_it(capsys):
    assert main(["info", "GRU", "--hidden", "300", "--dtype", "float16", "--on", "h100", "--layers", "2"]) == 0
    out = capsys.readouterr().out
    assert "GRU(1, 300, num_layers=2), float16, 100 steps of 32 rows on h100" in out
    assert "forward: mode clusters, blocks 128, threads 256" in out
    assert main(["info", "GRU", "--hidden", "300", "--dtype", "float16", "--on", "a100"]) == 0
    assert "forward: mode cooperative, tile tensor" in capsys.readouterr().out
