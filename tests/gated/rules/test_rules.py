"""Each rule on tensors worked out by hand."""

from __future__ import annotations

import pytest
import torch

from rsparse.errors import RSparseError
from rsparse.gated import GatedPlan
from rsparse.gated.rules import Neurons, count, names, rule_class
from rsparse.gated.rules.multi_phase import multi_phase_relu, phase_of, solve_signed
from rsparse.gated.rules.oracle import largest
from rsparse.row_policy import RowPolicy
from rsparse.token_policy import TokenPolicy


def made(name, neurons=4, kept=0.5, threshold=None, **options):
    plan = GatedPlan("own", "llama", name, 0.1, kept, thresholds=None, options=options)
    return rule_class(name)(plan, neurons, threshold)


def found(gate=None, active=None, up=None, hidden=None):
    """What is not given is no concern of the rule, and would show as NaN."""
    given = [None if part is None else torch.tensor(part, dtype=torch.float32) for part in (gate, active, up, hidden)]
    shape = next(part.shape for part in given if part is not None)
    return Neurons(*(torch.full(shape, torch.nan) if part is None else part for part in given))


def test_all_rules_are_tried_here():
    assert names() == ["gate_magnitude", "multi_phase", "oracle", "prompt", "relu"]
    with pytest.raises(RSparseError, match="rule 'magic' is unknown; choose one of gate_magnitude, "):
        rule_class("magic")


@pytest.mark.parametrize(("share", "of", "expected"), [(0.5, 5, 2), (0.51, 5, 3), (0.0, 5, 0), (1.0, 5, 5), (0.3, 10, 3)])
def test_count(share, of, expected):
    assert count(share, of) == expected


# ---- CATS


def test_gate_magnitude():
    hidden, kept = made("gate_magnitude", threshold=0.25).apply(
        found(active=[[[0.5, -0.3, 0.25, 0.1]]], hidden=[[[1.0, 2.0, 3.0, 4.0]]]), RowPolicy()
    )
    assert kept.tolist() == [[[True, True, False, False]]]  # of either sign; on the threshold is not above it
    assert hidden.tolist() == [[[1.0, 2.0, 0.0, 0.0]]]


def test_gate_magnitude_solves_over_all_rows():
    rule = made("gate_magnitude", kept=0.25)
    neurons = found(active=[[0.1, -0.9, 0.2, 0.3], [0.4, 0.8, -0.5, 0.6]])
    assert 0.6 <= rule.solve(neurons) < 0.8  # two of eight are above it
    assert rule.threshold == rule.solve(neurons)


# ---- ReLUfication


def test_relu():
    neurons = found(gate=[[[2.0, -1.0, 0.5, 0.0]]], up=[[[3.0, 5.0, -4.0, 7.0]]])
    hidden, kept = made("relu", threshold=0.0).apply(neurons, RowPolicy())
    assert kept.tolist() == [[[True, False, True, False]]]
    assert hidden.tolist() == [[[6.0, 0.0, -2.0, 0.0]]]  # gate·up, not act(gate)·up
    shifted, _ = made("relu", threshold=0.5).apply(neurons, RowPolicy())
    assert shifted.tolist() == [[[6.0, 0.0, 0.0, 0.0]]]


@pytest.mark.parametrize(("kept", "low", "high"), [(0.25, 3.0, 4.0), (0.5, 1.0, 2.0), (0.75, 0.0, 0.0), (1.0, 0.0, 0.0)])
def test_relu_is_shifted_up_alone(kept, low, high):
    neurons = found(gate=[[4.0, -9.0, 3.0, 2.0], [1.0, -5.0, -6.0, 4.0]])  # 5 of 8 are above 0
    assert low <= made("relu", kept=kept).solve(neurons) <= high


# ---- the multi-phase ReLU of R-Sparse


def test_the_papers_example():
    x = torch.tensor([1.73, 3.55, -0.43, -0.27, 7.59, -1.05, -2, -1.77, 9.43, 6.82])
    expected = torch.tensor([1.73, 3.55, -0.5, -0.5, 7.59, -1.5, -1.5, -1.5, 9.43, 6.82])
    assert torch.allclose(multi_phase_relu(x, 0.0, 2), expected)


def test_a_bound_belongs_to_the_phase_above_it():
    x = torch.tensor([[0.0, -1.0, -2.0, -0.001, -1.001]])
    number, constants = phase_of(x, 0.0, 2)
    assert number.tolist() == [[-1, 0, 1, 0, 1]]
    assert constants.tolist() == [[-0.5, -1.5]]
    assert made("multi_phase", threshold=0.0, phases=2).apply(found(hidden=[x.tolist()]), RowPolicy())[1].tolist() == [
        [[True, False, False, False, False]]
    ]


