"""The same requests and tasks through the harness's own class for Hugging Face models, on tiny dense models."""

from __future__ import annotations

import functools
import json
import types
from pathlib import Path

import lm_eval
import pytest
import torch
import yaml
from datasets import Dataset
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from rsparse.evaluation import harness_lm
from rsparse.evaluation.harness_lm import HarnessLM
from rsparse.evaluation.likelihood import score_continuations
from rsparse.evaluation.tasks import load_tasks, run_tasks
from rsparse.token_policy import TokenPolicy
from tests.support.models import tiny_model, tiny_tokenizer, words
from tests.support.recipes import sparse_of

SHARED_TASKS = Path(__file__).parents[2].parent / "shared" / "data" / "tasks"
NAMES = [
    "arc_challenge", "arc_easy", "boolq", "hellaswag", "hellaswag_spread", "openbookqa", "piqa", "sciq", "winogrande",
]  # fmt: skip


@functools.cache
def both(add_bos=False, positions=64, dtype=torch.float64):
    """(ours, the harness's) of one model with an untied head, so that its first choice is not the token before."""
    model, tokenizer = tiny_model("qwen2", dtype=dtype, max_position_embeddings=positions), tiny_tokenizer(add_bos)
    return HarnessLM(model, tokenizer), HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


PAIRS = [
    ("the river", " walks under"),
    ("the river ", "in her tower"),  # trailing spaces belong to the continuation
    ("the stone \n ", " bread"),
    ("", "the river"),
    ("", "<s>the river"),  # begins with the token that an empty context gets
    ("<s><user>the river\n<assistant>", "her tower"),  # a chat template has written BOS
    ("the river in", "g the"),  # "in" + "g" is one token
    ("bread", " a"),
    (words(60, seed=4), " and then the stone"),  # too long
]


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_loglikelihood(add_bos, dtype, tolerance):
    ours, theirs = both(add_bos, dtype=dtype)
    found, expected = (lm.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True) for lm in (ours, theirs))
    assert [log_p for log_p, _ in found] == pytest.approx([log_p for log_p, _ in expected], rel=tolerance)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len({round(log_p, 4) for log_p, _ in found}) >= len(PAIRS) - 1  # two write the same BOS


def test_a_greedy_continuation():
    ours, theirs = both()
    text = ours.generate_until(instances("generate_until", [("the river", {"until": [], "max_gen_toks": 3})]))[0]
    pair = instances("loglikelihood", [("the river", text)])
    assert ours.loglikelihood(pair)[0][1] == theirs.loglikelihood(pair, disable_tqdm=True)[0][1]


@pytest.mark.parametrize("add_bos", [False, True])
def test_encodings(add_bos):
    ours, theirs = both(add_bos)
    for text in ["the river", " the", "", "<s>the river", "<s>", "</s>the"]:
        assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert ours.tok_encode(text, add_special_tokens=False) == theirs.tok_encode(text, add_special_tokens=False)
    for name in ("max_length", "eot_token_id", "prefix_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("add_bos", [False, True])
def test_loglikelihood_rolling(add_bos):
    ours, theirs = both(add_bos)
    texts = [(words(90, seed=5),), ("the river",), ("",), (words(40, seed=6),)]
    assert len(ours.tok_encode(texts[0][0])) > 3 * ours.max_length
    found, expected = (
        lm.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True) for lm in (ours, theirs)
    )
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("add_bos", [False, True])
def test_generate_until(add_bos):
    ours, theirs = both(add_bos)
    free = {"until": [], "max_gen_toks": 24}
    prompts = ["the river", words(60, seed=7), "her tower and then", "bread on. ", "the stone"]
    texts = theirs.generate_until(instances("generate_until", [(prompt, free) for prompt in prompts]), disable_tqdm=True)
    # A letter would be found within "<unk>", which the harness looks at too, but whose text it leaves out.
    sign = next(letter for letter in texts[2][3:] if not letter.isalpha() and letter not in "</>")
    stops = {"until": [texts[0][4:6], sign], "do_sample": False, "max_gen_toks": 24}
    requests = [(prompt, kwargs) for prompt in prompts for kwargs in (free, stops, {"until": "zzz", "max_gen_toks": 5})]
    requests.append((prompts[0] + texts[0][:1], {"until": [texts[0][0] * 2, texts[0][:3]], "max_gen_toks": 24}))
    found, expected = (lm.generate_until(instances("generate_until", requests), disable_tqdm=True) for lm in (ours, theirs))
    assert found == expected
    assert found[::3][:5] == texts
    assert found[1] == texts[0][: min(texts[0].index(stop) for stop in stops["until"] if stop in texts[0])]


