"""The KV systems by name."""

from acre_rag.baselines.system import System


def _system(name: str, title: str, place: str, about: str, **options: object) -> System:
    return System(name, title, "kv", f"acre_rag.baselines.{place}", about, tuple(options.items()))


KV_SYSTEMS = (
    _system("full", "Full context", "kv.full:make_full", "the whole document, its middle left out at the window"),
    _system(
        "streaming-llm",
        "StreamingLLM",
        "kv.streaming_llm:make_streaming_llm",
        "the first few tokens and the most recent ones (kvpress)",
    ),
    _system("snapkv", "SnapKV", "kv.snapkv:make_snapkv", "what the end of the prompt attends to (kvpress)"),
    _system("finch", "FINCH", "kv.finch:make_finch", "what the question attends to (kvpress)"),
    _system("kivi", "KIVI", "kv.kivi:make_kivi", "the whole cache in 4 bits, recent tokens in full precision"),
    _system(
        "self-extend",
        "SelfExtend",
        "kv.self_extend:make_self_extend",
        "beyond the window, by positions that far tokens share in groups",
    ),
    _system("minference", "MInference", "kv.minference:make_minference", "sparse attention while reading; CUDA only"),
    _system(
        "beacon",
        "Activation Beacon's form (ACRE adapter)",
        "kv.beacon:make_beacon_form",
        "learned L1 of an ACRE adapter without refilling: the form of Activation Beacon, not its weights",
        learned=True,
        budget=0,
    ),
    _system(
        "beacon-checkpoint",
        "Activation Beacon (checkpoint)",
        "kv.beacon:make_beacon_checkpoint",
        "the beacons of a checkpoint as compact entries, nothing refilled",
        learned=True,
        budget=0,
    ),
    _system("offload", "CPU offloading", "kv.offload:make_offload", "full context, its cache in host memory"),
)
