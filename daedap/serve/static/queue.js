// What the owner decides on: questions that were not understood, and lessons that visitors suggested.

import { get, post } from "./api.js";
import { Correction } from "./correction.js";
import { ago, count, Icon, Linked, moment, percent, Trouble, useLoaded } from "./parts.js";
import { html, useLayoutEffect, useRef, useState } from "./vendor/preact.js";
import { t } from "./words.js";

const NEAR = 0.2; // similarity below which a known answer is no proposal

/**
 * Cards of which one is current: arrows or j and k move, a, e and r act on it.
 * @param items with an `id`; @param card ({item, current, act, editing, setEditing}) → what stands in the card
 * @param onKey async (key, item) for "a" and "r"; "e" opens the editor
 */
function Cards({ items, card, onKey, label }) {
  const [at, setAt] = useState(0);
  const [editing, setEditing] = useState(null);
  const [failure, setFailure] = useState(null);
  const list = useRef();
  const place = Math.min(at, items.length - 1);
  const chosen = () => {
    const focused = [...list.current.children].findIndex((card) => card.contains(document.activeElement));
    return focused < 0 ? place : focused; // what has the focus, even if it was not drawn as current yet
  };
  const act = async (key, item) => {
    setFailure(null);
    if (key === "e") return setEditing(item.id);
    try {
      await onKey(key, item);
    } catch (error) {
      setFailure(error);
    }
    return undefined;
  };
  const close = (n) => {
    setEditing(null);
    list.current.children[n]?.focus();
  };
  const move = (step) => {
    const next = Math.max(0, Math.min(items.length - 1, chosen() + step));
    setAt(next);
    list.current.children[next]?.focus();
  };
  useLayoutEffect(() => {
    const press = (event) => {
      if (event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey || !items.length) return;
      const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
      if (step) move(step);
      else if ("aer".includes(event.key)) act(event.key, items[chosen()]);
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, [items, place]);
  return html`
    ${failure && html`<${Trouble} failure=${failure} />`}
    <ul class="cards" ref=${list} aria-label=${label}>
      ${items.map((item, n) => html`<li key=${item.id} class=${`card${n === place ? " current" : ""}`} tabindex="-1" onfocusin=${() => setAt(n)} onMouseDown=${() => setAt(n)}>
        ${card({ item, act: (key) => act(key, item), editing: editing === item.id, close: () => close(n) })}
      </li>`)}
    </ul>
    <p class="keys soft small"><kbd>↑</kbd> <kbd>↓</kbd> ${t("move")} <kbd>a</kbd> ${t("accept")} <kbd>e</kbd> ${t("edit")} <kbd>r</kbd> ${t("reject")}</p>`;
}

/** Questions that the bot did not understand, or whose answer was called bad, most asked first. */
export function Unanswered({ onChanged }) {
  const [loaded, failure, reload] = useLoaded(() => get("/api/admin/unanswered"));
  const [done, setDone] = useState(null);
  const finish = (message) => {
    setDone(message);
    reload();
    onChanged();
  };
  const accept = async (group) => {
    const nearest = offered(group);
    if (!nearest) return;
    const lesson = { reply: group.questions[0].reply, question: group.question, answer: nearest.answer, scope: "similar" };
    await post("/api/admin/lessons", lesson);
    finish(t("Learned: “{question}”", { question: group.question }));
  };
  const dismiss = async (group) => {
    await post("/api/admin/unanswered/dismiss", { questions: group.questions.map((one) => one.question) });
    finish(t("Dismissed: “{question}”", { question: group.question }));
  };
  if (failure) return html`<${Trouble} failure=${failure} onRetry=${reload} />`;
  if (!loaded) return html`<${Waiting} />`;
  return html`
    <header class="head"><div><h1>${t("Not understood")}</h1><p class="soft">${t("Similar questions are grouped, the most asked first.")}</p></div></header>
    ${done && html`<p class="notice good" role="status"><${Icon} name="check" /><span>${done}</span></p>`}
    ${loaded.groups.length === 0
      ? html`<${Nothing} icon="check" text=${t("Nothing is waiting. Everything asked so far was understood.")} />`
      : html`<${Cards} items=${loaded.groups} label=${t("Not understood")} onKey=${(key, group) => (key === "a" ? accept(group) : dismiss(group))}
          card=${({ item, act, editing, close }) => html`<${Group} group=${item} act=${act} editing=${editing} close=${close} onSaved=${() => { close(); finish(t("Learned: “{question}”", { question: item.question })); }} />`} />`}`;
}

/** The nearest known question, unless it is too far away to be a proposal. */
const offered = ({ nearest }) => (nearest?.similarity >= NEAR ? nearest : null);

function Group({ group, act, editing, close, onSaved }) {
  const { question, questions } = group;
  const nearest = offered(group);
  const others = questions.filter((one) => one.question !== question);
  return html`
    <div class="card-top">
      <h2 class="text">${question}</h2>
      <span class="times"><b>${count(group.count)}</b> ${t("times")}</span>
    </div>
    <p class="meta"><span>${group.reason === "bad" ? t("its answer was rated bad") : t("not understood")}</span><span>${t("{count} people", { count: group.people })}</span><span title=${moment(group.last)}>${ago(group.last)}</span></p>
    ${others.length > 0 && html`<p class="also"><span class="soft small">${t("Also asked as")}</span>${others.map((one) => html`<span class="also-one" key=${one.question}>${one.question}${one.count > 1 && html`<b>${one.count}</b>`}</span>`)}</p>`}
    ${editing
      ? html`<${Correction} reply=${questions[0].reply} question=${question} answer=${nearest && group.reason === "bad" ? nearest.answer : ""} owner=${true} onSaved=${onSaved} onClose=${close} />`
      : html`
        ${nearest && html`<div class="proposal"><small class="soft">${t("Nearest known question: {question}", { question: nearest.question })} · ${percent(nearest.similarity)}</small><p class="text"><${Linked} text=${nearest.answer} /></p></div>`}
        <div class="row">
          ${nearest && html`<button class="button slim" type="button" onClick=${() => act("a")}>${t("Answer with this")} <kbd>a</kbd></button>`}
          <button class=${`button slim ${nearest ? "" : "primary"}`} type="button" onClick=${() => act("e")}>${t("Write an answer")} <kbd>e</kbd></button>
          <button class="button quiet slim" type="button" onClick=${() => act("r")}>${t("Dismiss")} <kbd>r</kbd></button>
        </div>`}`;
}

const STATES = ["pending", "accepted", "rejected", "undone", "replaced"];

/** Lessons: those that wait for a decision, those in force with their hits, and the rest. */
export function Lessons({ counts, onChanged, onConversation }) {
  const [state, setState] = useState(counts?.pending ? "pending" : "accepted");
  const [loaded, failure, reload] = useLoaded(() => get(`/api/admin/lessons?state=${state}`), [state]);
  const [adding, setAdding] = useState(false);
  const refresh = () => {
    reload();
    onChanged();
  };
  const decide = async (key, lesson) => {
    await post(`/api/admin/lessons/${lesson.id}/${key === "a" ? "accept" : "reject"}`, {});
    refresh();
  };
  const undo = async (lesson) => {
    await post(`/api/admin/lessons/${lesson.id}/undo`, {});
    refresh();
  };
  const change = (lesson) => async ({ question, answer, scope }) => post(`/api/admin/lessons/${lesson.id}/accept`, { question, answer, scope });
  const names = { pending: t("Pending"), accepted: t("Active"), rejected: t("Rejected"), undone: t("Undone"), replaced: t("Replaced") };
  const card = ({ item, act, editing, close }) => html`<${Lesson} lesson=${item} act=${act} editing=${editing} close=${close} onUndo=${() => undo(item)} save=${change(item)} onSaved=${() => { close(); refresh(); }} onConversation=${onConversation} />`;
  return html`
    <header class="head"><h1>${t("Lessons")}</h1>
      <div class="row"><a class="button slim" href="/api/admin/lessons.csv" download><${Icon} name="download" />CSV</a>
        <button class="button primary slim" type="button" aria-expanded=${adding} onClick=${() => setAdding(!adding)}><${Icon} name="plus" />${t("New lesson")}</button></div>
    </header>
    ${adding && html`<${Correction} question="" owner=${true} save=${(lesson) => post("/api/admin/lessons", lesson)} onSaved=${() => { setAdding(false); setState("accepted"); refresh(); }} onClose=${() => setAdding(false)} />`}
    <div class="scroll"><div class="segments" role="group" aria-label=${t("Which lessons")}>
      ${STATES.map((one) => html`<button key=${one} type="button" aria-pressed=${state === one} onClick=${() => setState(one)}>${names[one]} ${counts?.[one] > 0 && html`<span class="number">${counts[one]}</span>`}</button>`)}
    </div></div>
    ${failure && html`<${Trouble} failure=${failure} onRetry=${reload} />`}
    ${loaded && loaded.lessons.every((one) => one.state === state) && (loaded.lessons.length === 0
      ? html`<${Nothing} icon="book" text=${state === "pending" ? t("No suggestion is waiting.") : t("No lesson here.")} />`
      : state === "pending"
        ? html`<${Cards} items=${loaded.lessons} label=${t("Lessons")} onKey=${decide} card=${card} />`
        : html`<${Plain} items=${loaded.lessons} card=${card} />`)}`;
}

/** Cards without keys. */
function Plain({ items, card }) {
  const [editing, setEditing] = useState(null);
  return html`<ul class="cards" aria-label=${t("Lessons")}>${items.map((item) => html`<li key=${item.id} class="card">
    ${card({ item, act: (key) => key === "e" && setEditing(item.id), editing: editing === item.id, close: () => setEditing(null) })}
  </li>`)}</ul>`;
}

function Lesson({ lesson, act, editing, close, onUndo, save, onSaved, onConversation }) {
  const { state, conflict, was } = lesson;
  const origins = { owner: t("by the owner"), visitor: t("suggested by a visitor"), command: t("by daedap teach"), import: t("imported") };
  return html`
    <div class="card-top"><h2 class="text">${lesson.question}</h2>
      ${state === "accepted" && html`<span class="times" title=${lesson.last_hit ? moment(lesson.last_hit) : ""}><b>${count(lesson.hits)}</b> ${t("hits")}</span>`}</div>
    <p class="meta"><span>${lesson.scope === "exact" ? t("This question only") : t("Questions like this one")}</span><span>${origins[lesson.origin]}</span><span title=${moment(lesson.created)}>${ago(lesson.created)}</span>
      ${lesson.last_hit && html`<span title=${moment(lesson.last_hit)}>${t("last hit {when}", { when: ago(lesson.last_hit) })}</span>`}
      ${lesson.masked && html`<span>${t("personal data masked")}</span>`}</p>
    ${editing
      ? html`<${Correction} question=${lesson.question} answer=${lesson.answer} scope=${lesson.scope} owner=${true} save=${save} onSaved=${onSaved} onClose=${close} />`
      : html`
        <div class="proposal">${was && html`<p class="text was"><span class="hidden-text">${t("Answer before:")} </span>${was}</p>`}<p class="text"><${Linked} text=${lesson.answer} /></p></div>
        ${conflict && state === "pending" && html`<p class="notice warn"><${Icon} name="alert" /><span>${t("The same question has another answer. The new one will be used:")} “${conflict.answer}”</span></p>`}
        <div class="row">
          ${state === "pending" && html`
            <button class="button primary slim" type="button" onClick=${() => act("a")}>${t("Accept")} <kbd>a</kbd></button>
            <button class="button slim" type="button" onClick=${() => act("e")}>${t("Edit")} <kbd>e</kbd></button>
            <button class="button quiet slim" type="button" onClick=${() => act("r")}>${t("Reject")} <kbd>r</kbd></button>`}
          ${state === "accepted" && html`<button class="button slim" type="button" onClick=${() => act("e")}><${Icon} name="pencil" />${t("Edit")}</button>`}
          ${["accepted", "rejected"].includes(state) && html`<button class="button quiet slim" type="button" onClick=${onUndo}><${Icon} name="undo" />${t("Undo")}</button>`}
          ${lesson.conversation && html`<button class="button quiet slim" type="button" onClick=${() => onConversation(lesson.conversation)}><${Icon} name="chat" />${t("Where it came from")}</button>`}
        </div>`}`;
}

export function Nothing({ icon, text }) {
  return html`<div class="nothing"><${Icon} name=${icon} /><p>${text}</p></div>`;
}

export function Waiting() {
  return html`<p class="typing" role="status" aria-label=${t("Loading")}><i></i><i></i><i></i></p>`;
}
