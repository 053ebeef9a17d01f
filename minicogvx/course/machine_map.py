"""The map of the whole machine (notebook 00): its parts, and on each arrow the shape of what flows along it."""

from minicogvx.course import show
from minicogvx.pipeline import Pipeline

WIDTH, HEIGHT = 100, 40  # of the drawing, in units of its own
BLUE, ORANGE, GREY = show.PALETTE[0], show.PALETTE[3], "#555555"
BOXES = (  # left, bottom, width, height, text
    (0, 29, 10, 8, "caption"), (22, 29, 12, 8, "T5 encoder\nsection 2"),
    (0, 4, 10, 8, "seed"), (22, 4, 12, 8, "random\ngenerator"),
    (50, 2, 18, 36, "transformer\n\nreads text and\nvideo together\n\nsections\n4 and 5"),
    (83, 16.5, 15, 8, "VAE decoder\nsection 3"),
)


def draw_machine(pipe: Pipeline):
    """From caption and seed to a video: a matplotlib figure of the parts of `pipe`, and the shapes between them.

    Shapes are those of one video: tokens and width for text, `c t h w` for latents, `t h w c` for the video.
    """
    latents = (pipe.vae.config.latent_channels, *pipe.vae.config.latent_size(*pipe.video_size))
    numbers, text_width = pipe.text.max_length, pipe.transformer.config.text_embed_dim
    figure, ((axis,),) = show.new_figure(width=9.0, height=3.6)
    axis.set(xlim=(-1, WIDTH + 1), ylim=(0, HEIGHT))
    axis.set_axis_off()
    for x, y, width, height, text in BOXES:
        _box(axis, x, y, width, height, text)
    _arrow(axis, (10, 33), (22, 33), f"tokens\n{numbers}")
    _arrow(axis, (34, 33), (50, 33), f"text features\n{numbers} x {text_width}")
    _arrow(axis, (10, 8), (22, 8), "")
    _arrow(axis, (34, 8), (50, 8), f"noise\n{_shape(latents)}")
    _arrow(axis, (68, 20.5), (83, 20.5), f"latents\n{_shape(latents)}")
    _arrow(axis, (90.5, 16.5), (90.5, 8), "")
    axis.text(90.5, 4.5, f"video\n{_shape((*pipe.video_size, 3))}", ha="center", va="center", weight="bold")
    axis.annotate("", (50, 18), (50, 25), arrowprops={
        "arrowstyle": "-|>", "color": ORANGE, "linewidth": 2, "connectionstyle": "arc3,rad=1.3"})
    axis.text(44, 21.5, "again and again,\nfrom a little\nless noise", ha="right", va="center", color=GREY, fontsize=9)
    return figure


def _box(axis, x: int | float, y: int | float, width: int | float, height: int | float, text: str) -> None:
    from matplotlib.patches import FancyBboxPatch  # here, so that the package does not need matplotlib

    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=1.2",
                                  facecolor="#eaf2f8", edgecolor=BLUE, linewidth=1.5))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=9)


def _arrow(axis, start: tuple[int | float, int | float], end: tuple[int | float, int | float], label: str) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.5,
                                              "shrinkA": 0, "shrinkB": 0})
    axis.text((start[0] + end[0]) / 2, start[1] + 0.8, label, ha="center", va="bottom", fontsize=8)


def _shape(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
