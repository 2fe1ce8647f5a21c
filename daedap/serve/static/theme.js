// Runs before the first paint: the visitor's own choice of light or dark, and the language of the browser.
(() => {
  const root = document.documentElement;
  root.lang = (navigator.language || "ko").toLowerCase().startsWith("ko") ? "ko" : "en";
  try {
    const chosen = localStorage.getItem("daedap-theme");
    if (chosen) root.dataset.theme = chosen;
  } catch {
    // storage is forbidden: the system's setting it is
  }
})();
