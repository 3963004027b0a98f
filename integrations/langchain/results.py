"""The engine's answers in LangChain's forms: messages with usage, chunks, documents with metadata. Asks nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.documents import Document as LangChainDocument
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGenerationChunk

from acre_rag import Answer, Document, Source, Usage
from acre_rag.integrations.langchain.calls import Call
from acre_rag.integrations.langchain.pages import passage_metadata
from acre_rag.streams import TextStream

Metadata = Mapping[str, Mapping[str, Any]]
"""Document id to the metadata of the LangChain document that it was read from."""


def answer_message(answer: Answer, call: Call, model_name: str) -> AIMessage:
    """An answer as a message, with usage, finish reason and sources."""
    return AIMessage(
        content=answer.text,
        usage_metadata=usage_of(answer.usage),
        response_metadata=_facts(answer, call, model_name) | _told(answer.sources, call),
    )


def usage_of(usage: Usage) -> UsageMetadata:
    """Tokens as LangChain counts them: what was read for this call, and what came from a document's cache."""
    read = usage.prompt_tokens + usage.cached_tokens + usage.also_read_tokens
    counted = UsageMetadata(
        input_tokens=read, output_tokens=usage.generated_tokens, total_tokens=read + usage.generated_tokens
    )
    if usage.cached_tokens:
        counted["input_token_details"] = InputTokenDetails(cache_read=usage.cached_tokens)
    return counted


def source_documents(
    places: Sequence[Mapping[str, Any]], documents: Mapping[str, Document], metadata: Metadata
) -> list[LangChainDocument]:
    """Places in documents as LangChain documents with their text.

    Args:
        places: document, start, end and score of each, best first.
        documents: the documents that were asked, by id.
        metadata: of the LangChain documents that they were read from.
    """
    return [
        passage(documents[place["document"]], place["start"], place["end"], place["score"], metadata)
        for place in places
    ]


def passage(document: Document, start: int, end: int, score: float, metadata: Metadata) -> LangChainDocument:
    """Characters `start <= c < end` of a document, with the original's metadata and its place."""
    return source_document(Source(document.id, start, end, document.text[start:end], score), metadata)


def source_document(source: Source, metadata: Metadata) -> LangChainDocument:
    """A source with the metadata of the document that it stands in, and its place there."""
    return LangChainDocument(
        id=f"{source.document}:{source.start}-{source.end}",
        page_content=source.text,
        metadata={
            **passage_metadata(metadata.get(source.document, {}), source.start, source.end),
            "document_id": source.document,
            "start": source.start,
            "end": source.end,
            "score": source.score,
        },
    )


def places_of(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Sources without their text: messages that hold them stay small in histories and checkpoints."""
    return [
        {"document": source.document, "start": source.start, "end": source.end, "score": source.score}
        for source in sources
    ]


class Trimmer:
    """Takes the white space off both ends of a text that comes in pieces, as whole answers have it."""

    def __init__(self) -> None:
        self._begun, self._held = False, ""

    def __call__(self, piece: str) -> str:
        """What of the text may be handed on now; white space waits until something follows it."""
        text = self._held + (piece if self._begun else piece.lstrip())
        ready = text.rstrip()
        self._held = text[len(ready) :] if ready or self._begun else ""
        self._begun = self._begun or bool(ready)
        return ready


class Chunks:
    """An answer that comes in pieces as the chunks of a chat stream: where it stands, its text, what it cost.

    Merged chunks add up to `answer_message`, so each fact stands in one of them only.
    """

    def __init__(self, call: Call, model_name: str) -> None:
        self._call, self._model_name = call, model_name
        self._trim, self._begun = Trimmer(), False

    def of(self, piece: str | Answer, stream: TextStream[Answer]) -> Iterator[ChatGenerationChunk]:
        """The chunks that a piece of the stream makes; the first piece brings the sources with it.

        Not sooner: while memory is short the engine may yet choose less, and chunks cannot be taken back.
        """
        if not self._begun:
            self._begun = True
            if told := _told(stream.sources, self._call):
                yield _chunk(response_metadata=told)
        if isinstance(piece, Answer):
            yield _chunk(
                usage_metadata=usage_of(piece.usage),
                response_metadata=_facts(piece, self._call, self._model_name),
                chunk_position="last",
            )
        elif text := self._trim(piece):
            yield _chunk(text)


def _chunk(text: str = "", **fields: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text, **fields))


def _facts(answer: Answer, call: Call, model_name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"model_name": model_name, "finish_reason": "stop" if answer.finished else "length"}
    if not call.plain:
        facts |= {
            "scope": answer.scope,
            "notes": [*answer.notes, *call.left_out],
            "timings": asdict(answer.timings),
        }
    return facts


def _told(sources: Sequence[Source], call: Call) -> dict[str, Any]:
    return {} if call.plain else {"sources": places_of(sources)}
