"""The checks for a GPU, on the CPU at tiny sizes: their results, and the handling of failures."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import check_gpu
from benchmarks.gpu import packing, parity, rows, sharding
from benchmarks.gpu.machine import Machine, speeds
from benchmarks.gpu.rows import AGREES, DISAGREES, FAILED, LEFT_OUT, MEASURED, NO_ROOM, Row
from benchmarks.gpu.sizes import PUBLISHED, TINY
from benchmarks.gpu.twins import (
    SAMPLES,
    TransformerTwins,
    apart,
    loss_and_gradients,
    random_model,
    sampled,
    vae_twins,
    worst_gradient,
)
from minicogvx.transformer.model import ExpertTransformer
from minicogvx.vae.tiling import tiled_decode

CPU = Machine(torch.device("cpu"), torch.float32)
FOREVER = math.inf
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Status, what was printed, and the file, of every check once.

    In a process of its own, as a user runs it: torch.compile does not trace through checks of shapes.
    """
    path = tmp_path_factory.mktemp("gpu") / "new" / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.check_gpu", "--device", "cpu", "--tiny", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    return done.returncode, done.stdout, json.loads(path.read_text()), path


def test_every_check_gives_rows_that_agree_and_the_file_has_every_row_of_the_table(whole):
    status, printed, found, path = whole
    assert status == 0, printed
    assert {row["check"] for row in found["rows"]} == set(check_gpu.CHECKS)
    assert all(row["result"] in (AGREES, MEASURED) for row in found["rows"]), printed
    assert "Every check ran, and all agree." in printed
    lines = [line for line in printed.splitlines() if line.startswith(tuple(check_gpu.CHECKS))]
    assert len(lines) == len(found["rows"]) and [p.name for p in path.parent.iterdir()] == [path.name]
    for line, row in zip(lines, found["rows"]):
        assert row["check"] in line and row["part"] in line and row["result"] in line
        assert row.keys() == Row("check").__dict__.keys()
    assert found["machine"]["device"] == "cpu" and found["matrix_product_flops_per_second"]["float32"] > 0


def test_parity_is_within_the_stated_tolerance_in_both_formats(whole):
    found = [row for row in whole[2]["rows"] if row["check"].startswith("parity")]
    parts = {(row["check"], row["part"], row["numbers"]) for row in found}
    assert parts == {(f"parity {name}", part, numbers) for name, both in (
        ("2b", ("forward", "training step")), ("5b", ("forward", "training step")), ("vae", ("encode", "decode")))
        for part in both for numbers in ("float32", "bfloat16")}
    for row in found:
        limit = 1e-5 if row["numbers"] == "float32" else 0.03
        assert row["result"] == AGREES and 0 < row["error"] <= min(limit, row["allowed"]), row


def test_what_is_timed_has_figures_for_both_programs(whole):
    timed = [row for row in whole[2]["rows"] if row["check"].startswith("speed")]
    assert [row["part"].split(",")[0] for row in timed] == ["forward", "guided step", "LoRA training step", "encode",
                                                            "decode"]
    for row in timed:
        assert row["beside"] == "diffusers" and min(row["seconds"], row["other_seconds"], row["flops"]) > 0, row
        assert 0 < row["share"] < 1 and 0 < row["other_share"] < 1 and row["error"] < 0.03, row
    tiles, frames = (row for row in whole[2]["rows"] if row["check"] == "large decode")
    assert tiles["part"].startswith("tiles") and tiles["flops"] > frames["flops"] > 0  # the overlap is seen twice


def test_a_program_that_is_off_disagrees_and_a_pack_whose_clips_see_each_other(monkeypatch, subtests):
    right, real = TransformerTwins.ours_says, packing.forward_clips
    for numbers, factor in (("float32", 1.001), ("bfloat16", 1.05)):
        with subtests.test(numbers):
            monkeypatch.setattr(TransformerTwins, "ours_says", lambda self, x: right(self, x) * factor)
            found = {(row.part, row.numbers): row for row in parity.transformer("5b")(CPU, TINY)}
            assert found["forward", numbers].result == DISAGREES and check_gpu.is_bad(found["forward", numbers])

    def leaky(model, latents, times, texts, kernel):
        outputs = real(model, latents, times, texts, kernel=kernel)
        return [outputs[0] + 1e-2 * outputs[2].mean(), *outputs[1:]]

    monkeypatch.setattr(packing, "forward_clips", leaky)
    found = [row for row in packing.packed(CPU, TINY) if row.numbers == "float32"]
    assert len(found) == 2 and all(row.result == DISAGREES for row in found)


