"""Exercises of notebook 08 about who sees whom distinguish right from wrong, and name the mistake."""

import torch
from einops import rearrange

from minicogvx.course.exercises import find
from minicogvx.transformer.layout import DenseLayout
from minicogvx.transformer.variants import VariantAttention
from tests.guards import guard

# ---- 8.2 may_see


def right_may_see(kind, text, frames, places):
    n = text + frames * places
    allowed = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            if i < text:
                allowed[i, j] = i == j if kind == "cross" else j < text
            else:
                later = (j - text) // places > (i - text) // places
                allowed[i, j] = j < text or kind == "cross" or not later
    return allowed


def words_see_all(kind, text, frames, places):
    allowed = right_may_see(kind, text, frames, places)
    allowed[:text] |= kind == "causal"
    return allowed


def words_see_nothing(kind, text, frames, places):
    allowed = right_may_see(kind, text, frames, places)
    allowed[:text] &= kind == "causal"
    return allowed


def turned_over(kind, text, frames, places):
    return right_may_see(kind, text, frames, places).T


def token_by_token(kind, text, frames, places):
    allowed = right_may_see(kind, text, frames, places)
    if kind == "causal":
        allowed[text:, text:] = allowed[text:, text:].tril()
    return allowed


def own_frame_forgotten(kind, text, frames, places):
    allowed = right_may_see(kind, text, frames, places)
    if kind == "causal":
        frame = torch.arange(frames * places) // places
        allowed[text:, text:] = frame[:, None] > frame
    return allowed


def without_the_words(kind, text, frames, places):
    allowed = right_may_see(kind, text, frames, places)
    allowed[text:, :text] &= kind == "cross"
    return allowed


def words_ask_words(kind, text, frames, places):
    allowed = right_may_see(kind, text, frames, places)
    allowed[:text, :text] = True
    return allowed


def as_numbers(kind, text, frames, places):
    return right_may_see(kind, text, frames, places).float()


def for_video_alone(kind, text, frames, places):
    return right_may_see(kind, text, frames, places)[text:, text:]


def test_may_see():
    guard("8.2", right_may_see, [
        ("the words hand it on", words_see_all),
        ("text token 0 sees nothing, not even itself", words_see_nothing),
        ("rows and columns are exchanged", turned_over),
        ("the token at frame 0, place 0 must see the token at frame 0, place 1", token_by_token),
        ("the token at frame 0, place 0 must see itself", own_frame_forgotten),
        ("the token at frame 0, place 0 must see text token 0", without_the_words),
        ("text token 0 must not see text token 1", words_ask_words),
        ("has dtype torch.float32; it must be torch.bool", as_numbers),
        ("has shape (6, 6); it must be (8, 8)", for_video_alone),
    ])


def test_in_causal_no_message_from_later_frames_arrives_after_many_blocks():
    text, frames, places = 3, 4, 2
    heard = torch.eye(text + frames * places)
    for _ in range(6):
        heard = (find("8.2").reference("causal", text, frames, places).float() @ heard > 0).float()
    frame = torch.arange(frames * places) // places
    assert torch.equal(heard[text:, text:] > 0, frame[:, None] >= frame)


# ---- 8.4 reachable


