"""How each kind of study trains its variants, for one seed."""

from collections.abc import Callable, Sequence

Compare = Callable[..., dict]  # compare(steps, seed, on_step, names) -> curves by name


def comparison(study, device: str = "cpu", dtype=None) -> Compare:
    """`compare(steps, seed, on_step, names)` of a study; for a study of transformers, encodes its clips first.

    names: of the variants to train; None, or left out: all. `dtype`: of all passes; None is the fastest of `device`.
    """
    from minicogvx.ablation.schedules_study import SchedulesStudy
    from minicogvx.ablation.studies import VAEStagesStudy, VAEStudy
    from minicogvx.ablation.timesteps import TimestepsStudy
    from minicogvx.ablation.twins_study import TwinStudy
    from minicogvx.ablation.vaes import compare_vae_stages, compare_vaes

    if isinstance(study, TwinStudy):
        from minicogvx.ablation.twins import compare_twins

        return lambda steps, seed, on_step=None, names=None: compare_twins(
            _only(study.variants, names), study.worlds, steps, seed, study.batch_size, study.every, dtype, device,
            on_step)
    if isinstance(study, VAEStudy):
        return lambda steps, seed, on_step=None, names=None: compare_vaes(
            _only(study.variants, names), steps, seed, study.batch_size, study.num_frames, study.height, study.width,
            study.every, dtype, device, on_step)
    if isinstance(study, VAEStagesStudy):
        return lambda steps, seed, on_step=None, names=None: compare_vae_stages(
            study.config, study.loss, _only(study.variants, names), study.judged, steps, seed, study.every, dtype=dtype,
            device=device, on_step=on_step)
    if isinstance(study, TimestepsStudy):
        return _of_timesteps(study, device, dtype)
    if isinstance(study, SchedulesStudy):
        return _of_schedules(study, device, dtype)
    return _of_transformers(study, device, dtype)


def study_latents(study, device: str = "cpu", dtype=None):
    """The clips of a study of transformers, encoded by the shipped VAE."""
    import torch

    import minicogvx
    from minicogvx.data.clips.world import encode_world

    pipe = minicogvx.load("toy", device, torch.float32)
    return encode_world(pipe.vae, study.clips, study.clips_seed, pipe.video_size.num_frames, dtype=dtype)


def _of_timesteps(study, device: str, dtype) -> Compare:
    from minicogvx.ablation.timesteps import compare_timesteps

    latents = study_latents(study, device, dtype)
    return lambda steps, seed, on_step=None, names=None: compare_timesteps(
        _only(study.variants, names), study.config, latents, steps, seed, study.batch_size, study.every, dtype,
        device=device, on_step=on_step)


def _of_schedules(study, device: str, dtype) -> Compare:
    import torch

    import minicogvx
    from minicogvx.ablation.schedules import compare_schedules, schedule_clips

    pipe = minicogvx.load("toy", device, torch.float32)
    clips = schedule_clips(pipe)
    return lambda steps, seed, on_step=None, names=None: compare_schedules(
        study, pipe, clips, steps, seed, names, dtype or torch.float32, on_step)


def _of_transformers(study, device: str, dtype) -> Compare:
    import torch

    import minicogvx
    from minicogvx.ablation.obeyed import Obeyed
    from minicogvx.ablation.transformers import compare_transformers

    latents, judge = study_latents(study, device, dtype), None
    if study.captions:
        judge = Obeyed(minicogvx.load("toy", device, torch.float32), latents.scenes, study.captions)
    return lambda steps, seed, on_step=None, names=None: compare_transformers(
        _only(study.variants, names), latents, steps, seed, study.batch_size, study.every, dtype=dtype, device=device,
        on_step=on_step, judge=judge, training=study.training)


def _only(variants: dict, names: Sequence[str] | None) -> dict:
    return {name: variant for name, variant in variants.items() if names is None or name in names}
