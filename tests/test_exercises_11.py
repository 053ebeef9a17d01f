"""Exercises of notebook 11 about a row of clips distinguish right from wrong, and name the mistake.

Those about loss and gradients: test_exercises_11_losses.py.
"""

import numpy as np
import torch
import torch.nn.functional as F

from minicogvx.course.exercises.attention_11 import attended_clip_by_clip
from minicogvx.course.exercises.checking import find, judge
from minicogvx.course.exercises.rows_11 import mask_of_clips, places_in_clips
from minicogvx.course.exercises.waiting_11 import LENGTHS, OFTEN, packs_in_sight
from tests.guards import guard

# ---- 11.1 pack_mask


def numbers(clips):
    return torch.arange(len(clips)).repeat_interleave(torch.tensor([text + video for text, video in clips]))


def words(clips):
    return torch.cat([torch.arange(text + video) < text for text, video in clips])


def mask(clips):
    return numbers(clips)[:, None] == numbers(clips)


def causal(clips):
    return mask(clips).tril()


def words_for_all(clips):
    return mask(clips) | words(clips)


def video_sees_all_words(clips):
    return mask(clips) | (words(clips) & ~words(clips)[:, None])


def everything(clips):
    return torch.ones_like(mask(clips))


def words_not_counted(clips):
    clip = torch.arange(len(clips)).repeat_interleave(torch.tensor([video for _, video in clips]))
    clip = F.pad(clip, (0, len(mask(clips)) - len(clip)), value=len(clips) - 1)
    return clip[:, None] == clip


def border_off_by_one(clips):
    return numbers(clips).roll(1)[:, None] == numbers(clips).roll(1)


def video_alone(clips):
    return mask(clips) & ~words(clips) & ~words(clips)[:, None]


def no_words_for_words(clips):
    return mask(clips) & ~(words(clips) & words(clips)[:, None]) | torch.eye(len(mask(clips)), dtype=torch.bool)


def as_numbers(clips):
    return mask(clips).float()


def in_numpy(clips):
    return mask(clips).numpy()


def nothing(*arguments):
    return None


def test_pack_mask():
    guard("11.1", mask, [
        ("That is a causal mask", causal),
        ("Words, too, belong to one clip", words_for_all),
        ("Words, too, belong to one clip", video_sees_all_words),
        ("every token sees every other one", everything),
        ("pack_mask([(2, 3), (1, 4)])", words_not_counted),
        ("must see", border_off_by_one),
        ("word 0 of clip 0 sees nothing, not even itself", video_alone),
        ("word 0 of clip 0 must see word 1 of clip 0", no_words_for_words),
        ("dtype torch.float32; it must be torch.bool", as_numbers),
        ("is a ndarray; it must be a tensor", in_numpy),
        ("is None; does your function end in return?", nothing),
    ])


# ---- 11.2 pack_positions


def positions(clips):
    rows = []
    for text, (t, h, w) in clips:
        rows += [(0, 0, 0)] * text
        rows += [(i, j, k) for i in range(t) for j in range(h) for k in range(w)]
    return torch.tensor(rows)


def counted_on(clips):
    parts, frame = [], 0
    for clip in clips:
        part = positions([clip])
        part[clip[0]:, 0] += frame
        frame += clip[1][0]
        parts.append(part)
    return torch.cat(parts)


def words_last(clips):
    return torch.cat([torch.cat([positions([(0, grid)]), positions([(text, (0, 0, 0))]).view(-1, 3)])
                      for text, grid in clips]).long()


def words_counted(clips):
    parts = []
    for text, grid in clips:
        part = positions([(text, grid)])
        part[:text, 0] = torch.arange(text)
        parts.append(part)
    return torch.cat(parts)


def words_before_the_video(clips):
    parts = []
    for text, grid in clips:
        part = positions([(text, grid)])
        part[text:, 0] += text
        parts.append(part)
    return torch.cat(parts)


def one_grid(clips):
    whole = positions([(0, (9, *clips[0][1][1:]))])
    return torch.cat([torch.cat([positions([(text, (0, 0, 0))]).view(-1, 3).long(), whole[:t * h * w]])
                      for text, (t, h, w) in clips])


def columns_first(clips):
    return positions(clips).flip(1)


def rows_fastest(clips):
    return torch.cat([torch.cat([torch.zeros(text, 3).long(), torch.stack(torch.meshgrid(
        *map(torch.arange, grid), indexing="ij"), dim=-1).transpose(1, 2).reshape(-1, 3)]) for text, grid in clips])


def axes_in_front(clips):
    return positions(clips).T


def test_pack_positions():
    guard("11.2", positions, [
        ("do not count on from the clip before", counted_on),
        ("the words come last", words_last),
        ("words have no place and stay at 0, 0, 0", words_counted),
        ("Places are counted anew in every clip", words_before_the_video),
        ("Each clip has a grid of its own", one_grid),
        ("the axes are exchanged", columns_first),
        ("every place occurs, but in another order", rows_fastest),
        ("has shape (3, 36); it must be (36, 3)", axes_in_front),
        ("is None; does your function end in return?", nothing),
    ])


# ---- 11.3 attend_varlen


def clip_by_clip(q, k, v, lengths):
    answers, first = [], 0
    for length in lengths:
        part = slice(first, first + length)
        scores = q[:, part] @ k[:, part].mT * q.shape[-1] ** -0.5
        answers.append(scores.softmax(dim=-1) @ v[:, part])
        first += length
    return torch.cat(answers, dim=1)


def padded_with_a_mask(q, k, v, lengths):
    return padded(q, k, v, lengths, masked=True)


