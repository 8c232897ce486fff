"""What stream.cu can run, and each reason why not."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from rsparse.ops.fused import Section
from rsparse.ops.fused.cuda import stream
from rsparse.ops.fused.cuda.stream import covers
from rsparse.ops.fused.settings import stream_form
from tests.ops.fused import problems

TILES = stream_form(16, 2, 2)


def group(columns=64, outs=(32, 16), masks=(0, 1), rank=8, dtype=torch.bfloat16, **options):
    return problems.group(columns, outs, masks, rank, dtype, **options)


def within(matrix, width, first=0):
    """The same values as columns [first, …) of a matrix of `width`."""
    wide = torch.zeros(matrix.shape[0], width, dtype=matrix.dtype)
    wide[:, first : first + matrix.shape[1]] = matrix
    return wide[:, first : first + matrix.shape[1]]


def with_(name, change, made=None):
    made = made or group()
    return replace(made, **{name: change(getattr(made, name))})


COVERED = {
    "16 bits": group(),
    "the other 16 bits": group(dtype=torch.float16),
    "no factors": group(rank=0),
    "three sections": group(outs=(32, 16, 16), masks=(0, 0, 1)),
    "beside others in one memory": with_("weight", lambda weight: within(weight, 96, 8)),
    "U beside others": with_("U", lambda U: within(U, 96, 16)),
}
REFUSED = {
    "dense": group(rank=0, dense=True),
    "32 bits": group(dtype=torch.float32),
    "stored by output": with_("weight", lambda weight: weight.T.contiguous().T),
    "four sections": group(outs=(16,) * 4, masks=(0, 0, 1, 1)),
    "channels no vectors": group(columns=60),
    "a channel of more than 16 bits": with_("weight", lambda weight: weight.new_empty(1 << 16, 48), group(rank=0)),
    "rows no vectors": with_("weight", lambda weight: within(weight, 52)),
    "a tile in two sections": group(outs=(24, 24)),
    "a tile beyond the end": replace(group(outs=(32, 24)), sections=(Section(0, 32, 0), Section(32, 56, 1))),
    "unaligned": with_("weight", lambda weight: within(weight, 64, 4)),
    "every other column": with_("weight", lambda weight: within(weight.repeat(1, 2), 96)[:, ::2]),
    "U unaligned": with_("U", lambda U: within(U, 64, 4)),
    "U's rows no vectors": with_("U", lambda U: within(U, 52)),
    "U stored by output": with_("U", lambda U: U.T.contiguous().T),
    "every other column of U": with_("U", lambda U: within(U.repeat(1, 2), 96)[:, ::2]),
    "a rank that is no vector": replace(group(), U=group().U[:4], V=group().V[:, :8].contiguous()),
    "U of another dtype": with_("U", lambda U: U.half()),
    "V unaligned": with_("V", lambda V: torch.zeros(V.numel() + 1, dtype=V.dtype)[1:].view_as(V)),
    "V beside others": with_("V", lambda V: within(V, 24)),
    "V stored by rank": with_("V", lambda V: V.T.contiguous().T),
}


PAIRS = {
    "a mask": (group(outs=(40, 40), masks=(0, 0)), True),
    "a mask each": (group(outs=(40, 40), masks=(1, 0)), True),
    "one section": (group(outs=(80,), masks=(0,)), True),
    "unequal": (group(outs=(48, 32)), False),
    "an odd number of columns": (group(outs=(81,), masks=(0,), rank=0), False),
    "a tile in both": (group(outs=(36, 36)), False),
    "three sections": (group(outs=(32, 16, 16), masks=(0, 0, 1)), False),
    "dense": (group(outs=(40, 40), rank=0, dense=True), False),
    "channels no vectors": (group(columns=60, outs=(40, 40)), False),
}


@pytest.mark.parametrize("name", PAIRS)
def test_it_covers_pairs(name):
    made, covered = PAIRS[name]
    assert covers(made, TILES, paired=True) == covered


def test_a_pair_has_tiles_of_vectors():
    """A tile of 8 columns would be 4 of gate and 4 of up, half of what a thread reads at once."""
    assert not covers(group(outs=(40, 40)), stream_form(8, 2, 2), paired=True)


@pytest.mark.parametrize("name", COVERED)
def test_it_covers(name):
    assert covers(COVERED[name], TILES)


@pytest.mark.parametrize("name", REFUSED)
def test_it_refuses(name):
    assert not covers(REFUSED[name], TILES)


def test_the_list_has_room_in_shared_memory(monkeypatch):
    """Beside 16 warps' sums of 64 columns, an RTX 3090's 99 KB hold 23,808 entries of 4 bytes, an H100's 227 KB 56,576."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(shared_memory_per_block_optin=room))
    for index, (size, most) in enumerate([(99 << 10, 23_808), (227 << 10, 56_576), (400 << 10, 65_535)]):
        room = size
        assert stream._most_channels(torch.device("cuda", index), 4 * 16 * (64 + 16), 1) == most
    room = 99 << 10
    assert stream._most_channels(torch.device("cuda", 3), 4 * 16 * (64 + 16), 2) == 11_904, "a pair's two lists share it"


def test_what_a_block_takes_goes_by_its_tile(monkeypatch):
    asked = []
    monkeypatch.setattr(stream, "_most_channels", lambda device, *taken: asked.append(taken) or 64)
    assert covers(group(), stream_form(16, 8, 2))
    assert not covers(group(columns=72), stream_form(16, 32, 2))
    for masks in ((0, 0), (0, 1)):
        assert covers(group(outs=(32, 32), masks=masks), stream_form(16, 8, 2), paired=True)
    assert asked == [(4 * 8 * 32, 1), (4 * 32 * 32, 1), (4 * 8 * 32, 1), (4 * 8 * 32, 2)]
