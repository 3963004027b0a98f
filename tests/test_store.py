"""Documents on disk: what comes back is what was read, and nothing else is taken for it."""

import json
import os
import re
import resource
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import exact, tiny_decoder
from safetensors.torch import load_file, save_file
from test_engine import SHORT, TEXT

from acre_rag import ACRE, ACREConfig
from acre_rag.construct import ReadingPlan
from acre_rag.errors import CorruptCacheError, DocumentError, FingerprintError, StoreError, StoreFormatError
from acre_rag.fingerprint import document_fingerprint
from acre_rag.prompts import PromptTemplate
from acre_rag.proxies import LearnedProxy
from acre_rag.proxies.learned import L1Parameters
from acre_rag.store import Store
from acre_rag.store.entry import sha256
from acre_rag.store.manifest import StoredFile
from acre_rag.store.shards import ShardWriter

CONFIG = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus")


def engine(folder: Path | None, **options) -> ACRE:
    return ACRE(tiny_decoder(), store=folder, **{"config": CONFIG, **options})


def count_forwards(acre: ACRE) -> list[int]:
    calls: list[int] = []
    acre.decoder.model.model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_restart_finds_the_document_and_answers_bit_for_bit(tmp_path: Path) -> None:
    first = engine(tmp_path)
    read = first.add(TEXT, id="rooms")
    expected = first.ask("Where is the drum?", settings=SHORT)
    again = engine(tmp_path)
    assert list(again.documents) == ["rooms"]
    calls = count_forwards(again)
    document = again.add(TEXT, id="rooms")
    assert not calls, "it was read again"
    answer = again.ask("Where is the drum?", "rooms", settings=SHORT)
    assert (answer.text, answer.sources, answer.usage) == (expected.text, expected.sources, expected.usage)
    assert document.passages == read.passages and (document.offsets == read.offsets).all()
    assert document.construct_s == read.construct_s
    with again.holding([document]):
        ours, theirs = document.cache, read.cache
        assert torch.equal(exact(ours), exact(theirs))
        for a, b in ((ours.l1, theirs.l1), (ours.prefix, theirs.prefix), (ours.tail, theirs.tail)):
            assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        assert torch.equal(ours.prior.scores, theirs.prior.scores)


def test_a_question_reads_only_its_own_groups_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acre_rag.store.store.ShardWriter", lambda l2, n: ShardWriter(l2, n, group_bytes=1))
    engine(tmp_path).add(TEXT, id="rooms")
    acre = engine(tmp_path)
    checked: list[int] = []
    from acre_rag.store import shards

    real = shards.tensor_digest
    monkeypatch.setattr(shards, "tensor_digest", lambda rows: checked.append(len(rows)) or real(rows))
    answer = acre.ask("Where is the drum?", settings=SHORT)
    assert 0 < sum(checked) * 8 == answer.usage.refilled_tokens < acre.documents["rooms"].n_tokens / 4
    acre.ask("Where is the drum?", settings=SHORT)
    assert sum(checked) * 8 == answer.usage.refilled_tokens, "a group is checked once"


@pytest.mark.parametrize(("group", "shard"), [(1, 1), (5_000, 1), (5_000, 20_000), (10**9, 10**9)])
def test_any_cut_into_groups_and_shards_gives_the_rows_back(tmp_path: Path, group: int, shard: int) -> None:
    import acre_rag.store.store as module

    real = module.ShardWriter
    module.ShardWriter = lambda l2, n: ShardWriter(l2, n, group_bytes=group, shard_bytes=shard)
    try:
        read = engine(tmp_path).add(TEXT, id="rooms")
    finally:
        module.ShardWriter = real
    store = Store(tmp_path)
    [entry] = store.entries()
    entry.verify()
    cache, whole = entry.cache(), exact(read.cache)
    for rows in ([0], [7, 3, 3, read.n_blocks - 1], list(range(read.n_blocks))):
        assert torch.equal(cache.l2.take(torch.tensor(rows)), whole[rows])
    assert cache.l2.n_bytes == whole.nbytes and cache.l2.host_bytes == 0
    assert (len(entry.manifest.shards) == 1) == (shard == 10**9)


def test_a_document_shorter_than_a_block_is_stored_too(tmp_path: Path) -> None:
    engine(tmp_path).add("Hi Bob", id="note")
    again = engine(tmp_path)
    assert again.ask("Who?", "note", settings=SHORT).usage.refilled_tokens == 0
    store = Store(tmp_path)
    store.find("note")[0].verify()


