"""The site in a real browser, at the width of a phone and of a desktop, without any server."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from docs.site import build

pytestmark = pytest.mark.browser  # not in `make test`; `make test-browser` asks for them

WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}
KINDS = ("index.html", "glossary.html", "ablations.html", "one-gpu.html", "teaching.html", "benchmarks.html",
         "course/00_first_video.html", "course/04_diffusion.html", "course/09_expert_transformer.html",
         "course/15_ablations.html", "api/index.html", "api/vae.html", "api/pipeline.html",
         "api/diffusion.samplers.html", "_modules/minicogvx/vae/layers.html", "genindex.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    pytest.importorskip("sphinx_book_theme", reason="Sphinx and its theme are missing; run: make site")
    folder = tmp_path_factory.mktemp("site")
    assert build.build(folder / "html", folder / "pages") == []
    return folder / "html"


@pytest.fixture(params=WIDTHS)
def visitor(request, chromium, tmp_path):
    """An empty page of a phone or a desktop, and what goes wrong on it: errors, and what it asks of other servers."""
    width, height = WIDTHS[request.param]
    context = chromium.new_context(viewport={"width": width, "height": height}, locale="en-GB", offline=True)
    page, wrong = context.new_page(), []
    page.set_default_timeout(10_000)
    page.on("console", lambda message: message.type == "error" and wrong.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("requestfailed", lambda asked: wrong.append(f"failed: {asked.url}: {asked.failure}")
            if "ERR_ABORTED" not in str(asked.failure) else None)  # a clip of a page that was left
    page.on("request", lambda asked: wrong.append(f"elsewhere: {asked.url}")
            if urlsplit(asked.url).scheme not in ("file", "data", "blob") else None)
    yield page, wrong
    page.screenshot(path=tmp_path / "last.png")
    print(f"What the browser showed at the end: {tmp_path / 'last.png'}")
    context.close()


def opened(page, site: Path, name: str) -> None:
    page.goto((site / name).as_uri(), wait_until="load")


def test_every_kind_of_page_fits_and_asks_for_nothing_elsewhere(visitor, site, subtests):
    page, wrong = visitor
    for name in KINDS:
        with subtests.test(name):
            opened(page, site, name)
            wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert wide[0] <= wide[1], f"{name} is {wide[0]} pixels wide in a window of {wide[1]}"
            page.evaluate("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
            page.wait_for_function("[...document.images].every(image => image.complete)")
            assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
            assert page.evaluate("[...document.querySelectorAll('article img')].filter(i => !i.alt).length") == 0
            assert page.locator("article h1").count() == 1
            assert wrong == []


def test_clips_play(visitor, site):
    page, wrong = visitor
    opened(page, site, "course/00_first_video.html")
    film = page.locator("article video").first
    film.scroll_into_view_if_needed()
    page.wait_for_function("film => film.readyState >= 2 && film.videoWidth && !film.paused && film.currentTime > 0",
                           arg=film.element_handle())
    before = film.evaluate("film => film.currentTime")
    page.wait_for_function("([film, before]) => film.currentTime !== before", arg=[film.element_handle(), before])
    assert film.get_attribute("aria-label")
    room = page.locator("article").first.bounding_box()
    for each in page.locator("article video").all():
        box = each.bounding_box()
        assert box is None or box["x"] + box["width"] <= room["x"] + room["width"] + 1  # None: folded
    assert wrong == []


def test_what_answers_a_prediction_is_folded_until_a_click(visitor, site):
    page, wrong = visitor
    opened(page, site, "course/04_diffusion.html")
    folded = page.locator("details.hide:has(summary:has-text('Make your guess first'))")
    assert folded.count() == 5
    inside = folded.first.locator(".cell_output, .output").first
    assert not inside.is_visible()
    folded.first.locator("summary").click()
    assert inside.is_visible()
    assert wrong == []


def test_the_search_works_without_a_server(visitor, site):
    page, wrong = visitor
    page.goto((site / "search.html").as_uri() + "?q=classifier-free+guidance")
    found = page.locator("#search-results li a, #search-results .search li a")
    found.first.wait_for()
    assert any("course/05_text_and_guidance" in (each.get_attribute("href") or "") for each in found.all())
    assert wrong == []


def test_the_menu_leads_to_a_notebook_and_dark_colours_are_dark(visitor, site):
    page, wrong = visitor
    opened(page, site, "index.html")
    menu = page.locator("nav.bd-links a.reference.internal", has_text="04 Diffusion").first
    if not menu.is_visible():
        page.locator("button.primary-toggle, label.primary-toggle").first.click()
    menu.wait_for(state="visible")
    menu.click()
    page.wait_for_url("**/course/04_diffusion.html")
    assert page.locator("article h1").inner_text().startswith("04 Diffusion")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    colours = page.evaluate("""[getComputedStyle(document.body).backgroundColor,
                                getComputedStyle(document.querySelector('article p')).color].map(
                                    c => c.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0))""")
    assert colours[0] < 150 < 450 < colours[1]
    assert wrong == []
