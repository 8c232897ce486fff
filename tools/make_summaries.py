"""A summarisation task from Wikipedia articles: each one's first paragraph is the summary of what follows it.

    python tools/make_summaries.py articles.jsonl -o tasks/wikipedia_lead.jsonl

Rows of the input hold `text`: a title, a blank line, the lead, the rest. Where CNN/DailyMail is not at hand, `rsparse reproduce
generation --task-dir` takes this; its ROUGE compares methods with one another, not with published figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

LEAD_WORDS = range(15, 81)
BODY_WORDS = range(120, 601)  # fits a window of 1024 tokens with what is written


def rows(articles: Path) -> Iterator[dict[str, str]]:
    """context and summary of each article whose parts have a fitting length. Raises ValueError for a row that is no article."""
    for number, line in enumerate(articles.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            parts = [part.strip() for part in text.split("\n") if part.strip()]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"row {number} is no JSON object with a string `text`") from None
        if len(parts) < 3:
            continue
        title, lead, body = parts[0], parts[1], "\n".join(parts[2:])
        if len(lead.split()) in LEAD_WORDS and len(body.split()) in BODY_WORDS:
            yield {"context": f"{title}\n{body}\n\nSummary of the article about {title}:", "summary": lead}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("articles", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        found = list(rows(args.articles))
    except (OSError, ValueError) as error:
        parser.error(f"{args.articles}: {error}")
    if not found:
        parser.error(f"{args.articles}: no article has a lead of 15 to 80 words and 120 to 600 after it")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    print(f"{args.out}: {len(found)} rows")


if __name__ == "__main__":
    main()
