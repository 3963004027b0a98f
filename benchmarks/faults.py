"""What breaks a store or an engine, done on purpose, many times: kills, failing calls, changed bytes, hostile names, crowds.

Every function does its worst and returns counts; `tests/test_faults.py` runs them small, this command in the nightly size.
They run on a tiny random model: what is tested is the house around the model, and identity of answers, not their sense.
"""

import argparse
import errno
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from acre_rag import ACRE, ACREConfig, GenerationSettings
from acre_rag.errors import AcreError, StoreError
from acre_rag.fingerprint import Fingerprint, document_fingerprint
from acre_rag.residency import Residency
from acre_rag.store import Store, files
from benchmarks.damage import DAMAGE, restore
from benchmarks.record import write

CONFIG = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, max_passages=2)
SHORT = GenerationSettings(max_new_tokens=8)
THINGS = [
    "apple",
    "bread",
    "chair",
    "drum",
    "eagle",
    "flag",
    "glove",
    "horn",
    "ink",
    "jar",
    "kite",
    "lamp",
    "mask",
    "nail",
    "oar",
    "pipe",
    "quill",
    "rope",
    "ship",
    "tent",
]
NewEngine = Callable[..., ACRE]
"""Called with options of `ACRE`; every engine it makes has the same model."""


def tiny_engine(**more: Any) -> ACRE:
    """An engine of the tests' tiny random model; a function of this module, so that other processes can call it."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from conftest import tiny_decoder

    return ACRE(tiny_decoder(), **{"config": CONFIG, **more})


def text(number: int) -> str:
    """A small document; every number has its own."""
    return "\n\n".join(f"Paragraph {i}: the {word} is in hall {number * 7 + i}." for i, word in enumerate(THINGS))


QUESTIONS = tuple(f"Where is the {thing}?" for thing in THINGS)


def kills(new_engine: NewEngine, folder: Path, times: int, *, seed: int = 0) -> dict[str, int]:
    """SIGKILL at random moments of saving: what is loaded afterwards is whole, and nothing is left behind."""
    rng = random.Random(seed)
    read = _Read(new_engine())
    counts: Counter[str] = Counter(kills=times)
    began = time.perf_counter()
    read.save(Store(folder / "timing"), 0)
    save_s = time.perf_counter() - began
    store = Store(folder / "store")
    for round_ in range(times):
        child = os.fork()
        if child == 0:
            with _dying_quietly():
                for number in range(1000):
                    read.save(store, round_ * 1000 + number)
        time.sleep(rng.uniform(0, 4 * save_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        counts["remains_before_opening"] += len(list((folder / "store" / "tmp").iterdir())) > 0
        store = Store(folder / "store")
        counts["leftovers"] += len(list((folder / "store" / "tmp").iterdir()))
        entries = store.entries(damaged=lambda _folder, _reason: counts.update(corrupt_loads=1))
        for entry in entries:
            counts["documents_saved"] += 1
            try:
                entry.verify()
            except AcreError:
                counts["corrupt_loads"] += 1
            store.remove(entry.folder)
    return {name: counts[name] for name in (*counts, "corrupt_loads", "leftovers")}


def failing_calls(new_engine: NewEngine, folder: Path) -> dict[str, int]:
    """The i-th write, flush or rename fails, for every i: a clear error, nothing lost, nothing left, and it works again."""
    read = _Read(new_engine())
    store = Store(folder)
    read.save(store, 0)
    counts: Counter[str] = Counter()
    for name in ("write", "fsync", "rename"):
        for i in range(10_000):
            with _failing(name, i) as reached:
                try:
                    read.save(store, 1)
                except StoreError as error:
                    counts["clear_errors"] += "disk is full" in str(error)
            counts[f"failed_{name}"] += reached()
            Store(folder)
            counts["leftovers"] += len(list((folder / "tmp").iterdir()))
            kept = [entry.id for entry in store.entries()]
            counts["lost"] += "document 0" not in kept
            store.find("document 0")[0].verify()
            for entry in store.find("document 1"):
                entry.verify()
                store.remove(entry.folder)
            if not reached():
                break
    read.save(store, 1)
    counts["works_again"] = len(store.find("document 1"))
    return dict(counts) | {"leftovers": counts["leftovers"], "lost": counts["lost"]}


def mutations(new_engine: NewEngine, folder: Path, times: int, *, seed: int = 0) -> dict[str, int]:
    """Flipped bits, cut and swapped files, edited headers and manifests: refused by name, or answered as before."""
    rng = random.Random(seed)
    acre = new_engine(store=folder)
    for number in range(2):
        acre.add(text(number), id=f"document {number}")
    expected = acre.ask(QUESTIONS[3], "document 0", settings=SHORT)
    places = {entry.id: entry.folder for entry in Store(folder).entries()}
    originals = {path: path.read_bytes() for place in places.values() for path in place.iterdir()}
    counts: Counter[str] = Counter(mutations=times)
    for _ in range(times):
        kind = rng.choice(list(DAMAGE))
        target = rng.choice([path for path in originals if path.parent == places["document 0"]])
        DAMAGE[kind](target, places["document 1"], rng)
        counts[kind] += 1
        try:
            Store(folder).find("document 0")[0].verify()
            counts["unseen_by_verify"] += target.read_bytes() != originals[target] if target.exists() else 1
        except (AcreError, IndexError):
            counts["seen_by_verify"] += 1
        try:
            again = new_engine(store=folder)
            again.add(text(0), id="document 0")
            answer = again.ask(QUESTIONS[3], "document 0", settings=SHORT)
            counts["answered"] += 1
            counts["wrong_answers"] += (answer.text, answer.sources) != (expected.text, expected.sources)
        except AcreError:
            counts["refused"] += 1
        except Exception as error:  # counted: the claim is that there is none
            counts["unnamed_errors"] += 1
            print("unnamed:", kind, target.name, repr(error)[:300], flush=True)
        restore(folder, originals)
    return {name: counts[name] for name in (*counts, "unseen_by_verify", "wrong_answers", "unnamed_errors")}


def fingerprints(new_engine: NewEngine, folder: Path) -> dict[str, Any]:
    """Every field of the fingerprint changed alone: refused, and the message names the field."""
    acre = new_engine(store=folder)
    document = acre.add(text(0), id="document 0")
    fields = sorted(_fingerprint(acre, document.n_tokens))
    named = []
    for field in fields:
        other = new_engine(store=folder)
        library = other._library
        library._fingerprint = {**library._fingerprint, field: "another"}
        if field in ("window", "interval", "stride"):
            options = {"window": 448, "interval": 16, "stride": 32}
            other = new_engine(store=folder, config=replace(CONFIG, **{field: options[field]}))
        try:
            other.add(text(0), id="document 0")
        except AcreError as error:
            named += [field] if f" {field} (stored" in str(error) else []
    return {"fields": len(fields), "refused_by_name": len(named), "missed": sorted(set(fields) - set(named))}


def crowd(
    new_engine: NewEngine, folder: Path, *, threads: int = 8, documents: int = 4, questions: int = 25
) -> dict[str, int]:
    """Threads asking documents that do not all fit memory, freed buffers poisoned: answers are the serial ones."""
    serial = new_engine()
    for number in range(documents):
        serial.add(text(number), id=str(number))
    asked = [(str(n % documents), QUESTIONS[(n * 3 + n // 4) % len(QUESTIONS)]) for n in range(questions)]
    expected = {(d, q): serial.ask(q, d, settings=SHORT) for d, q in set(asked)}
    acre = new_engine(store=folder)
    one = serial.statistics.device_bytes // documents
    acre._library.residency = Residency(
        acre.decoder.device, device_bytes=int(2.2 * one), host_bytes=int(1.1 * one), poison=True
    )
    for number in range(documents):
        acre.add(text(number), id=str(number))
    counts: Counter[str] = Counter(threads=threads, documents=documents, questions_per_thread=questions)

    def work(seed: int) -> None:
        mine = list(asked)
        random.Random(seed).shuffle(mine)
        for d, q in mine:
            answer = acre.ask(q, d, settings=SHORT)
            counts["asked"] += 1
            counts["wrong"] += (answer.text, answer.sources) != (expected[d, q].text, expected[d, q].sources)

    crowd_ = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for thread in crowd_:
        thread.start()
    for thread in crowd_:
        thread.join()
    counts["evictions"] = acre.statistics.evictions
    return dict(counts) | {"wrong": counts["wrong"]}


def processes(new_engine: NewEngine, folder: Path, *, seconds: float, count: int = 4) -> dict[str, int]:
    """Processes that add, ask and remove the same documents of one store: no wrong answer."""
    serial = new_engine()
    expected = []
    for number in range(3):
        serial.add(text(number), id=str(number))
        expected.append(serial.ask(QUESTIONS[number], str(number), settings=SHORT).text)
    _wait_idle(serial)
    clean = multiprocessing.get_context(
        "forkserver"
    )  # a fork of this process would inherit locks of its OpenMP threads
    clean.set_forkserver_preload(["acre_rag", "torchao.quantization", "transformers.models.llama.modeling_llama"])
    said = clean.SimpleQueue()
    visitors = [
        clean.Process(target=_visitor, args=(said, new_engine, folder, expected, seconds, seed))
        for seed in range(count)
    ]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    total: Counter[str] = Counter(processes=count, crashes=sum(visitor.exitcode != 0 for visitor in visitors))
    while not said.empty():
        total.update(said.get())
    Store(folder)
    total["leftovers"] = len(list((folder / "tmp").iterdir()))
    return dict(total)


def hostile(new_engine: NewEngine, folder: Path, times: int, *, seed: int = 0) -> dict[str, int]:
    """Ids and tenants made to escape: nothing appears outside the store, and each finds its own text again."""
    rng = random.Random(seed)
    outside = folder / "outside"
    outside.mkdir(parents=True)
    store = folder / "store"
    ids = _hostile_names(times, rng, outside)
    acre = new_engine(store=store)
    for number, id_ in enumerate(ids):
        acre.add(f"note {number}. " + text(0)[:60], id=id_, tenant=ids[-1 - number])
    again = new_engine(store=store)
    found = 0
    for number, id_ in enumerate(ids):
        shelf = again.documents_of(ids[-1 - number])
        found += id_ in shelf and shelf[id_].text.startswith(f"note {number}. ")
    top = {path.name for path in folder.iterdir()}
    return {
        "names": len(ids),
        "found_again": found,
        "outside": len(list(outside.iterdir())) + len(top - {"outside", "store"}),
        "links_in_store": sum(path.is_symlink() for path in store.rglob("*")),
    }


class _Read:
    """A document that has been read, to be saved under many names without reading again."""

    def __init__(self, acre: ACRE) -> None:
        self._acre = acre
        self._document = acre.add(text(0), id="document")
        self._ids = torch.tensor(acre.decoder.tokenizer(text(0), add_special_tokens=False)["input_ids"])
        self._fingerprint = _fingerprint(acre, self._document.n_tokens)
        _wait_idle(acre)

    def save(self, store: Store, number: int) -> None:
        """Save it as document `number`."""
        store.save(replace(self._document, id=f"document {number}"), self._fingerprint, self._ids)


def _fingerprint(acre: ACRE, n_tokens: int) -> Fingerprint:
    return document_fingerprint(acre.fingerprint, acre.plan(n_tokens))


def _wait_idle(acre: ACRE) -> None:
    """A process that forks should have no other thread at work."""
    acre.decoder.worker.stop_when_idle()


@contextmanager
def _dying_quietly() -> Iterator[None]:
    """A forked child: no test's clean-up, no output, no way back."""
    torch.set_num_threads(1)
    code = 1
    try:
        yield
        code = 0
    finally:
        os._exit(code)


