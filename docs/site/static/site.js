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
