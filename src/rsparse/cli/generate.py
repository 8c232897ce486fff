"""rsparse generate."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rsparse.cli import _options as options
from rsparse.errors import RSparseError

HELP = "continue a prompt, or chat; the prompt runs dense, new tokens sparse"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated: a batch or, with --chat, turns")
    parser.add_argument(
        "--chat", action="store_true", help="use the chat template; without --prompt, read turns from the terminal"
    )
    parser.add_argument("--system", help="system message for --chat")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) takes the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--ignore-eos", action="store_true", help="go on to --max-new-tokens")
    options.add_token_policy(parser, "decode")
    options.add_seed(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    options.check_json(args)
    if not args.chat and not args.prompt:
        raise RSparseError("give a --prompt, or --chat for a conversation")
    if args.system is not None and not args.chat:
        raise RSparseError("--system is for --chat")
    model, tokenizer = options.load(args)
    _Session(args, model, tokenizer).run()


class _Session:
    def __init__(self, args: argparse.Namespace, model: Any, tokenizer: Any) -> None:
        from rsparse.records import Run

        self.args, self.model, self.tokenizer = args, model, tokenizer
        self.timer = Run()
        self.results: list[Any] = []

    def run(self) -> None:
        if self.args.chat:
            self._chat()
        elif len(self.args.prompt) == 1:
            self._generate([self.args.prompt[0]], stream=True)
        else:
            result = self._generate(self.args.prompt, stream=False)
            for prompt, text in zip(self.args.prompt, result.texts, strict=True):
                print(f"{prompt}{text}\n")
        self._report()

    def _chat(self) -> None:
        messages = [{"role": "system", "content": self.args.system}] if self.args.system else []
        for turn in self.args.prompt or _typed_turns():
            if self.args.prompt:
                print(f"> {turn}")
            messages.append({"role": "user", "content": turn})
            result = self._generate([messages], stream=True)
            messages.append({"role": "assistant", "content": result.texts[0].strip()})

    def _generate(self, prompts: list[Any], *, stream: bool) -> Any:
        from rsparse.runtime import generate
        from rsparse.token_policy import TokenPolicy

        args = self.args
        result = generate(
            self.model, self.tokenizer, prompts,
            max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed,
            ignore_eos=args.ignore_eos, token_policy=TokenPolicy.parse(args.token_policy, args.sink_tokens),
            on_text=_print_piece if stream else None, backend=args.backend,
        )  # fmt: skip
        if stream:
            print()
        self.results.append(result)
        return result

    def _report(self) -> None:
        new = sum(result.new_tokens for result in self.results)
        steps = sum(result.new_tokens - len(result.texts) for result in self.results)
        seconds = sum(result.decode_seconds for result in self.results)
        rate = steps / seconds if steps and seconds else None
        if rate is not None:
            options.say(f"{new} tokens, {rate:.1f} tokens/s after the first of each")
        config = {
            "token_policy": self.args.token_policy,
            "batch": len(self.results[0].texts) if self.results else 0,
            "prompt_tokens": sum(result.prompt_tokens for result in self.results),
            "new_tokens": new,
            "runtime": self.results[0].backend if self.results else None,
        }
        metrics = {
            "tokens": new,
            "tokens_per_second": rate,
            "texts": [text for result in self.results for text in result.texts],
        }
        options.write_record(self.args, self.timer, self.model, config, metrics)


def _typed_turns() -> Any:
    """User turns, a line each, until an empty one or the end of input."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)
