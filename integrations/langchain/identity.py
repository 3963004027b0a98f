"""What decides an answer, as one digest: the model, the options, the documents' texts. Asks and answers nothing.

Response caches file an answer under it, so an answer can never be handed out for another document, another version of
one, another model or another option.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from acre_rag import ACRE, Document
from acre_rag.config import ASKS_A_RETRIEVER
from acre_rag.document import text_digest
from acre_rag.retrieve import bm25_retriever

_KNOWN: WeakKeyDictionary[ACRE, str] = WeakKeyDictionary()
"""Digesting the weights takes seconds: once for each engine."""


def engine_identity(acre: ACRE) -> str:
    """A digest of weights, tokenizer, chat template, retrieval heads, adapter, options and retriever of an engine.

    A retriever of the user's own cannot be digested: an engine that asks one is only equal to itself.
    """
    if (known := _KNOWN.get(acre)) is not None:
        return known
    own_retriever = acre.config.select in ASKS_A_RETRIEVER and acre.retriever is not bm25_retriever
    facts = {
        "fingerprint": dict(acre.fingerprint),
        "config": asdict(acre.config),
        "window": acre.window,
        "template": asdict(acre.template),
        "chat_template": str(getattr(acre.decoder.tokenizer, "chat_template", None)),
        "heads": [[head.layer, head.head, head.weight] for head in acre.heads.heads] if acre.heads else [],
        "retriever": uuid4().hex if own_retriever else "bm25",
    }
    return _KNOWN.setdefault(acre, text_digest(json.dumps(facts, sort_keys=True)))


def document_identities(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Id, text digest and interval of each document, in order."""
    return [{"id": each.id, "text": text_digest(each.text), "interval": each.interval} for each in documents]
