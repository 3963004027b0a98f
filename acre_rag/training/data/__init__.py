"""Training examples: read from texts and QA files, composed into long documents, kept in shards. Knows no model."""

from acre_rag.training.data.build import build
from acre_rag.training.data.example import TrainingExample
from acre_rag.training.data.options import BuildOptions
from acre_rag.training.data.shards import ShardedExamples, verify

__all__ = ["BuildOptions", "ShardedExamples", "TrainingExample", "build", "verify"]
