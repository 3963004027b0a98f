"""The retrieval systems by name."""

from acre_rag.baselines.system import System

RETRIEVAL_SYSTEMS: tuple[System, ...] = ()
