"""An allocation that was interrupted goes on where it stopped, and takes no other allocation's state."""

from __future__ import annotations

import json

import pytest

from rsparse.errors import RSparseError
from rsparse.search import allocation as module
from rsparse.search.resume import AllocationFile
from tests.search.allocations import allocated, pulling
from tests.support.models import tiny_model
from tests.support.recipes import SEQ_LEN, uniform

SETTINGS = {"model": "0123", "sparsity": 0.5, "criterion": None, "lowrank": True, "seed": 0}
SHORT = {"tokens": 2 * SEQ_LEN, "rounds": 1, "criteria": (), "polish": 3}


BLOCKS = [{"q_proj": 0.1 + 0.2, "k_proj": 0.5}, {"q_proj": 1 / 3, "k_proj": 0.4}]


def begun(path, settings=SETTINGS):
    kept = AllocationFile(path, settings)
    for block in BLOCKS[len(kept.blocks) :]:
        kept.add_block(block)
    return kept


@pytest.mark.parametrize("number", [1, 2, 30])
def test_a_resumed_allocation_is_the_one_that_nobody_disturbed(tmp_path, evaluating, number):
    """With the real model's KLs, which come back bit for bit."""
    path = tmp_path / "new.allocation"
    whole = allocated(tiny_model("llama"), **SHORT)

    def stop(call):
        if call == number:
            raise KeyboardInterrupt

    evaluating(stop)
    with pytest.raises(KeyboardInterrupt):
        allocated(tiny_model("llama"), kept=begun(path), **SHORT)
    assert path.exists()
    assert len(json.loads(path.read_text())["trials"]) == number - 1
    calls = evaluating(lambda call: None)
    assert allocated(tiny_model("llama"), kept=begun(path), **SHORT) == whole
    assert len(calls) == whole.evaluations - (number - 1)


def test_where_all_is_kept_nothing_is_made(tmp_path, judging, monkeypatch):
    path = tmp_path / "new.allocation"
    judging(pulling())
    whole = allocated(tiny_model("llama"), kept=begun(path))
    monkeypatch.setattr(module, "CandidateModel", lambda *args: pytest.fail("made factors"))
    monkeypatch.setattr(module, "progress", lambda *args, **options: pytest.fail("showed a bar"))
    assert allocated(tiny_model("llama"), kept=begun(path)) == whole


def test_the_bar_starts_at_what_is_kept(tmp_path, evaluating, monkeypatch):
    path, seen, real = tmp_path / "new.allocation", [], module.progress

    def stop(call):
        if call == 6:
            raise KeyboardInterrupt

    evaluating(stop)
    with pytest.raises(KeyboardInterrupt):
        allocated(tiny_model("llama"), kept=begun(path), **SHORT)
    evaluating(lambda call: None)
    monkeypatch.setattr(module, "progress", lambda *args, **options: seen.append(options["done"]) or real(*args, **options))
    allocated(tiny_model("llama"), kept=begun(path), **SHORT)
    assert seen == [5]


def test_each_piece_is_whole_on_disk_as_it_comes(tmp_path):
    path = tmp_path / "deep" / "new.allocation"
    kept = AllocationFile(path, SETTINGS)
    for count, block in enumerate(BLOCKS, 1):
        kept.add_block(block)
        assert AllocationFile(path, SETTINGS).blocks == BLOCKS[:count]
    one, two = (uniform(tiny_model("llama"), sparsity) for sparsity in (0.4, 0.5))
    for number, (recipe, kl) in enumerate([(one, 1 / 3), (two, 0.1), (one, 0.7)]):
        assert kept.kl(number, recipe, lambda given, wanted=recipe, kl=kl: kl if given is wanted else None) == kl
        assert [each.name for each in path.parent.iterdir()] == ["new.allocation"]
        assert json.loads(path.read_text())["trials"][number] == [recipe.sha(), kl]
    again = AllocationFile(path, SETTINGS)
    assert again.trials == 3
    assert again.blocks == BLOCKS
    assert [again.kl(n, each, lambda _: pytest.fail("is kept")) for n, each in enumerate((one, two, one))] == [1 / 3, 0.1, 0.7]


def test_trials_behind_one_that_differs_are_judged_again(tmp_path):
    kept = begun(tmp_path / "new.allocation")
    one, two, three = (uniform(tiny_model("llama"), sparsity) for sparsity in (0.4, 0.5, 0.6))
    for number, recipe in enumerate((one, two, three)):
        kept.kl(number, recipe, lambda _, number=number: float(number))
    again = begun(tmp_path / "new.allocation")
    assert [again.kl(n, each, lambda _: 9.0) for n, each in enumerate((one, three, three))] == [0.0, 9.0, 9.0]


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = begun(None)
    assert kept.kl(0, uniform(tiny_model("llama")), lambda _: 0.5) == 0.5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sparsity": 0.4}, "its sparsity is 0.5, here it is 0.4"),
        ({"criterion": "column_norm"}, "its criterion is None, here it is column_norm"),
        ({"model": "4567"}, "its model is 0123, here it is 4567"),
        ({"more": 1}, "its more is None, here it is 1"),
    ],
)
def test_another_allocations_state(tmp_path, changes, says):
    begun(tmp_path / "new.allocation")
    before = (tmp_path / "new.allocation").read_bytes()
    with pytest.raises(RSparseError, match=f"new.allocation is the state of another allocation: {says}; remove it"):
        AllocationFile(tmp_path / "new.allocation", SETTINGS | changes)
    assert (tmp_path / "new.allocation").read_bytes() == before


@pytest.mark.parametrize(
    "text", ["", "{", "all of my thesis", "[]", "{}", '{"settings": {}, "blocks": null, "trials": []}', b"\xff", None]
)
def test_a_damaged_state(tmp_path, text):
    path = tmp_path / "new.allocation"
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RSparseError, match=r"cannot read .*new.allocation, an allocation's state \(.*\); remove it") as caught:
        AllocationFile(path, SETTINGS)
    assert "\n" not in str(caught.value)
