from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from rsparse.row_policy import RowPolicy
from rsparse.token_policy import TokenPolicy
from tests.support.models import tiny_model, token_ids


def rows(*lines):
    """'..xx' is [False, False, True, True]."""
    return torch.tensor([[letter == "x" for letter in line] for line in lines])


LEFT = rows("..xxxx", "xxxxxx")
RIGHT = rows("xxxx..", "xxxxxx")


def decided(policy, tokens, *, mask=None, batch=2, where=None, **state):
    """The row mask as a [batch, tokens] tensor; `where` restricts what is compared to rows that are valid."""
    policy.set_rows((batch, tokens), attention_mask=None if mask is None else mask.long(), **state)
    sparse = policy.sparse
    if isinstance(sparse, bool):
        sparse = torch.full((batch, tokens), sparse)
    assert sparse.dtype == torch.bool
    return sparse if where is None else sparse & where


@pytest.mark.parametrize(
    ("sinks", "left", "right"),
    [
        (0, rows("..xxxx", "xxxxxx"), rows("xxxx..", "xxxxxx")),
        (1, rows("...xxx", ".xxxxx"), rows(".xxx..", ".xxxxx")),
        (2, rows("....xx", "..xxxx"), rows("..xx..", "..xxxx")),
    ],
)
def test_all_counts_sinks_from_the_first_real_token(sinks, left, right):
    policy = RowPolicy(TokenPolicy("all", sink_tokens=sinks))
    assert torch.equal(decided(policy, 6, mask=LEFT, where=LEFT), left)
    assert torch.equal(policy.valid, LEFT)
    assert torch.equal(decided(policy, 6, mask=RIGHT, where=RIGHT), right)
    assert torch.equal(policy.valid, RIGHT)
    expected = rows(*["." * sinks + "x" * (6 - sinks)] * 2)
    assert torch.equal(decided(policy, 6), expected)
    assert policy.valid is None


def test_no_sinks_and_no_padding_is_plain_true():
    policy = RowPolicy(TokenPolicy("all", sink_tokens=0))
    policy.set_rows((2, 3))
    assert policy.sparse is True


@pytest.mark.parametrize("mask", [None, LEFT, RIGHT])
def test_dense_is_plain_false(mask):
    policy = RowPolicy(TokenPolicy("dense"))
    policy.set_rows((2, 6), attention_mask=mask)
    assert policy.sparse is False
    policy.set_rows((2, 1), past=5, attention_mask=mask)
    assert policy.sparse is False


def test_decode_is_dense_on_the_prompt_and_sparse_after():
    policy = RowPolicy(TokenPolicy("decode"))
    policy.set_rows((2, 5), attention_mask=LEFT[:, :5])
    assert policy.sparse is False
    assert torch.equal(policy.valid, LEFT[:, :5])
    policy.set_rows((2, 3), past=5)  # a prompt in chunks
    assert policy.sparse is False
    for mask in (None, LEFT):
        assert decided(policy, 1, mask=mask, past=5).all()


def test_sinks_stay_dense_when_decoding_starts_early():
    policy = RowPolicy(TokenPolicy("decode", sink_tokens=3))
    mask = rows("..xx", "xxxx")  # the new token is the second and the fourth of its sequence
    assert torch.equal(decided(policy, 1, mask=mask, past=3), rows(".", "x"))
    assert torch.equal(decided(policy, 1, past=2), rows(".", "."))
    assert torch.equal(decided(policy, 1, past=3), rows("x", "x"))


def test_all_goes_on_counting_after_the_cache():
    policy = RowPolicy(TokenPolicy("all", sink_tokens=3))
    assert torch.equal(decided(policy, 3, past=1), rows("..x", "..x"))
    assert decided(policy, 3, past=3).all()
    mask = rows("..xxx", "xxxxx")
    assert torch.equal(decided(policy, 3, mask=mask, past=2), rows("...", ".xx"))
    assert policy.valid.all()


def test_a_longer_mask_of_a_static_cache_is_cut():
    policy = RowPolicy(TokenPolicy("all"))
    mask = torch.cat([LEFT, torch.zeros(2, 4, dtype=torch.bool)], dim=1)
    assert torch.equal(decided(policy, 6, mask=mask, where=LEFT), rows("...xxx", ".xxxxx"))
    assert torch.equal(policy.valid, LEFT)


