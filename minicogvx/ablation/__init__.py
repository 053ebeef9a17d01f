"""Ablations: trains variants that differ in one choice, on the same data, and records their curves."""

from importlib import import_module

_MODULES = {
    "Curve": "transformers", "LatentsCurve": "latents", "SchedulesCurve": "schedules",
    "StagesCurve": "stages", "Study": "own_study",
    "TimestepsCurve": "timesteps", "VAECurve": "vaes",
    "compare_latents": "latents", "compare_timesteps": "timesteps", "compare_transformers": "transformers",
    "compare_twins": "twins", "compare_vae_stages": "vaes", "compare_vaes": "vaes", "load_results": "results",
    "paired_figure": "figures", "read_study": "own_study", "results_figure": "figures", "roughness": "timesteps",
    "run_study": "own_study", "stages_figure": "figures",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    # Imported on demand: PyTorch takes seconds, which `--help` must not.
    if name in _MODULES:
        return getattr(import_module(f"minicogvx.ablation.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'minicogvx.ablation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
