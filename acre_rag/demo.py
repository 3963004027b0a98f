"""`acre demo`: the built-in model reads a whole book once and answers from it, beside the stock model."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.markup import escape

from acre_rag.answer import Answer
from acre_rag.config import ACREConfig
from acre_rag.decoder import Decoder
from acre_rag.engine import ACRE
from acre_rag.generate import GenerationSettings
from acre_rag.models import BUILTIN
from acre_rag.plot import plot_selection
from acre_rag.progress import reading_progress, waiting
from acre_rag.show import human_bytes, show_cost, show_sources
from acre_rag.transfer import clock

TITLE = "Alice's Adventures in Wonderland"
CONFIG = ACREConfig(window=1536, stride=512, passage_tokens=300, max_passages=2)
# A small window reads fast on a laptop.
SETTINGS = GenerationSettings(max_new_tokens=40)


@dataclass(frozen=True)
class DemoQuestion:
    """A question, and a word that a right answer or its sources must hold."""

    question: str
    expected: str


QUESTIONS = (
    DemoQuestion("What did Alice find on the three-legged table made of solid glass?", "golden key"),
    DemoQuestion("What was written on the paper label round the neck of the bottle?", "drink me"),
    DemoQuestion("What did the players use as mallets in the croquet game?", "flamingo"),
    DemoQuestion("Who is accused of stealing the tarts?", "Knave"),
    DemoQuestion("What is this book about?", "Alice"),
)


def book() -> str:
    """The shipped book."""
    return (resources.files("acre_rag") / "data" / "alice.txt").read_text(encoding="utf-8")


def run_demo(console: Console, *, as_json: bool = False, plot: Path | None = None) -> None:
    """Read the book, answer the questions, compare with the stock model; ends with the figures."""
    with waiting("loading the built-in model (the first time it is converted from its GGUF file)"):
        acre = ACRE.from_pretrained(BUILTIN, config=CONFIG)
    text = book()
    if not as_json:
        console.print(f"[bold]{TITLE}[/], {len(text.split()):,} words, read by {BUILTIN} on {acre.decoder.device}")
    with reading_progress("reading") as progress:
        document = acre.add(text, id="alice.txt", progress=progress)
    cache = document.cache
    if not as_json:
        console.print(
            f"read once: {document.n_tokens:,} tokens in {document.construct_s:.1f} s through a window of "
            f"{acre.window:,}; L1 {cache.n_blocks:,} entries ({human_bytes(cache.device_bytes)} with the retrieval "
            f"heads' keys), L2 {human_bytes(cache.host_bytes)} in host memory\n"
        )
    answers = []
    for item in QUESTIONS:
        answer = acre.ask(item.question, document, settings=SETTINGS)
        answers.append(answer)
        if not as_json:
            _show(console, item, answer)
    if plot:
        first = QUESTIONS[0].question
        plot_selection(first, acre.select(first, document), [document], plot, answer=answers[0].text)
    with waiting("the stock model reads as much of the book as fits its window"):
        n_stock, stock_s = stock_first_token(acre.decoder, text, QUESTIONS[0].question)
    warm_s = sorted(answer.timings.first_token_s for answer in answers)[len(answers) // 2]
    if as_json:
        record = {
            "construct_s": document.construct_s,
            "tokens": document.n_tokens,
            "answers": [
                answer.to_dict() | {"question": q.question} for q, answer in zip(QUESTIONS, answers, strict=True)
            ],
            "warm_first_token_s": warm_s,
            "stock_tokens": n_stock,
            "stock_first_token_s": stock_s,
        }
        typer.echo(json.dumps(record))
        return
    console.print(
        f"[bold]First token:[/] ACRE {warm_s:.2f} s (median of these questions, whole book of {document.n_tokens:,} "
        f"tokens); the stock model {stock_s:.1f} s for every question, and it can only read {n_stock:,} tokens of it "
        f"({100 * n_stock / document.n_tokens:.0f} %)."
    )
    console.print('[dim]Next: acre ask YOUR_FILE... "YOUR QUESTION"[/]')


def stock_first_token(decoder: Decoder, text: str, question: str) -> tuple[int, float]:
    """Tokens and seconds to the first token when the stock model reads what fits its window, cut in the middle."""
    ids = torch.tensor(decoder.tokenizer(text, add_special_tokens=False)["input_ids"], device=decoder.device)
    asked = torch.tensor(decoder.tokenizer(question)["input_ids"], device=decoder.device)
    room = min(decoder.model_window - len(asked) - 1, len(ids))
    kept = torch.cat([ids[: room - room // 2], ids[len(ids) - room // 2 :]]) if room < len(ids) else ids
    start = clock(decoder.device)
    with torch.inference_mode():
        decoder.model(input_ids=torch.cat([kept, asked])[None], logits_to_keep=1)
    return len(kept), clock(decoder.device) - start


def _show(console: Console, item: DemoQuestion, answer: Answer) -> None:
    console.print(f"[bold]? {escape(item.question)}[/]")
    console.print(f"  {escape(answer.text)}", highlight=False)
    found = any(item.expected.lower() in source.text.lower() for source in answer.sources)
    said = item.expected.lower() in answer.text.lower()
    verdict = "[green]in the answer[/]" if said else "[yellow]in the sources[/]" if found else "[red]missed[/]"
    console.print(f"  [dim]expected: {item.expected}[/] {verdict}")
    show_sources(console, answer, {}, most=2)
    show_cost(console, answer)
    console.print()