def padded(q, k, v, lengths, masked=False):
    longest = max(lengths)
    parts = [torch.stack([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in x.split(lengths, dim=1)])
             for x in (q, k, v)]
    allowed = (torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None, None] if masked else None
    answers = F.scaled_dot_product_attention(*parts, allowed)
    return torch.cat([answer[:, :length] for answer, length in zip(answers, lengths)], dim=1)


def all_at_once(q, k, v, lengths):
    return F.scaled_dot_product_attention(q, k, v)


def under_a_mask(q, k, v, lengths):
    clip = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return F.scaled_dot_product_attention(q, k, v, clip[:, None] == clip)


def softmax_over_all(q, k, v, lengths):
    clips = zip(*(x.split(lengths, dim=1) for x in (q, k, v)))
    sums = sum((a @ b.mT * 0.5).exp().sum() for a, b, _ in zip(*(x.split(lengths, dim=1) for x in (q, k, v))))
    return torch.cat([(a @ b.mT * 0.5).exp() / sums @ c for a, b, c in clips], dim=1)


def not_scaled(q, k, v, lengths):
    return clip_by_clip(2 * q, k, v, lengths)


def last_forgotten(q, k, v, lengths):
    return torch.cat([clip_by_clip(q, k, v, lengths)[:, :-lengths[-1]], v[:, -lengths[-1]:]], dim=1)


def test_attend_varlen():
    guard("11.3", clip_by_clip, [
        ("the padding takes part", padded),
        ("and the answer of token 9 changed, which is of another clip", all_at_once),
        ("as large as all 40 x 40 pairs", under_a_mask),
        ("weights sum to 1 over the keys of the own clip", softmax_over_all),
        ("differs in", not_scaled),
        ("differs in", last_forgotten),
        ("is None; does your function end in return?", nothing),
    ])
    assert judge(find("11.3"), padded_with_a_mask).state == "right"


# ---- 11.4 pack_line


def first_that_fits(tokens, room, ahead):
    line, packs = list(range(len(tokens))), []
    while line:
        pack, left, place = [], room, 0
        while place < min(ahead, len(line)):
            if tokens[line[place]] <= left:
                left -= tokens[line[place]]
                pack.append(line.pop(place))
            else:
                place += 1
        packs.append(pack)
    return packs


def longest_that_fits(tokens, room, ahead):
    line, packs = list(range(len(tokens))), []
    while line:
        pack, left = [line.pop(0)], room
        left -= tokens[pack[0]]
        while fitting := [i for i in line[:ahead] if tokens[i] <= left]:
            taken = max(fitting, key=lambda i: tokens[i])
            line.remove(taken)
            pack.append(taken)
            left -= tokens[taken]
        packs.append(pack)
    return packs


def next_fit(tokens, room, ahead):
    packs = [[]]
    for i, count in enumerate(tokens):
        if sum(tokens[j] for j in packs[-1]) + count > room:
            packs.append([])
        packs[-1].append(i)
    return packs


def sorted_first(tokens, room, ahead):
    order = sorted(range(len(tokens)), key=lambda i: -tokens[i])
    return [[order[i] for i in pack] for pack in next_fit([tokens[i] for i in order], room, ahead)]


def best_of_the_whole_line(tokens, room, ahead):
    return longest_that_fits(tokens, room, len(tokens))


def longest_first(tokens, room, ahead):
    line, packs = list(range(len(tokens))), []
    while line:
        pack, left = [], room
        while fitting := [i for i in line[:ahead] if tokens[i] <= left]:
            pack.append(max(fitting, key=lambda i: tokens[i]))
            line.remove(pack[-1])
            left -= tokens[pack[-1]]
        packs.append(pack)
    return packs


def last_dropped(tokens, room, ahead):
    return longest_that_fits(tokens, room, ahead)[:-1]


def cut_in_two(tokens, room, ahead):
    packs = longest_that_fits(tokens, room, ahead)
    return [[*pack, after[0]] if after else pack for pack, after in zip(packs, [*packs[1:], []])]


def too_full(tokens, room, ahead):
    return longest_that_fits(tokens, room + 400, ahead)


def counts(tokens, room, ahead):
    return [[tokens[i] for i in pack] for pack in longest_that_fits(tokens, room, ahead)]


def used_up(tokens, room, ahead):
    packs = longest_that_fits(tokens, room, ahead)
    tokens.clear()
    return packs


def test_pack_line():
    guard("11.4", longest_that_fits, [
        ("Before you close a pack, look at every waiting clip", next_fit),
        ("which was not in sight", best_of_the_whole_line),
        ("which stands first in the line", sorted_first),
        ("which stands first in the line", longest_first),
        ("leaves out", last_dropped),
        ("each clip belongs to one pack, whole", cut_in_two),
        ("pack 0 (counted from 0) holds", too_full),
        ("not of token counts", counts),
        ("changes its list of token counts", used_up),
        ("is None; does your function end in return?", nothing),
    ])
    assert judge(find("11.4"), first_that_fits).state == "right"  # also a good rule


# ---- the references


def test_references_give_what_they_promise():
    clips = [(2, (2, 1, 2)), (1, (1, 1, 3))]
    assert mask_of_clips([(1, 1), (0, 1)]).tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert places_in_clips(clips).tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1],
                                               [0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 0, 2]]
    q, k, v = torch.randn(3, 2, 9, 4).unbind()
    both = attended_clip_by_clip(q, k, v, [4, 5])
    assert torch.allclose(both, under_a_mask(q, k, v, [4, 5]), atol=1e-6)
    tokens = np.random.default_rng(0).choice(LENGTHS, 50, p=np.array(OFTEN) / sum(OFTEN)).tolist()
    assert sorted(i for pack in packs_in_sight(tokens, 2048, 8) for i in pack) == list(range(50))
