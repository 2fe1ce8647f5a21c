// The admin page: what happened, what was not understood, lessons, conversations, runs, and who did what.

import { Failure, get, post, remove } from "./api.js";
import { ago, Confirmed, count, Icon, Linked, Mark, moment, percent, ThemeSwitch, Trouble, useLoaded } from "./parts.js";
import { Lessons, Nothing, Unanswered, Waiting } from "./queue.js";
import { Origin } from "./reply.js";
import { Runs } from "./runs.js";
import { html, render, useEffect, useRef, useState } from "./vendor/preact.js";
import { t } from "./words.js";

const VIEWS = [
  ["overview", "gauge", () => t("Overview")],
  ["unanswered", "inbox", () => t("Not understood")],
  ["lessons", "book", () => t("Lessons")],
  ["conversations", "chat", () => t("Conversations")],
  ["runs", "curve", () => t("Runs")],
  ["audit", "list", () => t("Log")],
];

function Admin() {
  const [info, failure, reload] = useLoaded(() => get("/api/info"));
  if (failure) return html`<main class="login"><${Trouble} failure=${failure} onRetry=${reload} /></main>`;
  if (!info) return html`<main class="login"><${Waiting} /></main>`;
  return info.owner ? html`<${Inside} info=${info} onLeave=${reload} />` : html`<${Login} onIn=${reload} />`;
}

function Login({ onIn }) {
  const [password, setPassword] = useState("");
  const [failure, setFailure] = useState(null);
  const enter = async (event) => {
    event.preventDefault();
    try {
      await post("/api/owner/login", { password });
      onIn();
    } catch (error) {
      setFailure(error);
    }
  };
  return html`<main class="login"><form onSubmit=${enter}>
    <${Mark} /><h1>${t("Admin page")}</h1>
    <label class="field"><span>${t("Password")}</span><input class="input" type="password" autocomplete="current-password" autofocus value=${password} aria-invalid=${failure?.code === "unauthorized"} onInput=${(event) => setPassword(event.target.value)} /></label>
    ${failure && (failure.code === "unauthorized" ? html`<p class="notice bad" role="alert">${t("The password is wrong.")}</p>` : html`<${Trouble} failure=${failure} />`)}
    <button class="button primary" disabled=${!password}>${t("Sign in")}</button>
    <a class="small" href="/">${t("Back to the chat")}</a>
  </form></main>`;
}

