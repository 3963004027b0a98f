"""Keep a GGUF file's dequantised form in the user's cache folder, so that it is converted once; knows no method.

transformers parses a GGUF file three times in pure Python (a quarter of a minute for the built-in model); loading the
converted folder takes a second or two. The folder is named by path, size, time and type: a changed file is converted
anew. When it cannot be written, the model is used as it was loaded.
"""

import hashlib
import logging
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

logger = logging.getLogger(__name__)


def converted_folder(gguf: Path, dtype: torch.dtype) -> Path:
    """Where the converted form of a GGUF file is, or would be."""
    facts = gguf.stat()
    key = f"{gguf.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{dtype}|{version('transformers')}"
    return user_cache_path("acre-rag") / "gguf" / f"{gguf.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def keep_converted(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a loaded model for the next time; whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            made = Path(temporary) / "model"
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
            made.replace(folder)
    except OSError as error:  # a full disk, a read-only home, or another process that was faster
        logger.info("The converted model is not kept: %s", error)
