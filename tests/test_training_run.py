"""Runs: what learns and what stays, going on after a stop and after a kill, two processes as one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DistributedType
from conftest import tiny_decoder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from acre_rag.baselines.base import Setting
from acre_rag.baselines.learned import UNTRAINED, learned_proxy
from acre_rag.cli import app
from acre_rag.errors import AdapterError, ConfigError, DocumentError
from acre_rag.models import load_decoder
from acre_rag.prompts import SHORT_ANSWER
from acre_rag.proxies.adapter import adapter_info, load_learned, save_adapter
from acre_rag.training.data import BuildOptions, build
from acre_rag.training.lesson import Draw, Teacher
from acre_rag.training.losses import next_token_loss
from acre_rag.training.reader import NestedReader
from acre_rag.training.run import _check_same, begin, run_training
from acre_rag.training.settings import DEFAULT_RANK, TrainingSettings, read_settings, shipped_settings
from acre_rag.training.sft import PlainReader
from acre_rag.training.stream import Shards
from acre_rag.training.texts import Excerpts, split_texts
from acre_rag.training.trainer import CHECKPOINT, Trainer

SETTINGS = TrainingSettings(
    steps=8, batch=2, context=(120, 160), intervals=(4, 8), stride=40, rank=2, learning_rate=0.01, save_every=2
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for book in range(6):
        lines = [f"In chapter {i} of book {book} the hero meets {i * 31 % 17} friends.\n" for i in range(60)]
        (folder / f"book{book}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a folder, for runs in processes of their own."""
    folder = tmp_path_factory.mktemp("model")
    decoder = tiny_decoder()
    decoder.model.save_pretrained(folder)
    decoder.tokenizer.save_pretrained(folder)
    return folder


def trainer(texts: Path, settings: TrainingSettings = SETTINGS, out: Path | None = None) -> Trainer:
    decoder = tiny_decoder()
    files, _ = split_texts(texts, held_out=2)
    reader = NestedReader(decoder, begin(decoder, settings))
    return Trainer(reader, settings, Excerpts(files, n_chars=400, seed=settings.seed), out=out)


def losses(curve: object) -> list[float]:
    return [record["loss"] for record in curve]


# What learns


def test_only_l1_learns_and_the_loss_falls(texts: Path) -> None:
    decoder = tiny_decoder()
    frozen = {name: weight.clone() for name, weight in decoder.model.state_dict().items()}
    settings = TrainingSettings(**vars(SETTINGS) | {"steps": 60, "intervals": (4,), "schedule": "constant"})
    run = trainer(texts, settings)
    before = {name: weight.clone() for name, weight in run._reader.trained.named_parameters()}
    curve = losses(run.train().curve)
    assert sum(curve[-10:]) < sum(curve[:10]) - 1
    assert all(torch.equal(weight, frozen[name]) for name, weight in decoder.model.state_dict().items())
    assert all(weight.grad is None for weight in decoder.model.parameters())
    unchanged = {name for name, weight in run._reader.trained.named_parameters() if torch.equal(weight, before[name])}
    assert unchanged == {"layers.2.q.down", "layers.2.q.up"}  # the last layer's L1 queries are read by nobody


def test_weight_decay_leaves_the_embedding_and_the_unread_queries_alone(texts: Path) -> None:
    settings = TrainingSettings(**vars(SETTINGS) | {"weight_decay": 0.5, "rank": 0})
    run = trainer(texts, settings)
    decayed = {id(w) for group in run._optimizer.param_groups if group["weight_decay"] for w in group["params"]}
    names = {name for name, weight in run._reader.trained.named_parameters() if id(weight) in decayed}
    assert "layers.0.k.weight" in names and "embedding" not in names and "layers.2.q.weight" not in names


# Going on


