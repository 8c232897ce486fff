"""Plans: strict JSON, and what their name depends on."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from rsparse.errors import RSparseError
from rsparse.gated import GatedPlan

PLAN = GatedPlan(
    "cats", "llama", "gate_magnitude", 0.2, 0.52, thresholds={"model.layers.0.mlp": 0.25}, options={"phases": 2},
    model="tiny", calibration="a text, 48 tokens",
)  # fmt: skip


@pytest.mark.parametrize(
    "plan", [PLAN, dataclasses.replace(PLAN, thresholds=None), dataclasses.replace(PLAN, thresholds={}, kept_heads=3)]
)
def test_there_and_back(plan):
    assert GatedPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": 1}, "here: unknown key 'colour'"),
        ({"version": 2}, "plan version 2 is not 1"),
        ({"kept": "half"}, "here: 'kept' has the wrong type, str"),
        ({"kept_heads": 1.5}, "here: 'kept_heads' has the wrong type, float"),
        ({"thresholds": [1]}, "here: 'thresholds' has the wrong type, list"),
        ({"thresholds": {"a": "b"}}, "the threshold of a must be a finite number, got b"),
        ({"thresholds": {"a": float("nan")}}, "the threshold of a must be a finite number, got nan"),
        ({"thresholds": {"a": float("inf")}}, "the threshold of a must be a finite number, got inf"),
        ({"options": {"phases": "two"}}, "phases must be a whole number, got two"),
        ({"sparsity": 1.0}, "sparsity must be in [0, 1), got 1.0"),
        ({"kept": 1.1}, "the kept share of neurons must be in [0, 1], got 1.1"),
        ({"kept_heads": -1}, "kept_heads must be 0 or more, got -1"),
    ],
)
def test_other_forms_are_refused(change, says):
    with pytest.raises(RSparseError, match=re.escape(says)):
        GatedPlan.from_dict(PLAN.to_dict() | change, where="here")


def test_a_missing_key():
    data = PLAN.to_dict()
    del data["rule"]
    with pytest.raises(RSparseError, match="plan: key 'rule' is missing"):
        GatedPlan.from_dict(data)


def test_its_name_is_what_it_does():
    sha = PLAN.sha()
    assert re.fullmatch("[0-9a-f]{12}", sha)
    assert dataclasses.replace(PLAN, model="other", calibration="other").sha() == sha
    changes = {"kept": 0.5, "thresholds": {"model.layers.0.mlp": 0.3}, "rule": "relu", "options": {}, "kept_heads": 2}
    assert len({sha, *(dataclasses.replace(PLAN, **{name: value}).sha() for name, value in changes.items())}) == 6


@pytest.mark.parametrize(("thresholds", "kept", "settled"), [(None, 0.5, False), (None, 1.0, True), ({}, 0.5, True)])
def test_settled(thresholds, kept, settled):
    assert dataclasses.replace(PLAN, thresholds=thresholds, kept=kept).settled is settled