def test_generation_settings_are_not_mixed():
    ours, _ = both()
    settings = [{"until": [], "max_gen_toks": count} for count in (4, 12, 20)]
    alone = [ours.generate_until(instances("generate_until", [("the river", each)]))[0] for each in settings]
    assert len(alone[0]) < len(alone[1]) < len(alone[2])
    found = ours.generate_until(instances("generate_until", [("the river", settings[i % 3]) for i in range(7)]))
    assert found == [alone[i % 3] for i in range(7)]


def test_chat_templates():
    ours, theirs = both()
    chat = [{"role": "system", "content": "the"}, {"role": "user", "content": "river"}, {"role": "assistant", "content": "A"}]
    for history, prompt in ((chat[:2], True), (chat, False)):
        assert ours.apply_chat_template(history, prompt) == theirs.apply_chat_template(history, prompt)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tokenizer.chat_template
    )
    assert HarnessLM(ours.model, tokenizer).apply_chat_template(chat[:2]) == "<user>river\n<assistant>"  # as HFLM


def test_the_policy_reaches_likelihoods_and_text(monkeypatch):
    sparse, tokenizer = sparse_of("llama"), tiny_tokenizer()
    lm = HarnessLM(sparse, tokenizer)
    context, continuation = tokenizer.encode("the river"), tokenizer.encode(" walks under")
    seen = []
    monkeypatch.setattr(
        harness_lm,
        "generate",
        lambda *a, **options: seen.append(options) or types.SimpleNamespace(prompt_tokens=3, new_tokens=2, texts=[""]),
    )
    for policy in (TokenPolicy(), TokenPolicy("decode"), TokenPolicy("dense")):
        lm.token_policy = policy
        expected = score_continuations(sparse, [(context, continuation)], policy)
        assert lm.loglikelihood(instances("loglikelihood", [("the river", " walks under")])) == expected
        rolling = lm.loglikelihood_rolling(instances("loglikelihood_rolling", [("the river",)]))
        assert rolling[0] == pytest.approx(score_continuations(sparse, [([1], context)], policy)[0][0], rel=1e-6)
        lm.generate_until(instances("generate_until", [("the river", {"max_gen_toks": 8})]))
        assert seen[-1]["token_policy"] == policy
        assert seen[-1]["stop"] == ["</s>"]  # whatever the model's settings say of EOS


# ---- whole tasks


@pytest.fixture
def simple_evaluate(monkeypatch):
    """The harness's entry point, without its report on the machine and its index of 13,000 tasks."""
    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)
    monkeypatch.setattr(evaluator, "get_git_commit_hash", lambda: None)
    return functools.partial(evaluator.simple_evaluate, task_manager=TaskManager(include_defaults=False), batch_size=2)


@pytest.mark.skipif(not SHARED_TASKS.is_dir(), reason="no ../shared/data/tasks beside the checkout")
def test_task_files_score_as_with_the_harnesss_model(simple_evaluate):
    ours, theirs = both(positions=256)
    tasks = load_tasks(NAMES, SHARED_TASKS)
    limit = 3
    scores = run_tasks(ours, tasks, limit=limit)
    results = simple_evaluate(model=theirs, tasks=tasks, limit=limit)["results"]
    assert set(scores) == set(results) == set(NAMES)
    for name, score in scores.items():
        entry, expected = score.to_dict(), results[name]
        assert entry["n"] == limit
        assert entry["acc"] == pytest.approx(expected["acc,none"], abs=1e-6)
        assert entry["stderr"] == pytest.approx(expected["acc_stderr,none"], abs=1e-6)
        assert ("acc_norm" in entry) == (name not in ("winogrande",))
        if "acc_norm" in entry:
            assert entry["acc_norm"] == pytest.approx(expected["acc_norm,none"], abs=1e-6)
    assert 0 < sum(score.mean("acc") for score in scores.values()) < len(NAMES)


QUESTIONS = [(f"The river has {n} stones and {n + 1} more", f"{n} + {n + 1} = {2 * n + 1}\n#### {2 * n + 1}") for n in range(9)]


def gsm8k(shots):
    """The harness's own task on rows written here."""
    folder = Path(lm_eval.__file__).parent / "tasks" / "gsm8k"
    config = yaml.safe_load((folder / "gsm8k.yaml").read_text())
    rows = [{"question": question, "answer": answer} for question, answer in QUESTIONS]
    data = {"train": Dataset.from_list(rows[4:]), "test": Dataset.from_list(rows[:4])}
    del config["dataset_path"], config["dataset_name"], config["tag"]
    return ConfigurableTask(config={**config, "num_fewshot": shots, "custom_dataset": lambda **_: data})


