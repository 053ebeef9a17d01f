"""What a fine-tuning taught: a new look, or to begin with a given picture."""

from dataclasses import dataclass

from minicogvx.data.shapes import Scene, render_batch
from minicogvx.data.styles import Style
from minicogvx.evaluation.adherence import Tally, generate, judge, say_parts
from minicogvx.evaluation.reconstruction import flicker, psnr
from minicogvx.pipeline import Pipeline


# ---- a look


@dataclass(frozen=True)
class StyleScore:
    """Shares of clips, 0..1: "style" have the look; "shape", "motion", "count" are right in these, "kept" in all three
    of them, "all" in these and the look."""

    style: str
    share: dict[str, float]
    clips: int
    seconds_per_clip: float
    failures: list[dict]  # caption, what was wrong and what was read, one each

    def __str__(self) -> str:
        parts = say_parts({name: value for name, value in self.share.items() if name != "style"})
        return (f"{100 * self.share['style']:.1f} % of {self.clips} clips show {self.style}, "
                f"{100 * self.share['kept']:.1f} % are right in what it leaves ({parts}), "
                f"{100 * self.share['all']:.1f} % are both; {self.seconds_per_clip:.2f} s a clip")


def measure_style(pipe: Pipeline, scenes: list[Scene], look: Style, seed: int = 0, num_inference_steps: int = 25,
                  guidance_scale: float | None = None, batch_size: int = 16, progress: bool = True) -> StyleScore:
    """Generates one clip for each scene's caption, which never names the look. See `adherence.judge`.

    Raises ValueError for a scene of two objects: without colours the oracle cannot tell one from the other.
    """
    if any(len(scene.objects) > 1 for scene in scenes):
        raise ValueError(f"some scenes have two objects, which the oracle cannot tell apart in {look.name}; "
                         f"two-objects must be 0")
    tally = Tally()
    for scene, caption, clip in generate(pipe, scenes, seed, num_inference_steps, guidance_scale, batch_size, progress):
        tally.add(caption, *judge(clip, scene, look))
    return StyleScore(look.name, tally.share, tally.clips, tally.seconds_per_clip, tally.failures)


# ---- a picture


@dataclass(frozen=True)
class PictureScore:
    """How near the first frame is to the given picture, in dB, and whether the clip goes on as the caption says.

    `psnr_of_clip`, in dB, compares all frames with the true clip: it is low where the object of the picture is left for
    another in another place, and never perfect, because no caption says how fast things move. `step` is the mean
    absolute change from the first frame to the second, in 8-bit grey levels: more than `step_of_true` is a jump. Of a
    model that makes single frames it is 0.
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
                f"{self.step_of_true:.2f}); {100 * self.share['all']:.1f} % of {self.clips} clips right in everything "
                f"({say_parts(self.share)}); {self.seconds_per_clip:.2f} s a clip")


def measure_image_to_video(pipe: Pipeline, scenes: list[Scene], seed: int = 0, num_inference_steps: int = 25,
                           guidance_scale: float | None = None, batch_size: int = 16,
                           progress: bool = True) -> PictureScore:
    """Generates one clip for each scene's caption and true first frame.

    A model without image channels is given the picture as `Pipeline` does it: its latent is put back at every step. The
    first frame of such a clip is the VAE's own round trip, the best that any model with this VAE can show.
    """
    tally, near, whole, step, step_of_true = Tally(), 0.0, 0.0, 0.0, 0.0
    for scene, caption, clip in generate(pipe, scenes, seed, num_inference_steps, guidance_scale, batch_size, progress,
                                         from_picture=True):
        true = render_batch([scene], *clip.shape[:3])[0]
        near, whole = near + psnr(true[0], clip[0]), whole + psnr(true, clip)
        step, step_of_true = step + flicker(clip[:2]), step_of_true + flicker(true[:2])
        tally.add(caption, *judge(clip, scene))
    n = tally.clips
    return PictureScore(near / n, whole / n, step / n, step_of_true / n, tally.share, n, tally.seconds_per_clip,
                        tally.failures)
