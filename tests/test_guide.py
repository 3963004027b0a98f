"""What the README and the guide show is so: code runs, names and options exist, the tables hold true figures."""

import ast
import asyncio
import importlib
import json
import re
import shlex
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from conftest import tiny_decoder

from acre_rag import ACRE, ACREConfig
from acre_rag.cli import app
from acre_rag.config import READING_OPTIONS, auto_interval
from acre_rag.evaluation.datasets import load_dataset
from acre_rag.heads import Head, RetrievalHeads
from acre_rag.quantise import codec_of

ROOT = Path(__file__).parent.parent
GUIDE = "docs/guide.md"
DOCUMENTS = ("README.md", GUIDE)
TEXT = "The drum is in room one.\n\nThe flute is in room two.\n\nThe letter is by Ann.\n\n" * 3
PAGE_TOKENS = 400
WAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

Serve = Callable[..., list[Any]]


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", read(document), re.DOTALL | re.MULTILINE)
    return [text for of, text in found if of == language]


def rows(header: str) -> list[list[str]]:
    """Cells of the guide's table that begins so."""
    [_, table] = read(GUIDE).split(f"\n| {header} |")
    lines = table.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def commands(document: str) -> Iterator[list[str]]:
    """Words behind each `acre`: lines of shell blocks up to a pipe or comment, and code within sentences."""
    within = re.findall(
        r"`(acre [^`\n]+)`", re.sub(r"^```.*?^```$", "", read(document), flags=re.DOTALL | re.MULTILINE)
    )
    for line in [*"\n".join(blocks(document)).splitlines(), *within]:
        words = shlex.split(line, comments=True)
        if "acre" in words:
            behind = words[words.index("acre") + 1 :]
            yield behind[: behind.index("|")] if "|" in behind else behind


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_in_the_documents_compiles_and_its_names_exist(document: str) -> None:
    imports = [
        node
        for code in blocks(document, "python")
        for node in ast.walk(compile(code, document, "exec", ast.PyCF_ONLY_AST | WAIT))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "acre_rag"
    ]
    names = [(node.module or "", alias.name) for node in imports for alias in node.names]
    assert names
    assert [name for name in names if not hasattr(importlib.import_module(name[0]), name[1])] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_documents_are_what_the_command_line_takes(document: str) -> None:
    """Each is parsed as if it were run: unknown commands and options, and missing ones, are errors."""
    parsed = 0
    for words in commands(document):
        command: Any = typer.main.get_command(app)
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, words
            command, *words = [command.commands[words[0]], *words[1:]]
        if words:  # a bare name in a sentence speaks of the command
            command.make_context(command.name, list(words))
            parsed += 1
    assert parsed > 5


def test_the_guides_table_of_options_is_whole() -> None:
    table = {
        row[0].strip("`"): (ast.literal_eval(row[1].strip("`")), row[-1]) for row in rows("option | default | unit")
    }
    assert table == {
        each.name: (each.default, "reading" if each.name in READING_OPTIONS else "asking")
        for each in fields(ACREConfig)
    }


def test_the_guides_figures_of_memory_are_those_of_the_code() -> None:
    for _, shape, window, token_bytes, *cells in rows("model | layers x KV heads x head size"):
        n_layers, n_kv_heads, head_dim = map(int, shape.split(" x "))
        for pages, cell in zip((100, 300, 1000), cells, strict=True):
            n_tokens = pages * PAGE_TOKENS
            interval = auto_interval(n_tokens, int(window.replace(",", "")))
            block = torch.zeros(1, n_layers, 2, n_kv_heads, interval, head_dim, dtype=torch.bfloat16)
            exact, few = (sum(part.nbytes for part in codec_of(bits).encode(block).values()) for bits in (16, 4))
            assert token_bytes == f"{exact // interval:,}"
            gib = [n_tokens * size / 2**30 for size in (exact / interval, few / interval, exact / interval**2)]
            assert cell == f"{interval}: {' / '.join(f'{each:.2f}' for each in gib)}"


