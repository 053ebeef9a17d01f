"""The benchmark's harness: programs must agree before they are timed, and the table has what was measured."""

import json
from dataclasses import dataclass, replace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import word_gains
from benchmarks.cases import SamplingCase, TransformerCase, VAECase, cases
from benchmarks.measure import Timing, alternate, count_flops, difference, peak_memory
from benchmarks.sides import OURS, THEIRS
from benchmarks.table import Row, as_json, render, report
from minicogvx.presets import preset
from minicogvx.speedrun.machine import ceiling
from minicogvx.transformer.model import flops

TOY = preset("toy")
VAE = replace(TOY.vae, block_out_channels=(8, 8, 8, 16), norm_num_groups=4, sample_height=16, sample_width=16)
TRANSFORMER = replace(TOY.transformer, num_attention_heads=2, attention_head_dim=32, num_layers=2, sample_height=4,
                      sample_width=4, sample_frames=9)
TINY = replace(TOY, name="tiny", vae=VAE, transformer=replace(TRANSFORMER, sample_height=2, sample_width=2))


def tiny(case):
    """The same operation at a size that takes milliseconds."""
    if isinstance(case, VAECase):
        return replace(case, label="tiny", config=VAE, batch=2, frames=9, size=16)
    if isinstance(case, TransformerCase):
        return replace(case, label="tiny", config=TRANSFORMER, batch=2)
    return replace(case, preset=TINY, steps=3)


KINDS = list({command.name_of(tiny(case)): tiny(case) for case in cases()}.values())
MEGA = 2**20


@dataclass(frozen=True)
class Fake:
    """A case whose two programs return `apart` different numbers; each run allocates `megabytes`."""

    apart: float = 0.0
    megabytes: int = 1
    part: str = "fake"
    operation: str = "training step"
    dtype: torch.dtype = torch.float32
    tolerance: float = 1e-4

    def side(self, who):
        return FakeSide(who, self)