def test_position_ids_place_the_sinks_where_there_is_no_mask():
    policy = RowPolicy(TokenPolicy("all"))
    positions = torch.tensor([[0, 0, 1, 2], [0, 1, 0, 1]])  # padded by generate(); two packed documents
    assert torch.equal(decided(policy, 4, position_ids=positions), rows("..xx", ".x.x"))
    assert torch.equal(decided(policy, 4, position_ids=torch.arange(4)[None]), rows(".xxx", ".xxx"))


@pytest.mark.parametrize(
    ("fraction", "full", "left"),
    [
        (0.5, "...xxx", "....xx"),  # 6 tokens: last 3; 4 tokens: last 2
        (0.1, ".....x", ".....x"),  # floor(5.4) = 5 and floor(3.6) = 3 dense
        (0.4, "...xxx", "....xx"),  # floor(3.6) = 3 and floor(2.4) = 2 dense
        (1.0, ".xxxxx", "...xxx"),  # only the sink
    ],
)
def test_last_fraction_of_sequences_of_different_length(fraction, full, left):
    policy = RowPolicy(TokenPolicy("last_fraction", fraction))
    assert torch.equal(decided(policy, 6, mask=LEFT, where=LEFT), rows(left, full))
    right = left[2:] + ".."
    assert torch.equal(decided(policy, 6, mask=RIGHT, where=RIGHT), rows(right, full))
    assert torch.equal(decided(policy, 6), rows(full, full))


def test_last_fraction_meets_exact_products():
    # (1 − 0.9)·20 is 1.9999999999999996 in floating point, and 2 tokens are dense
    policy = RowPolicy(TokenPolicy("last_fraction", 0.9, sink_tokens=0))
    assert int(decided(policy, 20, batch=1).sum()) == 18


def test_last_fraction_is_of_the_first_call_and_what_follows_is_sparse():
    policy = RowPolicy(TokenPolicy("last_fraction", 0.1))
    for mask in (None, torch.ones(2, 40, dtype=torch.bool)):
        assert decided(policy, 10, mask=mask, past=30).all()


def test_prompt_lengths_split_prompt_and_continuation_in_one_call():
    policy = RowPolicy(TokenPolicy("all"))
    lengths = torch.tensor([3, 1])
    with policy.using(TokenPolicy("decode", sink_tokens=2), lengths):
        assert torch.equal(decided(policy, 6), rows("...xxx", "..xxxx"))
        assert torch.equal(decided(policy, 6, mask=LEFT, where=LEFT), rows(".....x", "..xxxx"))
        assert torch.equal(decided(policy, 6, mask=RIGHT, where=RIGHT), rows("...x..", "..xxxx"))
    assert policy.token_policy == TokenPolicy("all")
    assert torch.equal(decided(policy, 6), rows(".xxxxx", ".xxxxx"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (TokenPolicy("all"), rows(".xxx..", ".xxxxx")),
        (TokenPolicy("last_fraction", 0.5), rows("..xx..", "...xxx")),  # of 4 and of 6 tokens
        (TokenPolicy("last_fraction", 0.1), rows("...x..", ".....x")),
        (TokenPolicy("decode"), rows("...x..", "..xxxx")),  # prompts of 3 and 2
        (TokenPolicy("dense"), rows("......", "......")),
    ],
)
def test_lengths_say_what_is_padding_on_the_right(kind, expected):
    policy = RowPolicy()
    prompts = torch.tensor([3, 2]) if kind.kind == "decode" else None
    with policy.using(kind, prompts, torch.tensor([4, 6])):
        assert torch.equal(decided(policy, 6, where=RIGHT), expected)
        assert torch.equal(policy.valid, RIGHT)
        decided(policy, 4, past=2)
        assert torch.equal(policy.valid, RIGHT[:, 2:])
        # A mask that comes with the call knows better.
        decided(policy, 6, mask=LEFT)
        assert torch.equal(policy.valid, LEFT)
    decided(policy, 6)
    assert policy.valid is None


def test_lengths_are_restored_after_an_error():
    policy = RowPolicy()
    with policy.using(TokenPolicy(), lengths=torch.tensor([4, 6])):
        with pytest.raises(ValueError, match="stop"), policy.using(TokenPolicy(), lengths=torch.tensor([1, 1])):
            raise ValueError("stop")
        decided(policy, 6)
        assert torch.equal(policy.valid, RIGHT)


def test_using_restores_after_an_error():
    policy = RowPolicy(TokenPolicy("all"))
    with pytest.raises(ValueError, match="stop"), policy.using(TokenPolicy("decode"), torch.tensor([1])):
        raise ValueError("stop")
    with policy.using(TokenPolicy("decode")):
        policy.set_rows((1, 4))  # without lengths again
        assert policy.sparse is False
    assert policy.token_policy == TokenPolicy("all")