def test_the_guides_questions_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "alice.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text(*blocks(GUIDE, "json"), encoding="utf-8")
    items = load_dataset("own", path=tmp_path / "questions.jsonl")
    assert [item.document for item in items[:2]] == [TEXT, TEXT]
    assert [len(item.answers) for item in items] == [1, 2, 1]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ACRE]:
    """The engines that an example makes: of the tiny model, in a folder of their own."""
    decoder, made = tiny_decoder(), []
    heads = RetrievalHeads((Head(0, 0, 1.0),), decoder.digest, decoder.architecture)
    heads.save(tmp_path / "heads.json")
    config = ACREConfig(window=1024, stride=64, passage_tokens=32)

    def from_pretrained(model: str = "", **options: Any) -> ACRE:
        made.append(ACRE(decoder, config=config, **{**options, "heads": heads}))
        return made[-1]

    monkeypatch.setattr(ACRE, "from_pretrained", from_pretrained)
    monkeypatch.setattr(decoder.worker, "max_waiting", 256)
    monkeypatch.chdir(tmp_path)
    return made


def test_the_guides_examples_run(engines: list[ACRE], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other, as they are printed, but for the model and the length of a document that is not read."""
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "book.txt").write_text(TEXT, encoding="utf-8")
    names: dict[str, Any] = {"texts": [TEXT, "The kite is in room three.\n\n"]}

    async def run() -> None:
        for code in blocks(GUIDE, "python"):
            if (made := eval(compile(code.replace("120_000", "12_000"), GUIDE, "exec", WAIT), names)) is not None:
                await made

    asyncio.run(run())
    assert len(names["responses"]) == len(names["results"]) == 2
    assert names["response"].source_nodes and names["result"]["context"]
    assert {"report.pdf", "book.txt"} <= {id.partition("@")[0] for id in engines[-1].documents}
    assert re.search(r"interval 32, .*\nbm25 .*", capsys.readouterr().out, re.DOTALL)


def server(names: dict[str, Any], *, seconds: float = 30) -> dict[str, Any]:
    """The guide's server, as it is printed but for its deadline."""
    [code] = [code for code in blocks(GUIDE, "python") if "async def app(" in code]
    exec(code.replace('"timeout_s": 30', f'"timeout_s": {seconds}'), names)
    return names


async def call(answer: Callable[..., Any], *given: Any, body: bytes = b"", hang_up: bool = False) -> list[Any]:
    """The code that an ASGI function answers with, then the pieces of its body; the caller's body comes in two."""
    parts = [{"body": body[:9], "more_body": True}, {"body": body[9:]}] if body else []
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not parts and not hang_up:
            await asyncio.Event().wait()
        return parts.pop(0) if parts else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        await asyncio.sleep(0)

    await answer(*given, receive, send)
    start, *bodies = sent
    assert [message.get("more_body", False) for message in bodies] == [True] * (len(bodies) - 1) + [False]
    return [start["status"], *(message["body"] for message in bodies if message.get("body"))]


@pytest.fixture
def serve(engines: list[ACRE]) -> Serve:
    """Asks the guide's server about a document of alice's."""

    def ask(*, seconds: float = 30, waiting: int = 64, **wish: Any) -> list[Any]:
        names = server({}, seconds=seconds)
        names["acre"].add(TEXT, id="rooms", tenant="alice")
        names["acre"].decoder.worker.max_waiting = waiting
        body = json.dumps({"tenant": "alice", "question": "Where is the drum?"} | wish).encode()
        return asyncio.run(call(names["app"], {"type": "http"}, body=body))

    return ask


def test_the_guides_server_answers_whole_and_as_it_is_decoded(serve: Serve) -> None:
    code, whole = serve()
    answer = json.loads(whole)
    assert code == 200 and answer["sources"][0]["document"] == "rooms"
    code, *pieces = serve(documents=["rooms"], stream=True)
    assert code == 200 and b"".join(pieces).decode().strip() == answer["text"].strip()


@pytest.mark.parametrize("hang_up", [False, True])
def test_the_guides_server_stops_when_the_caller_hangs_up(engines: list[ACRE], hang_up: bool) -> None:
    ended: list[int] = []

    async def stream() -> AsyncIterator[str]:
        said = 0
        try:
            while said < 50:
                said += 1
                yield "word "
        finally:
            ended.append(said)

    code, *pieces = asyncio.run(call(server({})["pass_on"], stream(), hang_up=hang_up))
    assert code == 200 and len(ended) == 1
    assert ended[0] < 5 if hang_up else pieces == [b"word "] * 50


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "wish"),
    [
        (503, {"waiting": 0}),
        (504, {"seconds": 1e-6}),
        (404, {"documents": ["another"]}),
        (404, {"tenant": "bob"}),
        (413, {"question": "Where? " * 400}),
    ],
)
def test_the_guides_server_says_what_is_wrong(serve: Serve, code: int, wish: dict[str, Any], stream: bool) -> None:
    assert serve(**{"stream": stream} | wish)[0] == code
