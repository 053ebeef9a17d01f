"""Exercise 9.1, the network from its parts, and exercise 9.6, a diagnosis, distinguish right from wrong."""

import pytest
import torch
import torch.nn.functional as F

from minicogvx.course.exercises.clinic_09 import DISEASES, clinic_runs, disease_of
from minicogvx.course.exercises.forward_09 import SLIPS, with_slip
from minicogvx.course.exercises.notebook_06 import unpatchify
from tests.guards import guard

# ---- 9.1 model_forward


def from_parts(net, latents, timestep, text):
    layout = net.layout(net.grid(latents), text.shape[1], latents.device)
    t_emb = F.silu(net.time_embedding(timestep))
    x = net.patch_embed(latents, text, None)
    for block in net.transformer_blocks:
        x = block(x, t_emb, layout)
    x = net.norm_out(net.norm_final(x[:, text.shape[1]:]), t_emb, layout)
    return unpatchify(net.proj_out(x), net.grid(latents), 1, 2)


def slip(**options):
    def answer(net, latents, timestep, text):
        return with_slip(net, latents, timestep, text, **options)
    return answer


def the_net_itself(net, latents, timestep, text):
    return net(latents, timestep, text)


def five_rows_of_text(net, latents, timestep, text):
    layout = net.layout(net.grid(latents), text.shape[1], latents.device)
    t_emb, x = F.silu(net.time_embedding(timestep)), net.patch_embed(latents, text, None)
    for block in net.transformer_blocks:
        x = block(x, t_emb, layout)
    return layout.unpatchify(net.proj_out(net.norm_out(net.norm_final(x[:, 5:]), t_emb, layout)))


def tokens_left(net, latents, timestep, text):
    layout = net.layout(net.grid(latents), text.shape[1], latents.device)
    t_emb, x = F.silu(net.time_embedding(timestep)), net.patch_embed(latents, text, None)
    for block in net.transformer_blocks:
        x = block(x, t_emb, layout)
    return net.proj_out(net.norm_out(net.norm_final(layout.video(x)), t_emb, layout))


def test_model_forward():
    fragments = ("without its SiLU", "through SiLU twice", "norm_final is missing", "norm_out is missing",
                 "the other way round", "text comes first", "No block is called", "Only one block is called",
                 "in reverse order")
    guard("9.1", from_parts, [
        *((fragment, slip(**options)) for fragment, options in zip(fragments, SLIPS.values(), strict=True)),
        ("call its parts", the_net_itself),
        ("stopped", five_rows_of_text),
        ("it must be (2, 4, 3, 4, 6)", tokens_left),
    ])


# ---- 9.6 diagnose


def by_the_loss_alone(chart):
    return "healthy" if chart["training_loss"] < 2 else "latents not scaled"


def deaf_is_dropped(chart):
    found = disease_of(chart)
    return "captions always dropped" if found == "captions of other clips" else found


def limit_at_the_shown(chart):
    """Limits that fit the first seed's charts exactly, and no others."""
    shown = [run for run in clinic_runs() if run["seed"] == 0]
    return next((run["name"] for run in shown if run["chart"] == chart), "healthy")


def a_number(chart):
    return 3


def emptied(chart):
    found = disease_of(chart)
    chart.clear()
    return found


def test_diagnose():
    guard("9.6", disease_of, [
        ("is taken for", by_the_loss_alone),
        ("'captions of other clips' is taken for 'captions always dropped'", deaf_is_dropped),
        ("a chart that the table does not show", limit_at_the_shown),
        ("it must be one of 'healthy'", a_number),
        ("only read it", emptied),
    ])


def test_every_disease_has_charts_of_three_seeds():
    runs = clinic_runs()
    assert {run["name"] for run in runs} == set(DISEASES) and len({run["seed"] for run in runs}) >= 3
    assert all(torch.isfinite(torch.tensor(list(run["chart"].values()))).all() for run in runs)


@pytest.mark.parametrize("name", ["captions of other clips", "captions always dropped", "average of 0.9999",
                                  "timestep given as 0 to 1"])
def test_a_healthy_loss_may_hide_a_disease(name):
    """A claim of the notebook: these trainings' own losses look as a healthy one's do."""
    loss = {run["name"]: run["chart"]["training_loss"] for run in clinic_runs() if run["seed"] == 0}
    assert loss[name] < 1.2 * loss["healthy"]
