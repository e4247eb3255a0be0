"""The diagnosis: it names what will run, and says what to do about what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from moonlet.cli.doctor import print_diagnosis
from moonlet.ops.dispatch import force
from moonlet.ops.native import library
from moonlet.train import doctor
from moonlet.train.doctor import Diagnosis, advice, diagnose
from moonlet.train.fastpaths import fast_paths
from moonlet.train.machine import Accelerator, Machine
from moonlet.train.packages import Package, optional_packages
from moonlet.train.probe import Allocator, measure_rates, try_allocator

CPU = torch.device("cpu")
MACHINE = Machine("Linux", "CPU", 4, 8, 8, None, 2**34, 2**33, False, ("AVX2",), "AVX2", ())
KEPT = Allocator(True, 8192, 0)


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose("cpu", 0.2)


def choices(device: torch.device = CPU, dtype: str = "float32") -> dict[str, str]:
    return {path.what: path.choice for path in fast_paths(device, dtype)}


def test_paths_are_those_the_dispatch_takes() -> None:
    paths = choices()
    if library("attention") is not None:
        assert paths["attention at 256, 512, 2,048"] == "native"
    else:
        assert paths["attention at 256"] == "products"
        assert paths["attention at 512, 2,048"] == "sdpa"
        assert choices(dtype="bfloat16")["attention at 256, 512"] == "products"
    assert paths["attention decoding"] == "grouped"
    compiled = library("experts") is not None
    assert (paths["experts training"], paths["experts decoding"]) == ("native" if compiled else "sorted", "few")
    assert paths["delta rule"] == ("native" if library("delta") is not None else "chunked")
    assert paths["flash-linear-attention"] == "off"


def test_a_forced_path_is_told() -> None:
    with force("attention", "reference"), force("experts", "reference"), force("delta_rule", "reference"):
        paths = choices()
    assert paths["delta rule"] == "reference"
    assert paths["attention at 256, 512, 2,048"] == "reference"
    assert paths["experts decoding"] == "reference"


def test_the_decode_step_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> tuple[str, str]:
        return next((p.choice, p.why) for p in fast_paths(CPU, "float32") if p.what == "decode step")

    monkeypatch.setattr("moonlet.train.fastpaths.library", lambda name: object())
    assert step() == ("native", "one call of C++ a token, fp32 and bf16")
    monkeypatch.setenv("MOONLET_OPS", "decode_step=plain")
    assert step() == ("plain", "PyTorch: asked for by MOONLET_OPS")
    monkeypatch.delenv("MOONLET_OPS")
    monkeypatch.setattr("moonlet.train.fastpaths.library", lambda name: None)
    monkeypatch.setattr("moonlet.train.fastpaths.why_not", lambda name: "no C++ compiler")
    assert step() == ("plain", "PyTorch: no C++ compiler")


def test_rates_are_measured_in_about_the_time_given() -> None:
    rates = measure_rates(CPU, 0.2)
    assert rates.bandwidth > 1e8
    assert rates.fp32 > 1e8
    assert rates.bf16 is not None


def test_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure_rates(CPU, 0.05)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_allocator_is_judged_by_page_faults() -> None:
    allocator = try_allocator()
    assert allocator.effective == (allocator.faults_after is not None and allocator.faults_after < 1000)
    assert Allocator(True, 8192, 8192).effective is False
    assert Allocator(False, None, None).effective is None


def test_missing_packages_come_with_their_command() -> None:
    commands = {p.name: p.install for p in optional_packages()}
    assert commands["pyarrow"] == 'pip install "moonlet[parquet]"'
    assert commands["lm-eval"] == 'pip install "moonlet[lm-eval]"'


@pytest.mark.parametrize(
    ("machine", "threads", "load", "allocator", "expected"),
    [
        (MACHINE, 4, 0.1, KEPT, None),
        (replace(MACHINE, quota=2.0), 4, 0.1, KEPT, "train.threads=2"),
        (MACHINE, 1, 0.1, KEPT, "1 of 8 cores"),
        (MACHINE, 4, 6.0, KEPT, "load 6.0 on 8 cores"),
        (replace(MACHINE, available=2**30), 4, 0.1, KEPT, "1.0 GiB of memory are free"),
        (MACHINE, 4, 0.1, Allocator(True, 9, 8192), "freed memory goes back"),
    ],
)
def test_advice_names_what_is_wrong_and_nothing_else(
    machine: Machine, threads: int, load: float, allocator: Allocator, expected: str | None
) -> None:
    notes = advice(machine, threads, load, allocator)
    assert len(notes) == (expected is not None)
    assert expected is None or expected in notes[0]


def test_the_diagnosis_is_json(diagnosis: Diagnosis) -> None:
    data = json.loads(json.dumps(diagnosis.as_values()))
    assert data["machine"]["logical_cores"] >= 1
    assert data["rates"]["fp32"] > 0
    assert {"moonlet", "torch", "numpy", "tokenizers"} <= set(data["versions"])
    assert "effective" in data["allocator"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_diagnosis_is_one_screen(diagnosis: Diagnosis, width: int, tmp_path: Path) -> None:
    missing = [Package("flash-attn", "attention", None, "pip install flash-attn")]
    found = diagnosis.machine
    gpu = (Accelerator("Some GPU", 2**36, True),)
    machine = replace(found, usable_cores=found.logical_cores, quota=1.5, accelerators=gpu)
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        print_diagnosis(
            Console(file=file, width=width), replace(diagnosis, packages=missing, machine=machine, load=0.0)
        )
    text = (tmp_path / "out").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= width
    for phrase in (
        "control group allows 1.5",
        "GB/s",
        "Some GPU, 64.0 GiB",
        "pip install flash-attn",
        "experts decoding",
    ):
        assert phrase in text


def test_a_device_that_is_not_there_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            doctor.diagnose("cuda", 0.1)
