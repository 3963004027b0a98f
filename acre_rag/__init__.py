"""ACRE (Activation Refilling, arXiv 2412.12486) for transformers decoders: read once, answer many questions."""

from acre_rag.answer import Answer, Source, Timings, Usage
from acre_rag.config import ACREConfig
from acre_rag.document import Document
from acre_rag.engine import ACRE
from acre_rag.generate import GenerationSettings

__all__ = ["ACRE", "ACREConfig", "Answer", "Document", "GenerationSettings", "Source", "Timings", "Usage"]
