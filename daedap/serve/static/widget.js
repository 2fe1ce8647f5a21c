// A button on any web page that opens the chat page in a frame. One script element with the address of this file puts it there;
// its attributes data-color, data-text-color, data-position, data-greeting and data-label are described in docs/serving.md.
// The server lets only the pages of --embed-origins show the chat. There is no key in it, and no style of the page is touched.
(() => {
  const script = document.currentScript;
  if (!script || document.querySelector("daedap-widget")) return;
  const korean = (navigator.language || "ko").toLowerCase().startsWith("ko");
  const { color, textColor, position, greeting, label } = script.dataset;
  const origin = new URL(script.src).origin;
  const name = label || (korean ? "물어보기" : "Ask a question");
  const close = korean ? "닫기" : "Close";

  const STYLE = `
    :host { all: initial; position: fixed; z-index: 2147483000; bottom: 20px; inset-inline-end: 20px; color-scheme: light dark;
      font: 400 15px/1.5 -apple-system, "Apple SD Gothic Neo", "Noto Sans KR", "Malgun Gothic", system-ui, sans-serif; }
    :host([data-position="left"]) { inset-inline-end: auto; inset-inline-start: 20px; }
    button { font: inherit; cursor: pointer; border: 0; }
    button:focus-visible { outline: 3px solid var(--color); outline-offset: 3px; }
    .open { display: grid; place-items: center; width: 56px; height: 56px; margin-inline-start: auto; border-radius: 50%;
      background: var(--color); color: var(--text); box-shadow: 0 6px 24px #0004; }
    :host([data-position="left"]) .open { margin-inline: 0 auto; }
    svg { width: 26px; height: 26px; fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round; stroke-linejoin: round; }
    .greeting { display: flex; gap: 4px; align-items: start; max-width: 260px; margin-bottom: 12px; border-radius: 14px;
      background: light-dark(#fff, #1b2021); color: light-dark(#182022, #e8edec); box-shadow: 0 4px 20px #0003; }
    .greeting .say { padding: 12px 0 12px 14px; background: none; color: inherit; text-align: start; white-space: pre-line; word-break: keep-all; }
    .greeting .hide { padding: 8px 12px; background: none; color: inherit; font-size: 18px; line-height: 1.4; }
    iframe { display: block; width: 384px; height: min(640px, calc(100dvh - 120px)); margin-bottom: 12px; border: 0; border-radius: 16px;
      background: light-dark(#fff, #121516); box-shadow: 0 10px 48px #0005; }
    [hidden] { display: none !important; }
    @media (max-width: 480px) {
      :host([data-open]) { inset: 0; display: flex; flex-direction: column; background: light-dark(#fff, #121516); }
      :host([data-open]) iframe { flex: 1; width: 100%; height: auto; margin: 0; border-radius: 0; box-shadow: none; }
      :host([data-open]) .open { width: 100%; height: 48px; border-radius: 0; order: -1; box-shadow: none; }
    }`;

  const host = document.createElement("daedap-widget");
  if (position === "left") host.dataset.position = "left";
  const root = host.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet(); // not a <style>: the page's own policy may forbid these
  sheet.replaceSync(STYLE);
  root.adoptedStyleSheets = [sheet];
  const usable = (value, otherwise) => (value && CSS.supports("color", value) ? value : otherwise);
  host.style.setProperty("--color", usable(color, "#0b6b5b"));
  host.style.setProperty("--text", usable(textColor, "#fff"));

  const button = element("button", { type: "button", className: "open" });
  const frame = element("iframe", { title: name, hidden: true, referrerPolicy: "origin" });
  const bubble = greeting && !remembered() ? greet() : null;
  root.append(...[bubble, frame, button].filter(Boolean));
  show(false);
  button.addEventListener("click", () => show(frame.hidden));
  root.addEventListener("keydown", (event) => event.key === "Escape" && !frame.hidden && show(false));
  document.body.append(host);

  function show(open) {
    if (open && !frame.src) frame.src = `${origin}/`; // loaded when it is wanted, not before
    frame.hidden = !open;
    host.toggleAttribute("data-open", open);
    button.setAttribute("aria-label", open ? close : name);
    button.setAttribute("aria-expanded", String(open));
    button.replaceChildren(icon(open ? ["M6 6l12 12", "M18 6L6 18"] : ["M4 5h16v11H9l-5 4z"]));
    if (open) {
      hideGreeting();
      frame.focus();
    }
  }

  function greet() {
    const box = element("div", { className: "greeting" });
    const say = element("button", { type: "button", className: "say", textContent: greeting });
    const hide = element("button", { type: "button", className: "hide", textContent: "×" });
    hide.setAttribute("aria-label", close);
    say.addEventListener("click", () => show(true));
    hide.addEventListener("click", hideGreeting);
    box.append(say, hide);
    return box;
  }

  function hideGreeting() {
    bubble?.remove();
    try {
      sessionStorage.setItem("daedap-greeted", "1");
    } catch {
      // storage is forbidden: the next page greets again
    }
  }

  function remembered() {
    try {
      return sessionStorage.getItem("daedap-greeted") === "1";
    } catch {
      return false;
    }
  }

  function element(tag, properties) {
    return Object.assign(document.createElement(tag), properties);
  }

  function icon(paths) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("aria-hidden", "true");
    for (const line of paths) {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", line);
      svg.append(path);
    }
    return svg;
  }
})();