def test_half_precision_is_told_apart_in_full():
    x = torch.tensor([[4.0, -4.0]], dtype=torch.bfloat16)
    assert phase_of(x, 4.001, 1)[0].tolist() == [[0, 0]]  # 4.001 in bfloat16 is 4.0


def test_the_papers_example_as_a_rule():
    """Two phases of equal width from T0 = 0 to the row's least entry, −2."""
    x = [1.73, 3.55, -0.43, -0.27, 7.59, -1.05, -2, -1.77, 9.43, 6.82]
    rule = made("multi_phase", neurons=10, threshold=0.0, phases=2)
    hidden, kept = rule.apply(found(hidden=[[x, [each / 2 for each in x]]]), RowPolicy())
    expected = [1.73, 3.55, -0.5, -0.5, 7.59, -1.5, -1.5, -1.5, 9.43, 6.82]
    assert torch.allclose(hidden[0, 0], torch.tensor(expected))
    assert torch.allclose(hidden[0, 1], torch.tensor(expected) / 2)  # whose least entry is −1
    assert kept[0].tolist() == [[each >= 0 for each in x]] * 2


@pytest.mark.parametrize(
    ("phases", "threshold", "expected"),
    [
        (1, 0.0, [5.0, -2.0, -2.0, 2.0]),  # one value for all below
        (1, 3.0, [5.0, -0.5, -0.5, -0.5]),  # T0 above 0: a positive entry is changed too
        (2, 4.0, [5.0, -2.0, -2.0, 2.0]),
        (4, 4.0, [5.0, -3.0, -1.0, 3.0]),
        (3, -9.0, [5.0, -4.0, -1.0, 2.0]),  # below the least entry nothing changes
    ],
)
def test_phases(phases, threshold, expected):
    rule = made("multi_phase", threshold=threshold, phases=phases)
    hidden, _ = rule.apply(found(hidden=[[[5.0, -4.0, -1.0, 2.0]]]), RowPolicy())
    assert hidden.tolist() == [[expected]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.125, 0.25, 0.5, 0.625, 0.75, 0.875])
def test_a_signed_threshold_keeps_the_share(share, dtype):
    x = torch.tensor([[4.0, -9.0, 3.0, 2.0], [1.0, -5.0, -6.0, 8.0]], dtype=dtype)
    x = x * 1.001 if dtype == torch.float32 else x  # fp32 values lie inside a histogram's bins, 16-bit ones on their edges
    assert float((x.float() >= solve_signed(x, share)).double().mean()) == share
    rule = made("multi_phase", kept=share, phases=1)
    rule.solve(Neurons(x, x, x, x))
    assert float(rule.apply(Neurons(x, x, x, x), RowPolicy())[1].double().mean()) == share


def test_phases_must_be_some():
    with pytest.raises(RSparseError, match="phases must be 1 or more, got 0"):
        made("multi_phase", phases=0)


# ---- Deja Vu


def test_oracle():
    hidden, kept = made("oracle").apply(found(hidden=[[[1.0, -3.0, 2.0, 0.5], [0.0, 0.1, -0.2, 0.3]]]), RowPolicy())
    assert kept.tolist() == [[[False, True, True, False], [False, False, True, True]]]
    assert torch.equal(hidden, torch.tensor([[[0.0, -3.0, 2.0, 0.0], [0.0, 0.0, -0.2, 0.3]]]))


def test_largest_keeps_exactly_that_many():
    assert largest(torch.zeros(2, 5), 3).sum(-1).tolist() == [3, 3]
    assert not largest(torch.ones(1, 4), 0).any()
    assert largest(torch.ones(1, 4), 4).all()


# ---- GRIFFIN


def rows(shape, policy, **call):
    """A row policy after the entry of a call of that shape."""
    prompts = call.pop("prompts", None)
    made = RowPolicy(TokenPolicy.parse(policy))
    made._prompt_lengths = prompts and torch.tensor(prompts)
    made.set_rows(shape, **call)
    return made


# Of the three tokens the second has the largest values, and the first and third the same direction. Normalised by token
# they are (0.6, 0.8, 0) twice and (0, 0, 1) once: squares 0.72, 1.28, 1.
PROMPT = [[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 100.0, 0.0], [0.3, 0.4, 0.0, 0.0]]


def test_the_statistic_is_normalised_by_token():
    rule, neurons = made("prompt"), found(hidden=[[*PROMPT, [9.0, 9.0, 9.0, 9.0]]])
    call = rows((1, 4), "decode", prompts=[3])
    rule.watch(neurons, call)
    hidden, kept = rule.apply(neurons, call)
    assert kept.tolist() == [[[False, True, True, False]]]  # by size alone it would be the third and the second, by mean too
    assert hidden[0, 3].tolist() == [0.0, 9.0, 9.0, 0.0]
    assert rule._energy.tolist() == [pytest.approx([0.72, 1.28, 1.0, 0.0])]


