"""Speed of reading a nested sequence for training: one pass ("strided", "dense", "flex") against the loop of strides.

python -m benchmarks.nested_attention

Forward and backward pass through the frozen model to the L1 parameters, without the vocabulary's logits. The ways are
measured in turns, so that what else the machine does falls on all of them; a speedup is the median over the rounds of
the loop's seconds over a way's.
"""

import argparse
import statistics
from time import perf_counter, process_time

import torch

from acre_rag.decoder import Decoder
from acre_rag.models import load_decoder
from acre_rag.proxies.learned import L1Parameters
from acre_rag.training.layout import Layout, reading
from acre_rag.training.reader import NestedReader
from benchmarks.record import write

PREFIX_TOKENS = 16


def main() -> None:
    """Measure and write."""
    args = _arguments()
    decoder = load_decoder(args.model, device=args.device, dtype=args.dtype)
    l1 = L1Parameters(decoder, rank=32)
    cuda = decoder.device.type == "cuda"
    summary = {"model": decoder.name, "dtype": str(decoder.dtype), "device": str(decoder.device)}
    summary |= {"interval": args.interval, "repeats": args.repeats}
    rows = []
    for n_tokens in args.tokens:
        for stride in args.stride:
            if stride >= n_tokens:
                continue
            layout = reading(n_prefix=PREFIX_TOKENS, n_tokens=n_tokens, interval=args.interval, stride=stride)
            readers = {"loop": NestedReader(decoder, l1, reading="sequential")}
            for way in ("strided", "flex") if cuda else ("strided", "dense"):
                readers[way] = NestedReader(decoder, l1, way=way)
            rows.append({"tokens": n_tokens, "stride": stride} | _row(decoder, readers, layout, args.repeats))
            print(rows[-1], flush=True)
            write(f"nested_attention-{decoder.device.type}", summary, rows)  # what a run that is cut short has measured


def _row(decoder: Decoder, readers: dict[str, NestedReader], layout: Layout, repeats: int) -> dict[str, float]:
    ids = torch.randint(100, 10_000, (layout.n_prefix + layout.n_tokens,), device=decoder.device)
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repeats + 1):
        for name, reader in readers.items():
            seconds[name].append(_pass(reader, ids, layout))
    rounds = {name: each[1:] for name, each in seconds.items()}  # the first round warms up
    row = {f"{name}_s": round(statistics.median(each), 3) for name, each in rounds.items()}
    for name in list(readers)[1:]:
        ratios = [loop / way for loop, way in zip(rounds["loop"], rounds[name], strict=True)]
        row[f"{name}_speedup"] = round(statistics.median(ratios), 2)
    return row


def _pass(reader: NestedReader, ids: torch.Tensor, layout: Layout) -> float:
    """Seconds of one forward and backward pass: the process's own on CPU, by the wall on CUDA."""
    cuda = ids.device.type == "cuda"
    clock = perf_counter if cuda else process_time
    start = clock()
    reader(ids, layout).float().pow(2).mean().backward()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--stride", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--interval", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
