"""The KV systems by name."""

from acre_rag.baselines.system import System

KV_SYSTEMS: tuple[System, ...] = ()
