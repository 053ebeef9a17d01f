"""Scores of fine-tuned models: a new style, or continuing a given picture."""

from dataclasses import dataclass

from minicogvx.data.world.drawing import render_batch
from minicogvx.data.world.scenes import Scene
from minicogvx.data.world.styles import Style
from minicogvx.evaluation.adherence import Counts, generate, judge, say_parts
from minicogvx.evaluation.intervals import say_interval
from minicogvx.evaluation.reconstruction import flicker, psnr
from minicogvx.pipeline import Pipeline

# ---- style


@dataclass(frozen=True)
class StyleScore:
    """Shares of clips, 0..1: "style": in the style; "shape", "motion", "count": right; "kept": right in all three;
    "all": kept and in the style."""

    style: str
    share: dict[str, float]
    clips: int
    seconds_per_clip: float
    failures: list[dict]  # of each: caption, wrong properties, and what was read

    def __str__(self) -> str:
        parts = say_parts({name: value for name, value in self.share.items() if name != "style"})
        return (f"{100 * self.share['style']:.1f} % of {self.clips} clips show {self.style}, "
                f"{100 * self.share['kept']:.1f} % are right in what it leaves ({parts}), "
                f"{100 * self.share['all']:.1f} % are both, {say_interval(self.share['all'], self.clips)}; "
                f"{self.seconds_per_clip:.2f} s a clip")


def measure_style(pipe: Pipeline, scenes: list[Scene], style: Style, seed: int = 0, num_inference_steps: int = 25,
                  guidance_scale: float | None = None, batch_size: int = 16, progress: bool = True) -> StyleScore:
    """Generates one clip for each scene's caption, which never names the style. See `adherence.judge`.

    Raises ValueError for a scene of two objects: without colours the oracle cannot distinguish them.
    """
    if any(len(scene.objects) > 1 for scene in scenes):
        raise ValueError(f"some scenes have two objects, which the oracle cannot tell apart in {style.name}; "
                         f"two-objects must be 0")
    counts = Counts()
    for scene, caption, clip in generate(pipe, scenes, seed, num_inference_steps, guidance_scale, batch_size, progress):
        counts.add(caption, *judge(clip, scene, style))
    return StyleScore(style.name, counts.share, counts.clips, counts.seconds_per_clip, counts.failures)


# ---- image to video


@dataclass(frozen=True)
class PictureScore:
    """The PSNR of the first frame with the given picture, in dB, and whether the clip continues as the caption says.

    `psnr_of_clip`, in dB, compares all frames with the true clip: it is low if the model abandons the pictured object
    and draws another elsewhere, and never perfect, because captions do not specify speed. `step` is the mean absolute
    change from the first frame to the second, in 8-bit grey levels: more than `step_of_true` is a jump. It is 0 for a
    model of single frames.
    """

    psnr: float
    psnr_of_clip: float
    step: float
    step_of_true: float
    share: dict[str, float]
    clips: int
    seconds_per_clip: float
    failures: list[dict]

    def __str__(self) -> str:
        return (f"the first frame is the picture to {self.psnr:.2f} dB, the clip the true one to "
                f"{self.psnr_of_clip:.2f} dB, its first step {self.step:.2f} grey levels (true clips "
                f"{self.step_of_true:.2f}); {100 * self.share['all']:.1f} % of {self.clips} clips fully correct, "
                f"{say_interval(self.share['all'], self.clips)} ({say_parts(self.share)}); "
                f"{self.seconds_per_clip:.2f} s a clip")


def measure_image_to_video(pipe: Pipeline, scenes: list[Scene], seed: int = 0, num_inference_steps: int = 25,
                           guidance_scale: float | None = None, batch_size: int = 16,
                           progress: bool = True) -> PictureScore:
    """Generates one clip for each scene's caption and true first frame.

    For a model without image channels, `Pipeline` puts the picture's latent back at every step. The first frame of such
    a clip is the VAE's own round trip, the best possible with this VAE.
    """
    counts, near, whole, step, step_of_true = Counts(), 0.0, 0.0, 0.0, 0.0
    for scene, caption, clip in generate(pipe, scenes, seed, num_inference_steps, guidance_scale, batch_size, progress,
                                         from_picture=True):
        true = render_batch([scene], *clip.shape[:3])[0]
        near, whole = near + psnr(true[0], clip[0]), whole + psnr(true, clip)
        step, step_of_true = step + flicker(clip[:2]), step_of_true + flicker(true[:2])
        counts.add(caption, *judge(clip, scene))
    n = counts.clips
    return PictureScore(near / n, whole / n, step / n, step_of_true / n, counts.share, n, counts.seconds_per_clip,
                        counts.failures)