@contextmanager
def _failing(name: str, i: int) -> Iterator[Callable[[], bool]]:
    real, calls = getattr(files, name), [0]

    def maybe(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == i + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    setattr(files, name, maybe)
    try:
        yield lambda: calls[0] > i
    finally:
        setattr(files, name, real)


def _visitor(said: Any, new_engine: NewEngine, folder: Path, expected: list[str], seconds: float, seed: int) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    new_engine(store=folder)  # imports take their time before the clock starts
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        acre = new_engine(store=folder)
        number = rng.randrange(len(expected))
        try:
            acre.add(text(number), id=str(number))
            answer = acre.ask(QUESTIONS[number], str(number), settings=SHORT)
            counts["answers"] += 1
            counts["wrong"] += answer.text != expected[number]
            if rng.random() < 0.4:
                acre.remove(str(number))
                counts["removed"] += 1
        except AcreError as error:  # removed by another process in between: told, and true
            counts["told_it_was_removed"] += 1
            counts["other_errors"] += "removed" not in str(error) and "No document" not in str(error)
    said.put(dict(counts))


def _hostile_names(times: int, rng: random.Random, outside: Path) -> list[str]:
    fixed = [
        "..", "../..", "../../outside/x", str(outside / "x"), "/etc/passwd", "a/b", "a\\b", "C:\\x", "con", "nul.txt",
        ".", "", " ", "\0", "a\0b", "\n", "~", "~root", "$HOME", "%2e%2e%2f", "-rf", "*", "?", "x" * 4096, "é" * 4096,
        "straße", "STRASSE", "Straße", "e\u0301", "\u00e9", "K", "\u212a", "\ud800", "a\u202eb", "\ufeff", "tmp", "lock",
        "manifest.json", "acre-store.json", "documents", "A", "a", "ﬁ", "fi",
    ]  # fmt: skip
    pieces = ["..", "/", "\\", "\0", "x", "é", "\u0301", ".", "~", "\ud83d", " ", "A", "a"]
    made = ["".join(rng.choices(pieces, k=rng.randrange(1, 12))) + str(n) for n in range(times)]
    return list(dict.fromkeys([*fixed, *made]))[:times]


def main() -> None:
    """Run all in the nightly size and write benchmarks/results/faults.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--mutations", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--hostile", type=int, default=200)
    options = parser.parse_args()
    new_engine = tiny_engine
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        summary: dict[str, Any] = {}
        for what, run in {
            "kills": lambda place: kills(new_engine, place, options.kills),
            "failing_calls": lambda place: failing_calls(new_engine, place),
            "fingerprints": lambda place: fingerprints(new_engine, place),
            "hostile": lambda place: hostile(new_engine, place, options.hostile),
            "processes": lambda place: processes(new_engine, place, seconds=options.seconds),
            "crowd": lambda place: crowd(new_engine, place),
            "mutations": lambda place: mutations(new_engine, place, options.mutations),
        }.items():
            summary[what] = run(folder / what)
            print(what, summary[what], flush=True)
    print(write("faults", summary))


if __name__ == "__main__":
    main()