function Inside({ info, onLeave }) {
  const named = () => location.hash.slice(1).split("/");
  const [[view, detail], setPlace] = useState(named().length && VIEWS.some(([name]) => name === named()[0]) ? named() : ["overview"]);
  const [overview, failure, reload] = useLoaded(() => get("/api/admin/overview"), [view]);
  const main = useRef();
  const go = (...place) => {
    history.pushState(null, "", `#${place.join("/")}`);
    setPlace(place);
    main.current.scrollTop = 0;
    main.current.focus({ preventScroll: true });
  };
  useEffect(() => document.querySelector(".admin-side [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }), [view, overview]);
  useEffect(() => {
    const back = () => setPlace(named());
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  useEffect(() => {
    if (failure instanceof Failure && failure.code === "unauthorized") onLeave(); // signed out elsewhere
  }, [failure]);
  const waiting = { unanswered: overview?.unanswered, lessons: overview?.lessons.pending };
  const open = (id) => go("conversations", id);
  return html`
    <aside class="side admin-side" aria-label=${t("Admin page")}>
      <div class="top"><a class="brand" href="/"><${Mark} /><span>${t("Daedap")}</span></a><span class="only-narrow tools"><${ThemeSwitch} /><${Leave} onLeave=${onLeave} /></span></div>
      <nav aria-label=${t("Admin page")}>${VIEWS.map(([name, icon, title]) => html`<a key=${name} href=${`#${name}`} aria-current=${view === name ? "page" : null} onClick=${(event) => { event.preventDefault(); go(name); }}>
        <${Icon} name=${icon} /><span>${title()}</span>${waiting[name] > 0 && html`<b class="number" aria-label=${t("{count} waiting", { count: waiting[name] })}>${waiting[name]}</b>`}</a>`)}</nav>
      <div class="foot row"><a class="button quiet slim" href="/"><${Icon} name="back" />${t("Back to the chat")}</a><span class="grow"></span><${ThemeSwitch} /><${Leave} onLeave=${onLeave} /></div>
    </aside>
    <main class="scroller admin" ref=${main} tabindex="-1"><div class="wide">
      ${view === "overview" && html`<${Overview} overview=${overview} failure=${failure} name=${info.name} go=${go} onRetry=${reload} />`}
      ${view === "unanswered" && html`<${Unanswered} onChanged=${reload} />`}
      ${view === "lessons" && overview && html`<${Lessons} counts=${overview.lessons} onChanged=${reload} onConversation=${open} />`}
      ${view === "conversations" && (detail ? html`<${Talk} id=${detail} onBack=${() => go("conversations")} />` : html`<${Talks} onOpen=${open} />`)}
      ${view === "runs" && html`<${Runs} />`}
      ${view === "audit" && html`<${Audit} />`}
    </div></main>`;
}

function Leave({ onLeave }) {
  const leave = async () => {
    await post("/api/owner/logout", {}).catch(() => null);
    onLeave();
  };
  return html`<button class="icon" type="button" aria-label=${t("Sign out")} title=${t("Sign out")} onClick=${leave}><${Icon} name="leave" /></button>`;
}

function Overview({ overview, failure, name, go, onRetry }) {
  if (failure) return html`<${Trouble} failure=${failure} onRetry=${onRetry} />`;
  if (!overview) return html`<${Waiting} />`;
  const { replies, sources, votes, days } = overview;
  const share = (part, whole) => (whole ? percent(part / whole) : "–");
  const understood = replies - sources.fallback;
  return html`
    <header class="head"><div><h1>${name || t("Overview")}</h1><p class="soft">${t("{replies} answers in {conversations} conversations", { replies: count(replies), conversations: count(overview.conversations) })}</p></div></header>
    <div class="tiles">
      <div class="tile"><span>${t("Understood")}</span><b>${share(understood, replies)}</b><span>${t("{count} of {whole}", { count: count(understood), whole: count(replies) })}</span></div>
      <div class="tile"><span>${t("Good votes")}</span><b>${share(votes.good, votes.good + votes.bad)}</b><span>${t("{good} good, {bad} bad", { good: count(votes.good), bad: count(votes.bad) })}</span></div>
      <button class="tile" type="button" onClick=${() => go("unanswered")}><span>${t("Not understood")}</span><b>${count(overview.unanswered)}</b><span class="onward">${t("Answer them")}</span></button>
      <button class="tile" type="button" onClick=${() => go("lessons")}><span>${t("Suggestions waiting")}</span><b>${count(overview.lessons.pending)}</b><span class="onward">${t("Review them")}</span></button>
    </div>
    <section class="panel"><h2>${t("The last 30 days")}</h2><${Days} days=${days} /></section>
    <section class="panel"><h2>${t("Where answers came from")}</h2><div class="bars">
      ${[["retrieved", t("Known questions")], ["lesson", t("Lessons")], ["generated", t("Language model")], ["fallback", t("Not understood")]].map(([source, title]) => html`<div class="bar" key=${source}><span>${title}</span><span class="track mine"><i style=${{ width: percent(sources[source] / (replies || 1), 1) }}></i></span><span>${count(sources[source])} <small>${share(sources[source], replies)}</small></span></div>`)}
    </div></section>`;
}

/** Answers by day as bars, the ones that were not understood in another colour. */
function Days({ days: known }) {
  const days = lastDays(known);
  const most = Math.max(1, ...days.map((day) => day.replies));
  const date = (day) => new Date(`${day}T00:00`).toLocaleDateString(document.documentElement.lang, { month: "short", day: "numeric" });
  return html`<figure class="days"><figcaption><span class="s0"><i></i>${t("Understood")}</span><span class="s1"><i></i>${t("Not understood")}</span></figcaption>
    <div class="columns-chart" role="img" aria-label=${t("Answers by day, {most} at most", { most })}>
      ${days.map((one) => html`<span key=${one.day} title=${`${date(one.day)}: ${one.replies} (${one.fallback})`}>
        <i class="second" style=${{ height: percent(one.fallback / most, 1) }}></i><i style=${{ height: percent((one.replies - one.fallback) / most, 1) }}></i></span>`)}
    </div>
    <div class="ends soft small"><span>${days.length > 0 && date(days[0].day)}</span><span>${days.length > 0 && date(days.at(-1).day)}</span></div></figure>`;
}

/** Thirty days up to the last one; the server tells only of those on which somebody asked. */
function lastDays(known) {
  const asked = new Map(known.map((one) => [one.day, one]));
  const last = new Date(`${known.at(-1)?.day ?? new Date().toISOString().slice(0, 10)}T00:00Z`);
  return Array.from({ length: 30 }, (_, n) => {
    const day = new Date(last - (29 - n) * 86400000).toISOString().slice(0, 10);
    return asked.get(day) ?? { day, replies: 0, fallback: 0 };
  });
}

function Talks({ onOpen }) {
  const [only, setOnly] = useState("");
  const [text, setText] = useState("");
  const [asked, setAsked] = useState("");
  const [more, setMore] = useState([]);
  const [next, setNext] = useState(null);
  const path = (before) => `/api/admin/conversations?${new URLSearchParams({ limit: 50, ...(only && { only }), ...(asked && { text: asked }), ...(before && { before }) })}`;
  const [loaded, failure, reload] = useLoaded(() => get(path()), [only, asked]);
  useEffect(() => {
    const timer = setTimeout(() => setAsked(text.trim()), 300);
    return () => clearTimeout(timer);
  }, [text]);
  useEffect(() => {
    setMore([]);
    setNext(loaded?.next ?? null);
  }, [loaded]);
  const go = async () => {
    const page = await get(path(next)).catch(() => ({ conversations: [], next: null }));
    setMore([...more, ...page.conversations]);
    setNext(page.next);
  };
  const all = [...(loaded?.conversations ?? []), ...more];
  return html`
    <header class="head"><h1>${t("Conversations")}</h1></header>
    <div class="row filters"><div class="scroll"><div class="segments" role="group" aria-label=${t("Which conversations")}>
      ${[["", t("All")], ["fallback", t("Not understood")], ["bad", t("Bad votes")], ["lesson", t("With a lesson")]].map(([name, title]) => html`<button key=${name} type="button" aria-pressed=${only === name} onClick=${() => setOnly(name)}>${title}</button>`)}
    </div></div>
      <label class="search"><${Icon} name="search" /><span class="hidden-text">${t("Search")}</span><input class="input" type="search" value=${text} placeholder=${t("Search")} onInput=${(event) => setText(event.target.value)} /></label></div>
    ${failure && html`<${Trouble} failure=${failure} onRetry=${reload} />`}
    ${!loaded && !failure && html`<${Waiting} />`}
    ${loaded && all.length === 0 && html`<${Nothing} icon="chat" text=${t("No conversation here.")} />`}
    ${all.length > 0 && html`<ul class="rows">${all.map((one) => html`<li key=${one.id}><button type="button" onClick=${() => onOpen(one.id)}>
      <span class="title">${one.title}</span>
      <span class="tags">${one.fallback > 0 && html`<span class="tag warn">${t("not understood")} ${one.fallback}</span>`}${one.bad > 0 && html`<span class="tag bad">${t("bad")} ${one.bad}</span>`}</span>
      <span class="soft small">${t("{count} answers", { count: one.replies })}</span><span class="soft small when" title=${moment(one.updated)}>${ago(one.updated)}</span>
    </button></li>`)}</ul>`}
    ${next && html`<p class="center"><button class="button" type="button" onClick=${go}>${t("More")}</button></p>`}`;
}

function Talk({ id, onBack }) {
  const [talk, failure, reload] = useLoaded(() => get(`/api/admin/conversations/${encodeURIComponent(id)}`), [id]);
  const [problem, setProblem] = useState(null);
  const forget = () => remove(`/api/admin/conversations/${encodeURIComponent(id)}`).then(onBack, setProblem);
  const votes = { good: ["good", t("good")], bad: ["bad", t("bad")] };
  return html`
    <div class="row"><button class="button quiet slim" type="button" onClick=${onBack}><${Icon} name="back" />${t("All conversations")}</button><span class="grow"></span>
      ${talk && html`<${Confirmed} label=${t("Delete")} question=${t("Delete permanently?")} onConfirm=${forget} />`}</div>
    ${(failure || problem) && html`<${Trouble} failure=${failure ?? problem} onRetry=${failure && reload} />`}
    ${talk && html`<header class="head"><div><h1 class="text">${talk.title}</h1><p class="soft">${moment(talk.started)}</p></div></header>
      <div class="talk">${talk.replies.map((reply) => html`<article class="turn" key=${reply.id}>
        <div class="asked"><p class="text"><${Linked} text=${reply.question} /></p></div>
        <div class="answer"><span class="avatar"><${Mark} /></span><div class="body"><p class="text"><${Linked} text=${reply.answer} /></p>
          <div class="below"><${Origin} reply=${reply} />${votes[reply.vote] && html`<span class=${`tag ${votes[reply.vote][0]}`}>${votes[reply.vote][1]}</span>`}</div></div></div>
      </article>`)}</div>`}`;
}

function Audit() {
  const [loaded, failure, reload] = useLoaded(() => get("/api/admin/audit?limit=100"));
  const actors = { owner: t("owner"), visitor: t("visitor"), command: t("command line"), server: t("server") };
  const actions = {
    login: t("Sign in"), login_failed: t("failed to sign in"), delete_conversation: t("deleted a conversation"), delete_conversations: t("deleted conversations"),
    export_lessons: t("exported the lessons"), import_lessons: t("imported lessons"), accept_lesson: t("accepted a lesson"), reject_lesson: t("rejected a lesson"), undo_lesson: t("undid a lesson"),
    teach: t("taught a lesson"), dismiss: t("dismissed questions"), read_conversation: t("read a conversation"), delete_old: t("deleted what was too old"),
  };
  return html`<header class="head"><div><h1>${t("Log")}</h1><p class="soft">${t("Who did what, without any text of the conversations.")}</p></div></header>
    ${failure && html`<${Trouble} failure=${failure} onRetry=${reload} />`}
    ${loaded?.entries.length === 0 && html`<${Nothing} icon="list" text=${t("Nothing yet.")} />`}
    ${loaded?.entries.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label=${t("Log")}><table class="text log"><thead><tr><th scope="col">${t("Time")}</th><th scope="col">${t("Who")}</th><th scope="col">${t("What")}</th><th scope="col">${t("Details")}</th></tr></thead>
      <tbody>${loaded.entries.map((entry, n) => html`<tr key=${n}><td>${moment(entry.time)}</td><td>${actors[entry.actor] ?? entry.actor}</td><td>${actions[entry.action] ?? entry.action}</td><td class="soft small">${Object.entries(entry.detail ?? {}).map(([name, value]) => `${name} ${value}`).join(", ")}</td></tr>`)}</tbody></table></div>`}`;
}

document.title = t("Admin page");
render(html`<${Admin} />`, document.getElementById("app"));
