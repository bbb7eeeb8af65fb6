"""The int8 encoder beside fp32, bf16 and the int8 of ONNX Runtime and OpenVINO; prints one row per goal.

    python -m benchmarks.int8_peer int8 --model minilm|bert-base     # AVX512-VNNI, steady state
    python -m benchmarks.int8_peer m3 [--layers 4]                   # three outputs beside BGEM3FlagModel
    python -m benchmarks.int8_peer single                            # one question alone, milliseconds
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 NUMBA_CPU_FEATURES=+avx2,+fma \
        python -m benchmarks.int8_peer avx2                          # fp32 beside sentence-transformers, as used

One thread, CPU time, subjects alternating in one process; a ratio is the median over rounds of (the other's seconds /
ours), [least-most]. Peers, in an environment of their own: `pip install onnx onnxruntime openvino nncf
sentence-transformers FlagEmbedding`. The checkpoint is exported as a plain BERT graph: ONNX Runtime's is quantised
dynamically (int8 weights per tensor, what sentence-transformers' `export_dynamic_quantized_onnx_model` does for
avx512_vnni), OpenVINO's statically by NNCF from 64 texts (what `export_static_quantized_openvino_model` does). Both get
sentence-transformers' loop: batches of 32 sorted by length, mean pooling.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, softmax

from actors.checkpoints.loading import load_weights
from actors.spec import OUTPUTS
from benchmarks import peers, shapes
from benchmarks.peers import CLOCKS, SIZE, Encode, Subject

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
SAMPLE = {"minilm": (3, SIZE), "bert-base": (3, 16), "m3": (3, 4)}
Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]


class PlainBert(nn.Module):
    """BERT of a checkpoint's tensors in the operations that an export keeps."""

    def __init__(self, folder: Path, heads: int, eps: float) -> None:
        super().__init__()
        tensors = load_weights(folder)
        self.w = {name.removeprefix("bert."): tensor.float() for name, tensor in tensors.items()}
        self.layers = 1 + max(int(name.split(".")[2]) for name in self.w if name.startswith("encoder.layer."))
        self.heads, self.eps, self.hidden = heads, eps, self.w["embeddings.LayerNorm.weight"].shape[0]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        w = self.w
        places = torch.cumsum(torch.ones_like(ids), 1) - 1
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][places]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        hidden = (1.0 - mask[:, None, None, :].float()) * -1e4
        for i in range(self.layers):
            at = f"encoder.layer.{i}."
            q, k, v = (self._split(self._linear(x, f"{at}attention.self.{n}")) for n in ("query", "key", "value"))
            scores = q @ k.transpose(-1, -2) * (self.hidden // self.heads) ** -0.5 + hidden
            mixed = (softmax(scores, -1) @ v).transpose(1, 2).flatten(2)
            x = self._norm(x + self._linear(mixed, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
            wide = gelu(self._linear(x, f"{at}intermediate.dense"))
            x = self._norm(x + self._linear(wide, f"{at}output.dense"), f"{at}output.LayerNorm")
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (self.hidden,), self.w[f"{name}.weight"], self.w[f"{name}.bias"], self.eps)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.hidden // self.heads)).transpose(1, 2)


def export(folder: Path, path: Path) -> Path:
    """Writes the checkpoint as ONNX, any batch and length."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    model = PlainBert(folder, config.num_attention_heads, config.layer_norm_eps).eval()
    ids = torch.ones(2, 9, dtype=torch.long)
    names = ["ids", "mask"]
    axes = {name: {0: "batch", 1: "length"} for name in (*names, "hidden")}
    torch.onnx.export(
        model, (ids, torch.ones_like(ids)), str(path), input_names=names, output_names=["hidden"], dynamic_axes=axes,
        opset_version=17, dynamo=False,
    )  # fmt: skip
    return path


def padded_batches(folder: Path, texts: list[str], longest: int) -> Any:
    """Yields (rows, ids, mask) of 32 texts, longest first, as sentence-transformers cuts them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(longest)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for start in range(0, len(texts), SIZE):
        rows = order[start : start + SIZE]
        tokenizer.no_padding()
        tokenizer.enable_padding()
        found = tokenizer.encode_batch([texts[i] for i in rows])
        yield rows, np.array([e.ids for e in found]), np.array([e.attention_mask for e in found])


def encoder(folder: Path, longest: int, forward: Forward, pooling: str) -> Encode:
    def encode(texts: list[str]) -> dict[str, np.ndarray]:
        dense: list[Any] = [None] * len(texts)
        for rows, ids, mask in padded_batches(folder, texts, longest):
            hidden = forward(ids, mask)
            pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]
            for row, vector in zip(rows, pooled / np.linalg.norm(pooled, axis=1, keepdims=True), strict=True):
                dense[row] = vector
        return {"dense": np.array(dense)}

    return encode


def onnx_runtime(graph: Path) -> Forward:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # An export that is not optimised first hides its products' weights behind transposes, and none is quantised.
    basic = onnxruntime.SessionOptions()
    basic.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    basic.optimized_model_filepath = str(graph.with_suffix(".basic.onnx"))
    onnxruntime.InferenceSession(str(graph), basic, providers=["CPUExecutionProvider"])
    quantized = str(graph.with_suffix(".int8.onnx"))
    quantize_dynamic(basic.optimized_model_filepath, quantized, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(quantized, options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(None, {"ids": ids, "mask": mask})[0]


def open_vino(graph: Path, batches: list[Any]) -> Forward:
    import nncf
    import openvino

    model = nncf.quantize(
        openvino.convert_model(str(graph)), nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER
    )
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1})
    return lambda ids, mask: compiled([ids, mask])[0]


def alternate(found: list[Subject], texts: list[str], rounds: int, tokens: int) -> None:
    """Prints how many times as long each takes as the first."""
    for subject in found:
        subject.encode(texts[:SIZE])
    results = [[subject.timed(texts) for subject in found] for _ in range(rounds)][-1]
    mine = np.array(found[0].seconds)
    for subject, result in zip(found, results, strict=True):
        ratios = np.array(subject.seconds) / mine
        a, b = results[1]["dense"].astype(np.float64), result["dense"].astype(np.float64)
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        speed = tokens / np.median(subject.seconds)
        times = f"{np.median(ratios):.2f} [{ratios.min():.2f}-{ratios.max():.2f}]"
        whole = np.array(subject.seconds) + np.array(subject.left_out)
        used = f"{np.median(whole / mine):.2f}" if any(subject.left_out) else "-"
        cosine = f"{cosines.mean():.4f} / {cosines.min():.4f}"
        print(f"| {subject.name} | {times} | {used} | {speed:.0f} | {cosine} |", flush=True)


def ours(folder: Path, kind: str, dtype: Any, longest: int, outputs: Any = ("dense",)) -> Subject:
    return Subject(f"tridex {dtype}", peers.ours(folder, kind, dtype, outputs, longest, 1), CLOCKS["cpu"])


def subjects(mode: str, kind: str, folder: Path, longest: int, texts: list[str], scratch: Path) -> list[Subject]:
    clock = CLOCKS["cpu"]
    if mode == "avx2":
        peer = Subject("sentence-transformers fp32", peers.sentence_transformers(folder, torch.float32, longest), clock)
        return [ours(folder, kind, "fp32", longest), peer]
    if mode == "m3":
        flag = Subject("FlagEmbedding fp32", peers.flag(folder, kind, OUTPUTS, longest, SAMPLE[kind][1]), clock)
        own = [ours(folder, kind, dtype, longest, OUTPUTS) for dtype in ("int8", "fp32", "bf16")]
        return [*own, peers.without_first_pass(flag)]
    found = [ours(folder, kind, dtype, longest) for dtype in ("int8", "fp32", "bf16")]
    if mode == "int8":
        graph, pooling = export(folder, scratch / "model.onnx"), "mean" if kind == "minilm" else "cls"
        batches = [[ids, mask] for _, ids, mask in padded_batches(folder, texts[:64], longest)]
        for name, forward in (("ONNX Runtime int8", onnx_runtime(graph)), ("OpenVINO int8", open_vino(graph, batches))):
            found.append(Subject(name, encoder(folder, longest, forward, pooling), clock))
    return found


def single(found: list[Subject], rounds: int) -> None:
    for subject in found:
        subject.encode(["a warm up"])
    for _ in range(20 * rounds):
        for subject in found:
            subject.timed(["how does the scheduler pick the next task"])
    for subject in found:
        print(f"| {subject.name} | {1e3 * np.median(subject.seconds):.2f} ms |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["int8", "m3", "single", "avx2"])
    parser.add_argument("--model", default="minilm", choices=["minilm", "bert-base"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has; a layer costs the same")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kind = "m3" if given.mode == "m3" else given.model
    longest = 256 if kind == "minilm" else 512
    texts = shapes.whole_batches(shapes.corpus("linux-doc")[::4], longest, *SAMPLE[kind])
    tokens = int(shapes.lengths_of(texts, longest).sum())
    with tempfile.TemporaryDirectory() as name:
        folder = shapes.checkpoint(kind, Path(name) / "model", given.layers)
        found = subjects(given.mode, kind, folder, longest, texts, Path(name))
        print(f"{given.mode}, {kind}, {len(texts)} texts, {tokens} tokens, one thread, {given.rounds} rounds")
        if given.mode == "single":
            single(found, given.rounds)
            return
        print("| encoder | times ours | with all passes | tokens/s | cosine to fp32, mean / worst |")
        print("|---|---|---|---|---|")
        alternate(found, texts, given.rounds, tokens)


if __name__ == "__main__":
    main()
