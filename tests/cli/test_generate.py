"""rsparse generate: one prompt, a batch, chat; and what it refuses."""

from __future__ import annotations

import io
import json

import pytest

import rsparse
from rsparse.runtime import generate
from tests.cli.conftest import bad, good

SHORT = ["--max-new-tokens", 12, "--ignore-eos"]


@pytest.fixture(scope="module")
def loaded(made):
    return rsparse.from_pretrained(made / "sparse", device="cpu")


def expected(loaded, prompts, **options):
    return generate(*loaded, prompts, max_new_tokens=12, ignore_eos=True, **options)


def test_one_prompt(here, loaded):
    outcome = good("generate", "sparse", "--prompt", "the river", *SHORT, "--json", "out.json")
    result = expected(loaded, ["the river"])
    assert outcome.out == result.texts[0] + "\n"
    assert "12 tokens" in outcome.err
    record = json.loads((here / "out.json").read_text())
    assert record["metrics"]["texts"] == result.texts
    assert record["metrics"]["tokens"] == record["config"]["new_tokens"] == 12
    assert record["metrics"]["tokens_per_second"] > 0
    assert record["config"]["prompt_tokens"] == result.prompt_tokens
    assert (record["config"]["batch"], record["config"]["token_policy"]) == (1, "decode")
    assert record["config"]["weights_sha"]


def test_a_batch(here, loaded):
    prompts = ["the river", "under her tower and the stone"]
    outcome = good("generate", "sparse", "--prompt", prompts[0], "--prompt", prompts[1], *SHORT, "--json", "out.json")
    texts = expected(loaded, prompts).texts
    assert outcome.out == "".join(f"{prompt}{text}\n\n" for prompt, text in zip(prompts, texts, strict=True))
    record = json.loads((here / "out.json").read_text())
    assert (record["config"]["batch"], record["metrics"]["tokens"]) == (2, 24)


def turns(loaded, said, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    answers = []
    for text in said:
        messages.append({"role": "user", "content": text})
        answers.append(expected(loaded, [messages]).texts[0])
        messages.append({"role": "assistant", "content": answers[-1].strip()})
    return answers


def test_chat_with_prompts(here, loaded):
    outcome = good("generate", "sparse", "--chat", "--prompt", "the river", "--prompt", "and then", *SHORT)
    first, second = turns(loaded, ["the river", "and then"])
    assert outcome.out == f"> the river\n{first}\n> and then\n{second}\n"


def test_chat_from_stdin(here, loaded, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("the river\nand then\n\nnever read\n"))
    outcome = good("generate", "sparse", "--chat", "--system", "her tower", *SHORT)
    first, second = turns(loaded, ["the river", "and then"], system="her tower")
    assert outcome.out == f"{first}\n{second}\n"
    assert first != turns(loaded, ["the river"])[0]


def test_chat_from_an_empty_stdin(here, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert good("generate", "sparse", "--chat", *SHORT, "--json", "out.json").out == ""


def test_a_seed_repeats_a_sample(here):
    line = ["generate", "sparse", "--prompt", "the river", *SHORT, "--temperature", 1.5, "--seed"]
    first = good(*line, 3).out
    assert good(*line, 3).out == first
    assert good(*line, 4).out != first


def test_dense_models_generate_too(here):
    dense = good("generate", "dense", "--prompt", "the river", *SHORT).out
    assert good("generate", "sparse", "--prompt", "the river", *SHORT, "--token-policy", "dense").out == dense
    assert good("generate", "sparse", "--prompt", "the river", *SHORT).out != dense


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--prompt"),
        (["--prompt", ""], "empty"),
        (["--prompt", "the", "--prompt", ""], "empty"),
        (["--prompt", "the", "--max-new-tokens", 0], "new"),
        (["--prompt", "the", "--max-new-tokens", 300], "256 positions"),
        (["--prompt", "the " * 400], "256 positions"),
        (["--prompt", "the", "--temperature=-1"], "temperature"),
        (["--prompt", "the", "--temperature", "nan"], "temperature"),
        (["--prompt", "the", "--top-p", 0], "top_p"),
        (["--prompt", "the", "--top-p", 1.5], "top_p"),
        (["--prompt", "the", "--top-p", "nan"], "top_p"),
        (["--prompt", "the", "--temperature", "inf"], "temperature"),
        (["--prompt", "the", "--system", "her"], "--system"),
        (["--prompt", "the", "--backend", "triton"], "triton"),
        (["--prompt", "the", "--sink-tokens=-1"], "sink"),
    ],
)
def test_refusals(here, options, says):
    bad(says, "generate", "sparse", *options)


def test_chat_without_a_template(here, made):
    import shutil

    shutil.copytree(made / "sparse", "plain")
    (here / "plain" / "chat_template.jinja").unlink()
    bad("chat template", "generate", "plain", "--chat", "--prompt", "the")
    assert good("generate", "plain", "--prompt", "the", *SHORT).code == 0
