"""Tokens against a plain loop written here: a dense model reads the prompt, the sparse one goes on token by token."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import DynamicCache

from rsparse import sparsify
from rsparse.errors import RSparseError
from rsparse.runtime import generate
from rsparse.sparse_model import state
from rsparse.token_policy import TokenPolicy
from tests.support.folders import sparse_model
from tests.support.models import VOCABULARY, tiny_model, tiny_tokenizer
from tests.support.recipes import LAYOUTS, TYPES, calibration_of, uniform

NEW = 24
PROMPTS = ["the river", "under her tower and then the stone walks", "bread"]
MESSAGES = [{"role": "user", "content": "the river"}]


def tokens(model, prompts, tokenizer=None, **options):
    options = {"max_new_tokens": NEW, "ignore_eos": True, **options}
    return generate(model, tokenizer or tiny_tokenizer(), prompts, **options)


@torch.no_grad()
def plain_loop(prompt_model, model, text, new=NEW):
    """Greedy: the prompt by `prompt_model`, then one token at a time by `model`, all of it sparse."""
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    cache = DynamicCache()
    found = [prompt_model(ids, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1)]
    with state(model).policy.using(TokenPolicy("all", sink_tokens=0)):
        for _ in range(new - 1):
            found.append(model(found[-1][:, None], past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1))
    return torch.cat(found).tolist()


@torch.no_grad()
def dense_loop(model, text, new=NEW):
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"]])
    for _ in range(new):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1)[:, None]], dim=1)
    return ids[0, -new:].tolist()


@functools.cache
def pair(model_type, grouping="group", stacked=True):
    """(dense, sparse) in fp64 with a random head: a tied one repeats the last token, whatever the blocks do."""
    dense, sparse = (tiny_model(model_type, dtype=torch.float64) for _ in range(2))
    recipe = uniform(sparse, 0.5, 0.6, grouping=grouping, stacked=stacked, criterion="paper")
    sparsify(sparse, recipe, calibration_of(model_type))
    head = torch.randn(VOCABULARY, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for model in (dense, sparse):
        model.lm_head.weight = torch.nn.Parameter(head)
    return dense, sparse


@pytest.mark.parametrize("model_type", TYPES)
def test_at_sparsity_zero_tokens_are_the_dense_models(model_type):
    dense = tiny_model(model_type)
    expected = dense_loop(dense, PROMPTS[1])
    assert tokens(dense, PROMPTS[1:2]).token_ids[0].tolist() == expected
    assert tokens(sparse_model(model_type, 1.0, 0.0), PROMPTS[1:2]).token_ids[0].tolist() == expected


@pytest.mark.parametrize("model_type", TYPES)
def test_policy_dense_is_the_dense_model(model_type):
    dense, model = pair(model_type)
    found = tokens(model, PROMPTS[:1], token_policy=TokenPolicy("dense")).token_ids[0].tolist()
    assert found == dense_loop(dense, PROMPTS[0])


@pytest.mark.parametrize(("grouping", "stacked"), LAYOUTS)
@pytest.mark.parametrize("model_type", TYPES)
def test_greedy_tokens(model_type, grouping, stacked):
    dense, model = pair(model_type, grouping, stacked)
    expected = plain_loop(dense, model, PROMPTS[1])
    assert tokens(model, PROMPTS[1:2]).token_ids[0].tolist() == expected
    # Else this test would pass whatever ran dense or sparse.
    assert expected != dense_loop(dense, PROMPTS[1])
    assert expected != tokens(model, PROMPTS[1:2], token_policy=TokenPolicy("all")).token_ids[0].tolist()


@pytest.mark.parametrize("policy", ["decode", "all"])
@pytest.mark.parametrize("model_type", TYPES)
def test_a_batch_of_unequal_prompts_equals_each_alone(model_type, policy):
    model = pair(model_type)[1]
    together = tokens(model, PROMPTS, token_policy=TokenPolicy(policy))
    for index, prompt in enumerate(PROMPTS):
        alone = tokens(model, [prompt], token_policy=TokenPolicy(policy))
        assert together.token_ids[index].tolist() == alone.token_ids[0].tolist()
        assert together.texts[index] == alone.texts[0]
    assert together.prompt_tokens == sum(len(tiny_tokenizer()(prompt)["input_ids"]) for prompt in PROMPTS)
    assert together.new_tokens == 3 * NEW


def test_streamed_pieces_make_the_text():
    pieces = []
    result = tokens(pair("llama")[1], PROMPTS[:1], on_text=pieces.append)
    assert len(pieces) > 3
    assert "".join(pieces) == result.texts[0]
    assert result.texts[0] == tiny_tokenizer().decode(result.token_ids[0], skip_special_tokens=True)


def test_streaming_waits_for_whole_characters():
    from rsparse.runtime.text import Watch

    class Bytes:
        """A tokenizer whose tokens are UTF-8 bytes."""

        def decode(self, ids, skip_special_tokens):
            return bytes(ids).decode(errors="replace")

    pieces = []
    watch = Watch(Bytes(), pieces.append)
    watch.put(torch.tensor([[1, 2]]))  # the prompt
    for byte in "né€".encode() + b"\xe2":
        watch.put(torch.tensor([byte]))
    watch.end()
    assert [piece for piece in pieces if piece] == ["n", "é", "€", "\ufffd"]


def test_no_streaming_for_a_batch():
    pieces = []
    tokens(pair("llama")[1], PROMPTS[:2], on_text=pieces.append)
    assert pieces == []


def test_a_chat_of_several_turns():
    model, tokenizer = pair("llama")[1], tiny_tokenizer(add_bos=True)
    messages = [*MESSAGES, {"role": "assistant", "content": "her tower"}, {"role": "user", "content": "and then"}]
    rendered = "<user>the river\n<assistant>her tower\n<user>and then\n<assistant>"
    found = tokens(model, [messages], tokenizer)
    plain = tokens(model, [rendered], tiny_tokenizer())  # the template alone says where BOS goes
    assert found.token_ids.tolist() == plain.token_ids.tolist()
    assert found.prompt_tokens == len(tiny_tokenizer()(rendered)["input_ids"])


def test_plain_prompts_get_the_tokenizers_bos():
    model = pair("llama")[1]
    found = tokens(model, PROMPTS[:1], tiny_tokenizer(add_bos=True))
    assert found.prompt_tokens == tokens(model, PROMPTS[:1]).prompt_tokens + 1


def test_prompts_and_chats_in_one_batch():
    model, tokenizer = pair("llama")[1], tiny_tokenizer(add_bos=True)
    together = tokens(model, [MESSAGES, PROMPTS[0]], tokenizer)
    for index, prompt in enumerate([MESSAGES, PROMPTS[0]]):
        assert together.token_ids[index].tolist() == tokens(model, [prompt], tokenizer).token_ids[0].tolist()


def test_sampling_is_repeated_by_its_seed():
    model = pair("llama")[1]
    options = {"temperature": 2.0, "top_p": 0.9}
    first = tokens(model, PROMPTS[:1], seed=5, **options).token_ids.tolist()
    torch.manual_seed(99)
    assert tokens(model, PROMPTS[:1], seed=5, **options).token_ids.tolist() == first
    assert tokens(model, PROMPTS[:1], seed=6, **options).token_ids.tolist() != first
    greedy = tokens(model, PROMPTS[:1]).token_ids.tolist()
    assert first != greedy
    assert tokens(model, PROMPTS[:1], seed=5, temperature=2.0, top_p=1e-6).token_ids.tolist() == greedy


def test_sampling_does_not_move_the_callers_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tokens(pair("llama")[1], PROMPTS[:1], max_new_tokens=2)
    assert torch.equal(torch.rand(2), expected)


def test_it_stops_at_eos():
    model = sparse_model("llama")
    free = tokens(model, PROMPTS).token_ids
    eos = int(free[0, 5])
    model.generation_config.eos_token_id = eos
    model.config.eos_token_id = eos
    found = tokens(model, PROMPTS, ignore_eos=False)
    counts = [row.tolist().index(eos) + 1 if eos in row else NEW for row in free]
    assert min(counts) < NEW
    assert found.new_tokens == sum(counts)
    for index, count in enumerate(counts):
        assert found.token_ids[index, :count].tolist() == free[index, :count].tolist()
        assert found.texts[index] == tiny_tokenizer().decode(free[index, :count], skip_special_tokens=True)
    ignored = tokens(model, PROMPTS, ignore_eos=True)
    assert ignored.token_ids.tolist() == free.tolist()


def test_prompts_of_token_ids():
    model, tokenizer = pair("llama")[1], tiny_tokenizer(add_bos=True)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    expected = tokens(model, PROMPTS, tokenizer)
    found = tokens(model, ids, tokenizer)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert found.prompt_tokens == expected.prompt_tokens
    mixed = tokens(model, [PROMPTS[0], tuple(ids[1]), MESSAGES], tokenizer)
    assert mixed.token_ids[:2].tolist() == expected.token_ids[:2].tolist()
    # Ids are read as they are: no BOS is put before them.
    bare = tokens(model, [ids[0][1:]], tokenizer)
    assert bare.token_ids.tolist() == tokens(model, PROMPTS[:1], tiny_tokenizer()).token_ids.tolist()
    with pytest.raises(RSparseError, match="empty"):
        tokens(model, [ids[0], []], tokenizer)


def test_seconds_and_rate():
    result = tokens(pair("llama")[1], PROMPTS[:2])
    assert result.prefill_seconds > 0
    assert result.decode_seconds > 0
    assert result.decode_tokens_per_second == pytest.approx((2 * NEW - 2) / result.decode_seconds)
    assert tokens(pair("llama")[1], PROMPTS[:1], max_new_tokens=1).decode_tokens_per_second is None


def test_the_policy_is_put_back():
    model = pair("llama")[1]
    tokens(model, PROMPTS[:1])
    assert state(model).policy.token_policy == TokenPolicy()
    with pytest.raises(RSparseError):
        tokens(model, [""])
    assert state(model).policy.token_policy == TokenPolicy()


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        ([], {}, "no prompt"),
        ([""], {}, "empty"),
        (["the", ""], {}, "empty"),
        (["the"], {"max_new_tokens": 0}, "at least 1"),
        (["the"], {"max_new_tokens": 256}, "256 positions"),
        (["the " * 300], {}, "256 positions"),
        (["the"], {"temperature": -0.5}, "temperature"),
        (["the"], {"temperature": float("nan")}, "temperature"),
        (["the"], {"temperature": float("inf")}, "temperature"),
        (["the"], {"top_p": 0.0}, "top_p"),
        (["the"], {"top_p": float("nan")}, "top_p"),
    ],
)
def test_refusals(prompts, options, says):
    with pytest.raises(RSparseError, match=says) as caught:
        tokens(pair("llama")[1], prompts, **options)
    assert "\n" not in str(caught.value)


def test_the_longest_that_fits():
    count = len(tiny_tokenizer()("the river")["input_ids"])
    result = tokens(pair("llama")[1], ["the river"], max_new_tokens=256 - count)
    assert result.new_tokens == 256 - count


def test_a_chat_without_a_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(RSparseError, match="no chat template"):
        tokens(pair("llama")[1], [MESSAGES], tokenizer)


def test_a_model_with_sampling_settings_of_its_own_stays_greedy():
    model = sparse_model("llama")
    expected = tokens(model, PROMPTS[:1]).token_ids.tolist()
    model.generation_config.update(do_sample=True, temperature=5.0, top_p=0.5, top_k=3, repetition_penalty=1.0)
    assert tokens(model, PROMPTS[:1], seed=1).token_ids.tolist() == expected