def test_only_the_owner_may_read_a_store(tmp_path: Path) -> None:
    engine(tmp_path / "store").add(TEXT, id="rooms")
    for path in (tmp_path / "store").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


def test_nothing_a_user_typed_is_part_of_a_path(tmp_path: Path) -> None:
    engine(tmp_path / "s").add(TEXT, id="../secret plan", tenant="alice")
    names = " ".join(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert "secret" not in names and "alice" not in names and "drum" not in names


CHANGES = {
    "interval": {"config": replace(CONFIG, interval=16)},
    "window": {"config": replace(CONFIG, window=480)},
    "stride": {"config": replace(CONFIG, stride=32)},
    "passage_tokens": {"config": replace(CONFIG, passage_tokens=40)},
    "l2_bits": {"config": replace(CONFIG, l2_bits=8)},
    "template": {"template": PromptTemplate(before="Look:\n", after="\n{question}")},
}


@pytest.mark.parametrize("field", CHANGES)
def test_other_options_are_refused_by_name_and_rebuilt_when_asked(tmp_path: Path, field: str) -> None:
    engine(tmp_path).add(TEXT, id="rooms")
    other = engine(tmp_path, **CHANGES[field])
    assert not other.documents, "it must not be listed as if it could be asked"
    with pytest.raises(FingerprintError, match=rf"'rooms'.*{field} \(stored"):
        other.add(TEXT, id="rooms")
    with pytest.raises(FingerprintError, match=rf"{field} \(stored"):
        other.ask("Where?", "rooms")
    other.add(TEXT, id="rooms", rebuild=True)
    assert other.ask("Where is the drum?", "rooms", settings=SHORT).text
    assert len(Store(tmp_path).entries()) == 1
    with pytest.raises(FingerprintError):
        engine(tmp_path).add(TEXT, id="rooms")


def test_another_model_another_type_and_an_adapter_are_refused(tmp_path: Path) -> None:
    engine(tmp_path).add(TEXT, id="rooms")
    with pytest.raises(FingerprintError, match="weights"):
        ACRE(tiny_decoder("qwen2"), config=CONFIG, store=tmp_path).add(TEXT, id="rooms")
    learned = LearnedProxy(L1Parameters(tiny_decoder()))
    with pytest.raises(FingerprintError, match="adapter.*proxy"):
        engine(tmp_path, proxy=learned).add(TEXT, id="rooms")
    with torch.no_grad():
        learned.parameters.embedding += 1
    one = engine(None, proxy=learned).fingerprint
    assert one != engine(None, proxy=LearnedProxy(L1Parameters(tiny_decoder()))).fingerprint


def test_the_fingerprint_names_what_the_design_asks_for() -> None:
    found = document_fingerprint(engine(None).fingerprint, ReadingPlan(window=512, interval=8, stride=64))
    wanted = [
        "format",
        "weights",
        "tokenizer",
        "dtype",
        "rope",
        "interval",
        "window",
        "stride",
        "proxy",
        "adapter",
        "template",
        "l2_bits",
        "heads",
    ]
    assert set(wanted) <= found.keys()
    assert json.loads(json.dumps(found)) == found


def test_another_text_under_a_stored_id_is_refused(tmp_path: Path) -> None:
    engine(tmp_path).add(TEXT, id="rooms")
    with pytest.raises(DocumentError, match="another text"):
        engine(tmp_path).add(TEXT + " More.", id="rooms")
    with pytest.raises(DocumentError, match="another text is stored"):
        engine(tmp_path, **CHANGES["interval"]).add(TEXT + " More.", id="rooms")


def test_damage_is_named_and_a_rebuild_heals_it(tmp_path: Path) -> None:
    engine(tmp_path).add(TEXT, id="rooms")
    [entry] = Store(tmp_path).entries()
    for name in entry.manifest.files:
        raw = bytearray((entry.folder / name).read_bytes())
        raw[-5] ^= 16
        (entry.folder / name).write_bytes(raw)
        with pytest.raises(CorruptCacheError, match=re.escape(name)):
            entry.verify()
        acre = engine(tmp_path)
        if name == "l2-00000.safetensors":
            with pytest.raises(CorruptCacheError, match="rebuild=True"):
                acre.using(budget=4096, max_passages=99).ask("Where is the drum?", settings=SHORT)
        acre.add(TEXT, id="rooms", rebuild=True)
        Store(tmp_path).find("rooms")[0].verify()
    (entry.folder / "manifest.json").write_text("{")
    with pytest.raises(CorruptCacheError, match="not JSON"):
        engine(tmp_path).add(TEXT, id="rooms")
    engine(tmp_path).add(TEXT, id="rooms", rebuild=True)
    assert len(Store(tmp_path).entries()) == 1


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    """A real refusal by the system: the process may not write files longer than 100 KB."""
    acre = engine(tmp_path)
    acre.add(TEXT[:400], id="short")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            child = engine(tmp_path)
            try:
                child.add(TEXT, id="long")
            except StoreError as error:
                code = 0 if "the disk is full" in str(error) and "acre rm" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert list(engine(tmp_path).documents) == ["short"]
    assert not list((tmp_path / "tmp").iterdir())


def test_what_is_not_a_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("precious")
    with pytest.raises(StoreError, match=r"not a store: it holds thesis\.docx"):
        Store(tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "thesis.docx")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_a_store_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    acre = engine(tmp_path)
    monkeypatch.setattr("acre_rag.store.files.write", refuse)
    with pytest.raises(StoreError, match="Permission denied"):
        acre.add(TEXT, id="rooms")
    assert not acre.documents


def test_tenants_do_not_see_each_other(tmp_path: Path) -> None:
    acre = engine(tmp_path)
    mine = acre.add(TEXT, id="rooms", tenant="alice")
    calls = count_forwards(acre)
    theirs = acre.add(TEXT, id="rooms", tenant="bob")
    assert calls, "the same text of another tenant was not read: its presence could be probed"
    assert mine is not theirs
    with acre.holding([mine, theirs]):
        assert mine.cache.l1.keys.data_ptr() != theirs.cache.l1.keys.data_ptr()
    acre.remove("rooms", tenant="bob")
    assert list(acre.documents_of("alice")) == ["rooms"] and not acre.documents_of("bob") and not acre.documents
    for documents in ("rooms", mine, None):
        with pytest.raises(DocumentError) as told:
            acre.ask("Where?", documents, tenant="bob")
        assert "alice" not in str(told.value)
    again = engine(tmp_path)
    assert list(again.documents_of("alice")) == ["rooms"] and not again.documents_of("bob") and not again.documents
    assert not Store(tmp_path).entries("bob") and len(Store(tmp_path).entries("alice")) == 1


def test_a_document_stored_by_another_process_is_found(tmp_path: Path) -> None:
    here, there = engine(tmp_path), engine(tmp_path)
    assert not here.documents
    there.add(TEXT, id="rooms")
    assert here.ask("Where is the drum?", "rooms", settings=SHORT).sources
    there.add(TEXT[:400], id="more")
    calls = count_forwards(here)
    here.add(TEXT[:400], id="more")
    assert not calls
    there.remove("rooms")
    assert not engine(tmp_path).documents.keys() - {"more"}
    assert here.ask("Where is the drum?", "rooms", settings=SHORT).sources, "open mappings outlive the folder"


def test_what_another_process_removed_can_be_added_again(tmp_path: Path) -> None:
    here, there = engine(tmp_path), engine(tmp_path)
    first = here.add(TEXT, id="rooms")
    expected = here.ask("Where is the drum?", settings=SHORT).text
    there.remove("rooms")
    assert here.add(TEXT, id="rooms") is not first and [entry.id for entry in Store(tmp_path).entries()] == ["rooms"]
    here.release("rooms")
    there.remove("rooms")
    with pytest.raises(DocumentError, match=r"^The document 'rooms' was removed.*another process.*Add it again"):
        here.ask("Where is the drum?", settings=SHORT)
    assert not here.documents, "it would be in the way of every question to all documents"
    here.add(TEXT, id="rooms")
    assert here.ask("Where is the drum?", settings=SHORT).text == expected
    there.remove("rooms")
    there.add(TEXT[:400], id="rooms")
    assert here.add(TEXT[:400], id="rooms").text == TEXT[:400], "the text of before is not there any more"


def test_what_another_process_built_anew_is_asked_as_it_is_now(tmp_path: Path) -> None:
    here, there = engine(tmp_path), engine(tmp_path)
    document = here.add(TEXT, id="rooms")
    expected = here.ask("Where is the drum?", settings=SHORT)
    here.release("rooms")
    [entry] = Store(tmp_path).entries()
    there.add(TEXT, id="rooms", rebuild=True)
    small = entry.folder / "compact.safetensors"  # of other bytes and the same meaning, as another release may write it
    save_file(load_file(small), small, metadata={"written": "anew"})
    [entry] = Store(tmp_path).entries()
    files = entry.manifest.files | {
        small.name: StoredFile(bytes=small.stat().st_size, sha256=sha256(small.read_bytes()))
    }
    (entry.folder / "manifest.json").write_bytes(replace(entry.manifest, files=files).dump())
    assert here.add(TEXT, id="rooms") is document
    assert here.ask("Where is the drum?", settings=SHORT).text == expected.text


@pytest.mark.parametrize("name", ["text.txt", "places.safetensors"])
def test_damage_of_a_text_is_told_as_such(name: str, tmp_path: Path) -> None:
    first = engine(tmp_path)
    first.add(TEXT, id="rooms")
    file = Store(tmp_path).find("rooms")[0].folder / name
    file.write_bytes(file.read_bytes()[:-5] + b"12345")
    acre = engine(tmp_path)
    for asked in ("rooms", None):
        with pytest.raises((CorruptCacheError, DocumentError), match=f"'rooms' is damaged: {name}.*rebuild=True"):
            acre.ask("Where is the drum?", asked, settings=SHORT)
    with pytest.raises(CorruptCacheError, match=name):
        acre.get("rooms")
    acre.add(TEXT[:400], id="more")
    [note] = acre.ask("Where is the drum?", settings=SHORT).notes
    assert note.startswith("left out: ") and "'rooms' is damaged" in note
    assert acre.ask("Where is the drum?", "more", settings=SHORT).notes == ()
    engine(tmp_path).add(TEXT, id="rooms", rebuild=True)
    assert acre.prepare("Where is the drum?").notes == () and "rooms" in acre.documents, "another process healed it"


def test_what_is_stored_by_others_under_an_id_can_be_removed_and_replaced(tmp_path: Path) -> None:
    engine(tmp_path).add(TEXT, id="rooms")
    acre = engine(tmp_path, **CHANGES["interval"])
    with pytest.raises(DocumentError, match="another text is stored; remove it first"):
        acre.add(TEXT[:400], id="rooms")
    acre.remove("rooms")
    assert not Store(tmp_path).entries()
    acre.add(TEXT[:400], id="rooms")
    damaged = Store(tmp_path).find("rooms")[0].folder / "text.txt"
    damaged.write_bytes(b"?")
    another = engine(tmp_path, **CHANGES["interval"])
    another.remove("rooms")
    with pytest.raises(DocumentError, match="No document 'rooms'"):
        another.remove("rooms")


def test_a_document_of_before_a_rebuild_says_so() -> None:
    acre = engine(None)
    old = acre.add(TEXT, id="rooms")
    new = acre.add(TEXT, id="rooms", rebuild=True)
    with pytest.raises(DocumentError, match="read anew.*by its id"):
        acre.ask("Where is the drum?", old, settings=SHORT)
    assert acre.ask("Where is the drum?", new, settings=SHORT).text


def test_a_document_that_is_gone_is_not_called_damaged(tmp_path: Path) -> None:
    engine(tmp_path).add(TEXT, id="rooms")
    store = Store(tmp_path)
    [entry] = store.entries()
    store.remove(entry.folder)
    for read in (entry.document, entry.cache, entry.reload):
        with pytest.raises(StoreError, match="removed by another process") as told:
            read()
        assert not isinstance(told.value, CorruptCacheError)
    engine(tmp_path).add(TEXT, id="rooms")
    (entry.folder / "places.safetensors").unlink()
    with pytest.raises(CorruptCacheError) as told:
        entry.document()
    assert str(told.value).count("damaged") == 1


def test_gc_removes_remains_and_unreadable_documents_only(tmp_path: Path) -> None:
    acre = engine(tmp_path)
    acre.add(TEXT, id="good")
    acre.add(TEXT[:400], id="bad")
    store = Store(tmp_path)
    (store.find("bad")[0].folder / "manifest.json").unlink()
    (tmp_path / "tmp" / "f00").mkdir()
    (tmp_path / "tmp" / "f00" / "l2-00000.safetensors").write_bytes(b"x")
    assert store.gc() == (1, 1, 0)
    assert store.gc() == (0, 0, 0)
    assert [entry.id for entry in store.entries()] == ["good"]
    store.entries()[0].verify()


def of_format(number: int, path: Path) -> None:
    """What another version of the package would have left there."""
    path.write_text(path.read_text().replace("acre-rag-store/3", f"acre-rag-store/{number}"))


@pytest.mark.parametrize("number", [2, 4])
def test_a_store_of_another_format_is_refused_and_nothing_in_it_is_touched(tmp_path: Path, number: int) -> None:
    engine(tmp_path).add(TEXT, id="rooms")
    of_format(number, Store(tmp_path).find("rooms")[0].folder / "manifest.json")
    of_format(number, tmp_path / "acre-store.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    told = f"'acre-rag-store/{number}', and this version of acre-rag reads 'acre-rag-store/3'.*into a new folder"
    with pytest.raises(StoreFormatError, match=told):
        Store(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_gc_leaves_documents_of_another_format(tmp_path: Path) -> None:
    """Two installed versions that shared a folder before its mark was checked."""
    acre = engine(tmp_path)
    acre.add(TEXT, id="rooms")
    acre.add(TEXT, id="theirs")
    store = Store(tmp_path)
    folder = store.find("theirs")[0].folder
    of_format(1, folder / "manifest.json")
    told: list[str] = []
    assert [entry.id for entry in store.entries(damaged=lambda _, reason: told.append(reason))] == ["rooms"]
    assert "'acre-rag-store/1'" in told[0] and "acre gc" not in told[0]
    with pytest.raises(StoreFormatError, match=folder.name):
        store.entry_at(folder)
    assert store.gc() == (0, 0, 1)
    assert (folder / "manifest.json").is_file()


def test_a_damaged_mark_is_told_and_can_be_written_anew(tmp_path: Path) -> None:
    engine(tmp_path).add(TEXT, id="rooms")
    mark = tmp_path / "acre-store.json"
    for damage in ("", "[]", '{"format": "acre-rag-stone/2"}'):
        mark.write_text(damage)
        with pytest.raises(StoreError, match="remove that one file"):
            Store(tmp_path)
    mark.unlink()
    assert [entry.id for entry in Store(tmp_path).entries()] == ["rooms"]


def test_a_link_in_the_store_is_not_followed(tmp_path: Path) -> None:
    engine(tmp_path / "a").add(TEXT, id="rooms")
    engine(tmp_path / "b").add(TEXT[:400], id="other")
    [entry], [other] = Store(tmp_path / "a").entries(), Store(tmp_path / "b").entries()
    link = entry.folder.parent / ("0" * 64)
    link.symlink_to(other.folder)
    told: list[str] = []
    assert [e.id for e in Store(tmp_path / "a").entries(damaged=lambda _, reason: told.append(reason))] == ["rooms"]
    assert "link" in told[0]
    Store(tmp_path / "a").gc()
    assert not link.exists() and other.folder.exists()
    other.verify()


def test_many_open_a_new_store_at_once(tmp_path: Path) -> None:
    """Each finds no mark and would write one: whoever comes second must not trip over the first."""
    for number in range(20):
        ready = threading.Barrier(8)

        def opened(root: Path = tmp_path / str(number), ready: threading.Barrier = ready) -> int:
            ready.wait()
            return len(Store(root).entries())

        with ThreadPoolExecutor(8) as pool:
            found = [pool.submit(opened) for _ in range(8)]
        assert [each.result() for each in found] == [0] * 8


def test_a_rebuild_that_cannot_be_saved_leaves_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acre = engine(tmp_path)
    acre.add(TEXT, id="rooms")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for failing in ("write", "rename"):
        with monkeypatch.context() as patched:
            patched.setattr(f"acre_rag.store.files.{failing}", full)
            with pytest.raises(StoreError, match="disk is full"):
                acre.add(TEXT, id="rooms", rebuild=True)
        assert [entry.id for entry in Store(tmp_path).entries()] == ["rooms"]
        Store(tmp_path).find("rooms")[0].verify()
    acre.add(TEXT, id="rooms", rebuild=True)
    assert [entry.id for entry in Store(tmp_path).entries()] == ["rooms"] and not list((tmp_path / "tmp").iterdir())


def test_a_short_document_of_few_bits_is_asked_after_a_restart(tmp_path: Path) -> None:
    config = replace(CONFIG, l2_bits=8)
    engine(tmp_path, config=config).add("Hi Bob", id="note")
    assert engine(tmp_path, config=config).ask("Who?", "note", settings=SHORT).usage.refilled_tokens == 0


def test_what_cannot_be_read_now_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine(tmp_path).add(TEXT, id="rooms")

    def refuse(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    store = Store(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        assert store.gc() == (0, 0, 0)
    assert [entry.id for entry in Store(tmp_path).entries()] == ["rooms"]
