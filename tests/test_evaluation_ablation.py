"""Ablations: each form leaves out what it says, and a shell user gets one table of them."""

from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_decoder
from evaluation_case import items, run

from acre_rag.baselines.base import Setting
from acre_rag.errors import ConfigError
from acre_rag.evaluation.ablation import SELECTION, training
from acre_rag.evaluation.forms import Form
from acre_rag.heads import Head, RetrievalHeads
from acre_rag.prompts import SHORT_ANSWER
from acre_rag.proxies.adapter import save_adapter
from acre_rag.proxies.learned import L1Parameters


def heads_file(folder: Path) -> Path:
    decoder = tiny_decoder()
    pair, facts = (Head(0, 1, 0.5), Head(1, 0, 0.5)), {"mass_on_right_passage": [0.3, 0.1]}
    heads = RetrievalHeads(pair, decoder.digest, decoder.architecture, facts)
    heads.save(folder / "heads.json")
    return folder / "heads.json"


def engine(folder: Path, **options: Any) -> Any:
    decoder = tiny_decoder()
    setting = Setting(decoder=decoder, template=SHORT_ANSWER, window=512, heads=str(heads_file(folder)))
    return Form(name="acre", options=options).make(setting, None)


def test_heads_are_weighted_by_what_they_found_or_left_out(tmp_path: Path) -> None:
    assert [head.weight for head in engine(tmp_path).heads.heads] == [0.5, 0.5]
    assert [head.weight for head in engine(tmp_path, heads="mass").heads.heads] == [0.3, 0.1]
    assert engine(tmp_path, heads="none").heads.heads == ()
    with pytest.raises(ConfigError, match="'some'.*calibrated, mass, none"):
        engine(tmp_path, heads="some")


def test_without_heads_the_choice_is_that_of_pooled_scores(tmp_path: Path) -> None:
    """An engine that was never given heads falls back to them too."""
    text, question = items()[0].document, items()[0].question
    without, never = engine(tmp_path, heads="none"), Form(name="acre").make(_bare(), None)
    found = [acre.retrieve(question, acre.add(text)) for acre in (without, never)]
    assert found[0] == found[1] and found[0]


def _bare() -> Setting:
    return Setting(decoder=tiny_decoder(), template=SHORT_ANSWER, window=512)


def test_every_form_answers_and_says_what_it_left_out(tmp_path: Path) -> None:
    adapter = tmp_path / "stage2" / "adapter.safetensors"
    adapter.parent.mkdir()
    save_adapter(L1Parameters(tiny_decoder(), rank=2), adapter, decoder=tiny_decoder(), intervals=(8, 16))
    forms = [*SELECTION, *training([str(adapter)])]
    rows = run(tmp_path / "out", items(), forms=forms, heads=heads_file(tmp_path))
    assert {row.run.system for row in rows if row.error is None} == {form.label for form in forms}
    trained = [row.run for row in rows if row.run.system == "acre-learned,adapter=stage2"]
    assert trained and trained[0].options["adapter"] == "stage2", "a row holds no folder of this machine"
    untrained = next(row.run for row in rows if row.run.system == "acre-learned,adapter=untrained")
    assert trained[0].adapter and trained[0].adapter != untrained.adapter
    alone = [row for row in rows if row.run.system == "acre-learned,adapter=stage2,budget=0"]
    assert alone and all(row.tokens["refilled"] == 0 for row in alone)
