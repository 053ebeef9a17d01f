"""Exercises of notebook 11, frame pack: mask, positions, attention without a matrix, packing, loss, gradients."""

from minicogvx.course.exercises.attention_11 import attended_clip_by_clip, check_attend_varlen
from minicogvx.course.exercises.exercise import Exercise
from minicogvx.course.exercises.losses_11 import (
    check_gradient_share,
    check_pack_loss,
    loss_of_packs,
    share_of_gradient,
)
from minicogvx.course.exercises.rows_11 import (
    check_pack_mask,
    check_pack_positions,
    mask_of_clips,
    places_in_clips,
)
from minicogvx.course.exercises.waiting_11 import check_pack_line, packs_in_sight

EXERCISES = (
    Exercise(
        "11.1", "pack_mask", difficulty=1, minutes=10, reference=mask_of_clips, check=check_pack_mask,
        hints=(
            "Give every token the number of its clip: one vector of n whole numbers.",
            "repeat_interleave repeats the number of each clip as often as the clip has tokens, words and video "
            "together.",
            "clip = torch.arange(len(clips)).repeat_interleave(torch.tensor([text + video for text, video in clips])); "
            "then compare clip[:, None] with clip.",
        ),
    ),
    Exercise(
        "11.2", "pack_positions", difficulty=2, minutes=15, reference=places_in_clips, check=check_pack_positions,
        hints=(
            "Make the places of one clip first: text rows of zeros, then one row for each video token.",
            "torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)) counts the columns fastest, then "
            "rows, then frames.",
            "Begin every clip anew, and join with torch.cat: torch.zeros(text, 3, dtype=torch.int64), then its places, "
            "clip after clip.",
        ),
    ),
    Exercise(
        "11.3", "attend_varlen", difficulty=2, minutes=15, reference=attended_clip_by_clip, check=check_attend_varlen,
        hints=(
            "Nothing that is n x n is needed if no query ever meets a key of another clip.",
            "q.split(lengths, dim=1) cuts the tokens of all heads into clips; the same for k and v.",
            "One F.scaled_dot_product_attention for each clip, and torch.cat(..., dim=1) of the answers.",
        ),
    ),
    Exercise(
        "11.4", "pack_line", difficulty=3, minutes=25, reference=packs_in_sight, check=check_pack_line,
        hints=(
            "Keep a list `waiting` of the clips in sight, at first those numbered 0 to ahead - 1. Whenever one is "
            "taken, the next of the line joins at the end.",
            "A new pack begins with waiting[0], whatever its length. Then ask: which of the waiting clips still fit?",
            "while fitting := [i for i in waiting if tokens[i] <= left]: take the longest of them, max(fitting, "
            "key=lambda i: tokens[i]); remove it from `waiting`, let the next one in, and lower `left`.",
        ),
    ),
    Exercise(
        "11.5", "pack_loss", difficulty=2, minutes=10, reference=loss_of_packs, check=check_pack_loss,
        hints=(
            "First one number for each clip: the mean of its own errors.",
            "Add up the numbers of all clips of all packs; it must not matter which pack a clip is in.",
            "Divide by `usual`, which is the same in every step, and not by the number of clips in this one.",
        ),
    ),
    Exercise(
        "11.6", "gradient_share", difficulty=3, minutes=20, reference=share_of_gradient, check=check_gradient_share,
        hints=(
            "torch.autograd.grad(loss, parameters, retain_graph=True) gives a gradient for each parameter. Flatten and "
            "join them to one long vector.",
            "You need two such vectors: that of losses.sum() and that of losses[chosen].sum().",
            "The part of one that lies along the other: (part @ whole) / (whole @ whole), as a Python number.",
        ),
    ),
)
