"""The command line as a shell user meets it: output, exit codes, messages."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from conftest import byte_tokenizer, tiny_decoder

from acre_rag import cli
from acre_rag.cli import _split, _stored
from acre_rag.decoder import _WINDOW_CAP
from acre_rag.errors import DocumentError
from acre_rag.options import EngineOptions, Window

TEXT = "The drum is in room one.\n\nThe flute is in room two.\n\n" * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model on disk: fast, and enough for everything but sense."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_decoder().model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@dataclass
class Done:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def acre(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The command in this process (a new one would import torch each time)."""

    def run(*arguments: str, stdin: str = "", check: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["acre", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        for console in (cli.stdout, cli.stderr):
            console._file = None  # the stream of today, not of import time
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        done = Done(int(ended.value.code or 0), captured.out, captured.err)
        assert done.code == check, done.stderr
        return done

    return run


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "rooms.txt"
    path.write_text(TEXT)
    return str(path)


def test_ask_prints_answer_sources_and_cost_and_nothing_else(
    acre: Callable[..., Done], model: str, text: str, tmp_path: Path
) -> None:
    picture = tmp_path / "heat.png"
    done = acre("ask", text, "Where is the drum?", "--model", model, "--max-tokens", "5", "--plot", str(picture))
    assert "rooms.txt, characters" in done.stdout
    assert "refilled" in done.stdout
    assert "tokens/s" not in done.stderr  # no bars where there is no terminal
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_json_is_one_object_with_everything(acre: Callable[..., Done], model: str, text: str) -> None:
    done = acre(
        "ask",
        text,
        "-q",
        "Where is the drum?",
        "--model",
        model,
        "--json",
        "--max-tokens",
        "4",
        "--interval",
        "8",
        "--budget",
        "64",
        "--window",
        "1024",
        "--select",
        "hybrid",
        "--granularity",
        "blocks",
    )
    record = json.loads(done.stdout)
    assert record["usage"]["refilled_tokens"] <= 64
    assert {"document", "start", "end", "text", "score", "page"} == record["sources"][0].keys()
    assert {"construct_s", "select_s", "refill_s", "first_token_s", "decode_s"} == record["timings"].keys()
    assert record["sources"][0]["text"] == TEXT[record["sources"][0]["start"] : record["sources"][0]["end"]]


def test_ask_reads_passages_anew_and_leaves_l1_out(acre: Callable[..., Done], model: str, text: str) -> None:
    asking = ("ask", text, "Where is the drum?", "--model", model, "--json", "--max-tokens", "4", "--interval", "8")
    usage = json.loads(acre(*asking, "--budget", "64").stdout)["usage"]
    alone = json.loads(acre(*asking, "--budget", "64", "--recompute", "--no-l1-context").stdout)["usage"]
    assert usage["refilled_tokens"] == alone["refilled_tokens"] > 0
    assert usage["cached_tokens"] - alone["cached_tokens"] == len(TEXT) // 8


def test_stdin_and_several_files(acre: Callable[..., Done], model: str, text: str) -> None:
    done = acre(
        "ask", "-", text, "Where is the drum?", "--model", model, "--json", "--max-tokens", "4", stdin=TEXT.upper()
    )
    assert {source["document"] for source in json.loads(done.stdout)["sources"]} <= {"stdin", "rooms.txt"}


def test_inspect_says_what_a_cache_holds(acre: Callable[..., Done], model: str, text: str) -> None:
    record = json.loads(acre("inspect", text, "--model", model, "--interval", "8", "--json").stdout)
    assert record["tokens"] == len(TEXT)
    assert record["interval"] == 8 and record["l1_entries"] == len(TEXT) // 8
    assert (
        record["l2_bytes"] == record["l2_tokens"] * 2 * 3 * 2 * 8 * 2
        or record["l2_bytes"] == record["l2_tokens"] * 2 * 3 * 2 * 8 * 4
    )
    assert "L2 (exact)" in acre("inspect", text, "--model", model).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{dir}/missing.txt", "Who?"], 1, "missing.txt"),
        (["{dir}", "Who?"], 1, "is a folder. Name its files; a shell does that for you: {dir}/*.txt"),
        (["{dir}/empty.txt", "Who?"], 1, "empty"),
        (["{dir}/binary.dat", "Who?"], 1, "binary"),
        (["{dir}/rooms.txt", "Who?", "--budget", "-1"], 2, "budget=-1"),
        (["{dir}/rooms.txt", "Who?", "--window", "9999999"], 2, "window=9,999,999"),
        (["{dir}/rooms.txt", "Who?", "--interval", "0"], 2, "interval=0"),
        (["{dir}/rooms.txt", "Who?", "--select", "magic"], 2, "magic"),
        (["{dir}/rooms.txt", "Who?", "--select", "paper", "--recompute"], 2, "recompute=True"),
        (["{dir}/rooms.txt", "Who?", "--max-tokens", "-5"], 2, "max_new_tokens=-5"),
        (["{dir}/rooms.txt", "Who?", "--model", "{dir}/nowhere.gguf"], 1, "GGUF file not found"),
        (["{dir}/rooms.txt", "Who?", "--adapter", "{dir}/nothing.safetensors"], 1, "nothing.safetensors"),
        (["{dir}/rooms.txt", "Who?", "--heads", "{dir}/rooms.txt"], 1, "not a heads file"),
        (["{dir}/rooms.txt", "why " * 400], 1, "window"),
        (["Who is it?"], 1, "no file is given"),
        (["{dir}/rooms.txt"], 2, "No question given"),
        ([], 2, "Nothing to ask"),
        (["{dir}/missing.txt", " "], 2, "The question is empty"),  # before anything is read
        (["{dir}/missing.txt", "-q", ""], 2, "The question is empty"),
        # Before anything is read:
        (["{dir}/missing.txt", "Who?", "--plot", "{dir}/none/heat.png"], 1, "there is no folder {dir}/none. Create it"),
        (["{dir}/missing.txt", "Who?", "--plot", "{dir}/heat.bmp"], 2, "Use one of: .png, .svg, .pdf"),
        (["{dir}/missing.txt", "Who?", "--plot", "heat"], 2, "Use one of: .png, .svg, .pdf"),
    ],
)
def test_bad_input_gets_a_message_and_an_exit_code(
    acre: Callable[..., Done], arguments: list[str], code: int, message: str, model: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.dat").write_bytes(bytes(range(256)) * 40)
    filled = [a.format(dir=tmp_path) for a in arguments]
    if "--model" not in filled:
        filled += ["--model", model]
    done = acre("ask", *filled, check=code)
    assert message.format(dir=tmp_path) in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_help_of_window_names_the_cap() -> None:
    assert f"at most {_WINDOW_CAP:,}" in get_args(Window)[1].help


@pytest.mark.parametrize("terminal", [True, False])
def test_an_interrupted_command_says_what_it_leaves_behind(model: str, tmp_path: Path, terminal: bool) -> None:
    """Ctrl-C while it waits for its text: a pipe that nobody fills."""
    pipe = tmp_path / "text.txt"
    os.mkfifo(pipe)
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "acre_rag.cli", "ask", str(pipe), "Where?", "--model", model]
    streams = {"stdin": subprocess.DEVNULL, "stdout": theirs, "stderr": theirs}
    # What a shell starts in the background ignores interrupts, and so would its children.
    with subprocess.Popen(
        command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **streams
    ) as process:
        os.close(theirs)
        with pipe.open("wb"):  # returns when the command has begun to read
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
    assert b"Interrupted; nothing half-made" in os.read(ours, 4096)
    os.close(ours)


