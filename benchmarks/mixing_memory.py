"""Peak memory of mixing two models, against the number of shards that they have.

    python benchmarks/mixing_memory.py [--shard-mib 128] [--shards 2 4 8]

Writes two synthetic checkpoints a size (float16, so that sums convert) and mixes them twice, each in a process of its
own: with `mix_models`, whose shards are as large as the checkpoint's, and by loading both state dicts and summing them,
which is what LM-Cocktail does. Prints the memory above that of the process before it starts: private pages (what the
machine must have) and all resident pages (the mapped source files too, which the kernel drops when it needs room).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.mixing import mix_models
from tests.checkpoints import write_tokenizer

MIB = 2**20


def write_checkpoint(folder: Path, shards: int, shard_mib: int, seed: int) -> None:
    """A folder that `mix_models` takes: random float16 tensors of 64 MiB, a config and a tokenizer of two words."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    places = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        names = [f"layers.{i}.{j}.weight" for j in range(shard_mib // 64)]
        save_file({name: torch.randn(32, MIB, generator=draw).half() for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "synthetic"}))
    words = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}
    write_tokenizer(folder, {"added_tokens": [], "model": words}, {"unk_token": "[UNK]"})


def resident() -> tuple[int, int]:
    """(private, all) resident MiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "VmRSS"))}
    return kib["RssAnon"] // 1024, kib["VmRSS"] // 1024


def plain_sum(folders: list[Path], target: Path) -> None:
    states = [{k: v for file in sorted(f.glob("*.safetensors")) for k, v in load_file(file).items()} for f in folders]
    states = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    mixed = {name: 0.5 * states[0][name] + 0.5 * states[1][name] for name in states[0]}
    target.mkdir()
    save_file(mixed, target / "model.safetensors")


def measure(how: str, folders: list[Path], target: Path, shard_mib: int, results: multiprocessing.Queue) -> None:
    """Runs one way in this process, sampling its memory every 2 ms."""
    torch.set_num_threads(1)
    before, peak, done = resident(), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            for i, now in enumerate(resident()):
                peak[i] = max(peak[i], now - before[i])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    if how == "streamed":
        mix_models(folders, "decoder", [0.5, 0.5], target, shard_bytes=shard_mib * MIB)
    else:
        plain_sum(folders, target)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    results.put((*peak, seconds))


def run(how: str, shards: int, shard_mib: int) -> tuple[int, int, float]:
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("one", "two")]
        for seed, folder in enumerate(folders):
            write_checkpoint(folder, shards, shard_mib, seed)
        results = spawn.Queue()
        process = spawn.Process(target=measure, args=(how, folders, Path(scratch) / "out", shard_mib, results))
        process.start()
        figures = results.get()
        process.join()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shard-mib", type=int, default=128)
    parser.add_argument("--shards", type=int, nargs="+", default=[2, 4, 8])
    args = parser.parse_args()
    print("| shards | MiB a model | how | private peak MiB | resident peak MiB | seconds |\n|---|---|---|---|---|---|")
    for shards in args.shards:
        for how in ("streamed", "plain"):
            private, total, seconds = run(how, shards, args.shard_mib)
            print(f"| {shards} | {shards * args.shard_mib} | {how} | {private} | {total} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
