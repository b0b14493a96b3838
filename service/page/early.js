// Before the first paint: the colours that were chosen, so that the page does not flash.
try {
  const chosen = localStorage.getItem("reverie.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is blocked: as the system has it.
}
