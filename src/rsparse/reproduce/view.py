"""A table as Markdown, and as the metrics of a record."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator
from typing import Any

from rsparse import published
from rsparse.analysis import search_ablation
from rsparse.analysis.quality_table import figure as perplexity_figure
from rsparse.analysis.quality_table import head_lines, row_line
from rsparse.benchmark.grid import text_label
from rsparse.published import Figure, Figures
from rsparse.records import Run
from rsparse.reproduce.cells import asked, missing, share
from rsparse.reproduce.notes import notes
from rsparse.reproduce.ordering import is_of, outcomes, verdict_line
from rsparse.reproduce.protocol import config_of, protocol
from rsparse.reproduce.request import Line, folder_of
from rsparse.reproduce.results import TASKS, Results, mean_score
from rsparse.reproduce.searches import searches_folder
from rsparse.reproduce.table import BASE
from rsparse.token_policy import TokenPolicy


def lines_of(results: Results) -> list[str]:
    """What to see, in one plain line, and what must be known of the figures."""
    return [verdict_line(outcomes(results)), *notes(results)]


def markdown(results: Results, known: Collection[str] = ()) -> str:
    """The verdict first, then the tables, then what must be known of them, but for what is `known` of all tables of a page."""
    first, *rest = lines_of(results)
    parts = [f"## {results.table.title}", ""]
    if words := [word for word in protocol(results) if word not in known]:
        parts += [" ".join(words), ""]
    parts += [first, ""]
    if any(results.has_tasks(line) for line in results.lines):
        parts += ["### Mean over the tasks, %", "", *mean_table(results), ""]
        for policy in results.request.policies:
            parts += [f"### By task, %, token policy {policy}", "", *task_table(results, policy), ""]
    if any(results.texts(line) for line in results.lines):
        parts += ["### Perplexity", "", *text_table(results), ""]
    for records in searches(results):
        parts.append(search_ablation.markdown(records, published_generations()).replace("## ", "### ", 1))
    parts += [f"- {line}" for line in rest if line not in known]
    return "\n".join(parts).rstrip("\n") + "\n"


def record(name: str, results: Results) -> dict[str, Any]:
    """What is written beside the Markdown of the table `name`."""
    config = {"suite": "reproduce", "table": name} | config_of(results)
    return Run().record(config, metrics(results))


def metrics(results: Results) -> dict[str, Any]:
    """For the record: each row's figures by policy, the published ones of the same policy, and the ordering."""
    rows = []
    for line in results.lines:
        row: dict[str, Any] = {"preset": line.method.label, "variant": line.variant.title, "sparsity": line.level}
        row["policies"] = {str(policy): _figures(results, line, policy) for policy in results.request.policies}
        rows.append(row)
    ordering = {policy: [each.to_dict() for each in found] for policy, found in outcomes(results).items()}
    return {"rows": rows, "ordering": ordering, "lines": lines_of(results)}


def searches(results: Results) -> list[list[dict[str, Any]]]:
    """Records of the searches that are behind the table's recipes, by model and variant."""
    variants = dict.fromkeys(line.variant for line in results.lines if line.variant.searches)
    folders = [
        searches_folder(folder_of(folder, variant), results.request.model) for folder in results.folders for variant in variants
    ]
    return [found for folder in folders if (found := search_ablation.load_records(folder))]


def published_generations() -> dict[int, float]:
    """The best perplexity that the paper's search found, by generation; of which model, level and text is not stated."""
    rows = published.load("search_size").rows
    return {row.options["generations"]: row.mean for row in rows if "generations" in row.options}


def mean_table(results: Results) -> list[str]:
    """One row a line; the published figures stand beside those of their own policy."""
    head = ["method", "asked"]
    columns: list[tuple[TokenPolicy, list[tuple[str, list[Figure]]]]] = []
    for policy in results.request.policies:
        beside = published_columns(results, policy)
        columns.append((policy, beside))
        head += [str(policy), "achieved", *(name for name, _ in beside)]
    lines, heads = head_lines(head), _heads(results)
    for line in results.lines:
        if not results.has_tasks(line):
            continue
        cells = [line.label, asked(line)]
        for policy, beside in columns:
            scores = results.scores(line, policy)
            cells.append(missing(results, line, policy, None) if scores is None else f"{mean_score(scores):.2f}")
            cells.append("" if line.dense else share(results.achieved(line, policy)))
            cells += [_published_mean(figures, line, heads) for _, figures in beside]
        lines.append(row_line(cells))
    return lines


def task_table(results: Results, policy: TokenPolicy) -> list[str]:
    """Ours by task with the difference from dense, then what is published by task under the same policy."""
    scored = {line: scores for line in results.lines if (scores := results.scores(line, policy)) is not None}
    heads = list(dict.fromkeys(head for scores in scored.values() for head in scores))
    lines = head_lines(["method", "asked", *heads, "mean", "difference from dense, points (95 %)"])
    dense = {line.variant: line for line in scored if line.dense}
    for line, scores in scored.items():
        cells = [f"{100 * scores[head].mean(scores[head].primary):.1f}" if head in scores else "" for head in heads]
        base = dense.get(line.variant if line.variant.own_dense else BASE)
        found = None if line.dense or base is None else results.accuracy_difference(line, base, policy)
        cells += [f"{mean_score(scores):.2f}"]
        cells.append("" if found is None else f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})")
        lines.append(row_line([line.label, asked(line), *cells]))
    for figures in _sets(results, policy):
        for each in figures.rows:
            if each.tasks and any(is_of(each, line) for line in results.lines):
                by_head = {head: value for head, names in TASKS.items() for name, value in each.tasks.items() if name in names}
                cells = [f"{by_head[head]:.1f}" if head in by_head else "" for head in heads]
                level = f"{each.sparsity:.0%}" if each.sparsity else ""
                mean = _published_mean([each], None, frozenset(heads) or None)
                lines.append(row_line([f"*published: {_method(each)}, {each.model}*", level, *cells, mean, ""]))
    return lines


