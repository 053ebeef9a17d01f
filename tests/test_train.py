"""`minicogvx train` and `finetune`, whole: on the shapes world and on films, from random weights and further."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minicogvx import cli
from minicogvx.data.clips.cache import CachedClips
from minicogvx.data.clips.cache_files import is_cache
from minicogvx.engine.ranks import Ranks
from minicogvx.interop.safetensors_files import read_tensors
from minicogvx.training.checks import check_job
from minicogvx.training.film_data import FilmData, choose_held_back
from minicogvx.training.recipes import load_recipe, recipe_names, without_world
from minicogvx.training.record import _digest
from minicogvx.training.settings import TransformerTraining
from minicogvx.training.stages import Stage
from minicogvx.training.train import Job, learning_rate
from tests.tiny import load_pipeline, same, tiny_pipe, weights
from tests.trained import FOR_FILMS, films_of_mixed_lengths, recipe_file, train


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A run on the shapes world."""
    folder = tmp_path_factory.mktemp("world")
    train(recipe_file(folder), "--out", folder / "run", "--set", "transformer.validate_every=3",
          "--set", "transformer.sample_every=4")
    return folder / "run"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Twelve films of three lengths."""
    return films_of_mixed_lengths(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def filmed(mixed, tmp_path_factory) -> Path:
    """A run from random weights on films."""
    folder = tmp_path_factory.mktemp("filmed")
    train(recipe_file(folder, FOR_FILMS), "--data", mixed, "--out", folder / "run")
    return folder / "run"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_recipe_trains_a_whole_model_on_the_shapes_world(world, capsys):
    pipe = load_pipeline(world / "pipeline")
    assert pipe("a red circle moves right", num_inference_steps=2).shape == (9, 32, 32, 3)
    assert (pipe.guidance_scale, pipe.fps) == (3.0, 8)
    assert [row["step"] for row in rows(world / "vae_0.jsonl")] == [0, 1, 2]
    assert {"psnr", "l1", "kl"} <= rows(world / "vae_0.jsonl")[0].keys()
    assert {"gan_discriminator"} <= rows(world / "vae_1.jsonl")[-1].keys(), "from step 2 of the whole training on"
    log = rows(world / "transformer.jsonl")
    assert {"loss", "alignment", "tokens_per_second"} <= log[0].keys()
    assert {f"loss_{t}" for t in (100, 300, 500, 700, 900)} < log[2].keys() and "obeyed" in log[3]
    assert {path.name for path in (world / "samples").iterdir()} == {
        f"step_0000000{n}.{kind}" for n in (4, 8) for kind in ("mp4", "png", "txt")}
    assert json.loads((world / "minutes.json").read_text()).keys() == {"vae", "encoding", "transformer"}
    assert {"seed", "dtype", "ranks", "torch", "clips", "vae.stages.1.loss.gan_weight"} <= json.loads(
        (world / "recipe.json").read_text()).keys()


def test_the_same_command_again_does_nothing_and_interrupted_parts_are_resumed(world, tmp_path, monkeypatch):
    """Interrupted once in every part: the weights are those of the run that was not, bit for bit."""
    from minicogvx.training.run import Run

    record, stops = Run.record, [("vae_0", 1), ("vae_1", 2), ("transformer", 2), ("transformer", 5)]

    def stop(run, *arguments, **values):
        if stops and (run.name, run.done) == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt
        record(run, *arguments, **values)

    monkeypatch.setattr(Run, "record", stop)
    words = recipe_file(tmp_path), "--out", tmp_path / "run"
    for _ in range(4):
        train(*words, status=130)
    train(*words)
    assert not stops
    whole = weights(load_pipeline(world / "pipeline"))
    assert same(weights(load_pipeline(tmp_path / "run" / "pipeline")), whole)
    monkeypatch.setattr("minicogvx.training.vae.train_vae", lambda *_: pytest.fail("the VAE is finished"))
    train(*words)
    assert same(weights(load_pipeline(tmp_path / "run" / "pipeline")), whole)


def test_films_train_vae_text_encoder_and_transformer_from_random_weights(filmed, mixed):
    pipe = load_pipeline(filmed / "pipeline")
    assert "number" in pipe.text.vocabulary and pipe.text.unknown_words("a number 3") == []
    assert pipe("a red circle number 3", num_inference_steps=2).shape == (9, 32, 32, 3)
    assert is_cache(filmed / "cache")


def test_a_resumed_run_keeps_its_words_and_leaves_out_captions_that_do_not_fit(filmed, mixed, tmp_path, capsys):
    films, out = shutil.copytree(mixed, tmp_path / "films"), shutil.copytree(filmed, tmp_path / "run")
    record = json.loads((out / "recipe.json").read_text())
    (out / "recipe.json").write_text(json.dumps(record | {"data": str(films.resolve())}))
    (films / "00.txt").write_text("aardvark")
    (films / "01.txt").write_text("number " * 32)
    train(recipe_file(tmp_path, FOR_FILMS), "--data", films, "--out", out, "--set", "transformer.stages.1.steps=6")
    assert "left out 01.mp4: its caption has 33 tokens; at most 32 fit" in capsys.readouterr().out
    text, before = (load_pipeline(folder / "pipeline").text for folder in (out, filmed))
    assert text.unknown_words("aardvark") == ["aardvark"] and text.tokenizer.get_vocab() == before.tokenizer.get_vocab()


def test_films_are_held_back_whole_and_whatever_others_there_are(tmp_path, mixed, filmed):
    names, model = [f"{i}.mp4" for i in range(100)], str(filmed / "pipeline")
    back = choose_held_back(names, 0.1, Ranks())
    assert 3 < len(back) < 20 and choose_held_back(names[:50], 0.1, Ranks()) == back & {*names[:50]}
    assert len(choose_held_back(names, 0.0, Ranks())) == 1
    with pytest.raises(ValueError, match="held_back is 0.0, by which 1 of 100 films"):
        choose_held_back(names, 0.0, Ranks(0, 2))
    assert cli.main(["data", "encode", str(mixed), "--model", model, "--out", str(tmp_path / "cache"), "--windows", "2",
                     "--num-frames", "5", "--one-length", "--first-frame", "--dtype", "float32"]) == 0
    whole = CachedClips(tmp_path / "cache")
    training = replace(FOR_FILMS.transformer, stages=(Stage(1, 2),), validate_every=1)
    job = Job(replace(FOR_FILMS, transformer=training), tmp_path, FilmData(tmp_path / "cache"), model)
    (train_set,), held = job.data.clips(job, load_pipeline(model), Ranks())
    films = [{whole.film(i) for i in part.numbers} for part in (train_set, held)]
    assert len(train_set) + len(held) == len(whole) and films[1] and not films[0] & films[1]


def test_given_models_are_trained_further_as_whole_or_by_adapters(filmed, mixed, tmp_path, subtests):
    model, before = filmed / "pipeline", weights(load_pipeline(filmed / "pipeline"))
    for name, words in {"all": [], "packed": ["--set", "stages.0.pack=400", "--batch-size", "1"],
                        "muon": ["--set", "optimizer=muon", "--set", "ema_decay=0.9"],
                        "image": ["--image-to-video", "--set", "sample_every=2", "--set", "validate_every=1"]}.items():
        with subtests.test(name):
            out = tmp_path / name
            assert cli.main(["finetune", str(mixed), "--model", str(model), "--out", str(out), "--steps", "2",
                             "--learning-rate", "0.01", "--threads", "1", "--dtype", "float32", *words]) == 0
            after = weights(load_pipeline(out / "pipeline"))
            moved = {key.split(".")[0] for key in before if after[key].shape != before[key].shape
                     or not torch.equal(after[key], before[key])}
            assert moved == {"transformer"}
    assert len(list((tmp_path / "image" / "samples").glob("step_00000002_*.mp4"))) > 0
    assert "validation" in rows(tmp_path / "image" / "transformer.jsonl")[0]
    words = ["finetune", str(mixed), "--model", str(model), "--steps", "2", "--threads", "1", "--dtype", "float32"]
    assert cli.main([*words, "--lora", "4", "--out", str(tmp_path / "lora")]) == 0
    first = read_tensors(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert sum(tensor.numel() for tensor in first.values()) < 20_000
    assert cli.main([*words, "--lora-from", str(tmp_path / "lora"), "--out", str(tmp_path / "again")]) == 0
    second = read_tensors(tmp_path / "again" / "pytorch_lora_weights.safetensors")
    assert first.keys() == second.keys() and not any(torch.equal(first[key], second[key]) for key in first)
    checkpoint = next((tmp_path / "lora" / "checkpoints").iterdir())
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 400_000, "only what learns"


def test_a_transformer_begins_with_random_weights_and_given_encoders(filmed, mixed, tmp_path, monkeypatch):
    """As the published training did: VAE and text encoder are there already. Its sizes are those of the recipe."""
    rates, recipe = [], replace(FOR_FILMS, vae=None, transformer=replace(
        FOR_FILMS.transformer, stages=(Stage(2, 2),), learning_rate=None))
    monkeypatch.setattr("minicogvx.training.train.learning_rate",
                        lambda task: rates.append(task.training.rate()) or learning_rate(task))
    train(recipe_file(tmp_path, recipe), "--data", mixed, "--encoders", filmed / "pipeline", "--out", tmp_path / "run",
          "--set", "sizes.transformer.num_layers=3")
    assert rates == [1e-4] and load_pipeline(tmp_path / "run" / "pipeline").transformer.config.num_layers == 3
    used = [path for part in ("vae", "text_encoder") for path in (filmed / "pipeline" / part).glob("*.safetensors")]
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["weights of the encoders"] == _digest(used)
    before, after = (weights(load_pipeline(folder / "pipeline")) for folder in (filmed, tmp_path / "run"))
    same_parts = {key.split(".")[0] for key in before if torch.equal(before[key], after[key])}
    assert {"vae", "text"} <= same_parts
    assert not torch.equal(before["transformer.proj_out.bias"], after["transformer.proj_out.bias"])


def test_on_the_shapes_world_a_model_learns_to_continue_an_image(tmp_path):
    """On whole clips also where the recipe has pictures; samples are given the first frames of their scenes."""
    train(recipe_file(tmp_path), "--image-to-video", "--out", tmp_path / "run", "--set", "transformer.stages.1.steps=7",
          "--set", "transformer.validate_every=5", "--set", "transformer.sample_every=5")
    log = rows(tmp_path / "run" / "transformer.jsonl")
    assert {"obeyed", "validation"} <= log[9].keys() and "swap_gain" not in log[9]
    assert load_pipeline(tmp_path / "run" / "pipeline").image_to_video


def test_clips_that_were_encoded_before_are_trained_on(filmed, mixed, tmp_path, capsys, monkeypatch, subtests):
    """Pieces of films, of one size and length, at another rate."""
    model = str(filmed / "pipeline")
    assert cli.main(["data", "encode", str(mixed), "--model", model, "--out", str(tmp_path / "cache"), "--windows", "2",
                     "--num-frames", "5", "--one-size", "--one-length", "--fps", "12", "--dtype", "float32"]) == 0
    monkeypatch.setattr("minicogvx.training.film_data.scan_folder", lambda *_, **__: pytest.fail("films were read"))
    words = ["--model", model, "--steps", "2", "--threads", "1", "--dtype", "float32"]
    assert cli.main(["finetune", str(tmp_path / "cache"), *words, "--out", str(tmp_path / "run")]) == 0
    assert load_pipeline(tmp_path / "run" / "pipeline").fps == 12 and not (tmp_path / "run" / "cache").exists()
    for cache, options, told in (
            ("cache", ["--model", "toy"], "the VAE is not the one"), ("cache", ["--list", __file__], "--list is"),
            ("cache", ["--fps", "8"], "--fps is 8"), (filmed / "cache", [], "no text features"),
            ("cache", ["--num-frames", "9"], "num_frames of stage 0 is 9"), ("cache", ["--height", "48"], "height of"),
            ("cache", ["--set", "stages.0.best=0.5"], "best of stage 0 is 0.5"),
            ("cache", ["--image-to-video"], "--first-frame")):
        with subtests.test(told):
            capsys.readouterr()
            assert cli.main(["finetune", str(tmp_path / cache), *words, *options, "--out", str(tmp_path / told)]) == 2
            assert told in capsys.readouterr().err
    train(recipe_file(tmp_path, FOR_FILMS), "--data", tmp_path / "cache", "--out", tmp_path / "new", status=2)
    assert "encoded already, and this run trains its own VAE" in capsys.readouterr().err


def test_every_recipe_learns_from_films_without_what_only_the_shapes_world_knows(mixed, tmp_path, monkeypatch, capsys,
                                                                                subtests):
    begun = []
    monkeypatch.setattr("minicogvx.training.train.train", lambda job, *_: begun.append(job.recipe.transformer))
    for name in recipe_names():
        with subtests.test(name):
            encoders = () if load_recipe(name).vae else ("--from", "toy")
            train(name, "--data", mixed, "--out", tmp_path / name, *encoders)
            assert not begun[-1].alignment_weight and not any(stage.text_slots for stage in begun[-1].stages)
    capsys.readouterr()
    train("micro", "--data", mixed, "--out", tmp_path / "told")
    told = capsys.readouterr().out
    assert "without alignment_weight=1.5" in told and "without text_slots" in told
    slots = replace(load_recipe("micro"), transformer=replace(
        load_recipe("micro").transformer, alignment_weight=0.0, foreground_weight=0.0))
    with pytest.raises(ValueError, match="transformer.stages.0.text_slots is 16; with films"):
        check_job(Job(slots, tmp_path, FilmData(mixed)))
    local = replace(load_recipe("micro"), vae=None, transformer=TransformerTraining(text_bias_slope=2.0))
    recipe, told = without_world(local, films=False, given=True)
    assert recipe.transformer == TransformerTraining() and "without text_bias_slope" in told[0]
    assert without_world(local, films=True, given=False) == (local, [])
    with pytest.raises(ValueError, match="text_bias_slope is 2.0; with a text encoder that is given"):
        check_job(Job(local, tmp_path, encoders="toy"))


def test_what_cannot_be_trained_is_refused_in_one_sentence_before_work(filmed, mixed, world, tmp_path, monkeypatch,
                                                                       capsys, subtests):
    model, recipe = str(filmed / "pipeline"), recipe_file(tmp_path)
    films = ["train", recipe_file(tmp_path, FOR_FILMS, "films"), "--data", str(mixed)]
    short = tiny_pipe(transformer={"max_text_seq_length": 20})
    short.text.max_length = 20
    short.save(tmp_path / "short", allow_departures=True)
    listing = tmp_path / "other.jsonl"
    listing.touch()
    for name in ("train_vae", "encode_world", "TransformerTask"):
        monkeypatch.setattr(f"minicogvx.training.train.{name}", lambda *_, **__: pytest.fail("work has begun"))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "recipe.json").write_text('{"mine": 1}')
    for words, told in [
        (["train", "smal"], "there is no recipe 'smal'; .* did you mean small"),
        (["train", "published", "--data", str(mixed)], "this recipe trains no VAE; .*--encoders"),
        (["train", recipe, "--lora", "4"], "lora_rank is 4; adapters are for a trained model"),
        (["train", recipe, "--set", "transformer.stages.0.batch_size=0"], "batch_size is 0"),
        (["train", recipe, "--set", "transformer.stages.0.text_slots=12"], "text_slots is 12; .* from 16 to 32"),
        (["train", recipe, "--set", "transformer.stages.0.text_slots=40"], "text_slots is 40; .* from 16 to 32"),
        (["train", recipe, "--from", str(tmp_path)], "."),
        (["train", recipe, "--lora-from", recipe], "--lora-from is .*; adapters are for a trained model"),
        (["train", recipe, "--list", "some.jsonl"], "--list is some.jsonl"),
        (["train", recipe, "--fps", "8"], "--fps is 8"),
        (["train", recipe, "--set", "transformer.image_to_video=True"], "stages.0.images is 1.0"),
        (["train", "small", "--encoders", model], "sizes.transformer.in_channels is 16; .* it must be 4"),
        (["train", recipe, "--from", "toy", "--encoders", model], "in toy, transformer.in_channels is 16"),
        (["finetune", str(mixed), "--model", "random"], "--from is random"),
        (["finetune", "world", "--model", model], "world"),
        (["train", recipe, "--out", str(world), "--seed", "1"], "was begun with seed=0, not 1"),
        (["train", recipe, "--out", str(world), "--set", "transformer.text_dropout=0.2"], "text_dropout=0.1, not 0.2"),
        ([*films[:2], "--out", str(filmed)], "with data='.*', not 'world'"),
        ([*films, "--out", str(filmed), "--list", str(listing)], "with list=None, not"),
        ([*films, "--out", str(filmed), "--set", "transformer.validate_every=1"], "films held back=False, not True"),
        ([*films, "--set", "vae.stages.1.num_frames=49"], "none of 12 films has 49 frames"),
        ([*films, "--set", "transformer.stages.1.best=0.5"], "00.mp4 has no scores"),
        ([*films, "--set", "transformer.validate_every=1", "--set", "held_back=0.999"], "12 of 12 films are held back"),
        (["train", recipe, "--from", str(tmp_path / "short"), "--set", "transformer.alignment_weight=0.0"],
         "max_text_seq_length is 20"),
        (["train", recipe, "--out", str(foreign)], "recipe.json, which this run did not make"),
        (["finetune", str(mixed), "--model", "mikro"], "there is no model 'mikro'.* did you mean micro"),
        (["finetune", str(mixed), "--model", model, "--lora", "99"], "rank of LoRA is 99"),
        (["finetune", str(mixed), "--model", model, "--lora", "4", "--image-to-video"], "takes no image yet"),
        (["finetune", str(mixed), "--model", model, "--num-frames", "1", "--image-to-video"], "num_frames is 1"),
        (["finetune", str(mixed), "--model", model, "--set", "colour=3"], "colour leads nowhere"),
        (["finetune", str(tmp_path / "none"), "--model", model], "none"),
    ]:
        with subtests.test(words=words):
            assert cli.main([*words, *(["--out", str(tmp_path / "new")] if "--out" not in words else [])]) == 2
            error = capsys.readouterr().err.strip()
            assert re.search(told, error) and "\n" not in error
            assert not (tmp_path / "new" / "checkpoints").exists()


def test_a_run_may_change_how_it_computes_and_grow(filmed, mixed, tmp_path, capsys):
    words = ["finetune", str(mixed), "--model", str(filmed / "pipeline"), "--out", str(tmp_path / "run"),
             "--threads", "1"]
    assert cli.main([*words, "--steps", "2", "--dtype", "float32"]) == 0
    assert cli.main([*words, "--steps", "3", "--dtype", "bfloat16", "--set", "accumulate=2",
                     "--set", "gradient_checkpointing=True"]) == 0
    told = capsys.readouterr().out
    for change in ("dtype='bfloat16' (was 'float32')", "accumulate=2 (was 1)", "steps=3 (was 2)"):
        assert change in told
    assert cli.main([*words, "--steps", "3", "--batch-size", "4"]) == 2
    assert "batch_size=2, not 4" in capsys.readouterr().err