# ---- attached to a model


@pytest.fixture(params=["llama", "gemma3_text", "mistral"])
def watched(request):
    model = tiny_model(request.param)
    policy = RowPolicy()
    policy.attach(model)
    yield model, policy
    policy.detach()
    assert not model.base_model._forward_pre_hooks


def row_mask(policy, batch, tokens):
    return torch.full((batch, tokens), policy.sparse) if isinstance(policy.sparse, bool) else policy.sparse


def test_the_hook_sees_padding_prefill_and_decode(watched):
    model, policy = watched
    ids, mask = token_ids(2, 6), LEFT.long()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=cache)
        assert torch.equal(row_mask(policy, 2, 6) & LEFT, rows("...xxx", ".xxxxx"))
        with policy.using(TokenPolicy("decode")):
            # 12 tokens in all: past the sliding windows of 6, whose layers forget what they have seen
            for _ in range(6):
                mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], dim=1)
                model(token_ids(2, 1), attention_mask=mask, past_key_values=cache)
                assert row_mask(policy, 2, 1).all()
                assert policy.valid.shape == (2, 1)
                assert policy.valid.all()
            model(token_ids(2, 6), attention_mask=LEFT.long())
            assert policy.sparse is False


def test_the_hook_counts_cached_tokens_without_a_mask(watched):
    model, policy = watched
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), policy.using(TokenPolicy("all", sink_tokens=10)):
        model(token_ids(1, 7), past_key_values=cache)
        assert not row_mask(policy, 1, 7).any()
        model(token_ids(1, 2), past_key_values=cache)
        assert not row_mask(policy, 1, 2).any()
        model(token_ids(1, 2), past_key_values=cache)
        assert torch.equal(row_mask(policy, 1, 2), rows(".x"))
        model(token_ids(1, 1), past_key_values=cache)
        assert row_mask(policy, 1, 1).all()


def test_the_hook_takes_embeddings(watched):
    model, policy = watched
    with torch.no_grad():
        model(inputs_embeds=torch.randn(2, 4, model.config.hidden_size))
    assert torch.equal(row_mask(policy, 2, 4), rows(".xxx", ".xxx"))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["decode", "all"])
def test_generate_decodes_sparsely(watched, kind, cache):
    model, policy = watched
    seen = []
    handle = model.base_model.register_forward_hook(lambda *_: seen.append(policy.sparse))
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "cache_implementation": cache}
    with policy.using(TokenPolicy(kind)):
        model.generate(token_ids(2, 6), attention_mask=LEFT.long(), **options)
    handle.remove()
    prompt, *later = seen
    assert len(later) == 3
    if kind == "decode":
        assert prompt is False
    else:
        assert torch.equal(prompt & LEFT, rows("...xxx", ".xxxxx"))
    assert all(sparse is True or bool(sparse.all()) for sparse in later)


# ---- what methods that watch a prompt ask


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text", "mistral", "qwen3"])
def test_padding_is_known_from_a_mask_that_generate_made_ahead(model_type):
    """A static cache makes it in four dimensions, gemma2's in floats, others by layer type or of sliding windows alone."""
    model, policy, seen = tiny_model(model_type), RowPolicy(), []
    policy.attach(model)
    model.base_model.register_forward_hook(lambda *_: seen.append((policy.past, policy.valid)))
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "cache_implementation": "static"}
    with policy.using(TokenPolicy("decode")):
        model.generate(token_ids(2, 6), attention_mask=LEFT.long(), disable_compile=True, **options)
    assert [past for past, _ in seen] == [0, 6, 7]
    assert torch.equal(seen[0][1], LEFT)


def test_dense_rows():
    policy = RowPolicy(TokenPolicy("decode", sink_tokens=0))
    shape = torch.Size((2, 6))
    policy.set_rows((2, 6))
    assert torch.equal(policy.dense_rows(shape, None), rows("xxxxxx", "xxxxxx"))
    policy.set_rows((2, 6), attention_mask=LEFT.long())
    assert torch.equal(policy.dense_rows(shape, None), LEFT)
    with policy.using(TokenPolicy("decode", sink_tokens=0), torch.tensor([1, 3])):
        policy.set_rows((2, 6), attention_mask=LEFT.long())
    assert torch.equal(policy.dense_rows(shape, None), LEFT & ~policy.sparse)
    assert policy.dense_rows(shape, None).sum(-1).tolist() == [1, 3]
    policy.set_rows((2, 1), past=6)
    assert policy.past == 6
    assert policy.dense_rows(torch.Size((2, 1)), None) is None