def text_table(results: Results) -> list[str]:
    """Perplexity of each text by policy, with KL to dense as mean over the texts."""
    texts, policies = results.request.texts, results.request.policies
    head = ["method", "asked"]
    for policy in policies:
        head += [*(f"{text_label(text)}, {policy}" for text in texts), f"mean KL, {policy}", "achieved"]
        head += [name for name, _ in published_columns(results, policy, texts=True)]
    lines = head_lines(head)
    for line in results.lines:
        if not results.texts(line):
            continue
        cells = [line.label, asked(line)]
        for policy in policies:
            found = [results.metrics(line, policy, text) for text in texts]
            cells += [
                missing(results, line, policy, text) if cell is None else perplexity_figure(cell["perplexity"])
                for cell, text in zip(found, texts, strict=True)
            ]
            kl = [cell["kl_to_dense"] for cell in found if cell is not None and "kl_to_dense" in cell]
            cells.append(f"{statistics.fmean(kl):.4f}" if kl else "")
            achieved = [cell["achieved_sparsity"] for cell in found if cell is not None]
            cells.append("" if line.dense else share(statistics.fmean(achieved) if achieved else None))
            cells += [_published_mean(figures, line, None) for _, figures in published_columns(results, policy, texts=True)]
        lines.append(row_line(cells))
    return lines


def published_columns(results: Results, policy: TokenPolicy, *, texts: bool = False) -> list[tuple[str, list[Figure]]]:
    """(head, figures) by published model, of sets under `policy` alone; those of perplexity with `texts`, else the others."""
    found: dict[str, list[Figure]] = {}
    for figures in _sets(results, policy):
        if figures.lower_is_better != texts:
            continue
        for each in figures.rows:
            if set(each.options) <= set(results.table.varies) and any(is_of(each, line) for line in results.lines):
                stated = "" if each.sparsity is not None else ", level not stated"
                model = each.model or "model not stated"
                found.setdefault(f"published: {model}{stated}{_whose(figures)}", []).append(each)
    return list(found.items())


def _method(figure: Figure) -> str:
    """A row named `rsparse` is ours, of one rho for all; the paper's has a rho for each linear."""
    return "R-Sparse" if figure.method == "rsparse" else figure.method


def _whose(figures: Figures) -> str:
    return "" if figures.arxiv == published.PAPER else f" ({figures.name})"


def _sets(results: Results, policy: TokenPolicy) -> Iterator[Figures]:
    for name in results.table.published:
        figures = published.load(name)
        if figures.token_policy == str(policy):
            yield figures


def _heads(results: Results) -> frozenset[str] | None:
    """Tasks that the table's rows ran, those of the first of them; None where none has run."""
    scores = (results.scores(line, policy) for line in results.lines for policy in results.request.policies)
    return next((frozenset(each) for each in scores if each is not None), None)


def _published_mean(figures: list[Figure], line: Line | None, heads: frozenset[str] | None) -> str:
    """Of `line`, where one is given, over the tasks that ours are over; empty where those are not published one by one."""
    figure = next((each for each in figures if line is None or is_of(each, line)), None)
    mean = None if figure is None else _mean_over(figure, heads)
    return "" if mean is None else f"{mean:.2f}"


def _mean_over(figure: Figure, heads: frozenset[str] | None) -> float | None:
    """Its own mean where ours are over all the tasks, or there are none."""
    if heads is None or heads == set(TASKS):
        return figure.mean
    by_head = {head: value for head, names in TASKS.items() for name, value in figure.tasks.items() if name in names}
    return statistics.fmean(by_head[head] for head in heads) if heads <= set(by_head) else None


def _figures(results: Results, line: Line, policy: TokenPolicy) -> dict[str, Any]:
    found: dict[str, Any] = {}
    scores = results.scores(line, policy)
    if scores is not None:
        found["mean"] = round(mean_score(scores), 4)
        found["tasks"] = {head: round(100 * score.mean(score.primary), 4) for head, score in scores.items()}
    by_text = {text_label(text): results.metrics(line, policy, text) for text in results.texts(line)}
    if perplexity := {name: cell["perplexity"] for name, cell in by_text.items() if cell is not None}:
        found["perplexity"] = perplexity
    achieved = [results.achieved(line, policy, texts=texts) for texts in (False, True)]
    if not line.dense and (measured := [each for each in achieved if each is not None]):
        found["achieved_sparsity"] = round(measured[0], 6)  # over the tasks where there are both
    wanted = [*results.texts(line), *([None] if results.has_tasks(line) else [])]
    if reasons := {reason for text in wanted if (reason := results.refusal(line, policy, text))}:
        found["refused"] = sorted(reasons)
    if failures := {reason for text in wanted if (reason := results.failure(line, policy, text))}:
        found["failed"] = sorted(failures)
    if beside := _published(results, line, policy):
        found["published"] = beside
    return found


def _published(results: Results, line: Line, policy: TokenPolicy) -> list[dict[str, Any]]:
    """Of a line, each mean over the tasks that ours are over, as in the table."""
    found, heads = [], _heads(results)
    for figures in _sets(results, policy):
        for each in figures.rows:
            if is_of(each, line) and set(each.options) <= set(results.table.varies):
                mean = each.mean if figures.lower_is_better else _mean_over(each, heads)
                if mean is not None:
                    found.append(published.to_dict(each) | {"mean": round(mean, 4)})
    return found
