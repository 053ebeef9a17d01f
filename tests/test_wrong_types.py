"""What a learner may hand to the course's tools by mistake is refused in a sentence, not deep inside them.

In a process of its own, without the type checker that other tests run under and no learner has.
"""

import os
import subprocess
import sys

CALLS = """
import numpy as np, torch
from minicogvx.course import clips, outcome, predict, predictions

clip = torch.rand(2, 8, 8, 3)
for call in (
    lambda: predict("6.2", 1, 2), lambda: predict("6.2", ["a"], ["b"]), lambda: predict("6.2", ["a", "b"]),
    lambda: predict("6.2", "a", "b", answer=3), lambda: predict(None, "a", "b"), lambda: predict(6, "a", "b"),
    lambda: outcome("6.1", 3.0), lambda: outcome("6.1", np.array(["a"])), lambda: predictions(None),
    lambda: clips.show_clip(clip.numpy(), "A."), lambda: clips.show_clip(list(clip), "A."),
    lambda: clips.show_clip(None, "A."), lambda: clips.compare_clips([clip, clip], "A."),
    lambda: clips.show_rows(clip, "A."), lambda: clips.compare_clips({"a": clip.numpy()}, "A."),
):
    try:
        call()
        print("nothing was refused")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
predictions(6), predictions(" 06 ")
"""
SAID = """\
ValueError: prediction 6.2 has the options (1, 2); give at least two different ones, as text
ValueError: prediction 6.2 has the options (['a'], ['b']); give at least two different ones, as text
ValueError: prediction 6.2 has the options (['a', 'b'],); give at least two different ones, as text
ValueError: the answer to prediction 6.2 is 3; it must be one of 'a', 'b', or an option in full
ValueError: the prediction's number is None; it must be like "6.3", the third of notebook 6
ValueError: the prediction's number is 6; it must be like "6.3", the third of notebook 6
ValueError: the outcome of prediction 6.1 is a float; it must be one of its options, as text
ValueError: the outcome of prediction 6.1 is a ndarray; it must be one of its options, as text
ValueError: the notebook is None; it must be a number such as "6"
"""
NO_TENSOR = ("ValueError: the video is a {}; it must be a tensor t h w 3, 0..1 (torch.as_tensor makes one of an array, "
             "torch.stack of a list of frames)")
NO_NAMES = "ValueError: the {} are a {}; give a dict of each video by its label"


def test_wrong_types_are_refused_in_a_sentence(tmp_path):
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, timeout=120,
                          env=os.environ | {"MINICOGVX_PROGRESS": str(tmp_path / "progress.json")})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *SAID.splitlines(), *map(NO_TENSOR.format, ("ndarray", "list", "NoneType")), NO_NAMES.format("clips", "list"),
        NO_NAMES.format("rows", "Tensor"), NO_TENSOR.format("ndarray"), *["Right predictions: 0 of 0."] * 2]
    assert not (tmp_path / "progress.json").exists()