def test_the_version_is_that_of_the_package(acre: Callable[..., Done]) -> None:
    pyproject = Path(__file__).parent.parent / "pyproject.toml"
    version = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["version"]
    assert acre("--version").stdout == f"acre {version}\n"
    assert "see where each answer stands" in acre("--help").stdout


@pytest.mark.parametrize("command", ["build", "list", "inspect"])
def test_the_help_of_json_tells_documents_from_answers(
    acre: Callable[..., Done], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "One JSON object per document" in acre(command, "--help").stdout
    assert "One JSON object per answer" in acre("ask", "--help").stdout


def test_an_unknown_command_is_wrong_usage(acre: Callable[..., Done]) -> None:
    assert "No such command" in acre("sing", check=2).stderr


def test_the_prompt_answers_until_the_input_ends(model: str, text: str) -> None:
    """A real terminal: two questions, then Ctrl-D."""
    pid, terminal = pty.fork()
    if pid == 0:  # the child is the shell user's process
        os.execv(
            sys.executable, [sys.executable, "-m", "acre_rag.cli", "ask", text, "--model", model, "--max-tokens", "4"]
        )
    os.write(terminal, b"Where is the drum?\nWhere is the flute?\n\x04")
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown.decode(errors="replace")
    assert shown.count(b"characters") >= 2
    assert b"Ctrl-D" in shown


def test_the_last_argument_is_a_question_unless_it_looks_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("x")
    assert _split(["a.txt", "Who?"], None, stored=None) == (["a.txt"], "Who?")
    assert _split(["a.txt", "b.txt"], None, stored=None) == (["a.txt", "b.txt"], None)
    assert _split(["a.txt", str(tmp_path / "b")], None, stored=None) == (["a.txt", str(tmp_path / "b")], None)
    assert _split(["a.txt", "b.txt"], "Who?", stored=None) == (["a.txt", "b.txt"], "Who?")
    assert _split(["a.txt", "Is it v2.0"], None, stored=None) == (["a.txt"], "Is it v2.0")
    assert _split(["-", "Summary"], None, stored=None) == (["-"], "Summary")
    assert _split(["What is this?"], None, stored=()) == ([], "What is this?")
    assert _split(["contract"], None, stored={"contract"}) == (["contract"], None)
    assert _split(["a.txt", "contract"], None, stored={"contract"}) == (["a.txt", "contract"], None)
    assert _split(["contract", "Who"], None, stored={"contract"}) == (["contract"], "Who")
    assert _split([], "Who?", stored=()) == ([], "Who?") and _split([], None, stored=()) == ([], None)
    with pytest.raises(DocumentError):
        _split(["What is this?"], None, stored=None)


def test_the_installed_command_works_in_a_pipe(model: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("acre"), "ask", "-", "Where?", "--model", model, "--max-tokens", "3", "--json"],
        input=TEXT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0
    assert "acre calibrate" in done.stderr and "tokens/s" not in done.stderr
    assert json.loads(done.stdout)["question"] == "Where?"


def test_a_store_is_built_listed_verified_asked_and_emptied(
    acre: Callable[..., Done], model: str, text: str, tmp_path: Path
) -> None:
    place = ["--store", str(tmp_path / "store")]
    built = json.loads(acre("build", text, *place, "--model", model, "--json").stdout)
    assert built["document"] == "rooms.txt" and built["bytes"] > 100_000
    again = json.loads(acre("build", text, *place, "--model", model, "--json").stdout)
    assert again == built, "it was read a second time"
    assert json.loads(acre("list", *place, "--json").stdout)["tokens"] == built["tokens"]
    assert "rooms.txt" in acre("list", *place).stdout
    assert "rooms.txt: whole" in acre("verify", *place).stdout
    Path(text).unlink()  # the store needs the file no longer
    asking = ("Where is the drum?", *place, "--model", model, "--max-tokens", "3")
    for documents in ((), ("rooms.txt",)):
        answer = json.loads(acre("ask", *documents, *asking, "--json").stdout)
        assert answer["sources"][0]["document"] == "rooms.txt"
    assert json.loads(acre("ask", "-q", *asking, "--json").stdout)["text"] == answer["text"]
    assert _stored(EngineOptions(store=tmp_path / "store")) == {"rooms.txt"}
    assert _stored(EngineOptions(store=tmp_path / "store", tenant="bob")) == set()
    for documents in ((), ("rooms.txt",)):
        assert "No question given" in acre("ask", *documents, *asking[1:], check=2).stderr
    assert "No document 'attic'" in acre("ask", "attic", *asking, check=1).stderr
    assert "no document 'attic'" in acre("rm", "attic", *place, check=1).stderr
    shard = next((tmp_path / "store").rglob("l2-*"))
    shard.write_bytes(shard.read_bytes()[:-9])
    assert "l2-00000.safetensors has" in acre("verify", *place, check=1).stderr
    assert "0 documents with a damaged manifest removed; only manifests" in acre("gc", *place).stdout
    acre("rm", "rooms.txt", *place)
    assert "no documents" in acre("list", *place).stdout
    assert "has no documents for this model" in acre("ask", *asking, check=1).stderr


def test_a_damaged_document_is_told_where_the_whole_store_is_asked(
    acre: Callable[..., Done], model: str, text: str, tmp_path: Path
) -> None:
    place = ["--store", str(tmp_path / "store"), "--model", model]
    acre("build", text, *place)
    damaged = next((tmp_path / "store").rglob("text.txt"))
    damaged.write_bytes(b"X" + damaged.read_bytes()[1:])
    asking = ("Where is the drum?", *place, "--max-tokens", "3")
    refused = acre("ask", *asking, check=1).stderr
    assert "text.txt" in refused and "has no documents" not in refused
    other = tmp_path / "other.txt"
    other.write_text(TEXT * 2)
    acre("build", str(other), *place)
    answer = json.loads(acre("ask", *asking, "--json").stdout)
    assert {source["document"] for source in answer["sources"]} == {"other.txt"}
    [note] = answer["notes"]
    assert note.startswith("left out: ") and "text.txt" in note
    assert "left out: " in acre("ask", *asking).stdout
    assert "left out: " in acre("ask", *asking, "--stream").stdout


def test_one_changed_byte_is_found_by_verify_and_mended_as_it_says(
    acre: Callable[..., Done], model: str, text: str, tmp_path: Path
) -> None:
    place = ["--store", str(tmp_path / "store")]
    acre("build", text, *place, "--model", model, "--interval", "8")
    shard = next((tmp_path / "store").rglob("l2-*"))
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    said = acre("verify", *place, check=1).stderr
    last = len(TEXT) // 8 - 1
    assert f"blocks 0 to {last} of l2-00000.safetensors were changed (tensor 'blocks')" in said
    assert "acre build FILE --rebuild" in said
    acre("gc", *place)
    assert "were changed" in acre("verify", *place, check=1).stderr, "gc reads no blocks"
    acre("build", text, *place, "--model", model, "--interval", "8", "--rebuild")
    assert "rooms.txt: whole" in acre("verify", *place).stdout


def test_a_lone_surrogate_in_a_question_is_printed_as_an_unknown_character(
    acre: Callable[..., Done], model: str, text: str
) -> None:
    done = acre("ask", text, "Where \udcff?", "--model", model, "--max-tokens", "3", "--json")
    assert json.loads(done.stdout)["question"] == "Where \ufffd?"


def test_gc_says_what_it_left_to_another_version(
    acre: Callable[..., Done], model: str, text: str, tmp_path: Path
) -> None:
    place = ["--store", str(tmp_path / "store")]
    acre("build", text, *place, "--model", model)
    manifest = next((tmp_path / "store").rglob("manifest.json"))
    manifest.write_text(manifest.read_text().replace("acre-rag-store/3", "acre-rag-store/1"))
    assert "1 documents of another store format left as they were" in acre("gc", *place).stdout
    assert manifest.exists()


def test_store_commands_need_a_store(acre: Callable[..., Done], model: str, text: str, tmp_path: Path) -> None:
    assert "There is no store at" in acre("list", "--store", str(tmp_path / "none"), check=1).stderr
    assert "--store DIR" in acre("build", text, "--model", model, check=2).stderr
