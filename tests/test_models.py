"""Loading: four ways in, and a clear refusal for everything else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, byte_tokenizer, tiny_decoder
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    HunYuanDenseV1Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    SmolLM3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from acre_rag import models
from acre_rag.decoder import Decoder
from acre_rag.errors import MissingExtraError, ModelError, UnsupportedModelError
from acre_rag.models import BUILTIN, load_decoder
from acre_rag.support import check_supported


def build(config: object) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_local_folder_loads(tmp_path: Path) -> None:
    tiny_decoder().model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    loaded = load_decoder(tmp_path, dtype="float32")
    assert loaded.digest == tiny_decoder().digest
    assert loaded.architecture == "llama-3x4x2x8-32-300"
    assert load_decoder(tmp_path, dtype="bfloat16").digest == loaded.digest  # however it was loaded
    assert load_decoder(tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def saved(folder: Path, *, tied: bool = False) -> Path:
    """A tiny model in a folder; the path of its weights."""
    torch.manual_seed(0)
    build(LlamaConfig(**TINY, tie_word_embeddings=tied)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("tied", "lost", "told"),
    [
        (False, "model.layers.1.self_attn.q_proj.weight", r"lack 1 of its weights \(model.layers.1.self_attn.q_proj"),
        (False, "lm_head.weight", r"lack 1 of its weights \(lm_head"),
        (True, "model.embed_tokens.weight", r"lack 2 of its weights \(lm_head.weight, model.embed"),
        (True, "model.norm.weight", r"lack 1 of its weights \(model.norm"),
    ],
)
def test_a_checkpoint_that_lacks_weights_is_refused_by_name(tied: bool, lost: str, told: str, tmp_path: Path) -> None:
    """Transformers would make them up, and say so only in a log."""
    weights = saved(tmp_path, tied=tied)
    tensors = load_file(weights)
    load_decoder(tmp_path)
    save_file({name: each for name, each in tensors.items() if name != lost}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=told):
        load_decoder(tmp_path)


def test_a_checkpoint_with_a_weight_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    weights = saved(tmp_path)
    save_file(load_file(weights) | {"model.norm.weight": torch.ones(5)}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"another shape for 1 of its weights \(model.norm.weight\)"):
        load_decoder(tmp_path)


@pytest.mark.parametrize("n_bytes", [0, 100, -500])
def test_a_weight_file_that_is_cut_short_is_told(n_bytes: int, tmp_path: Path) -> None:
    weights = saved(tmp_path)
    weights.write_bytes(weights.read_bytes()[:n_bytes])
    with pytest.raises(ModelError, match="cut short.*download the model again"):
        load_decoder(tmp_path)


@pytest.fixture
def parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`tiny.gguf`, converted once to `converted`; the parser of GGUF files is replaced and notes what it is given."""
    whole, folder = tmp_path / "whole", tmp_path / "converted"
    seen: list[str] = []

    def parsing(original: Callable[..., Any]) -> Callable[..., Any]:
        def parse(source: Path, gguf_file: str | None = None, **options: Any) -> Any:
            seen.extend([gguf_file] if gguf_file else [])
            return original(whole if gguf_file else source, **options)

        return parse

    for folder_of_weights in (whole, folder):
        saved(folder_of_weights)
    monkeypatch.setattr("acre_rag.models.converted_folder", lambda *_: folder)
    for automatic in (AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(automatic, "from_pretrained", parsing(automatic.from_pretrained))
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    return seen


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("model.safetensors", b"cut"),
        ("config.json", None),
        ("config.json", b"{}"),
        ("tokenizer.json", None),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"version": "1.'),
        ("tokenizer_config.json", b""),
    ],
)
def test_a_damaged_conversion_of_a_gguf_file_is_made_again(
    name: str, left: bytes | None, parsed: list[str], tmp_path: Path
) -> None:
    whole = load_decoder(tmp_path / "tiny.gguf", dtype="float32").digest
    assert parsed == []
    damaged = tmp_path / "converted" / name
    damaged.unlink()
    if left is not None:
        damaged.write_bytes(left)
    digests = [load_decoder(tmp_path / "tiny.gguf", dtype="float32").digest for _ in range(2)]
    assert digests == [whole, whole]
    assert parsed == ["tiny.gguf", "tiny.gguf"], "tokenizer and weights are parsed once, and found whole after that"


def test_a_wrong_option_does_not_cost_the_conversion_of_a_gguf_file(parsed: list[str], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="magic"):
        load_decoder(tmp_path / "tiny.gguf", dtype="float32", attn_implementation="magic")
    parsed.clear()
    load_decoder(tmp_path / "tiny.gguf", dtype="float32")
    assert parsed == []


