"""Systems as a shell user names them: the names that tables have, read back; mistakes told before anything is loaded."""

import pytest

from acre_rag.baselines.registry import SYSTEMS, options_of
from acre_rag.errors import ConfigError
from acre_rag.evaluation.ablation import SELECTION
from acre_rag.evaluation.forms import Form
from acre_rag.evaluation.naming import USUAL, form_of, forms_named
from acre_rag.evaluation.sweep import Sweep

SWEPT = Sweep(option="budget", values=(0, 512), fixed={"interval": 8}, systems=("acre", "acre-paper"))


@pytest.mark.parametrize("form", [*SELECTION, *SWEPT.forms], ids=lambda form: form.label)
def test_the_name_of_a_form_in_tables_is_the_form(form: Form) -> None:
    assert form_of(form.label) == form


@pytest.mark.parametrize(
    "text, options",
    [
        ("rag", {}),
        ("rag, fusion=dense+sparse, hits=10", {"fusion": "dense+sparse", "hits": 10}),
        ("rq-rag,mode=tree,depth=None", {"mode": "tree", "depth": None}),
        ("memorag,memory=full,draft=false", {"memory": "full", "draft": False}),
        ("memorag,memory_options=None", {"memory_options": None}),
        ("acre,heads=none,interval=None", {"heads": "none", "interval": None}),
        ("acre-learned,adapter=runs/a=b.safetensors", {"adapter": "runs/a=b.safetensors"}),
        ("snapkv,kept_tokens=128,observe=document", {"kept_tokens": 128, "observe": "document"}),
    ],
)
def test_options_have_their_types(text: str, options: dict[str, object]) -> None:
    form = form_of(text)
    assert (form.name, dict(form.options)) == (text.partition(",")[0], options)
    assert [type(value) for value in form.options.values()] == [type(value) for value in options.values()]


@pytest.mark.parametrize(
    "text, says",
    [
        ("acer,budget=1", "No system is called 'acer'"),
        ("rag,hit=3", "rag has no option 'hit'. It has: fusion, hits, chunk_tokens"),
        ("acre,window=512", "acre has no option 'window'"),
        ("rag,hits", "'hits' in --system rag,hits has no value: write it as hits=VALUE"),
        ("rag,", "write it as OPTION=VALUE"),
        ("rag,hits=3,hits=4", "names an option twice"),
        ("rag,hits=many", "rag: hits='many' is not one of its values: a whole number"),
        ("rag,hits=None", "rag: hits='None' is not one of its values: a whole number"),
        ("rag,fusion=some", "rag: fusion='some' is not one of its values: dense, dense[+]sparse, all"),
        ("memorag,draft=maybe", "memorag: draft='maybe' is not one of its values: True, False"),
        ("memorag,memory_options=3", "it can be set in Python only"),
        ("acre,budget=-1", "budget=-1 is too small"),
        ("acre,select=best", "select='best' is not one of its values: auto, paper, consensus, retriever, hybrid"),
    ],
)
def test_mistakes_are_told_with_what_there_is(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        form_of(text)


def test_options_add_systems_and_alone_replace_the_usual_ones() -> None:
    def labels(*given: list[str]) -> list[str]:
        return [form.label for form in forms_named(*given)]

    assert labels([], []) == list(USUAL)
    assert labels([], ["rag,hits=9"]) == ["rag,hits=9"]
    assert labels(["full"], ["rag,hits=9", "rag"]) == ["full", "rag,hits=9", "rag"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_option_of_every_system_has_a_type(name: str) -> None:
    assert all(kind is not None for kind in options_of(name).values())
    assert set(dict(SYSTEMS[name].options)) <= set(options_of(name))
