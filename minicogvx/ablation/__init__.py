"""Experiments that train: variants that differ in one choice, on the same data, and the curves of what they learnt."""

from minicogvx.ablation.figures import stages_figure
from minicogvx.ablation.results import load_results
from minicogvx.ablation.stages import StagesCurve
from minicogvx.ablation.transformers import Curve, compare_transformers
from minicogvx.ablation.vaes import VAECurve, compare_vae_stages, compare_vaes

__all__ = ["Curve", "StagesCurve", "VAECurve", "compare_transformers", "compare_vae_stages", "compare_vaes",
           "load_results", "stages_figure"]
