"""A model of rsparse's as lm-evaluation-harness sees one: its request types, under a token policy."""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from rsparse.calibration.windows import bos_token
from rsparse.evaluation.likelihood import score_continuations, shared_inputs
from rsparse.progress import progress
from rsparse.runtime.generation import generate
from rsparse.token_policy import TokenPolicy

MAX_NEW_TOKENS = 256  # as in the harness's own class for Hugging Face models
DEFAULT_CONTEXT = 2048


class HarnessLM(TemplateLM):
    """Likelihoods by `score_continuations`, text by `generate`; encodings are kept, so that each string is tokenised once.

    Tokenises and truncates as the harness's HFLM does: scores of the same rows are equal (tests/evaluation).
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_tokens: int | None = None) -> None:
        super().__init__()
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens
        self.token_policy = TokenPolicy()
        self.tokens_read = 0  # padding not counted, an input that several requests share once
        self.tokens_generated = 0
        self._adds_bos = bos_token(tokenizer) is not None
        self._encoded: dict[tuple[str, bool], list[int]] = {}

    @property
    def max_length(self) -> int:
        return int(getattr(self.model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        last: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **last))
        except TemplateError:  # as of Gemma's, which takes no system message: the harness leaves it out
            rest = [message for message in chat_history if message["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(rest, tokenize=False, **last))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        special = True if add_special_tokens is None else add_special_tokens
        if special and self._adds_bos and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            special = False  # a chat template has written it
        key = string, special
        if key not in self._encoded:
            self._encoded[key] = list(self.tokenizer.encode(string, add_special_tokens=special, verbose=False))
        return self._encoded[key]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        return self._scores(pairs)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """log p of whole strings, in windows that overlap by nothing but the token before."""
        pairs: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1)
            for window in map(make_disjoint_window, windows):
                pairs.append(window)
                owners.append(number)
        totals = [0.0] * len(requests)
        scores = self._scores(pairs)
        for owner, (log_p, _) in zip(owners, scores, strict=True):
            totals[owner] += log_p
        return totals

    def _scores(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        self.tokens_read += sum(len(each.ids) for each in shared_inputs(pairs, self.max_length))
        return score_continuations(
            self.model, pairs, self.token_policy, batch_tokens=self.batch_tokens, max_length=self.max_length
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy text up to the first stop string; sampling where the task's settings ask for it."""
        texts = [""] * len(requests)
        order = sorted(
            range(len(requests)), key=lambda i: (str(requests[i].args[1]), -len(self.tok_encode(requests[i].args[0])))
        )
        budget = self.batch_tokens or (65536 if self.model.device.type == "cuda" else 8192)
        with progress(len(requests), "generate", unit="request") as bar:
            start = 0
            while start < len(order):
                prompt, settings = requests[order[start]].args
                size = max(1, budget // (len(self.tok_encode(prompt)) + MAX_NEW_TOKENS))
                batch = [i for i in order[start : start + size] if str(requests[i].args[1]) == str(settings)]
                for index, text in zip(batch, self._generate([requests[i].args[0] for i in batch], settings), strict=True):
                    texts[index] = text
                start += len(batch)
                bar.update(len(batch))
        return texts

    def _generate(self, contexts: list[str], settings: dict[str, Any]) -> list[str]:
        kwargs = normalize_gen_kwargs(settings, MAX_NEW_TOKENS)
        stop = handle_stop_sequences(kwargs.get("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        new_tokens = min(int(kwargs["max_gen_toks"]), self.max_length - 1)
        prompts = [self.tok_encode(context)[-(self.max_length - new_tokens) :] for context in contexts]
        sampling = float(kwargs.get("temperature") or 0) if kwargs.get("do_sample") else 0.0
        result = generate(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=new_tokens,
            temperature=sampling,
            token_policy=self.token_policy,
            stop=stop,
        )
        self.tokens_generated += result.prompt_tokens + result.new_tokens
        return [postprocess_generated_text(generation=text, stop=stop, think_end_token=None) for text in result.texts]
