from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from transformers import BertConfig

from actors.compute import resolve as compute
from actors.compute.resolve import resolve_compute, single_torch_thread
from actors.spec import ComputeSpec


@pytest.mark.parametrize(("hardware", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bf16_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, hardware: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(compute, "cpu_has_bf16", lambda: hardware)
    resolved = resolve_compute(ComputeSpec(device="cpu"), BertConfig())
    assert resolved.dtype == dtype
    assert any("bf16" in line for line in resolved.why)


def test_what_is_asked_for_is_kept() -> None:
    spec = ComputeSpec(dtype="fp32", budget=77, compile=True, threads=3, device="cpu")
    resolved = resolve_compute(spec, BertConfig())
    assert resolved.dtype == torch.float32
    assert (resolved.budget, resolved.threads, resolved.compile) == (77, 3, True)
    assert all("as set" in line for line in resolved.why)


@pytest.mark.parametrize(("hardware", "says"), [(True, "8-bit products"), (False, "slower than fp32")])
def test_int8_says_what_it_is_on_this_processor(monkeypatch: pytest.MonkeyPatch, hardware: bool, says: str) -> None:
    monkeypatch.setattr(compute, "has_int8_linear", lambda: hardware)
    resolved = resolve_compute(ComputeSpec(dtype="int8", device="cpu"), BertConfig(), allows_int8=True)
    assert (resolved.int8, resolved.dtype) == (True, torch.float32)
    assert any(line.startswith("dtype: int8") and says in line for line in resolved.why)


def test_int8_is_refused_where_nothing_computes_it() -> None:
    with pytest.raises(ValueError, match="int8 is for embedders: a reranker takes"):
        resolve_compute(ComputeSpec(dtype="int8", device="cpu"), BertConfig())
    with pytest.raises(ValueError, match=r"int8 runs on a CPU, the device is cuda:0: set compute\.device to cpu"):
        resolve_compute(ComputeSpec(dtype="int8", device="cuda:0"), BertConfig(), allows_int8=True)


def test_every_choice_is_explained() -> None:
    why = resolve_compute(ComputeSpec(), BertConfig()).why
    assert [line.split(":")[0] for line in why] == ["device", "dtype", "budget", "compile", "threads"]


def test_the_rate_of_a_matrix_product_is_a_rate() -> None:
    assert compute.measure_matmul_flops(torch.device("cpu"), torch.float32, (64, 64, 64)) > 1e6


def test_one_thread_is_given_back_whatever_happens() -> None:
    before, seen = torch.get_num_threads(), []

    def fail() -> None:
        with single_torch_thread():
            seen.append(torch.get_num_threads())
            raise KeyError

    try:
        torch.set_num_threads(3)
        with pytest.raises(KeyError):
            fail()
        assert (*seen, torch.get_num_threads()) == (1, 3)
    finally:
        torch.set_num_threads(before)


def test_questions_of_several_threads_do_not_leave_the_process_with_one() -> None:
    before, both = torch.get_num_threads(), Barrier(2, timeout=60)

    def ask(seconds: float) -> int:
        with single_torch_thread():
            both.wait()
            time.sleep(seconds)
        return torch.get_num_threads()

    try:
        torch.set_num_threads(3)
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(ask, (0.0, 0.05))) == [3, 3]
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
