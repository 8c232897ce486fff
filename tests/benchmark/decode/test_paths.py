"""Each dense path is the model's own decode."""

from __future__ import annotations

import torch

from rsparse.benchmark.decode.paths import DENSE_PATHS, dense_paths
from rsparse.runtime import generate
from tests.support.models import tiny_model, tiny_tokenizer, token_ids


def test_every_dense_path_gives_the_models_own_tokens():
    model, prompt = tiny_model("qwen2"), token_ids(2, 9)
    expected = generate(model, tiny_tokenizer(), prompt.tolist(), max_new_tokens=12, ignore_eos=True).token_ids
    names = []
    for name, path in dense_paths(list(DENSE_PATHS), model, "reference", prompt, 12, None):
        for _ in range(2):
            path.begin(prompt)
            token = path.session.step.token if name.startswith("steps") else path.token
            found = [token.flatten().tolist()]
            for _ in range(11):
                path.advance()
                found.append(token.flatten().tolist())
            assert torch.tensor(found).T.tolist() == expected.tolist(), name
        names.append(name)
    assert names == list(DENSE_PATHS)
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1]


def test_blocks_are_compiled_once():
    prompt = token_ids(1, 9)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        names = [
            name for name, _ in dense_paths(["compile-blocks"], tiny_model("llama", num_hidden_layers=4), "", prompt, 12, None)
        ]
    assert names == ["compile-blocks"]
