"""Experiments that train: variants that differ in one choice, on the same data, and the curves of what they learnt."""

from importlib import import_module

_MODULES = {
    "Curve": "transformers", "StagesCurve": "stages", "VAECurve": "vaes", "compare_transformers": "transformers",
    "compare_vae_stages": "vaes", "compare_vaes": "vaes", "load_results": "results", "stages_figure": "figures",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    # They pull in PyTorch (seconds), for which the command's help must not wait.
    if name in _MODULES:
        return getattr(import_module(f"minicogvx.ablation.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'minicogvx.ablation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