@pytest.mark.model
def test_the_built_in_model_loads_from_its_gguf_file(
    smollm2: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converted copy (used from the second time on) is the model that the GGUF file holds."""
    monkeypatch.setattr("acre_rag.gguf.user_cache_path", lambda _: tmp_path)
    fresh = load_decoder(BUILTIN, dtype="float32")
    assert fresh.architecture == "llama-30x9x3x64-576-49152"
    again = load_decoder(BUILTIN, dtype="float32")
    assert next(tmp_path.rglob("model.safetensors")).stat().st_size > 500_000_000
    assert again.digest == fresh.digest == smollm2.digest
    text = "<|im_start|>user\nÉtude, 42!<|im_end|>"
    assert again.tokenizer(text).input_ids == fresh.tokenizer(text).input_ids


REFUSED = {
    "sliding window": (lambda: MistralConfig(**TINY, sliding_window=64), "sliding"),
    "qwen2 with sliding layers": (
        lambda: Qwen2Config(**TINY, use_sliding_window=True, sliding_window=64, max_window_layers=1),
        "sliding_attention",
    ),
    "hybrid attention": (lambda: Gemma2Config(**TINY, head_dim=8), "sliding_attention"),
    "no rotary embedding": (lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=300), "rotary"),
    "encoder": (lambda: BertConfig(**{**TINY, "is_decoder": True}), "decoder layers"),
    "unknown projections": (
        lambda: FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=300),
        "decoder layers",
    ),
    "layers without rotation": (
        lambda: SmolLM3Config(**TINY, no_rope_layers=[1, 0, 1]),
        r"rotates nothing in layers 1 \(no_rope_layers",
    ),
    "norms after rotation": (lambda: HunYuanDenseV1Config(**TINY, head_dim=8), "not a rotation"),
    "longrope": (
        lambda: LlamaConfig(
            **TINY,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "factor": 2.0,
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 512,
            },
        ),
        "longrope",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_supported_is_refused_with_the_reason(kind: str) -> None:
    config, reason = REFUSED[kind]
    with pytest.raises(UnsupportedModelError, match=reason):
        Decoder(model=build(config()), tokenizer=None, name=kind)


def test_an_encoder_decoder_is_refused() -> None:
    model = T5ForConditionalGeneration(T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, vocab_size=50))
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        check_supported(model)


def test_an_unknown_rotation_is_noticed_by_the_probe() -> None:
    """A family that rotates pairs next to each other would give wrong answers: its keys are not our rotation."""
    model = build(LlamaConfig(**TINY))

    class Interleaved(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            cos, sin = self.inner(x, position_ids)
            return cos.repeat_interleave(2, -1)[..., : cos.shape[-1]], sin.roll(1, -1)

    model.model.rotary_emb = Interleaved(model.model.rotary_emb)
    with pytest.raises(UnsupportedModelError, match="not a rotation"):
        Decoder(model=model, tokenizer=None, name="odd")


def test_a_later_layer_of_another_kind_is_noticed_by_the_probe() -> None:
    model = build(SmolLM3Config(**TINY, no_rope_layers=[1, 1, 1]))
    Decoder(model=model, tokenizer=None, name="all rotate")
    model.model.layers[1].self_attn.use_rope = False
    with pytest.raises(UnsupportedModelError, match="not a rotation"):
        Decoder(model=model, tokenizer=None, name="one does not")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.gguf", "GGUF file not found"),
        ("empty-folder", "config.json"),
        ("notes.txt", "unknown kind"),
        ("damaged.gguf", "cannot be loaded"),
    ],
)
def test_what_is_not_a_model_is_named(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(ModelError, match=reason):
        load_decoder(tmp_path / name)


def test_a_hub_id_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"'nobody/nothing' cannot be loaded.*local folder"):
        load_decoder("nobody/nothing")


@pytest.mark.parametrize("cause", ["Name or service not known", "Name or service not known."])
def test_the_cause_ends_before_the_remedy_begins(cause: str) -> None:
    with pytest.raises(ModelError, match=r"Name or service not known\. Give 'smollm2"), models._clear_errors("m"):
        raise OSError(cause)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_model_is_loaded_from_an_earlier_download_without_network(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layout of the hub's cache."""
    revision = "0123456789012345678901234567890123456789"
    snapshot = tmp_path / "models--some--model" / "snapshots" / revision
    saved(snapshot)
    digest = load_decoder(snapshot, dtype="float32").digest
    if weights == "pytorch_model.bin":
        torch.save(load_file(snapshot / "model.safetensors"), snapshot / weights)
        (snapshot / "model.safetensors").unlink()
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    decoder = load_decoder("some/model", dtype="float32")
    assert decoder.name == "some/model" and decoder.digest == digest


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"device": "warp9"}, ModelError),
        ({"dtype": "int3"}, ModelError),
        ({"attn_implementation": "magic"}, ModelError),
    ],
)
def test_options_that_this_machine_cannot_serve(option: dict[str, str], error: type, tmp_path: Path) -> None:
    tiny_decoder().model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(error):
        load_decoder(tmp_path, **option)


def test_flash_attention_asks_for_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(MissingExtraError, match=r"acre-rag\[gpu\]"):
        load_decoder(attn_implementation="flash_attention_2")


def test_the_built_in_model_asks_for_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(MissingExtraError, match=r"acre-rag\[demo\]"):
        load_decoder(BUILTIN)
