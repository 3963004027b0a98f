"""Evaluation: questions with known answers, how each dataset is asked and scored, and runs that compare systems."""

from acre_rag.evaluation.datasets import load_dataset
from acre_rag.evaluation.item import EvalItem, sample
from acre_rag.evaluation.tasks import Task, task_of

__all__ = ["EvalItem", "Task", "load_dataset", "sample", "task_of"]
