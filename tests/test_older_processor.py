"""On a CPU without instructions for bfloat16, such as most laptops have, nothing multiplies in it.

PyTorch is told to compute as on such a processor. There a product of matrices in bfloat16 is emulated, fifty times
slower than in float32: one literal bfloat16 in a trainer makes minutes into hours. What is counted here are operations,
not seconds, so that a busy machine changes nothing.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

COUNT = '''
import sys, time
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

class Products(TorchDispatchMode):
    """Operations in products and convolutions, by the bytes of a number."""
    def __init__(self):
        super().__init__()
        self.of = {2: 0, 4: 0, 8: 0}
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            size = next(x for x in tree_leaves(args) if isinstance(x, torch.Tensor)).element_size()
            self.of[size] += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out

with Products() as products:
    exec(sys.argv[1])
print(products.of[2], products.of[4] + products.of[8])
'''

START = """
from dataclasses import replace
import minicogvx
from minicogvx.presets import preset
from minicogvx.training.recipes import load_recipe
micro = load_recipe("micro")
"""

PATHS = {
    "a clip of the toy": """
import minicogvx
pipe = minicogvx.load("toy")
pipe("a red circle moves right", num_inference_steps=2)
""",
    "training": START + """
import tempfile
from pathlib import Path
from minicogvx.training.run import Keep
from minicogvx.training.train import Job, train
vae = replace(micro.vae, stages=(replace(micro.vae.stages[0], steps=1, batch_size=1),) * 2)
transformer = replace(micro.transformer, stages=(replace(micro.transformer.stages[-1], steps=2, batch_size=2),))
with tempfile.TemporaryDirectory() as folder:
    train(Job(replace(micro, vae=vae, transformer=transformer, clips=4), Path(folder), keep=Keep(progress=False)))
""",
    "studies": START + """
from minicogvx.ablation.comparing import study_latents
from minicogvx.ablation.studies import STUDIES
from minicogvx.ablation.transformers import compare_transformers
from minicogvx.ablation.vaes import compare_vaes
study = STUDIES["position"]
type(study).clips = 66
compare_transformers(dict(list(study.variants.items())[:1]), study_latents(study), 1, batch_size=2)
config = replace(preset("micro").vae, block_out_channels=(8, 8, 16))
compare_vaes({"a": (config, micro.vae.stages[0].loss)}, 1, batch_size=1)
""",
}


def run(code: str, *arguments: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MINICOGVX_")}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600,
                          cwd=ROOT, env=clean | OLDER | environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1].split()


@pytest.mark.parametrize("path", PATHS)
def test_no_products_in_16_bits_on_an_older_processor(path):
    in_16_bits, in_32 = map(int, run(COUNT, PATHS[path]))
    assert in_16_bits == 0 and in_32 > 1e8


def test_the_count_sees_16_bits_and_the_environment_variable_asks_for_them():
    code = START + """
from minicogvx.data.clips.world import encode_world
from minicogvx.vae import CausalVAE
encode_world(CausalVAE(preset("micro").vae), 1, 0, 1, 0.0, progress=False)
"""
    in_16_bits, in_32 = map(int, run(COUNT, code, MINICOGVX_DTYPE="bfloat16"))
    assert in_16_bits > 1e6 and in_32 < in_16_bits


def test_the_older_processor_that_stands_in_emulates_bfloat16():
    seconds = run("""
import time, torch
def best(dtype, n=192):
    a, times = torch.randn(n, n).to(dtype), []
    for _ in range(7):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times)
print(best(torch.bfloat16), best(torch.float32))
""")
    assert float(seconds[0]) > 4 * float(seconds[1])  # 50 times here; where there are instructions for it, less than 1
