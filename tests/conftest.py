"""Shared fixtures: tiny random models of every supported family (exactness), the built-in model (sense)."""

import os
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

from acre_rag import ACRE, ACREConfig
from acre_rag.cache import BiLayerCache
from acre_rag.decoder import Decoder
from acre_rag.models import load_decoder

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    share = max(1, (os.cpu_count() or 1) // workers)
    torch.set_num_threads(share)
    os.environ["OMP_NUM_THREADS"] = str(share)  # of processes and kernels that tests start

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**TINY),
    "llama-linear": lambda: LlamaConfig(**TINY, rope_parameters=_rope("linear", factor=2.0)),
    "llama-dynamic": lambda: LlamaConfig(**TINY, rope_parameters=_rope("dynamic", factor=2.0)),
    "llama-llama3": lambda: LlamaConfig(
        **TINY,
        rope_parameters=_rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=128,
        ),
    ),
    "qwen2": lambda: Qwen2Config(**TINY),
    "qwen2-yarn": lambda: Qwen2Config(
        **TINY, rope_parameters=_rope("yarn", factor=4.0, original_max_position_embeddings=256)
    ),
    "qwen3": lambda: Qwen3Config(**TINY, head_dim=16),
    "mistral": lambda: MistralConfig(**TINY, sliding_window=None),
    "phi3": lambda: Phi3Config(**TINY),
    "phi3-partial": lambda: Phi3Config(
        **TINY, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    ),
    "phi-norm": lambda: PhiConfig(**TINY, qk_layernorm=True),
    "stablelm-norm": lambda: StableLmConfig(**TINY, qk_layernorm=True),
}


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **options}


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte-level character: small, fast, with character offsets."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2} | {char: 3 + i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@cache
def tiny_decoder(family: str = "llama", attn_implementation: str = "sdpa") -> Decoder:
    """A tiny random model in float32; weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    config = FAMILIES[family]()
    config.initializer_range = 0.2
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
    model.eval().requires_grad_(False)
    return Decoder(model=model, tokenizer=byte_tokenizer(), name=f"tiny-{family}")


def exact(cache: BiLayerCache) -> torch.Tensor:
    """All of L2, `[M, L, 2, Hkv, l, D]`."""
    return cache.l2.take(torch.arange(cache.n_blocks))


@pytest.fixture
def tiny() -> Decoder:
    """The tiny Llama."""
    return tiny_decoder()


@pytest.fixture
def tiny_acre(tiny: Decoder) -> ACRE:
    """An engine on the tiny Llama: window 512, blocks of 8; all heads choose, as no retrieval heads of it are known."""
    config = ACREConfig(window=512, interval=8, stride=64, passage_tokens=32, max_passages=2, select="consensus")
    return ACRE(tiny, config=config)


@pytest.fixture(scope="session")
def smollm2() -> Decoder:
    """The built-in model, in float32 so that exactness can be asked of it, and on the CPU, where the tests' ids are."""
    return load_decoder(device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def alice() -> str:
    """The book that the package ships."""
    return (resources.files("acre_rag") / "data" / "alice.txt").read_text(encoding="utf-8")


@pytest.fixture
def batch_sizes(tiny_acre: ACRE) -> Iterator[list[int]]:
    """Rows of every call of `generate`."""
    model, sizes = tiny_acre.decoder.model, []
    original: Callable[..., Any] = model.generate

    def counted(**options: Any) -> Any:
        sizes.append(len(options["input_ids"]))
        return original(**options)

    model.generate = counted
    yield sizes
    del model.generate


@pytest.fixture
def forwards(tiny_acre: ACRE) -> Iterator[list[int]]:
    """Tokens of every forward pass of the model, those excepted that an earlier test's unread stream still makes."""
    seen: list[int] = []

    def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        seen.append(int(states.shape[1]))

    tiny_acre.decoder.worker.stop_when_idle()
    handle = tiny_acre.decoder.attentions[0].register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


@pytest.fixture
def events() -> Iterator[list[str]]:
    """Names of LlamaIndex's instrumentation events, in order."""
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.event_handlers import BaseEventHandler

    seen: list[str] = []

    class Recorder(BaseEventHandler):
        @classmethod
        def class_name(cls) -> str:
            return "Recorder"

        def handle(self, event: Any, **_: Any) -> None:
            seen.append(type(event).__name__)

    root = get_dispatcher()
    handler = Recorder()
    root.add_event_handler(handler)
    yield seen
    root.event_handlers.remove(handler)
