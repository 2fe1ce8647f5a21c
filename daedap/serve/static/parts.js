// What the chat page and the admin page have in common: icons, texts with links, times, the choice of light or dark.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { KOREAN, t } from "./words.js";

const PATHS = {
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6 6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  up: "M7 10.5v9.5H4.5A1.5 1.5 0 0 1 3 18.5V12a1.5 1.5 0 0 1 1.5-1.5H7Zm0 0 4.2-7a2.3 2.3 0 0 1 2.1 3l-.9 3.5H18.5a2 2 0 0 1 2 2.400l-1.2 6a2 2 0 0 1-2 1.600H7",
  copy: "M9 9h9.5A1.5 1.5 0 0 1 20 10.5V19a1.5 1.5 0 0 1-1.5 1.5H10A1.5 1.5 0 0 1 8.5 19V9.5M15.5 9V5.5A1.5 1.5 0 0 0 14 4H5.5A1.5 1.5 0 0 0 4 5.5V14a1.5 1.5 0 0 0 1.5 1.5h3",
  check: "M5 12.5l4.5 4.5L19 7.5",
  pencil: "M4 20l1-4L16 5l3 3L8 19l-4 1ZM13.5 7.5l3 3",
  trash: "M4.5 7h15M9.5 7V4.5h5V7M6.5 7l.8 12a1.5 1.5 0 0 0 1.5 1.5h6.400a1.5 1.5 0 0 0 1.5-1.5l.8-12M10 11v5.5M14 11v5.5",
  chat: "M5.5 4h13A2.5 2.5 0 0 1 21 6.5v8a2.5 2.5 0 0 1-2.5 2.5H12l-5 3.5V17H5.5A2.5 2.5 0 0 1 3 14.5v-8A2.5 2.5 0 0 1 5.5 4Z",
  chevron: "M7 10l5 5 5-5",
  back: "M14 6l-6 6 6 6",
  gauge: "M4 18a9 9 0 1 1 16 0M12 14l4-5",
  inbox: "M4 13.5 6.5 5h11L20 13.5V19H4v-5.5ZM4 13.5h5l1 2.5h4l1-2.5h5",
  book: "M5 5.5A1.5 1.5 0 0 1 6.5 4H19v13H6.5A1.5 1.5 0 0 0 5 18.5v-13ZM5 18.5A1.5 1.5 0 0 0 6.5 20H19v-3M9 8.5h6",
  curve: "M4 4v16h16M7.5 8c1.5 6 4 8 11.5 8.5",
  list: "M8.5 6.5H20M8.5 12H20M8.5 17.5H20M4.5 6.5h.01M4.5 12h.01M4.5 17.5h.01",
  alert: "M12 8v5M12 16.200v.1M20.5 12a8.5 8.5 0 1 1-17 0 8.5 8.5 0 0 1 17 0Z",
  undo: "M8.5 5 4.5 9l4 4M4.5 9h9.5a5.5 5.5 0 0 1 0 11H9",
  download: "M12 4.5v10M7.5 10.5l4.5 4.5 4.5-4.5M5 19.5h14",
  leave: "M13.5 4.5H6v15h7.5M10.5 12H20M16.5 8.5 20 12l-3.5 3.5",
  search: "M15.8 15.8 20 20M17.5 11a6.5 6.5 0 1 1-13 0 6.5 6.5 0 0 1 13 0Z",
  sun: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8ZM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.300l1.4 1.400M17.3 17.300l1.4 1.400M5.3 18.700l1.4-1.400M17.3 6.700l1.4-1.4",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10Z",
};

/** A line icon; it says nothing to a screen reader. */
export function Icon({ name }) {
  const path = PATHS[name === "down" ? "up" : name];
  return html`<svg class=${`line${name === "down" ? " turned" : ""}`} viewBox="0 0 24 24" aria-hidden="true"><path d=${path} /></svg>`;
}

/** The mark of the product. */
export function Mark() {
  return html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
    <path class="body" d="M8 2h16a6 6 0 0 1 6 6v11a6 6 0 0 1-6 6h-8.5L9 30v-5H8a6 6 0 0 1-6-6V8a6 6 0 0 1 6-6Z" />
    <path class="letters" d="M14 9H8.5v9H14M18 7.5v12.5M23 7.5v12.5M18 13.5h5" />
  </svg>`;
}

const LINK = /https?:\/\/[^\s<>"'`{}|\\^]+/g;
const AFTER = /[.,!?:;)\]}…。’”]+$/;