def test_going_on_gives_the_same_curve(texts: Path, tmp_path: Path) -> None:
    whole = trainer(texts).train()
    assert trainer(texts, out=tmp_path).train(steps=4).step == 4
    resumed = trainer(texts, out=tmp_path)
    assert losses(resumed.train().curve) == losses(whole.curve)
    assert resumed.train().step == 8  # nothing is left to do
    assert losses(resumed.train().curve) == losses(whole.curve)


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(texts: Path, tmp_path: Path) -> None:
    trainer(texts, out=tmp_path).train(steps=2)
    other = TrainingSettings(**vars(SETTINGS) | {"learning_rate": 0.5})
    with pytest.raises(AdapterError, match=r"learning_rate: 0\.01 then, 0\.5 now"):
        trainer(texts, other, out=tmp_path).train()
    content = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match="cut short"):
        trainer(texts, out=tmp_path).train()


COMMAND = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from acre_rag.training.run import run_training
from acre_rag.training.settings import TrainingSettings
settings = TrainingSettings(model=sys.argv[1], dtype="float32", steps=8, batch=2, context=(120, 160), intervals=(4, 8),
    stride=40, rank=2, learning_rate=0.01, save_every=1, held_out=2, **json.loads(sys.argv[5]))
pause, stop = float(sys.argv[4]), int(sys.argv[6])
def on_step(record):
    time.sleep(pause)
    if record["step"] == stop:
        sys.exit("stopped")
run_training(settings, data=Path(sys.argv[2]), out=Path(sys.argv[3]), device="cpu", on_step=on_step)
"""


def command(
    model: Path, texts: Path, out: Path, *, pause_s: float = 0.0, stop: int = 0, **settings: object
) -> list[str]:
    return [COMMAND, str(model), str(texts), str(out), str(pause_s), json.dumps(settings), str(stop)]


def in_two_processes(code: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Gloo on CPU."""
    script = folder / "train.py"
    script.write_text(code)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launch, *arguments], env=environment, timeout=600, capture_output=True, text=True)


def curve_of(out: Path) -> list[float]:
    return losses(json.loads((out / "training.json").read_text())["curve"])


@pytest.mark.faults
def test_a_killed_run_goes_on_with_the_same_curve(model: Path, texts: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, "-c", *command(model, texts, whole)], check=True, timeout=120, capture_output=True)
    process = subprocess.Popen([sys.executable, "-c", *command(model, texts, killed, pause_s=0.5)])
    deadline = time.monotonic() + 120
    while not (killed / CHECKPOINT).is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not (killed / "training.json").exists()  # it was in the middle
    subprocess.run([sys.executable, "-c", *command(model, texts, killed)], check=True, timeout=120, capture_output=True)
    assert curve_of(killed) == curve_of(whole)
    one, other = (load_learned(out / "adapter.safetensors", tiny_decoder()) for out in (whole, killed))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.fixture(scope="module")