def test_gsm8k_as_the_harness_has_it(monkeypatch):
    ours, _ = both(positions=4096)
    asked, stops = [], []
    texts = {  # strict-match wants "#### ", flexible-extract takes the last number
        0: " 0 + 1 = 1\n#### 1\n",
        1: " It is 3.",
        2: " 2 + 3 = 5\n#### 5 and 7",
        3: " nothing",
    }

    def answer(model, tokenizer, prompts, **options):
        found = [tokenizer.decode(prompt) for prompt in prompts]
        asked.extend(found)
        stops.append(options["stop"])
        assert options["temperature"] == 0
        number = [int(text.rpartition("has ")[2].split()[0]) for text in found]
        return types.SimpleNamespace(prompt_tokens=3, new_tokens=2, texts=[texts[n] + "Question: and so on" for n in number])

    monkeypatch.setattr(harness_lm, "generate", answer)
    score = run_tasks(ours, [gsm8k(5)])["gsm8k"]
    assert score.rows["exact_match,strict-match"] == [1, 0, 1, 0]
    assert score.rows["exact_match,flexible-extract"] == [1, 1, 0, 0]
    assert score.chance is None
    assert all(text.count("Question:") == 6 and text.endswith("Answer:") for text in asked)
    assert set(stops[0]) == {"Question:", "</s>", "<|im_end|>"}


@pytest.mark.parametrize(("shots", "chat"), [(None, False), (2, False), (2, True), (0, True)])
def test_prompts_are_the_harnesss(monkeypatch, simple_evaluate, shots, chat):
    seen = {}
    for lm in both():
        asked = seen.setdefault(type(lm), [])

        def generate_until(requests, disable_tqdm=False, asked=asked):
            asked.extend(request.args for request in requests)
            return ["#### 1"] * len(requests)

        monkeypatch.setattr(lm, "generate_until", generate_until)
    ours, theirs = both()
    score = run_tasks(ours, [gsm8k(3)], num_fewshot=shots, chat=chat)["gsm8k"]
    results = simple_evaluate(model=theirs, tasks=[gsm8k(3)], num_fewshot=shots, apply_chat_template=chat)["results"]
    assert seen[HarnessLM] == seen[HFLM]
    assert len(seen[HFLM]) == 4
    assert seen[HFLM][0][0].count("Question:") == 1 + (3 if shots is None else shots)
    assert seen[HFLM][0][0].count("<assistant>") == (1 + shots if chat else 0)
    assert score.mean("exact_match,strict-match") == results["gsm8k"]["exact_match,strict-match"] == 0.25


def answers_of(tmp_path, monkeypatch, rows, texts, name="made"):
    """Scores of a generation task of `rows` when the model writes `texts`."""
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_context = {row["context"]: text for row, text in zip(rows, texts, strict=True)}

    def write(model, tokenizer, prompts, **options):
        return types.SimpleNamespace(
            prompt_tokens=3, new_tokens=2, texts=[by_context[tokenizer.decode(prompt)] for prompt in prompts]
        )

    monkeypatch.setattr(harness_lm, "generate", write)
    return run_tasks(both()[0], load_tasks(None, tmp_path))[name]


def test_the_last_number_is_the_answer(tmp_path, monkeypatch):
    rows = [
        {"context": "a", "answer": "2 + 3 = 5\n#### 5"},
        {"context": "b", "answer": "1200"},
        {"context": "c", "answer": "-3"},
        {"context": "d", "answer": "7"},
        {"context": "e", "answer": "$1,000"},
    ]
    texts = [" 2 and 3 make 5.", " it is $1,200", " 4 - 7 = -3", " 7, no: 8", " 999 or 1000\n\nQuestion: 4"]
    score = answers_of(tmp_path, monkeypatch, rows, texts)
    assert score.rows == {"exact_match": [1, 1, 1, 0, 1]}
    assert (score.primary, score.chance) == ("exact_match", None)


def test_answers_that_are_words(tmp_path, monkeypatch):
    rows = [{"context": str(i), "answer": answer} for i, answer in enumerate(["so #### the River", "4", "a stone"])]
    score = answers_of(tmp_path, monkeypatch, rows, [" The river.\n\nThen", " 4", " stone"])
    assert score.rows == {"exact_match": [1, 1, 0]}


def test_rouge(tmp_path, monkeypatch):
    rows = [{"context": "a", "summary": "the cat sat on the mat"}, {"context": "b", "summary": "rivers"}]
    score = answers_of(tmp_path, monkeypatch, rows, [" the cats lay on a mat", " a river\n\nthe rivers"])
    # cats is cat by its stem; 4 of 6 words, 1 of 5 pairs of them, "the cat on mat" in order; then 1 of 1 and 1 of 2
    assert score.rows["rouge1"] == pytest.approx([4 / 6, 2 / 3])
    assert score.rows["rouge2"] == pytest.approx([1 / 5, 0])
    assert score.rows["rougeL"] == pytest.approx([4 / 6, 2 / 3])
    assert score.primary == "rougeL"
    assert score.to_dict()["rows"]["rougeL"] == [0.6667, 0.6667]