def test_one_gradient_that_is_wrong_shows_though_it_is_small_and_nan_is_infinitely_apart():
    right = {"large": torch.ones(1000), "small": torch.full((10,), 0.1), "rounding": torch.full((3,), 1e-9)}
    assert worst_gradient(right, right) == 0
    assert worst_gradient(right | {"small": right["small"] * 1.01}, right) == pytest.approx(0.01, rel=1e-3)
    assert worst_gradient(right | {"rounding": -right["rounding"]}, right) < 1e-6
    assert worst_gradient({"large": right["large"]}, right) == math.inf
    assert worst_gradient(right | {"small": right["small"] * math.nan}, right) == math.inf
    assert apart([torch.tensor([math.nan])], [torch.ones(1)]) == math.inf
    assert apart([torch.ones(2)], [torch.ones(3)]) == math.inf
    row = rows.measured(math.nan, check="speed 5b", seconds=1.0)  # is no measurement
    assert row.result == FAILED and rows.as_json(row)["error"] is None and rows.as_json(row)["seconds"] == 1.0


def test_a_model_that_was_not_sharded_fails(monkeypatch):
    monkeypatch.setattr(sharding, "wrap", lambda model, *_, **__: model)
    found = list(sharding.fsdp(CPU, TINY))
    assert [row.result for row in found] == [FAILED, FAILED] and "DTensor" in found[0].reason
    assert not torch.distributed.is_initialized()


# ---- what becomes of a check that fails


def good(machine, sizes):
    yield Row("good", "first")
    yield Row("good", "second")


def half(machine, sizes):
    yield Row("half", "first")
    raise RuntimeError("the kernel\nis missing")


def large(machine, sizes):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90 GiB")
    yield


def test_a_check_that_raises_is_a_row_and_the_others_continue(tmp_path):
    path = tmp_path / "rows.json"
    checks = {"half": half, "large": large, "good": good}
    found, _ = check_gpu.run(CPU, TINY, checks, FOREVER, path)
    assert [(row.check, row.part, row.result) for row in found] == [
        ("half", "first", MEASURED), ("half", "", FAILED), ("large", "", NO_ROOM), ("good", "first", MEASURED),
        ("good", "second", MEASURED)]
    assert found[1].reason == "RuntimeError: the kernel is missing" and "90 GiB" in found[2].reason
    assert [row["check"] for row in json.loads(path.read_text())["rows"]] == [row.check for row in found]
    text = check_gpu.report(found, CPU, markdown=True)
    assert "the kernel is missing" in text and "- large, as a whole, any format: does not fit" in text


