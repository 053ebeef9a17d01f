import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minicogvx import cli, compat, doctor, estimates, interop
from minicogvx.training.recipes import load_recipe
from minicogvx.training.stages import Stage


def test_this_machine_is_sound(monkeypatch, capsys):
    monkeypatch.setattr(estimates, "estimates", lambda device: [
        estimates.Estimate("train micro", 420.0, part="VAE"), estimates.Estimate("train micro", 840.0, "as ever")])
    monkeypatch.setattr(doctor, "_load", lambda: 0.5)
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert f"torch          {torch.__version__}" in told
    assert f"dtype          {str(compat.choose_dtype()).removeprefix('torch.')}: " in told
    assert f"device         {compat.choose_device()}: " in told
    for part in ("python", "minicogvx", "transformers", "mp4 writer", "memory", "torchvision", "lpips", "lpips weights",
                 "diffusers", "jupyterlab", "toy model"):
        assert f" {part} " in told
    *_, timing, part, whole, verdict = told.splitlines()
    assert timing == "timing a few steps of each job, about 30 s if nothing else computes; Ctrl-C skips the rest"
    assert part == "ok      train micro    VAE: about 7.0 min"
    assert whole == "ok      train micro    about 14 min (as ever)"
    assert verdict == "everything required works"


def test_ctrl_c_while_timing_keeps_what_is_known(monkeypatch):
    def stopped(device):
        yield estimates.Estimate("one toy clip", 0.5, "as ever")
        raise KeyboardInterrupt

    monkeypatch.setattr(estimates, "estimates", stopped)
    monkeypatch.setattr(doctor, "_load", lambda: 0.5)
    told = []
    assert doctor.doctor(told.append) == 0
    assert told[-3:] == ["ok      one toy clip   about 0.50 s (as ever)", "stopped: the other jobs were not timed",
                         "everything required works"]


def test_a_busy_machine_is_told_that_its_times_are_too_high(monkeypatch):
    monkeypatch.setattr(estimates, "estimates", lambda device: [estimates.Estimate("make test", 1e5, "as ever")])
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    for load, busy in ((6.94, True), (2.0, False), (0.0, False)):
        monkeypatch.setattr(doctor, "_load", lambda load=load: load)
        told = []
        assert doctor.doctor(told.append) == 0
        assert ("these times are too high" in told[-2]) == busy and told[-1] == "everything required works"
        assert not busy or "this machine was busy (load average 6.9, 2 cores)" in told[-2]
    monkeypatch.undo()

    def unknown():
        raise OSError

    assert doctor._load() >= 0
    monkeypatch.setattr(doctor.os, "getloadavg", unknown, raising=False)
    assert doctor._load() == 0
    monkeypatch.delattr(doctor.os, "getloadavg")  # as on Windows
    assert doctor._load() == 0


def test_every_main_job_is_really_tried(monkeypatch):
    recipe = load_recipe("micro")
    stages = tuple(replace(stage, batch_size=1, steps=7) for stage in recipe.vae.stages)
    few = replace(recipe, vae=replace(recipe.vae, stages=stages),
                  transformer=replace(recipe.transformer, stages=(Stage(5, batch_size=2),)))
    monkeypatch.setattr(estimates, "load_recipe", lambda name: few)
    monkeypatch.setattr(estimates, "_seconds", lambda run, device: (run(), 0.5)[1])  # each once, half a second each
    every = list(estimates.estimates())
    told = {estimate.job: estimate for estimate in every}  # of a training, the whole comes last
    parts = {(each.job, each.part): each.seconds for each in every if each.part}
    assert set(told) == {"one toy clip", "train micro", "train toy", "all notebooks", "make test"}
    assert told["train micro"].seconds == 0.5 * (14 + 8192 / 16 + 5) and parts["train micro", "VAE"] == 7.0
    assert str(told["train micro"]).endswith("(VAE + encoding + transformer)") and len(parts) == 6
    assert told["make test"].seconds == pytest.approx(48 * 60 * 0.5 / estimates.REFERENCE_STEP)


def test_seconds_are_said_in_a_fitting_unit(subtests):
    for seconds, words in ((0.8431, "0.84 s"), (9.96, "10.0 s"), (75.0, "75 s"), (840.0, "14 min"), (18720.0, "5.2 h"),
                           (0.004, "0.00 s")):
        with subtests.test(words):
            assert estimates.say_seconds(seconds) == words


def _without(monkeypatch, *names: str) -> list[doctor.Finding]:
    real = importlib.import_module

    def import_module(name, package=None):
        if name in names:
            raise ImportError(f"No module named {name!r}\nand a second line")
        return real(name, package)

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    monkeypatch.setattr(estimates, "estimates", lambda device: [])
    return list(doctor.findings())


def test_a_missing_option_names_its_remedy_and_is_no_failure(monkeypatch):
    found = {finding.name: finding for finding in _without(monkeypatch, "jupyterlab", "diffusers")}
    assert found["jupyterlab"].state == found["diffusers"].state == "missing"
    assert found["jupyterlab"].remedy == 'pip install -c constraints.txt -e ".[notebooks]"'
    assert found["diffusers"].detail == "cannot be imported: No module named 'diffusers'"
    assert not [finding for finding in found.values() if finding.state == "broken"]


def test_a_missing_requirement_fails_with_its_remedy(monkeypatch):
    broken = [finding for finding in _without(monkeypatch, "einops") if finding.state == "broken"]
    assert [(finding.name, finding.remedy) for finding in broken] == [
        ("einops", "pip install -c constraints.txt einops")]
    told = []
    assert doctor.doctor(told.append) == 1
    assert told[-1] == "1 required part is broken" and not any("timing" in line for line in told)
    at = next(k for k, line in enumerate(told) if line.startswith("BROKEN"))
    assert "einops" in told[at] and told[at + 1].strip() == "fix: pip install -c constraints.txt einops"
    monkeypatch.undo()
    found = _without(monkeypatch, "torch")  # the report still ends
    assert [finding.name for finding in found if finding.state == "broken"] == ["torch"]
    assert found[-1].name == "memory"


def test_a_job_that_fails_is_reported(monkeypatch):
    def fail(device):
        raise RuntimeError("no such kernel\nlong trace")

    monkeypatch.setattr(estimates, "estimates", fail)
    finding, = doctor._jobs()
    assert (finding.state, finding.detail) == ("broken", "cannot run: no such kernel")


def test_every_problem_has_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(interop, "DATA", tmp_path)
    monkeypatch.setattr(doctor, "memory", lambda: (10 * 2**30, 2**30))
    monkeypatch.setattr(compat, "fix_torchvision", lambda: "absent")
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.1")
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 1))
    found = _without(monkeypatch, "lpips", "matplotlib", "pytest", "av")
    problems = [finding for finding in found if finding.state != "ok"]
    names = {finding.name for finding in problems}
    assert names >= {"python", "memory", "torchvision", "toy model", "lpips", "matplotlib", "pytest", "av"}
    assert all(finding.remedy and "\n" not in finding.remedy for finding in problems)


def test_memory_of_a_container_is_its_limit(monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 6000000 kB\n",
             "/sys/fs/cgroup/memory.max": f"{2**30}\n", "/sys/fs/cgroup/memory.current": f"{2**28}\n"}
    monkeypatch.setattr(doctor, "Path", lambda path: SimpleNamespace(read_text=lambda: files[path]))
    assert doctor.memory() == (2**30, 2**30 - 2**28)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert doctor.memory()[1] == 6000000 * 1024