def test_each_row_of_a_batch_has_its_own_prompt_without_padding():
    """The second row's prompt is one token; what stands where the padding is would choose the last neuron."""
    rule = made("prompt", kept=0.25)
    noise = [0.0, 0.0, 0.0, 50.0]
    neurons = found(hidden=[[noise, noise, *PROMPT[:1], [1.0] * 4], [*PROMPT, [1.0] * 4]])
    call = rows((2, 4), "decode", prompts=[1, 3], attention_mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
    rule.watch(neurons, call)
    assert rule.apply(neurons, call)[1].tolist() == [[[False, True, False, False]]] * 2
    assert rule._energy.tolist() == [pytest.approx([0.36, 0.64, 0, 0]), pytest.approx([0.72, 1.28, 1.0, 0.0])]


def test_the_choice_lasts_for_the_sequence():
    rule = made("prompt")
    parts = [(found(hidden=[PROMPT[:2]]), rows((1, 2), "decode")), (found(hidden=[PROMPT[2:]]), rows((1, 1), "decode", past=2))]
    # A prompt in two pieces; its second is one token, so only the prompt's length says that it is still dense.
    parts[1] = (parts[1][0], rows((1, 1), "decode", past=2, prompts=[3]))
    for neurons, call in parts:
        rule.watch(neurons, call)
    assert rule._energy.tolist() == [pytest.approx([0.72, 1.28, 1.0, 0.0])]
    for past in (3, 4):
        neurons, call = found(hidden=[[[1.0, 0.0, 0.0, 1e3]]]), rows((1, 1), "decode", past=past)
        rule.watch(neurons, call)
        assert rule.apply(neurons, call)[1].tolist() == [[[False, True, True, False]]]
    neurons, call = found(hidden=[[[1.0, 0.0, 0.0, 1e3]] * 2]), rows((1, 2), "decode")  # another sequence
    rule.watch(neurons, call)
    assert rule._chosen.tolist() == [[[True, False, False, True]]]


def test_the_dense_part_of_last_fraction_is_the_prompt():
    rule, neurons = made("prompt"), found(hidden=[[*PROMPT, [1e3, 0.0, 0.0, 1e3]]])
    rule.watch(neurons, rows((1, 4), "last_fraction:0.25"))
    assert rule._chosen.tolist() == [[[False, True, True, False]]]


@pytest.mark.parametrize("policy", ["all", "last_fraction:1"])
def test_without_a_prompt_it_is_refused(policy):
    says = rf"^own chooses its neurons from a dense prompt, and token policy {policy} has none; use decode, or last_fraction:F"
    with pytest.raises(RSparseError, match=says):
        made("prompt").watch(found(hidden=[PROMPT]), rows((1, 3), policy))


def test_a_sequence_without_a_dense_token():
    """floor(0.4·3) = 1 token is dense in the first row, floor(0.4·1) = 0 in the second."""
    call = RowPolicy(TokenPolicy("last_fraction", 0.6, sink_tokens=0))
    call.set_rows((2, 3), attention_mask=torch.tensor([[1, 1, 1], [1, 0, 0]]))
    with pytest.raises(RSparseError, match="and a sequence here has none"):
        made("prompt").watch(found(hidden=[PROMPT] * 2), call)


def test_a_sequence_that_it_has_not_seen():
    rule, neurons = made("prompt"), found(hidden=[PROMPT[:1]])
    whole = RowPolicy(TokenPolicy("last_fraction", 0.9, sink_tokens=0))
    whole.set_rows((1, 1))
    for call in (rows((1, 1), "decode", past=5), whole):
        rule.watch(neurons, call)
        with pytest.raises(RSparseError, match="has not seen this sequence's"):
            rule.apply(neurons, call)
        rule.watch(found(hidden=[PROMPT]), rows((1, 3), "decode"))  # of another sequence, which the next must not use
    with pytest.raises(RSparseError, match="has not seen this sequence's"):  # another batch
        rule.apply(found(hidden=[PROMPT[:1]] * 2), rows((2, 1), "decode", past=3))


def test_token_policy_dense_leaves_the_choice_alone():
    rule = made("prompt")
    rule.watch(found(hidden=[PROMPT]), rows((1, 3), "decode"))
    rule.watch(found(hidden=[[[0.0, 0.0, 0.0, 1.0]] * 3]), rows((1, 3), "dense"))
    assert rule._chosen.tolist() == [[[False, True, True, False]]]
