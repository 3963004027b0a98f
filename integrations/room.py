"""Whether a question has room in an engine's window beside the documents it is put to. Knows no framework."""

from collections.abc import Iterable

from acre_rag import ACRE, Document, GenerationSettings


def has_room(acre: ACRE, question: str, documents: Iterable[Document], settings: GenerationSettings | None) -> bool:
    """Whether prompt, question and answer leave the documents' L1 entries their places, and one passage.

    Of several documents the engine asks as many as fit: here the one that needs most has to fit alone.

    Args:
        acre: the engine, with its question-time options.
        question: the question, with what is told before it.
        documents: the documents asked.
        settings: how the answer is decoded.
    """
    config = acre.config
    needed = [document.n_blocks * config.l1_context + document.n_tokens % document.interval for document in documents]
    answer = (settings or GenerationSettings()).max_new_tokens
    asked = len(acre.prefix_ids) + len(acre.question(question).ids) + answer
    passage = min(config.passage_tokens, config.budget)
    return asked + max(needed, default=0) + passage <= acre.window
