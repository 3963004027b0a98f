"""Files of learned L1: what is saved comes back, and what does not fit is refused with its reason."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import exact
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from acre_rag.cache import BiLayerCache
from acre_rag.construct import ReadingPlan, construct
from acre_rag.decoder import Decoder
from acre_rag.errors import AdapterError
from acre_rag.proxies import LearnedProxy
from acre_rag.proxies.adapter import AdapterInfo, adapter_info, load_learned, save_adapter
from acre_rag.proxies.checkpoint import load_checkpoint
from acre_rag.proxies.learned import L1Parameters

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "initializer_range": 0.3,
}
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config}


def build(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Decoder:
    """A tiny random model; its biases, where it has any, are not zero as they would be by default."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](**SHAPE | changes))
    model.eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.normal_()
    return Decoder(model=model.to(dtype), tokenizer=None, name=f"tiny-{family}")


def perturbed(decoder: Decoder, rank: int = 0) -> L1Parameters:
    """L1 parameters that differ from the base model's everywhere."""
    torch.manual_seed(1)
    parameters = L1Parameters(decoder, rank=rank)
    with torch.no_grad():
        for weight in parameters.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return parameters


def read(decoder: Decoder, parameters: L1Parameters) -> BiLayerCache:
    return construct(
        decoder,
        LearnedProxy(parameters),
        prefix_ids=torch.arange(3, 7),
        token_ids=torch.arange(91) % 60,
        plan=ReadingPlan(window=48, interval=8, stride=16),
    )


def assert_same_reading(ours: BiLayerCache, theirs: BiLayerCache) -> None:
    for a, b in ((ours.l1, theirs.l1), (ours.tail, theirs.tail), (ours.prefix, theirs.prefix)):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
    assert torch.equal(exact(ours), exact(theirs))


def authors_layout(parameters: L1Parameters, mark: str = "acre", lead: str = "model.") -> dict[str, torch.Tensor]:
    named = {f"{lead}{mark}_embed_tokens.weight": parameters.embedding.detach()[None].clone()}
    for i, layer in enumerate(parameters.layers):
        for kind in "qkv":
            stem = f"{lead}layers.{i}.self_attn.{mark}_{kind}_proj"
            named[f"{stem}.weight"] = layer[kind].weight.detach().clone()
            if layer[kind].bias is not None:
                named[f"{stem}.bias"] = layer[kind].bias.detach().clone()
    return named


def base_weights(decoder: Decoder) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in decoder.model.state_dict().items()}


