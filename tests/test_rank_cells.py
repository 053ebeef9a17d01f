"""Ranks from a notebook's cell: what they give, what is said when one stops, and that none outlives its parent."""

import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from minicogvx.course import rank_cells
from minicogvx.course.rank_cells import on_ranks
from minicogvx.course.source_text import program_of
from minicogvx.diffusion.timesteps import rank_interval as own_interval
from minicogvx.engine.sharding import average_gradients

SCALE, NAMES = 3.0, {"a": [1, 2]}
TENSOR = torch.zeros(2)


def doubled(x):
    """Used by `share`."""
    return [SCALE * each * NAMES["a"][1] / 3 for each in x]


def share(ranks, start, word):
    """What one rank does: averages a gradient, and prints."""
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = F.relu(torch.tensor([ranks.rank + start, math.pi]))
    average_gradients([weight], ranks)
    print(word, ranks.rank)
    return {"mean": weight.grad, "interval": list(own_interval(10, ranks.rank, ranks.world_size)),
            "doubled": doubled([ranks.rank])}


def test_ranks_talk_to_each_other_and_their_answers_come_back_to_the_bit(capsys):
    found = on_ranks(share, 2, start=1.0, word="ä")
    pi = torch.tensor(math.pi).item()
    assert [each["mean"] for each in found] == [[1.5, pi]] * 2
    assert [each["interval"] for each in found] == [[0, 5], [5, 10]]
    assert [each["doubled"] for each in found] == [[0.0], [2.0]]
    assert capsys.readouterr().out == "rank 0 | ä 0\nrank 1 | ä 1\n"


def test_a_program_may_be_given_as_text():
    assert on_ranks("result = [ranks.rank, ranks.world_size, more]", 1, more=5) == [[0, 1, 5]]


def stops(ranks, how):
    """Rank 1 stops, rank 0 waits for it."""
    if ranks.rank == 1:
        if how == "error":
            raise ValueError("too\nfew clips")
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


@pytest.mark.parametrize(("how", "said"), [
    ("error", r'^rank 1 stopped with ValueError: too few clips \(at: raise ValueError\("too\\nfew clips"\)\)$'),
    ("exit", "^rank 1 ended with status 3 before it was done$"),
    ("kill", "^rank 1 was killed by signal 9, SIGKILL$")])
def test_when_a_rank_stops_one_sentence_says_so_at_once(how, said):
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=said):
        on_ranks(stops, 2, how=how, timeout=100)
    assert time.monotonic() - start < 60


def test_a_signal_without_a_name_is_its_number():
    assert rank_cells._how(-40, {}) == "was killed by signal 40"
    assert rank_cells._how(-int(signal.SIGTERM), {}) == "was killed by signal 15, SIGTERM"
    assert rank_cells._how(15, {}) == "ended with status 15 before it was done"  # Windows knows no signals


def writes_its_number(ranks, folder):
    """Never ends."""
    Path(folder, f"pid_{ranks.rank}").write_text(str(os.getpid()))
    time.sleep(1000)


def alive(folder: Path) -> list[int]:
    numbers = [int(path.read_text()) for path in folder.glob("pid_*") if path.read_text()]
    found = []
    for number in numbers:
        try:
            os.kill(number, 0)
            found.append(number)
        except ProcessLookupError:
            pass
    return found


def test_after_the_time_is_up_no_process_is_left(tmp_path):
    with pytest.raises(RuntimeError, match="^rank 0 and rank 1 had not ended after 20 seconds$"):
        on_ranks(writes_its_number, 2, folder=str(tmp_path), timeout=20)
    assert len(list(tmp_path.glob("pid_*"))) == 2 and alive(tmp_path) == []


def test_no_process_outlives_a_kernel_that_is_killed(tmp_path):
    program = f"""from tests.test_rank_cells import writes_its_number
from minicogvx.course import on_ranks
on_ranks(writes_its_number, 2, folder={str(tmp_path)!r})"""
    kernel = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parents[1])
    until = time.monotonic() + 60
    while len(alive(tmp_path)) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(alive(tmp_path)) == 2
    kernel.kill()
    kernel.wait()
    until = time.monotonic() + 20
    while alive(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert alive(tmp_path) == []


def uses_a_tensor(ranks):
    return TENSOR


def uses_a_class(ranks):
    return Path("x"), Local()


class Local:
    """Of a notebook."""


def test_what_cannot_be_sent_is_said_in_one_sentence(subtests):
    def inner(ranks):
        return subtests

    for work, said in ((uses_a_tensor, "uses_a_tensor uses TENSOR, a Tensor, which another process does not have"),
                       (uses_a_class, "uses_a_class uses Local, the class Local"),
                       (inner, "inner uses subtests of the function around it"),
                       (lambda ranks: 1, "give a function that was written with def"),
                       (partial(share, start=1), "give a function that was written with def"),
                       (len, "give a function that was written with def")):
        with subtests.test(said), pytest.raises(ValueError, match=said):
            on_ranks(work, 2)
    with pytest.raises(ValueError, match="count is 0"):
        on_ranks("result = 1", 0)


def test_a_program_holds_what_the_function_uses_and_nothing_else():
    text = program_of(share)
    names = {}
    exec(text, names)
    assert names["SCALE"] == 3.0 and names["NAMES"] == NAMES and names["F"] is F
    assert names["own_interval"] is own_interval and "TENSOR" not in names and "Local" not in text


def returns_an_object(ranks):
    """Nothing that JSON can hold."""
    return {"x": ranks}


def test_an_answer_that_cannot_be_sent_back_is_an_error():
    with pytest.raises(RuntimeError, match="rank 0 stopped with TypeError: the result holds a Ranks"):
        on_ranks(returns_an_object, 1)
