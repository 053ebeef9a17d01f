// A page that is opened as a file may not read other pages, so the search then shows titles alone.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

// Clips play only while they are in sight, so that a page with many of them stays quick.
document.addEventListener("DOMContentLoaded", () => {
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) target.play().catch(() => {});
      else target.pause();
    }
  });
  document.querySelectorAll("video[autoplay]").forEach((clip) => watcher.observe(clip));
});

// How long the text of each cell is: no column of a wide table becomes narrower than a few words (site.css).
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".bd-article :is(td, th)").forEach((cell) => {
    cell.style.setProperty("--letters", cell.textContent.trim().length);
  });
});