@dataclass
class FakeSide:
    who: str
    case: Fake

    def inputs(self, small=False):
        return 1 if small else self.case.megabytes

    def run(self, inputs):
        assert self.case.apart <= self.case.tolerance, "programs that disagree must not be timed"
        torch.ones(inputs * MEGA // 4).add_(1)

    def result(self, inputs):
        return [torch.mm(torch.ones(2, 3), torch.ones(3, 4)) * (1 + self.case.apart * (self.who == OURS))]


def test_both_programs_agree_on_every_operation(subtests):
    for case in KINDS:
        with subtests.test(command.name_of(case)):
            row = command.measure(case, seconds=0, memory=False)
            assert row.timing is not None, row.verdict
            assert row.difference <= (1e-4 if case.dtype == torch.float32 else 0.1)
            assert len(row.timing.ours) == len(row.timing.theirs) == 3 and min(row.timing.ours + row.timing.theirs) > 0
            assert min(row.flops) > 0


def test_every_operation_is_measured_in_every_format_of_the_processor(subtests):
    for dtypes in ((torch.bfloat16, torch.float32), (torch.float32,)):
        with subtests.test(dtypes=dtypes):
            for kind, operation in [(VAECase, "encode"), (VAECase, "decode"), (VAECase, "training step"),
                                    (TransformerCase, "forward"), (TransformerCase, "training step"),
                                    (SamplingCase, "caption to pixels")]:
                for chosen in (cases(False, dtypes), cases(True, dtypes)):
                    found = {(type(case), case.operation, case.dtype) for case in chosen}
                    assert {(kind, operation, dtype) for dtype in dtypes} <= found
                    assert {dtype for _, _, dtype in found} == set(dtypes)
            names = [command.name_of(case) for case in cases(False, dtypes)]
            assert len(set(names)) == len(names) > len(cases(True, dtypes))


def test_programs_that_disagree_are_not_timed():
    row = command.measure(Fake(apart=0.01), seconds=0, memory=False)
    assert row.timing is None and row.difference == pytest.approx(0.01, rel=1e-4)
    text = report([row], {torch.float32: 1e9}, markdown=False)
    assert "DISAGREE: differs by 1.0e-02, allowed is 1e-04" in text and "or not comparable:\n- fake" in text
    assert as_json([row], {})["cases"][0]["verdict"].startswith("DISAGREE")


def test_runs_take_turns():
    order = []
    timing = alternate(lambda: order.append("a"), lambda: order.append("b"), seconds=0, at_least=4)
    assert "".join(order) == "abababab" and len(timing.ours) == len(timing.theirs) == 4
    assert len(alternate(int, int, seconds=60, at_most=5).ours) == 5


def test_ratio_spread_and_ceiling_and_tables_line_up():
    timing = Timing([1.0, 2.0, 2.0, 4.0, 2.0], [4.0, 4.0, 6.0, 4.0, 4.0])
    assert timing.ratio == 2.0 and timing.spread == (2.0, 3.0)
    verdicts = [Row(Fake(), 0.0, (1, 1), Timing([1.0] * 4, theirs)).verdict
                for theirs in ([2.0] * 4, [0.5] * 4, [0.5, 0.9, 1.1, 2.0])]
    assert verdicts == ["faster", "SLOWER than diffusers", "no difference"]
    assert 1e7 < ceiling(torch.float32, size=256, runs=3) < 1e16
    plain = render(("name", "ms"), [("a", "1.0"), ("long", "10.0")], markdown=False)
    assert plain.splitlines() == ["name    ms", "a      1.0", "long  10.0"]
    markdown = render(("name", "ms"), [("a", "1.0")], markdown=True)
    assert markdown.splitlines() == ["| name |  ms |", "| ---- | --: |", "| a    | 1.0 |"]


def test_difference_is_relative_and_refuses_what_cannot_be_compared():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert difference([b], [a]) == pytest.approx(0.1) and difference([a, b], [a, a]) == pytest.approx(0.1)
    assert difference([a], [a[None]]) == difference([a / 0], [a]) == float("inf")
    with pytest.raises(ValueError):
        difference([a], [a, a])


def test_operations_of_the_transformer_are_counted_in_both_programs(subtests):
    for dtype in (torch.float32, torch.bfloat16):
        with subtests.test(dtype=dtype):
            case = TransformerCase("tiny", TRANSFORMER, "forward", dtype, 2)
            expected = flops(TRANSFORMER, (3, 4, 4), num_text=TRANSFORMER.max_text_seq_length, batch=2)
            for who in (OURS, THEIRS):
                side = case.side(who)
                assert count_flops(lambda: side.result(side.inputs()))[1] == expected


def test_operations_of_a_vae_step_are_those_of_forward_three_times():
    forward, step = 0, 0
    for operation in ("encode", "decode", "training step"):
        side = VAECase("tiny", VAE, operation, torch.float32, 2, 9, 16).side(OURS)
        counted = count_flops(lambda: side.result(side.inputs()))[1]
        forward, step = (forward, counted) if operation == "training step" else (forward + counted, step)
    assert 2.8 * forward < step < 3 * forward  # the video itself needs no gradient


def test_memory_is_measured_in_a_process_of_its_own():
    for megabytes in (48, 8):
        assert peak_memory(Fake(megabytes=megabytes), OURS) / MEGA == pytest.approx(megabytes, abs=2)
    case = VAECase("tiny", VAE, "decode", torch.float32, 1, 9, 64)
    ours, theirs = peak_memory(case, OURS), peak_memory(case, THEIRS)
    assert 0 < ours < theirs < 200 * MEGA  # the video alone has 0.4 MB


def test_the_command_prints_and_writes_what_it_measured(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "cases", lambda quick=False: [Fake(), Fake(part="other", operation="decode")])
    monkeypatch.setattr(command, "ceiling", lambda dtype: 1e12)
    path = tmp_path / "figures.json"
    assert command.main(["--no-memory", "--seconds", "0.01", "--markdown", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| fake ") and "| float32 " in line for line in lines)
    assert any(line.startswith("| other | decode ") for line in lines)
    assert any("training step of" in line and "share of ceiling" in line for line in lines)
    written = json.loads(path.read_text())
    assert [case["part"] for case in written["cases"]] == ["fake", "other"]
    assert written["versions"]["torch"] == torch.__version__
    assert written["cases"][0]["flops"] == {"minicogvx": 48, "diffusers": 48}
    assert list(tmp_path.iterdir()) == [path]
    assert command.main(["--only", "other", "--no-memory", "--seconds", "0.01"]) == 0
    assert "fake" not in capsys.readouterr().out
    monkeypatch.setattr(command, "cases", lambda quick=False: [Fake(apart=1.0)])
    assert command.main(["--no-memory"]) == 1


def test_bad_options_are_refused_before_any_work(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "ceiling", None)
    assert command.main(["--only", "vae frobnicate"]) == 1 and "no case has 'vae frobnicate'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--json", str(tmp_path / "absent" / "x.json")])
    assert "there is no folder" in capsys.readouterr().err


def test_the_toy_has_gains_for_each_kind_of_word(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["word_gains", "--clips", "16"])
    word_gains.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [[kind, what] for kind in ("colour", "shape", "motion")
                                         for what in ("swap", "exchange")]
    for _, what, mean, low, _, high in rows:
        assert float(low.strip("(")) <= float(mean) <= float(high.strip(")"))
        assert what == "exchange" or float(mean) > 0
    monkeypatch.setattr("sys.argv", ["word_gains", "--clips", "7"])
    with pytest.raises(SystemExit):
        word_gains.main()