/** A text with its web addresses as links; everything else stays text. Line breaks are kept by the stylesheet. */
export function Linked({ text }) {
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(LINK)) {
    const url = match[0].replace(AFTER, "");
    parts.push(text.slice(at, match.index));
    parts.push(html`<a href=${url} target="_blank" rel="noopener noreferrer nofollow">${url}</a>`);
    at = match.index + url.length;
  }
  return [...parts, text.slice(at)];
}

/** A button that asks once more before it acts. */
export function Confirmed({ label, question, icon = "trash", onConfirm }) {
  const [asking, setAsking] = useState(false);
  const yes = useRef();
  useEffect(() => {
    if (asking) yes.current?.focus();
  }, [asking]);
  const confirm = () => {
    setAsking(false);
    onConfirm();
  };
  if (!asking)
    return html`<button class="button quiet slim" type="button" onClick=${() => setAsking(true)}><${Icon} name=${icon} />${label}</button>`;
  return html`<span class="confirm" role="group" aria-label=${question} onKeyDown=${(event) => event.key === "Escape" && setAsking(false)}>
    <span>${question}</span>
    <button class="button danger slim" type="button" ref=${yes} onClick=${confirm}>${label}</button>
    <button class="button quiet slim" type="button" onClick=${() => setAsking(false)}>${t("Cancel")}</button>
  </span>`;
}

/** Light or dark: the system's until it is chosen here. */
export function ThemeSwitch() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const [theme, setTheme] = useState(root.dataset.theme ?? system);
  const other = theme === "dark" ? "light" : "dark";
  const change = () => {
    root.dataset.theme = other;
    setTheme(other);
    try {
      localStorage.setItem("daedap-theme", other);
    } catch {
      // it holds for this visit then
    }
  };
  const label = other === "dark" ? t("Dark theme") : t("Light theme");
  return html`<button class="icon" type="button" aria-label=${label} title=${label} onClick=${change}>
    <${Icon} name=${other === "dark" ? "moon" : "sun"} />
  </button>`;
}

/** What is said to a screen reader, once. */
export function Status({ text }) {
  return html`<div class="hidden-text" role="status" aria-live="polite">${text}</div>`;
}

/** An error with a way on. */
export function Trouble({ failure, onRetry }) {
  return html`<div class="notice bad" role="alert">
    <${Icon} name="alert" /><span>${failure.text}</span>
    ${onRetry && html`<button class="button slim" type="button" onClick=${onRetry}>${t("Try again")}</button>`}
  </div>`;
}

/** What a promise came to: `[value, failure, reload]`; `load` is called again when a key changes. */
export function useLoaded(load, keys = []) {
  const [state, setState] = useState([null, null]);
  const [round, setRound] = useState(0);
  useEffect(() => {
    let current = true;
    load().then(
      (value) => current && setState([value, null]),
      (failure) => current && setState(([value]) => [value, failure]),
    );
    return () => (current = false);
  }, [...keys, round]);
  return [...state, () => setRound((count) => count + 1)];
}

const LOCALE = KOREAN ? "ko-KR" : "en";

/** "5분 전", "어제", "11월 3일": as short as it is clear. */
export function ago(iso) {
  const then = new Date(iso);
  const minutes = (Date.now() - then) / 60000;
  const relative = new Intl.RelativeTimeFormat(LOCALE, { numeric: "auto" });
  if (minutes < 1) return t("just now");
  if (minutes < 60) return relative.format(-Math.floor(minutes), "minute");
  if (days(then) === 0) return relative.format(-Math.floor(minutes / 60), "hour");
  if (days(then) < 7) return relative.format(-days(then), "day");
  return then.toLocaleDateString(LOCALE, { month: "long", day: "numeric", year: days(then) > 300 ? "numeric" : undefined });
}

/** Whole days between the date and today. */
export function days(then) {
  const midnight = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate());
  return Math.round((midnight(new Date()) - midnight(new Date(then))) / 86400000);
}

export const moment = (iso) => new Date(iso).toLocaleString(LOCALE, { dateStyle: "medium", timeStyle: "short" });
export const count = (number) => Number(number ?? 0).toLocaleString(LOCALE);
export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}%`;
export const runName = (number) => t("Run {number}", { number });

/** A new random id. `crypto.randomUUID` is missing on plain http from another machine. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