def resave(path: Path, change) -> None:
    """Rewrite an adapter file with its tensors and metadata changed by `change(tensors, metadata)`."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as opened:
        metadata = dict(opened.metadata())
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.fixture(scope="module", params=CONFIGS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return build(request.param)


@pytest.fixture(scope="module")
def llama() -> Decoder:
    return build("llama")


@pytest.fixture(scope="module")
def qwen2() -> Decoder:
    return build("qwen2")


@pytest.fixture
def saved(tmp_path: Path, qwen2: Decoder) -> Path:
    path = tmp_path / "adapter.safetensors"
    save_adapter(perturbed(qwen2), path, decoder=qwen2, intervals=(8, 128))
    return path


# Our own format


@pytest.mark.parametrize("rank", [0, 4])
def test_what_is_saved_reads_a_document_bit_for_bit(decoder: Decoder, rank: int, tmp_path: Path) -> None:
    parameters = perturbed(decoder, rank)
    path = tmp_path / "new folder" / "adapter.safetensors"
    save_adapter(parameters, path, decoder=decoder, intervals=(8, 128))
    loaded = load_learned(path, decoder)
    assert loaded.rank == rank
    ours, theirs, plain = (read(decoder, p) for p in (loaded, parameters, L1Parameters(decoder, rank=rank)))
    assert_same_reading(ours, theirs)
    assert not torch.allclose(ours.l1.keys, plain.l1.keys, atol=0.1)  # the adapter matters at all


@pytest.mark.parametrize(("intervals", "told"), [((1, 128), 0), ((16, 64), 1), ((1, 2), 1)])
def test_an_interval_that_was_not_trained_is_told_once(
    qwen2: Decoder, tmp_path: Path, caplog: pytest.LogCaptureFixture, intervals: tuple[int, int], told: int
) -> None:
    save_adapter(perturbed(qwen2), tmp_path / "a", decoder=qwen2, intervals=intervals)
    loaded = load_learned(tmp_path / "a", qwen2)
    read(qwen2, loaded)
    assert caplog.text.count(f"trained with {intervals[0]} to {intervals[1]}") == told
    read(qwen2, L1Parameters(qwen2))  # of which nobody said anything
    assert len(caplog.records) == told


def test_an_adapter_in_bfloat16_keeps_its_values(llama: Decoder, tmp_path: Path) -> None:
    parameters = perturbed(llama).bfloat16()
    save_adapter(parameters, tmp_path / "a.safetensors", decoder=llama, intervals=(16, 16))
    loaded = load_learned(tmp_path / "a.safetensors", llama)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert_same_reading(read(llama, loaded), read(llama, parameters))


def test_the_file_has_the_agreed_names_and_metadata(qwen2: Decoder, tmp_path: Path) -> None:
    for rank, leaves in ((0, ["bias", "weight"]), (2, ["down", "up"])):
        parameters = perturbed(qwen2, rank)
        save_adapter(parameters, tmp_path / "a", decoder=qwen2, intervals=(8, 64), facts={"loss": 3.5})
        with safe_open(tmp_path / "a", framework="pt") as opened:
            names, metadata = sorted(opened.keys()), opened.metadata()
        layers = [f"layers.{i}.{kind}.{leaf}" for i in range(2) for kind in "kqv" for leaf in leaves]
        assert names == ["embedding", *layers]
        assert metadata == {
            "format": "acre-rag-adapter/1",
            "base_digest": qwen2.digest,
            "architecture": qwen2.architecture,
            "interval_min": "8",
            "interval_max": "64",
            "rank": str(rank),
            "biases": "" if rank else "qkv",
            "facts": '{"loss": 3.5}',
        }


def test_info_is_read_without_the_tensors(saved: Path, qwen2: Decoder) -> None:
    assert adapter_info(saved) == AdapterInfo(
        base_digest=qwen2.digest,
        architecture=qwen2.architecture,
        intervals=(8, 128),
        rank=0,
        biases="qkv",
        facts={},
    )


def test_an_interrupted_save_leaves_the_old_file(saved: Path, qwen2: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(L1Parameters(qwen2), saved, decoder=qwen2, intervals=(8, 8))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_replaces_the_old_file(saved: Path, qwen2: Decoder) -> None:
    save_adapter(L1Parameters(qwen2, rank=3), saved, decoder=qwen2, intervals=(8, 8))
    assert load_learned(saved, qwen2).rank == 3
    assert list(saved.parent.iterdir()) == [saved]


def test_diverged_parameters_are_not_saved(saved: Path, qwen2: Decoder) -> None:
    before, parameters = saved.read_bytes(), perturbed(qwen2)
    with torch.no_grad():
        parameters.layers[1]["k"].bias[0] = torch.nan
    with pytest.raises(AdapterError, match=r"layers\.1\.k\.bias.*learning rate"):
        save_adapter(parameters, saved, decoder=qwen2, intervals=(8, 8))
    assert saved.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, llama: Decoder) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AdapterError, match=r"cannot be written.*permissions"):
        save_adapter(perturbed(llama), tmp_path / "file" / "a", decoder=llama, intervals=(8, 8))


def test_a_missing_file_is_refused(tmp_path: Path, llama: Decoder) -> None:
    with pytest.raises(AdapterError, match=r"not found.*none\.safetensors.*Check the path"):
        load_learned(tmp_path / "none.safetensors", llama)


@pytest.mark.parametrize("content", [b"", b"some text " * 9, None], ids=["empty", "text", "truncated"])
def test_what_is_not_safetensors_is_refused(content: bytes | None, saved: Path, qwen2: Decoder) -> None:
    saved.write_bytes(saved.read_bytes()[:-50] if content is None else content)
    with pytest.raises(AdapterError, match="cannot be read as safetensors.*cut short.*again"):
        load_learned(saved, qwen2)


def test_an_unknown_version_is_refused(saved: Path, qwen2: Decoder) -> None:
    resave(saved, lambda _tensors, metadata: metadata.update(format="acre-rag-adapter/2"))
    with pytest.raises(AdapterError, match="'acre-rag-adapter/2'.*'acre-rag-adapter/1'.*Upgrade"):
        load_learned(saved, qwen2)


@pytest.mark.parametrize("change", [{"rank": "four"}, {"facts": "{"}, {"base_digest": None}])
def test_damaged_metadata_is_refused(change: dict[str, str | None], saved: Path, qwen2: Decoder) -> None:
    def damage(_tensors: object, metadata: dict[str, str]) -> None:
        for key, value in change.items():
            metadata.pop(key)
            if value is not None:
                metadata[key] = value

    resave(saved, damage)
    with pytest.raises(AdapterError, match="damaged metadata.*again"):
        load_learned(saved, qwen2)


def test_another_architecture_is_refused(saved: Path, qwen2: Decoder, llama: Decoder) -> None:
    with pytest.raises(AdapterError) as refused:
        load_learned(saved, llama)
    assert qwen2.architecture in str(refused.value) and llama.architecture in str(refused.value)


def test_other_weights_of_the_same_shape_are_refused(saved: Path, qwen2: Decoder) -> None:
    other = build("qwen2", seed=5)
    with pytest.raises(AdapterError) as refused:
        load_learned(saved, other)
    assert qwen2.digest[:12] in str(refused.value) and other.digest[:12] in str(refused.value)
    assert qwen2.digest not in str(refused.value)


DAMAGE = {
    "missing": (lambda t: t.pop("layers.1.v.weight"), r"lacks 1 of 13 .*: layers\.1\.v\.weight\. Give"),
    "missing bias": (lambda t: t.pop("layers.0.q.bias"), r"lacks 1 of 13 .*: layers\.0\.q\.bias\. Give"),
    "all biases missing": (
        lambda t: [t.pop(name) for name in list(t) if name.endswith("bias")],
        r"lacks 6 of 13 .*layers\.0\.q\.bias.* and 2 more",
    ),
    "left over": (
        lambda t: t.update({"layers.2.q.weight": torch.zeros(32, 32)}),
        r"holds 1 tensors without a place.*layers\.2\.q\.weight.*Give a file made for qwen2-",
    ),
    "wrong shape": (
        lambda t: t.update({"layers.1.k.weight": torch.zeros(16, 31)}),
        r"layers\.1\.k\.weight has shape \[16, 31\].*needs \[16, 32\]",
    ),
    "wrong type": (
        lambda t: t.update({"layers.1.k.bias": torch.zeros(16, dtype=torch.int8)}),
        r"layers\.1\.k\.bias has shape \[16\] \(torch\.int8\).*floating",
    ),
    "NaN": (lambda t: t["embedding"].__setitem__(3, torch.nan), "NaN or infinity in embedding: .*copy"),
    "infinity": (
        lambda t: t["layers.1.q.weight"].__setitem__((0, 1), -torch.inf),
        r"NaN or infinity in layers\.1\.q\.weight",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_wrong_tensors_are_refused(damage: str, saved: Path, qwen2: Decoder) -> None:
    change, message = DAMAGE[damage]
    resave(saved, lambda tensors, _metadata: change(tensors))
    with pytest.raises(AdapterError, match=message):
        load_learned(saved, qwen2)


def test_an_adapter_stripped_of_its_metadata_is_refused(saved: Path, qwen2: Decoder) -> None:
    save_file(load_file(saved), saved)
    with pytest.raises(AdapterError, match=r"13 tensors without a place.*'embedding', 'layers\.0\.k\.bias'"):
        load_learned(saved, qwen2)


# The authors' layout


@pytest.mark.parametrize("lead", ["model.", ""])
@pytest.mark.parametrize("mark", ["acre", "beacon"])
@pytest.mark.parametrize("whole", [False, True], ids=["adapter-only", "whole-model"])
def test_authors_checkpoints(decoder: Decoder, tmp_path: Path, mark: str, lead: str, whole: bool) -> None:
    parameters = perturbed(decoder)
    tensors = authors_layout(parameters, mark, lead)
    if whole:
        tensors |= {lead + name.removeprefix("model."): w for name, w in base_weights(decoder).items()}
        tensors["lm_head.weight"] = tensors.pop(f"{lead}lm_head.weight")
    save_file(tensors, tmp_path / "checkpoint.safetensors", {"format": "pt"})
    loaded = load_learned(tmp_path / "checkpoint.safetensors", decoder)
    assert loaded.rank == 0
    assert_same_reading(read(decoder, loaded), read(decoder, parameters))
    assert adapter_info(tmp_path / "checkpoint.safetensors") is None


def test_a_folder_of_one_file_or_of_shards(decoder: Decoder, tmp_path: Path) -> None:
    parameters = perturbed(decoder)
    single, sharded = tmp_path / "single", tmp_path / "sharded"
    single.mkdir()
    sharded.mkdir()
    tensors = authors_layout(parameters) | base_weights(decoder)
    save_file(tensors, single / "model.safetensors")
    weight_map = {name: f"model-{1 + i % 3:05}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    expected = read(decoder, parameters)
    for folder in (single, sharded):
        assert_same_reading(read(decoder, load_learned(folder, decoder)), expected)

    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(AdapterError, match="not found.*model-00002-of-00003"):
        load_learned(sharded, decoder)
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(AdapterError, match="not an index of shards"):
        load_learned(sharded, decoder)


@pytest.mark.parametrize(("family", "biased"), [("llama", True), ("qwen2", False)])
def test_the_file_decides_about_biases(family: str, biased: bool, tmp_path: Path) -> None:
    decoder = build(family)
    tensors = authors_layout(perturbed(decoder))
    for name in list(tensors):
        if name.endswith("_proj.weight") and biased:
            tensors[name.replace("weight", "bias")] = torch.randn(len(tensors[name]))
        elif name.endswith("bias") and not biased:
            del tensors[name]
    save_file(tensors, tmp_path / "checkpoint.safetensors")
    loaded = load_checkpoint(tmp_path / "checkpoint.safetensors", decoder)
    for i, layer in enumerate(loaded.layers):
        for kind in "qkv":
            stored = tensors.get(f"model.layers.{i}.self_attn.acre_{kind}_proj.bias")
            assert (layer[kind].bias is not None) is biased
            assert not biased or torch.equal(layer[kind].bias, stored)
    save_adapter(loaded, tmp_path / "adapter.safetensors", decoder=decoder, intervals=(8, 8))
    again = load_learned(tmp_path / "adapter.safetensors", decoder)
    assert_same_reading(read(decoder, again), read(decoder, loaded))


# All but two different roundings of one float32 model, which cannot be told from two models.
TYPES = [
    (original, loaded, stored)
    for original in (torch.float32, torch.bfloat16)
    for loaded in (torch.float32, torch.bfloat16, torch.float16)
    for stored in (torch.float32, torch.bfloat16, torch.float16)
    if original == torch.bfloat16 or {loaded, stored} != {torch.bfloat16, torch.float16}
]


@pytest.mark.parametrize(("original", "loaded", "stored"), TYPES)
def test_a_base_model_in_another_type_is_the_same_model(
    original: torch.dtype, loaded: torch.dtype, stored: torch.dtype, tmp_path: Path
) -> None:
    decoder = build("llama", dtype=original)
    tensors = authors_layout(perturbed(decoder)) | base_weights(decoder)
    tensors = {name: weight.to(stored) for name, weight in tensors.items()}
    save_file(tensors, tmp_path / "checkpoint.safetensors")
    decoder.model.to(loaded)
    load_checkpoint(tmp_path / "checkpoint.safetensors", decoder)


def test_a_tied_head_may_stand_in_the_file(tmp_path: Path) -> None:
    decoder = build("llama", tie_word_embeddings=True)
    head = decoder.model.model.embed_tokens.weight.clone()
    for weights in ({"lm_head.weight": head}, {}):
        tensors = authors_layout(perturbed(decoder)) | base_weights(decoder)
        tensors.pop("lm_head.weight", None)
        save_file(tensors | weights, tmp_path / "checkpoint.safetensors")
        load_checkpoint(tmp_path / "checkpoint.safetensors", decoder)


EMBED = "model.acre_embed_tokens.weight"
QUERY = "model.layers.1.self_attn.acre_q_proj"
CHECKPOINT_DAMAGE = {
    "left over": (
        lambda t: t.update({f"model.layers.{i}.self_attn.acre_o_proj.bias": torch.ones(1) for i in range(6)}),
        r"holds 6 tensors without a place.*'model\.layers\.0\.self_attn\.acre_o_proj\.bias'.* and 2 more",
    ),
    "a layer too many": (
        lambda t: t.update({f"{QUERY}.weight".replace("1", "2"): torch.zeros(32, 32)}),
        r"holds 1 tensors without a place.*layers\.2\.q\.weight",
    ),
    "both spellings": (
        lambda t: t.update({EMBED.replace("acre", "beacon"): torch.zeros(1, 32)}),
        "holds 1 tensors without a place.*embed_tokens",
    ),
    "missing": (lambda t: t.pop(f"{QUERY}.weight"), rf"lacks 1 of 13 .*{QUERY}\.weight"),
    "missing bias": (lambda t: t.pop(f"{QUERY}.bias"), rf"lacks 1 of 13 .*{QUERY}\.bias"),
    "no embedding": (lambda t: t.pop(EMBED), f"lacks 1 of 13 .*{EMBED}"),
    "two embeddings": (
        lambda t: t.update({EMBED: torch.zeros(2, 32)}),
        rf"{EMBED} has shape \[2, 32\].*\[32\]",
    ),
    "wrong shape": (
        lambda t: t.update({f"{QUERY}.weight": torch.zeros(64, 32)}),
        rf"{QUERY}\.weight has shape \[64, 32\].*needs \[32, 32\]",
    ),
    "NaN": (lambda t: t[f"{QUERY}.bias"].fill_(torch.nan), rf"NaN or infinity in {QUERY}\.bias"),
    "other base weight": (
        lambda t: t["model.layers.0.mlp.up_proj.weight"][5, 5].add_(0.1),
        r"another base model: its model\.layers\.0\.mlp\.up_proj\.weight",
    ),
    "other base shape": (
        lambda t: t.update({"lm_head.weight": torch.zeros(65, 32)}),
        r"another base model: its lm_head\.weight \[65, 32\].*\[64, 32\]",
    ),
}


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGE)
def test_wrong_checkpoints_are_refused(damage: str, qwen2: Decoder, tmp_path: Path) -> None:
    tensors = authors_layout(perturbed(qwen2)) | base_weights(qwen2)
    change, message = CHECKPOINT_DAMAGE[damage]
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(AdapterError, match=message):
        load_learned(tmp_path, qwen2)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickle_files_are_refused_unopened(
    suffix: str, llama: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"checkpoint{suffix}"
    torch.save(authors_layout(perturbed(llama)), path)
    monkeypatch.setattr(torch, "load", lambda *_args, **_options: pytest.fail("a pickle file was opened"))
    with pytest.raises(AdapterError, match="pickle.*convert it to safetensors"):
        load_learned(path, llama)


def test_the_conversion_in_the_message_works(llama: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = perturbed(llama)
    path = tmp_path / "checkpoint.bin"
    torch.save(authors_layout(parameters) | base_weights(llama), path)
    with pytest.raises(AdapterError) as refused:
        load_learned(path, llama)
    command = str(refused.value).split('python -c "')[1].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    exec(command)
    loaded = load_learned(tmp_path / "checkpoint.safetensors", llama)
    assert_same_reading(read(llama, loaded), read(llama, parameters))


def test_a_folder_without_safetensors_is_refused(llama: Decoder, tmp_path: Path) -> None:
    torch.save(authors_layout(perturbed(llama)), tmp_path / "pytorch_model.bin")
    with pytest.raises(AdapterError, match=r"neither model\.safetensors nor .*convert \.bin"):
        load_learned(tmp_path, llama)
    shutil.rmtree(tmp_path)
    with pytest.raises(AdapterError, match="not found"):
        load_learned(tmp_path, llama)