def sight(frames, places, text, kind, keeps=True):
    n, video = text + frames * places, torch.arange(frames * places)
    sees = torch.zeros(n, n, dtype=torch.bool)
    inside = {"full": torch.ones(len(video), len(video), dtype=torch.bool),
              "first": (video < places).expand(len(video), -1) | torch.eye(len(video), dtype=torch.bool),
              "space": (video // places)[:, None] == video // places,
              "time": (video % places)[:, None] == video % places}[kind]
    sees[text:, text:] = inside
    if kind not in ("time", "first"):
        sees[:text], sees[:, :text] = True, True
    elif keeps:
        sees[:text, :text] = torch.eye(text, dtype=torch.bool)
    return sees


def right_reachable(frames, places, text, kinds):
    heard = torch.eye(text + frames * places, dtype=torch.long)
    for kind in kinds:
        heard = (sight(frames, places, text, kind).long() @ heard).clamp(max=1)
    return heard.bool()


def only_the_last(frames, places, text, kinds):
    return right_reachable(frames, places, text, kinds[-1:])


def all_together(frames, places, text, kinds):
    heard = right_reachable(frames, places, text, [])
    for kind in kinds:
        heard = heard | sight(frames, places, text, kind)
    return heard


def as_counts(frames, places, text, kinds):
    return right_reachable(frames, places, text, kinds).long()


def text_forgets_itself(frames, places, text, kinds):
    heard = torch.eye(text + frames * places)
    for kind in kinds:
        heard = sight(frames, places, text, kind, keeps=False).float() @ heard
    return heard > 0


def without_text(frames, places, text, kinds):
    return right_reachable(frames, places, 0, kinds)


def frames_last(frames, places, text, kinds):
    n, order = text + frames * places, torch.arange(frames * places)
    order = torch.cat([torch.arange(text), text + rearrange(order, "(f p) -> (p f)", f=frames)])
    return right_reachable(frames, places, text, kinds)[order][:, order] if n else None


def text_sees_in_time(frames, places, text, kinds):
    heard = right_reachable(frames, places, text, kinds)
    heard[:text] |= bool(kinds)
    return heard


def starts_from_nothing(frames, places, text, kinds):
    return right_reachable(frames, places, text, kinds) & bool(kinds)


def backwards(frames, places, text, kinds):
    return right_reachable(frames, places, text, kinds[::-1])


def who_heard_of_me(frames, places, text, kinds):
    return right_reachable(frames, places, text, kinds).T


def first_without_itself(frames, places, text, kinds):
    heard = torch.eye(text + frames * places)
    for kind in kinds:
        sees = sight(frames, places, text, kind).float()
        if kind == "first":
            sees[text + places:, text + places:] = 0
        heard = sees @ heard
    return heard > 0


def test_reachable():
    guard("8.4", right_reachable, [
        ("by way of a third token", only_the_last),
        ("by way of a third token", all_together),
        ("Whether, not how often", as_counts),
        ("text token 0 must have heard of itself; the residual keeps what was there", text_forgets_itself),
        ("has shape (6, 6); it must be (8, 8)", without_text),
        ("the token at frame 0, place 0 must have heard of the token at frame 0, place 1", frames_last),
        ("text itself only", text_sees_in_time),
        ("must have heard of itself", starts_from_nothing),
        ("that is the answer for ['time', 'first']. The first attention comes first", backwards),
        ("rows and columns are exchanged", who_heard_of_me),
        ("the token at frame 1, place 0 must have heard of itself", first_without_itself),
    ])


# ---- 8.5 following_head


def right_following(seen, shape, background):
    best, found = -1e9, None
    for layer in range(seen.shape[0]):
        for head in range(seen.shape[1]):
            contrast = float(seen[layer, head][shape].mean() - seen[layer, head][background].mean())
            if contrast > best:
                best, found = contrast, (layer, head)
    return found


def where(contrast):
    return divmod(int(contrast.argmax()), contrast.shape[1])


def most_on_the_shape(seen, shape, background):
    return where(seen[..., shape].mean(-1))


def of_the_first_clip(seen, shape, background):
    return where(seen[..., 0, :][..., shape[0]].mean(-1) - seen[..., 0, :][..., background[0]].mean(-1))


def as_a_ratio(seen, shape, background):
    return where(seen[..., shape].mean(-1) / seen[..., background].mean(-1))


def in_sums(seen, shape, background):
    return where(seen[..., shape].sum(-1) - seen[..., background].sum(-1))


def the_other_way_round(seen, shape, background):
    return where(seen[..., background].mean(-1) - seen[..., shape].mean(-1))


def most_anywhere(seen, shape, background):
    return where(seen.mean(dim=(2, 3)))


def everything_but_background(seen, shape, background):
    return where(seen[..., ~background].mean(-1) - seen[..., background].mean(-1))


def head_then_block(seen, shape, background):
    return right_following(seen, shape, background)[::-1]


def flat(seen, shape, background):
    layer, head = right_following(seen, shape, background)
    return layer * seen.shape[1] + head


def counted_from_one(seen, shape, background):
    layer, head = right_following(seen, shape, background)
    return layer + 1, head + 1


def test_following_head():
    guard("8.5", right_following, [
        ("That head looks at everything, the shape included", most_on_the_shape),
        ("That head looks at the shape in one clip only", of_the_first_clip),
        ("take the difference of the two means, not their ratio", as_a_ratio),
        ("compare means over all clips, not sums", in_sums),
        ("shape less background, not the other way round", the_other_way_round),
        ("it must be (2, 1)", most_anywhere),
        ("count the marked ones alone", everything_but_background),
        ("first the block, then the head", head_then_block),
        ("it must be two whole numbers", flat),
        ("it must be (2, 1)", counted_from_one),
    ])


# ---- what replaces the learner's own


def test_the_reference_reaches_what_the_packages_attention_reaches(subtests):
    frames, places = 3, 4
    for kind, pattern, text in (("full", "full", 2), ("space", "spatial", 2), ("time", "temporal", 0)):
        with subtests.test(msg=kind):
            torch.manual_seed(0)
            attention, x = VariantAttention(16, 1, pattern), torch.randn(1, text + frames * places, 16)
            layout = DenseLayout(text, (frames, 1, places))
            answer, sees = attention(x, layout), torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
            for token in range(x.shape[1]):
                changed = x.clone()
                changed[:, token] += torch.randn(16)
                sees[:, token] = (attention(changed, layout) - answer).abs().amax(dim=(0, 2)) > 1e-6
            residual = torch.eye(len(sees), dtype=torch.bool)
            assert torch.equal(sees | residual, find("8.4").reference(frames, places, text, [kind]))
