"""Answers, documents and caches as people read them on a terminal. Knows no models."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from acre_rag.answer import Answer
from acre_rag.document import Document
from acre_rag.extract import ExtractedText

_SOURCE_CHARS = 240


def show_sources(console: Console, answer: Answer, files: Mapping[str, ExtractedText], *, most: int = 3) -> None:
    """Where the answer stands: document, place, page where there is one, and the beginning of the text."""
    if answer.scope == "document":
        console.print(
            "  [dim]a question about the whole text: its opening and passages spread over it were refilled[/]"
        )
    for source in answer.sources[:most]:
        file = files.get(source.document)
        page = file.page_at(source.start) if file else None
        place = f"characters {source.start:,}-{source.end:,}" + (f", page {page}" if page else "")
        console.print(Text(f"  ▸ {source.document}, {place}  (score {source.score:.2f})", style="cyan"))
        console.print(Padding(Text(_excerpt(source.text, answer.text), style="dim"), (0, 0, 0, 4)))


def show_cost(console: Console, answer: Answer) -> None:
    """One line: seconds and tokens."""
    usage, timings = answer.usage, answer.timings
    console.print(
        f"  [dim]first token {timings.first_token_s:.2f} s (select {timings.select_s:.2f}, refill "
        f"{timings.refill_s:.2f}), {usage.generated_tokens} tokens in {timings.decode_s:.2f} s more; decoded on "
        f"{usage.cached_tokens:,} of the cache's slots, {usage.refilled_tokens:,} of them refilled[/]"
    )


def cache_facts(document: Document) -> dict[str, Any]:
    """Sizes of a document's cache, for `acre inspect`."""
    cache = document.cache
    return {
        "document": document.id,
        "characters": len(document.text),
        "tokens": cache.n_tokens,
        "interval": cache.interval,
        "passages": len(document.passages),
        "l1_entries": cache.n_blocks,
        "l1_bytes": cache.l1.n_bytes,
        "retrieval_head_bytes": cache.head_keys.nbytes,
        "device_bytes": cache.device_bytes,
        "l2_tokens": cache.n_blocks * cache.interval,
        "l2_bytes": cache.host_bytes,
        "tail_tokens": len(cache.tail),
        "prefix_tokens": len(cache.prefix),
        "construct_s": round(document.construct_s, 3),
        "tokens_per_s": round(cache.n_tokens / document.construct_s, 1) if document.construct_s else None,
    }


def show_cache(console: Console, document: Document) -> None:
    """A table of a document's cache."""
    facts = cache_facts(document)
    table = Table(title=document.id, title_justify="left", show_header=True, header_style="bold")
    for column in ("", "entries", "memory", "where"):
        table.add_column(column, justify="left" if column in ("", "where") else "right")
    table.add_row("L1 (global)", f"{facts['l1_entries']:,}", human_bytes(facts["l1_bytes"]), "device")
    table.add_row(
        "retrieval heads' keys",
        f"{facts['l2_tokens']:,}",
        human_bytes(facts["retrieval_head_bytes"]),
        "device",
    )
    table.add_row("prefix and tail", f"{facts['prefix_tokens'] + facts['tail_tokens']:,}", "", "device")
    table.add_row("L2 (exact)", f"{facts['l2_tokens']:,}", human_bytes(facts["l2_bytes"]), "host")
    console.print(table)
    console.print(
        f"{facts['tokens']:,} tokens, interval {facts['interval']}, {facts['passages']:,} passages; read in "
        f"{facts['construct_s']:.1f} s ({facts['tokens_per_s'] or 0:,.0f} tokens/s)"
    )


def human_bytes(count: int) -> str:
    """Bytes as people read them (powers of 1024)."""
    return f"{count / 1024**2:,.1f} MiB" if count < 1024**3 else f"{count / 1024**3:,.2f} GiB"


def _excerpt(source: str, answer: str) -> str:
    """The part of a source that shares most words with the answer, on one line."""
    line = " ".join(source.split())
    if len(line) <= _SOURCE_CHARS:
        return line
    words = {word.strip(".,;:!?\"'()").lower() for word in answer.split()} - {""}
    starts = range(0, len(line) - _SOURCE_CHARS + 40, 40)
    best = max(starts, key=lambda start: _common(line[start : start + _SOURCE_CHARS], words))
    text = line[best : best + _SOURCE_CHARS]
    return ("…" if best else "") + text + ("…" if best + _SOURCE_CHARS < len(line) else "")


def _common(text: str, words: set[str]) -> int:
    return sum(len(word) for word in {w.strip(".,;:!?\"'()").lower() for w in text.split()} & words)