def alone(model: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trained by itself."""
    out = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-c", *command(model, texts, out)], check=True, timeout=300, capture_output=True)
    return out


def test_two_processes_are_one_with_the_whole_batch(model: Path, texts: Path, alone: Path, tmp_path: Path) -> None:
    """Each process takes one document of every batch of two, and gradients are averaged."""
    two = tmp_path / "two"
    done = in_two_processes(COMMAND, command(model, texts, two)[1:], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((two / "training.json").read_text())["processes"] == 2
    assert curve_of(two) == pytest.approx(curve_of(alone), abs=1e-5)


COUNTED = """
from acre_rag.training import sharding, trainer
def counted(decoder, **options):
    whole = sum(weight.numel() for weight in decoder.base.layers.parameters())
    sharding.shard_layers(decoder, **options)
    held = sum(weight.to_local().numel() for weight in decoder.base.layers.parameters())
    assert held == whole / 2, (held, whole)
    first = decoder.base.layers[0].self_attn.q_proj
    def given_back(*_):
        assert first.weight.to_local().numel() == first.weight.numel() / 2
    decoder.base.layers[2].register_forward_pre_hook(given_back)
trainer.shard_layers = counted
"""


def test_two_processes_that_share_the_layers_learn_the_same_and_go_on(
    model: Path, texts: Path, alone: Path, tmp_path: Path
) -> None:
    """FSDP: each keeps half of every layer; stopped after three steps, and begun again."""
    out = tmp_path / "out"
    stopped = in_two_processes(COUNTED + COMMAND, command(model, texts, out, stop=3, shard=True)[1:], tmp_path)
    assert (out / CHECKPOINT).is_file() and not (out / "training.json").exists(), stopped.stderr[-3000:]
    done = in_two_processes(COUNTED + COMMAND, command(model, texts, out, shard=True)[1:], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert curve_of(out) == pytest.approx(curve_of(alone), abs=1e-5)
    one, other = (load_learned(each / "adapter.safetensors", tiny_decoder()) for each in (alone, out))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_cannot_be_shared_out_is_refused(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="this launch has one"):
        trainer(texts, replace(SETTINGS, shard=True))
    for wrong in ({"stage": "sft"}, {"reading": "sequential"}):
        with pytest.raises(ConfigError, match="shard=true with stage"):
            replace(SETTINGS, shard=True, **wrong)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match=r"FSDP would shard what is trained.*--shard"):
        trainer(texts)


# Texts that teach nothing


def test_an_excerpt_of_a_short_text_is_the_whole_text(tmp_path: Path) -> None:
    heading, trailing = "A heading" * 20 + "\n\nand the text" * 20, "No break but at its end." * 8 + "\n\n"
    for name, text in (("heading", heading), ("trailing", trailing)):
        (tmp_path / f"{name}.txt").write_text(text)
        excerpts = Excerpts([tmp_path / f"{name}.txt"], n_chars=2000)
        assert [excerpts.excerpt(i).document for i in range(5)] == [text] * 5


def test_an_excerpt_of_a_longer_text_is_never_cut_short_by_its_end(texts: Path) -> None:
    files, _ = split_texts(texts, held_out=2)
    drawn = [Excerpts(files, n_chars=2000).excerpt(i).document for i in range(200)]
    assert {len(text) for text in drawn} == {2000}
    assert sum(text.startswith("In chapter") for text in drawn) > 100, "they begin at a paragraph"


@pytest.fixture
def mixed(texts: Path, tmp_path: Path) -> Path:
    """Among the books, notes of 44 tokens: more than a stride of 40, and less than a stride and a block of 8."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in texts.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
        (folder / f"note-{path.name}").write_text("n" * 44)
    return folder


def test_texts_that_teach_nothing_are_passed_over_alike_when_a_run_goes_on(
    mixed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = trainer(mixed).train()
    assert whole.step == 8 and whole.n_skipped > 4
    assert caplog.text.count("has 44 tokens") == whole.n_skipped
    for steps in (3, 5, 8):
        progress = trainer(mixed, out=tmp_path / "out").train(steps=steps)
    assert losses(progress.curve) == losses(whole.curve)
    assert [record.get("skipped", 0) for record in progress.curve] == [r.get("skipped", 0) for r in whole.curve]


def test_a_run_that_nothing_can_be_learned_from_ends(mixed: Path) -> None:
    for path in mixed.glob("book*"):
        path.unlink()
    with pytest.raises(DocumentError, match=r"100 examples teach nothing.*has 44 tokens"):
        trainer(mixed).train()


# From settings to an adapter


def test_a_run_leaves_an_adapter_that_says_what_it_was_trained_on(model: Path, texts: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(**vars(SETTINGS) | {"model": str(model), "dtype": "float32", "steps": 2, "held_out": 2})
    seen: list[int] = []
    trained = run_training(
        settings, data=texts, out=tmp_path / "out", device="cpu", on_step=lambda record: seen.append(record["step"])
    )
    info = adapter_info(trained.adapter)
    assert info is not None and info.intervals == (4, 8) and info.rank == 2 and info.facts["steps"] == 2 == len(seen)
    record = json.loads(trained.record.read_text())
    assert record["data"]["files"] == 4 and len(record["data"]["held_out"]) == 2
    again = TrainingSettings(**vars(settings) | {"stage": "stage1", "steps": 2, "seed": 1})
    onward = run_training(again, data=texts, out=tmp_path / "next", start=trained.adapter, device="cpu")
    assert json.loads(onward.record.read_text())["start"] == "adapter.safetensors"
    with pytest.raises(DocumentError, match="6 files"):
        run_training(TrainingSettings(**vars(settings) | {"held_out": 6}), data=texts, out=tmp_path / "x", device="cpu")


def test_every_step_reaches_a_tracker(model: Path, texts: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, model=str(model), dtype="float32", steps=3, held_out=2)
    trained = run_training(settings, data=texts, out=tmp_path / "run", device="cpu", trackers=("tensorboard",))
    curve = json.loads(trained.record.read_text())["curve"]
    logged = EventAccumulator(str(tmp_path / "run" / "run")).Reload()
    for name in ("loss", "learning_rate", "gradient_norm", "interval"):
        scalars = [(each.step, each.value) for each in logged.Scalars(name)]
        assert scalars == [(record["step"], pytest.approx(record[name], rel=1e-6)) for record in curve]
    assert [record["step"] for record in curve] == [1, 2, 3]


def test_what_measurements_call_untrained_is_what_training_begins_with() -> None:
    decoder = tiny_decoder()
    first = begin(decoder, TrainingSettings())
    measured = learned_proxy(Setting(decoder=decoder, template=SHORT_ANSWER), UNTRAINED).parameters
    line_break = decoder.tokenizer("\n")["input_ids"]
    assert torch.equal(first.embedding, decoder.base.embed_tokens.weight[line_break].mean(dim=0))
    assert torch.equal(measured.embedding, first.embedding)
    for l1 in (first, measured):
        assert not any(weight.any() for name, weight in l1.named_parameters() if name.endswith(".up"))


def test_what_is_untrained_depends_on_its_seed_and_disturbs_no_other() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (begin(tiny_decoder(), replace(SETTINGS, seed=seed)).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.0.q.down"], other["layers.0.q.down"])


@pytest.mark.parametrize("wrong", ["cuda:99", "gpu", "cuda:one", "meta"])
def test_a_device_that_would_not_be_trained_on_is_refused(wrong: str, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"device='{wrong}'"):
        run_training(SETTINGS, data=texts, out=tmp_path, device=wrong)


def test_another_device_than_the_launch_gives_is_refused() -> None:
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    for wanted, given in (("cuda", first), ("cuda", second), ("cuda:1", second), ("cuda:0", torch.device("cuda"))):
        _check_same(torch.device(wanted), given)
    for wanted, given in (("cuda:1", first), ("cuda", torch.device("cpu")), ("cuda:1", torch.device("cuda"))):
        with pytest.raises(ConfigError, match=f"device='{wanted}' is not where.*CUDA_VISIBLE_DEVICES"):
            _check_same(torch.device(wanted), given)


def test_the_environment_changes_no_gradient(model: Path, texts: Path, tmp_path: Path) -> None:
    """Accelerate reads its environment once a process."""
    for name, value, says in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "gradient_accumulation_steps=4"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", ""),
    ):
        done = subprocess.run(
            [sys.executable, "-c", *command(model, texts, tmp_path / name)],
            env=os.environ | {name: value},
            timeout=120,
            capture_output=True,
            text=True,
        )
        assert (says in done.stderr and done.returncode != 0) if says else done.returncode == 0, done.stderr
    subprocess.run(
        [sys.executable, "-c", *command(model, texts, tmp_path / "plain")], check=True, timeout=120, capture_output=True
    )
    assert curve_of(tmp_path / "ACCELERATE_MIXED_PRECISION") == curve_of(tmp_path / "plain")


def test_the_rank_is_that_of_the_adapter_that_training_begins_with(model: Path, texts: Path, tmp_path: Path) -> None:
    decoder, start = load_decoder(model, device="cpu", dtype="float32"), tmp_path / "start.safetensors"
    save_adapter(begin(decoder, replace(SETTINGS, rank=3)), start, decoder=decoder, intervals=(4, 8))
    settings = replace(SETTINGS, model=str(model), dtype="float32", steps=1, held_out=2, rank=None)
    with pytest.raises(ConfigError, match=r"rank=2, but training begins with start\.safetensors, whose rank is 3"):
        run_training(replace(settings, rank=2), data=texts, out=tmp_path / "other", start=start, device="cpu")
    for named in (None, 3):
        out = tmp_path / f"rank-{named}"
        trained = run_training(replace(settings, rank=named), data=texts, out=out, start=start, device="cpu")
        assert json.loads(trained.record.read_text())["settings"]["rank"] == 3
        info = adapter_info(trained.adapter)
        assert info is not None and info.rank == info.facts["settings"]["rank"] == 3
    assert settings.new_rank == DEFAULT_RANK == 32


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about numbered ships among sentences of other ships, as `acre data build` makes shards of them."""
    folder = tmp_path_factory.mktemp("questions")
    pairs = [
        {
            "id": f"ship{i}",
            "context": " ".join(f"The ship {i}-{j} sails to port {i * j} on a calm day." for j in range(8)),
            "question": f"Where does the ship {i}-3 sail to?",
            "answers": [f"port {i * 3}"],
        }
        for i in range(1, 25)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(pair) for pair in pairs))
    options = BuildOptions(stage=2, min_tokens=200, max_tokens=400, short_share=1.0, shard_examples=5)
    build([folder / "pairs.jsonl"], folder / "shards", options=options)
    return folder / "shards"


def test_stage_two_learns_answers_and_where_they_stand(model: Path, shards: Path, tmp_path: Path) -> None:
    """As a command, from shards, through the end of a pass, beginning with an adapter."""
    start = tmp_path / "start.safetensors"
    decoder = load_decoder(model, device="cpu", dtype="float32")
    save_adapter(begin(decoder, SETTINGS), start, decoder=decoder, intervals=(8, 8))
    options = f"--model {model} --data {shards} --start {start} --batch 4 --context 1600 --interval 8 --stride 400"
    options += " --lr 0.02 --dtype float32 --device cpu --retrieval-weight 1 --save-every 1 --schedule constant --json"
    done = CliRunner().invoke(app, f"train stage2 --out {tmp_path / 'out'} --steps 12 {options}".split())
    assert done.exit_code == 0, done.output
    curve = json.loads((tmp_path / "out" / "training.json").read_text())["curve"]
    assert len(curve) == 12 and "step 12/12" in done.stderr
    for name in ("loss", "retrieval_loss"):
        values = [record[name] for record in curve]
        assert sum(values[-4:]) < sum(values[:4])


def test_fine_tuning_with_checkpointing_recomputes_and_learns_the_same(model: Path, shards: Path) -> None:
    settings = TrainingSettings(stage="sft", context=(1600,), batch=2, steps=2, rank=2)
    learned, passes = [], []
    for checkpointing in (False, True):
        decoder = load_decoder(model, device="cpu", dtype="float32")
        count: list[int] = []
        decoder.base.layers[0].input_layernorm.register_forward_hook(lambda *_, count=count: count.append(1))
        reader = PlainReader(decoder, rank=2, checkpointing=checkpointing)
        learned.append(losses(Trainer(reader, settings, Shards(shards)).train().curve))
        passes.append(len(count))
    assert learned[1] == pytest.approx(learned[0], rel=1e-5)
    assert passes == [4, 8]


def test_fine_tuning_leaves_an_ordinary_model_that_answers_better(model: Path, shards: Path, tmp_path: Path) -> None:
    options = f"--model {model} --data {shards} --batch 4 --context 1600 --lr 0.02 --dtype float32 --device cpu --json"
    done = CliRunner().invoke(
        app, f"train sft --out {tmp_path / 'out'} --steps 10 --schedule constant {options}".split()
    )
    assert done.exit_code == 0, done.output
    curve = json.loads((tmp_path / "out" / "training.json").read_text())["curve"]
    assert sum(losses(curve)[-4:]) < sum(losses(curve)[:4])
    tuned = load_decoder(tmp_path / "out" / "model", device="cpu", dtype="float32")
    settings = TrainingSettings(stage="sft", context=(1600,))
    plain = [Teacher(tuned, settings).lesson(e, Draw(8, 1600)) for e in islice(Shards(shards).starting_at(0), 8)]
    before, after = (
        sum(
            float(next_token_loss(d, d.base(lesson.token_ids[None]).last_hidden_state[0][lesson.slots], lesson.targets))
            for lesson in plain
        )
        for d in (load_decoder(model, device="cpu", dtype="float32"), tuned)
    )
    assert after < before - 1


@pytest.mark.parametrize("stage", ["stage1", "stage2", "sft"])
def test_every_stage_needs_data_and_a_folder(stage: str, tmp_path: Path) -> None:
    for given, missing in (("--data", "--out"), ("--out", "--data")):
        done = CliRunner().invoke(app, ["train", stage, given, str(tmp_path)])
        assert done.exit_code == 2 and f"Missing option '{missing}'" in done.output


def test_shards_are_entered_where_a_run_stopped(shards: Path) -> None:
    examples = Shards(shards, seed=3)
    whole = list(islice(examples.starting_at(0), 60))  # more than a pass of 24
    assert len({example.id for example in whole[:24]}) == 24
    for number in (1, 24, 31):
        assert list(islice(examples.starting_at(number), 60 - number)) == whole[number:]


def test_settings_are_read_from_a_file_and_from_options_above_it(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("steps = 7\nintervals = [8, 16]\nrank = 4\n")
    settings = read_settings(path, rank=9, steps=None)
    assert (settings.steps, settings.intervals, settings.rank) == (7, (8, 16), 9)
    for text, message in {
        "stepps = 7": "stepps",
        "steps = 0": "steps=0",
        "stride = 64": "stride=64",
        "context = [512]": "no later stride",
        "context = [600]": "take 640 tokens",
        "stride = 1": "stride=1 is too small",
        "stage = 'stage3'": "stage3",
        "steps = ": "cannot be read",
        "steps = 'many'": "many",
        "rank = 'many'": "give a whole number",
        "rank = -1": "rank=-1",
        "stage = 'stage2'\ncontext = [100, 2048]": "context=100 is shorter than the interval 128",
        "retrieval_weight = 0.1\nreading = 'sequential'": "needs reading='parallel'",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_settings(path)


def test_a_window_too_small_for_what_a_step_may_draw_is_refused_at_once(texts: Path) -> None:
    prefix = Teacher(tiny_decoder(), SETTINGS)._prefix
    # l = 4: the last stride of 160 tokens sees 30 L1 entries, and brings 40 tokens with 10 L1 tokens
    least = len(prefix) + 30 + 50
    assert trainer(texts, replace(SETTINGS, window=least, steps=1)).train().step == 1
    with pytest.raises(ConfigError, match=f"window={least - 1} is too small for context=160 with interval=4"):
        trainer(texts, replace(SETTINGS, window=least - 1))
    trainer(texts, replace(SETTINGS, window=least - 1, intervals=(8,)))


def test_shipped_settings_are_valid_and_known_by_name() -> None:
    stages = {name: read_settings(Path(name)).stage for name in shipped_settings()}
    assert {"smollm2-stage1", "smollm2-stage2", "paper-stage1", "paper-stage2"} <= stages.keys()
    assert all(name.endswith(stage) for name, stage in stages.items())
    with pytest.raises(ConfigError, match="one of: paper-stage1"):
        read_settings(Path("paper-stage9"))


@pytest.mark.parametrize(
    ("record", "config"),
    [
        ("smollm2-sft-300", "smollm2-sft"),
        ("repeats-repeats", "smollm2-repeats-stage1"),
        ("repeats-mixed", "smollm2-mixed-stage1"),
        ("repeats-stage2", "smollm2-repeats-stage2"),
    ],
)
def test_a_published_run_can_be_repeated_by_its_config(record: str, config: str) -> None:
    results = Path(__file__).parent.parent / "benchmarks" / "results"
    recorded = json.loads((results / f"training-{record}.json").read_text(encoding="utf-8"))["settings"]
    settings = json.loads(json.dumps(read_settings(Path(config)).to_dict()))
    assert {name: settings[name] for name in recorded} == recorded
