// Runs before the first paint: the visitor's own choice of light or dark, and the language of the browser.
(() => {
  const root = document.documentElement;
  root.lang = (navigator.language || "ko").toLowerCase().startsWith("ko") ? "ko" : "en";
  if (window !== window.parent) root.dataset.embedded = ""; // in a frame of another page
  try {
    const chosen = localStorage.getItem("daedap-theme");
    if (chosen) root.dataset.theme = chosen;
  } catch {
    // storage is forbidden: the system's setting it is
  }
})();
