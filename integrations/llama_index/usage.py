"""What an answer cost and where it came from, under the names that LlamaIndex reads; counts nothing itself."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from acre_rag import Answer, Usage
from acre_rag.document import text_digest
from acre_rag.integrations.llama_index.documents import text_of
from acre_rag.integrations.llama_index.shelf import Held


def token_counts(usage: Usage) -> dict[str, int]:
    """Tokens as OpenAI counts them: those that a cache already held are part of the prompt."""
    prompt = usage.prompt_tokens + usage.cached_tokens + usage.also_read_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": prompt + usage.generated_tokens,
    }


def raw_response(answer: Answer, model: str) -> dict[str, Any]:
    """The `raw` of a completion or chat response, plain data."""
    details = {"cached_tokens": answer.usage.cached_tokens}
    return {
        "model": model,
        "usage": token_counts(answer.usage) | {"prompt_tokens_details": details},
        "acre": answer.to_dict(),
    }


def response_metadata(answer: Answer, held: Iterable[Held], model: str) -> dict[str, Any]:
    """The metadata of a query's response: costs, scope, notes, and which texts of which documents were asked."""
    return {
        "model": model,
        "usage": token_counts(answer.usage)
        | {"cached_tokens": answer.usage.cached_tokens, "refilled_tokens": answer.usage.refilled_tokens},
        "timings": asdict(answer.timings),
        "scope": answer.scope,
        "notes": list(answer.notes),
        "documents": {each.ref_doc_id: text_digest(text_of(each.node)) for each in held},
    }