def test_what_makes_the_command_fail_and_what_counts_as_out_of_memory(subtests):
    for row in (Row("packed", result=DISAGREES), Row("parity 2b", result=FAILED),
                *(rows.judged(error, 0.1, check="x") for error in (math.nan, math.inf))):
        with subtests.test(row=row):
            assert check_gpu.is_bad(row)
    for row in (Row("compile vae", result=FAILED), Row("parity 5b", result=NO_ROOM), Row("parity 5b", result=LEFT_OUT),
                Row("speed 5b"), rows.judged(0.1, 0.1, check="x")):
        with subtests.test(row=row):
            assert not check_gpu.is_bad(row)
    for error in (torch.OutOfMemoryError("x"), MemoryError(),
                  RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
                  RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
                  RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")):
        with subtests.test(error=error):
            assert rows.is_out_of_memory(error)
    for error in (RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("memory")):
        with subtests.test(error=error):
            assert not rows.is_out_of_memory(error)


def test_a_check_is_stopped_at_the_deadline_and_the_rest_is_left_out(tmp_path):
    def endless(machine, sizes):
        yield Row("endless", "first")
        while True:
            try:
                time.sleep(0.01)
            except Exception:  # as a compiler does that tries something else
                continue

    start = time.monotonic()
    found, _ = check_gpu.run(CPU, TINY, {"endless": endless, "good": good}, start + 0.5, tmp_path / "rows.json")
    assert time.monotonic() - start < 5
    assert [(row.check, row.result) for row in found] == [("endless", MEASURED), ("endless", LEFT_OUT),
                                                          ("good", LEFT_OUT)]
    assert "cut off" in found[1].reason and "before it began" in found[2].reason
    time.sleep(0.05)  # no alarm is left behind


def test_a_budget_that_is_spent_lists_every_check(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert check_gpu.main(["--device", "cpu", "--tiny", "--minutes", "1e-9", "--json", str(path)]) == 0
    found = json.loads(path.read_text())["rows"]
    assert [row["check"] for row in found] == list(check_gpu.CHECKS)
    assert all(row["result"] == LEFT_OUT for row in found) and "To look at:" in capsys.readouterr().out


def test_a_format_that_the_device_lacks_is_left_out(monkeypatch):
    def only_float32(self, name):
        if name != "float32":
            raise ValueError(f"this GPU cannot compute in {name}")
        return torch.float32

    monkeypatch.setattr(Machine, "format", only_float32)
    found = list(parity.vae(CPU, TINY))
    assert [(row.numbers, row.result) for row in found] == [("float32", AGREES), ("float32", AGREES),
                                                            ("bfloat16", LEFT_OUT)]
    assert "cannot compute" in found[2].reason


def test_where_float32_does_not_fit_bfloat16_is_compared_with_diffusers_itself(monkeypatch):
    real = parity.vae_answers

    def too_large(sizes, dtype, device):
        if dtype == torch.float32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from real(sizes, dtype, device)

    monkeypatch.setattr(parity, "vae_answers", too_large)
    found = list(parity.vae(CPU, TINY))
    assert [row.result for row in found] == [NO_ROOM, AGREES, AGREES]
    assert found[1].beside == "diffusers" and found[1].allowed == 0.1


# ---- what is refused


def test_a_request_that_cannot_be_met_is_one_sentence(monkeypatch, capsys, tmp_path, subtests):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINICOGVX_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    tiny = ["--device", "cpu", "--tiny"]
    cases = [
        ([], "PyTorch finds none here"), (["--tiny"], "PyTorch finds none here"), (["--device", "cpu"], "add --tiny"),
        (["--device", "banana"], "'banana'"), ([*tiny, "--dtype", "int8"], "int8"),
        ([*tiny, "--dtype", "float16"], "float16"), ([*tiny, "--only", "party"], "the checks are parity 2b")]
    for arguments, said in cases:
        with subtests.test(arguments=arguments):
            assert check_gpu.main(arguments) == 1
            printed = capsys.readouterr()
            assert said in printed.err and len(printed.err.splitlines()) == 1 and not printed.out
            assert not list(tmp_path.iterdir())
    for minutes in ("0", "-1", "nan"):
        with subtests.test(minutes=minutes):
            with pytest.raises(SystemExit):
                check_gpu.main([*tiny, "--minutes", minutes])
            assert "must be above 0" in capsys.readouterr().err


# ---- the parts


def test_both_programs_hold_one_set_of_weights_which_is_the_same_in_both_formats():
    twins = TransformerTwins(TINY.transformers["2b"], 2, torch.bfloat16, CPU.device)
    ours, theirs = dict(twins.ours.named_parameters()), dict(twins.theirs.named_parameters())
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in theirs) and ours.keys() == theirs.keys()
    assert not any(buffer.is_meta for buffer in twins.theirs.buffers()) and list(twins.theirs.buffers())
    exact = dict(random_model(ExpertTransformer, TINY.transformers["2b"], torch.float32, CPU.device).named_parameters())
    assert all(torch.equal(exact[name], ours[name].float()) for name in exact)
    assert all(weight.std() > 0.05 for weight in exact.values() if weight.numel() > 4)


def test_gradients_are_sampled_in_every_row_and_column_and_dropped(subtests):
    model = torch.nn.Linear(600, 300)
    model.bias.requires_grad_(False)
    x = torch.randn(4, 600, generator=torch.Generator().manual_seed(0))
    loss, found = loss_and_gradients(model, lambda: model(x).square().mean())
    assert found.keys() == {"weight"} and model.weight.grad is None and loss.grad_fn is None
    model(x).square().mean().backward()
    assert torch.equal(found["weight"], sampled(model.weight.grad))
    assert model.weight.grad.flatten()[0] == found["weight"][0] and len(found["weight"]) < 2 * SAMPLES
    for rows_, columns in ((3072, 3072), (448, 36864), (1920, 7680), (600, 300)):
        with subtests.test(shape=(rows_, columns)):
            seen = sampled(torch.arange(rows_ * columns).view(rows_, columns)).long()  # below 2**24: float32 holds them
            assert SAMPLES / 4 < len(seen) < 2 * SAMPLES
            assert len((seen // columns).unique()) == rows_
            assert len((seen % columns).unique()) == min(columns, len(seen))


def test_programs_are_timed_in_turn():
    order = []
    first, second = speeds(CPU, [lambda: order.append("a"), lambda: order.append("b") or time.sleep(0.01)], 3)
    assert order == list("abababab") and second.seconds >= 0.01 > first.seconds >= 0 and first.memory is None


def test_published_sizes_are_published_and_tiny_tiles_are_tiles():
    assert PUBLISHED.transformers["5b"].num_layers == 42 and PUBLISHED.transformers["2b"].num_layers == 30
    assert PUBLISHED.pixels(PUBLISHED.transformers["5b"], PUBLISHED.full_frames) == "480x720x49"
    assert PUBLISHED.large == (81, 768, 1360) and PUBLISHED.cut.width == 3072
    config = PUBLISHED.cut
    for _, height, width, text in PUBLISHED.pack:
        assert height % config.patch_size == width % config.patch_size == 0 and text <= config.max_text_seq_length
    vae, _ = vae_twins(TINY.large_vae, torch.float32, CPU.device)
    latents = torch.randn(1, 4, 3, *(size // 2 for size in TINY.large[1:]), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(tiled_decode(vae, latents), vae.decode(latents))
