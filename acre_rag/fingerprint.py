"""What a cache depends on, field by field, so that a cache of anything else is refused by name. Knows no files."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

from acre_rag.config import ACREConfig
from acre_rag.construct import ReadingPlan
from acre_rag.decoder import Decoder
from acre_rag.heads import RetrievalHeads
from acre_rag.prompts import WHOLE_DOCUMENT_QUESTIONS, RenderedPrompt
from acre_rag.proxies import Proxy

FORMAT = "acre-rag-store/3"

Fingerprint = Mapping[str, Any]
"""Field to value, plain data. The keys of `engine_fingerprint` and of `document_fingerprint`."""


def engine_fingerprint(
    decoder: Decoder, *, proxy: Proxy, heads: RetrievalHeads | None, config: ACREConfig, prompt: RenderedPrompt
) -> Fingerprint:
    """Everything of a model and its options that a cache depends on, whatever the document.

    Returns:
        format; weights, tokenizer, dtype, rope; proxy, adapter, heads; template (before the document), prior (the
        content-free questions); window, passage_tokens, l2_bits.
    """
    pairs = heads.heads if heads else ()
    return {
        "format": FORMAT,
        "weights": decoder.digest,
        "tokenizer": _tokenizer_digest(decoder.tokenizer),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "rope": json.loads(json.dumps(getattr(decoder.model.config, "rope_parameters", None), default=str)),
        "proxy": proxy.name,
        "adapter": _adapter_digest(proxy),
        "heads": [[head.layer, head.head] for head in pairs],
        "template": _digest(prompt.prefix),
        "prior": _digest(*(prompt.ask(question)[0] for question in WHOLE_DOCUMENT_QUESTIONS)),
        "passage_tokens": config.passage_tokens,
        "l2_bits": config.l2_bits,
    }


def document_fingerprint(engine: Fingerprint, plan: ReadingPlan) -> Fingerprint:
    """The engine's fingerprint with the numbers of one document's reading: window, interval, stride."""
    return {**engine, "window": plan.window, "interval": plan.interval, "stride": plan.stride}


def differences(stored: Fingerprint, wanted: Fingerprint) -> list[str]:
    """Fields that differ, each with both values: "interval (stored 16, now 32)"."""
    return [
        f"{name} (stored {_short(stored.get(name))}, now {_short(wanted.get(name))})"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]


def fingerprint_digest(fingerprint: Fingerprint) -> str:
    """One digest over all fields."""
    return _digest(json.dumps(fingerprint, sort_keys=True))


def _tokenizer_digest(tokenizer: Any) -> str:
    """Of the tokenizer's own serialised form; truncation and padding are per-call state."""
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    form |= {"truncation": None, "padding": None}
    return _digest(json.dumps(form, sort_keys=True))


def _adapter_digest(proxy: Proxy) -> str:
    """Of learned L1 parameters; empty for a proxy that has none."""
    parameters = getattr(proxy, "parameters", None)
    if parameters is None:
        return ""
    total = hashlib.sha256()
    for name, tensor in sorted(parameters.state_dict().items()):
        raw = tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        total.update(f"{name}{tuple(tensor.shape)}".encode() + raw)
    return total.hexdigest()


def _digest(*texts: str) -> str:
    total = hashlib.sha256()
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        total.update(len(raw).to_bytes(8, "little") + raw)
    return total.hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
