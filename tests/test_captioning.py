"""Captions of videos: the shapes world's from its pixels, and dense ones by tiny models with random weights."""

import json
import shutil

import pytest
import torch
from films import caption, mp4, pan, ramp

from minicogvx.data import command
from minicogvx.data.films.captioning import (
    DenseCaptioner,
    caption_clips,
    caption_frames,
    caption_shapes,
    join_descriptions,
    limit_words,
    still_frames,
)
from minicogvx.data.films.folder import scan_folder
from minicogvx.data.world.captions import parse_caption
from minicogvx.data.world.drawing import render
from minicogvx.data.world.scenes import sample_scenes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four clips of the shapes world, a video of something else, and their scenes."""
    folder = tmp_path_factory.mktemp("world")
    scenes = sample_scenes(4, seed=5)
    for i, scene in enumerate(scenes):
        mp4(folder / f"{i}.mp4", render(scene, 17, 64, 64))
    mp4(folder / "other.mp4", pan(17, 64, 64))
    return folder, scenes


def test_the_shapes_world_is_captioned_exactly(world):
    folder, scenes = world
    found = scan_folder(folder, need_captions=False).clips
    for clip, scene in zip(found, scenes):
        text = caption_shapes(clip)
        asked = parse_caption(text)
        assert asked.background == scene.background, text
        assert {(thing.shape, thing.colour, thing.motion) for thing in asked.objects} == {
            (thing.shape, thing.colour, thing.motion) for thing in scene.objects}, text
        assert caption_shapes(clip) == text and len({caption_shapes(clip, seed) for seed in range(9)}) > 3
    with pytest.raises(ValueError, match="nothing that the shapes world has"):
        caption_shapes(found[-1])


def test_the_command_writes_metadata_that_can_be_scanned(world, tmp_path, capsys):
    folder = shutil.copytree(world[0], tmp_path / "world")
    caption(folder / "0.mp4", "mine")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "3.mp4", "source": "drawn"}) + "\n"
                                           + json.dumps({"file_name": "gone.mp4", "text": "kept"}) + "\n")
    assert command.main(["caption", str(folder), "--captioner", "shapes"]) == 0
    assert "not used: other.mp4: shows nothing that the shapes world has" in capsys.readouterr().out
    rows = {row["file_name"]: row for row in map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())}
    assert rows["0.mp4"]["text"] == "mine" and rows["3.mp4"]["source"] == "drawn" and rows["gone.mp4"]["text"] == "kept"
    assert rows["1.mp4"] == {"file_name": "1.mp4", "text": caption_shapes(scan_folder(folder).clips[1])}
    assert [clip.name for clip in scan_folder(folder).clips] == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    assert not list(folder.glob(".*"))


def test_interrupted_captioning_resumes(world, tmp_path):
    folder, scenes = world
    found = scan_folder(folder, need_captions=False).clips[:4]
    asked = []

    def captioner(clip):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(clip.name)
        return f"video {clip.name}"

    out = tmp_path / "captions.jsonl"
    with pytest.raises(KeyboardInterrupt):
        caption_clips(found, captioner, out, progress=False)
    with (tmp_path / ".captions.jsonl.notes" / "captions.jsonl").open("a") as notes:
        notes.write('{"clip": ["2.mp4", "te')  # interrupted while writing
    caption_clips(found, lambda clip: asked.append(clip.name) or "later", out, progress=False)
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert asked == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"] and texts == ["video 0.mp4", "video 1.mp4", "later", "later"]
    assert list(tmp_path.glob("*captions*")) == list(tmp_path.glob("*.jsonl")) == [out]


def test_what_another_captioner_had_begun_is_not_taken(world, tmp_path):
    folder, _ = world
    found, out = scan_folder(folder, need_captions=False).clips[:2], tmp_path / "captions.jsonl"

    def breaks_off(clip):
        if clip is found[1]:
            raise KeyboardInterrupt
        return "short"

    with pytest.raises(KeyboardInterrupt):
        caption_clips(found, breaks_off, out, progress=False, by="one")
    caption_clips(found, lambda clip: "long", out, progress=False, by="other")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["long", "long"] and all("by" not in row for row in rows)


def test_one_frame_every_two_seconds(tmp_path):
    mp4(tmp_path / "ramp.mp4", ramp(40))  # 5 seconds
    clip, = scan_folder(tmp_path, need_captions=False).clips
    frames = still_frames(clip)
    assert [round(float(frame.mean() - 0.1) / 0.8 * 40) for frame in frames] == [0, 16, 32]
    assert caption_frames(frames, lambda frame: f"brightness\n {float(frame.mean()):.1f} ") == [
        "brightness 0.1", "brightness 0.4", "brightness 0.7"]
    with pytest.raises(ValueError, match="no frames to describe"):
        caption_frames([], str)


def test_descriptions_are_joined_or_summed_up(tmp_path):
    mp4(tmp_path / "ramp.mp4", ramp(40))
    clip, = scan_folder(caption(tmp_path / "ramp.mp4", "a ramp").parent).clips
    words = iter(["a dark wall", "a grey wall.", "a bright wall"] * 2)
    plain = DenseCaptioner(lambda frame: next(words))
    assert plain(clip) == "A dark wall. Then a grey wall. Then a bright wall."
    prompts = []
    summed = DenseCaptioner(lambda frame: next(words), lambda prompt: prompts.append(prompt) or "A wall. " * 60)
    assert summed(clip) == "A wall. " * 49 + "A wall."
    assert "1. a dark wall\n2. a grey wall." in prompts[0] and "at most 100 English words" in prompts[0]
    assert "Somebody called it: a ramp" in prompts[0] and "2 seconds apart" in prompts[0]
    with pytest.raises(ValueError, match="every_seconds is 0"):
        DenseCaptioner(str, every_seconds=0.0)


def test_plain_joining_and_word_limits():
    assert join_descriptions(["a dog sits.", "a dog sits", " a dog\nruns", ""]) == "A dog sits. Then a dog runs."
    assert join_descriptions([]) == ""
    assert limit_words("one two. three four five", 4) == "one two." and limit_words("one two three", 2) == "one two"
    assert len(join_descriptions(["word " * 90, "other " * 90]).split()) <= 100


# ---- transformers folders: BLIP and T5 with random weights, built here

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "circle", "moves", "right")


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    torch.manual_seed(1)
    small = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = BlipConfig(
        text_config=small | dict(vocab_size=len(WORDS), encoder_hidden_size=16, projection_dim=16, bos_token_id=5,
                                 pad_token_id=0, eos_token_id=3, sep_token_id=3, max_position_embeddings=300),
        vision_config=small | dict(image_size=32, patch_size=8), projection_dim=16)
    folder = tmp_path_factory.mktemp("blip")
    BlipForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    from transformers import T5Config, T5ForConditionalGeneration

    from minicogvx.text.encoder import word_tokenizer

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = word_tokenizer(("a", "red", "circle", "video", "frames"))
    T5ForConditionalGeneration(T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=1)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_vision_language_model_and_a_summary_from_their_folders(world, blip, t5):
    from minicogvx.data.films.caption_models import VisionLanguageModel

    folder, scenes = world
    clip = scan_folder(folder, need_captions=False).clips[0]
    model = VisionLanguageModel(blip, "Describe.", max_new_tokens=12)
    frame = still_frames(clip)[0]
    text = model(frame)
    assert set(text.split()) <= {*(word.lower() for word in WORDS), "[dec]", "[DEC]", *WORDS} and model(frame) == text
    captioner = DenseCaptioner.from_folder(blip, t5, every_seconds=1.0)
    captioner.describe.max_new_tokens = captioner.summarise.max_new_tokens = 12
    summary = captioner(clip)
    assert isinstance(summary, str) and len(summary.split()) <= 12 and captioner(clip) == summary


def test_captioners_compute_where_and_in_the_format_that_is_asked_for(world, blip, t5, monkeypatch, subtests):
    clip = scan_folder(world[0], need_captions=False).clips[0]
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with subtests.test(msg=name):
            captioner = DenseCaptioner.from_folder(blip, t5, 1.0, "cpu", dtype)
            for model in (captioner.describe.model, captioner.summarise.model):
                assert model.dtype == dtype and model.device.type == "cpu" and not model.training
            captioner.describe.max_new_tokens = captioner.summarise.max_new_tokens = 3
            assert isinstance(captioner(clip), str)
            monkeypatch.setenv("MINICOGVX_DTYPE", name)
            assert DenseCaptioner.from_folder(blip, device="cpu").describe.model.dtype == dtype
    with pytest.raises(ValueError, match="device is 'tpu'"):
        DenseCaptioner.from_folder(blip, device="tpu")


def test_a_causal_model_does_not_repeat_the_question(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from minicogvx.data.films.caption_models import LanguageModel
    from minicogvx.text.encoder import word_tokenizer

    tokenizer = word_tokenizer(("what", "is", "this", "nothing"))
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=1,
                        eos_token_id=1, pad_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = LanguageModel(tmp_path, max_new_tokens=5)
    asked = model.tokenizer("what is this", return_tensors="pt")
    with torch.no_grad():
        tokens = model.model.generate(**asked, max_new_tokens=5, do_sample=False)[0]
    new = tokens[asked.input_ids.shape[1]:]
    assert model("what is this") == model.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_folders_that_do_not_open(tmp_path):
    from minicogvx.data.films.caption_models import LanguageModel, VisionLanguageModel

    with pytest.raises(FileNotFoundError, match="there is no folder"):
        VisionLanguageModel(tmp_path / "none", "x")
    (tmp_path / "config.json").write_text("{}")
    for kind in (lambda: VisionLanguageModel(tmp_path, "x"), lambda: LanguageModel(tmp_path)):
        with pytest.raises(ValueError, match="does not open as") as error:
            kind()
        assert "\n" not in str(error.value)
