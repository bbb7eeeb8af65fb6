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
    assert all("as asked" in line for line in resolved.why)


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
