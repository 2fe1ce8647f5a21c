// The chat page: conversations at the side, questions and answers in the middle, a box to ask in below.

import { ask, Failure, get, remove } from "./api.js";
import { askBoth, Compare } from "./compare.js";
import { Confirmed, count, days, Icon, Mark, newId, runName, Status, ThemeSwitch, Trouble } from "./parts.js";
import { Turn } from "./reply.js";
import { html, render, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";
import { t } from "./words.js";

const LONGEST_BOX = 200; // px: a longer question scrolls

function App() {
  const [info, setInfo] = useState(null);
  const [runs, setRuns] = useState([]);
  const [failure, setFailure] = useState(null);
  const [problem, setProblem] = useState(null);
  const [conversations, setConversations] = useState([]);
  const [menu, setMenu] = useState(false);
  const [mode, setMode] = useState("chat");
  const [run, setRun] = useState(null);
  const [pair, setPair] = useState([0, 0]);
  const [rounds, setRounds] = useState([]);
  const [said, setSaid] = useState("");
  const online = useOnline();
  const box = useRef();
  const load = async () => {
    setFailure(null);
    try {
      const [about, known] = await Promise.all([get("/api/info"), get("/api/runs")]);
      setInfo(about);
      document.title = titled(about);
      setRuns(known.runs);
      if (known.runs.length > 1) setPair([known.runs[1].number, known.runs[0].number]);
      refresh(about);
    } catch (error) {
      setFailure(error);
    }
  };
  const refresh = async (about = info) => {
    if (about?.stores) setConversations((await get("/api/conversations").catch(() => ({ conversations }))).conversations);
  };
  const chat = useChat({ run, refresh, setSaid, focus: () => box.current?.focus() });
  useEffect(() => void load(), []);
  useEffect(() => {
    const keys = (event) => {
      if (event.key === "Escape") setMenu(false);
      const typing = event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey;
      if (event.key === "/" && !typing) {
        event.preventDefault();
        box.current?.focus();
      }
    };
    addEventListener("keydown", keys);
    return () => removeEventListener("keydown", keys);
  }, []);
  const submit = (question) => (mode === "chat" ? chat.ask(question) : compare(question));
  const compare = async (question, key = newId()) => {
    const set = (fields) => setRounds((all) => [...all.filter((one) => one.key !== key), { key, question, ...fields }]);
    set({});
    try {
      const result = await askBoth(question, pair);
      set({ result });
      setSaid(`${t("Answer A")}: ${result.left.answer} ${t("Answer B")}: ${result.right.answer}`);
    } catch (error) {
      set({ failure: error });
    }
  };
  const forget = async (id) => {
    setProblem(null);
    try {
      await remove(id ? `/api/conversations/${id}` : "/api/conversations");
      if (!id || id === chat.id) chat.clear();
    } catch (error) {
      setProblem(error);
    }
    refresh();
  };
  const leave = (next) => () => {
    setMenu(false);
    setMode("chat");
    next();
  };
  const several = info?.choose_run && runs.length > 1;
  const busy = mode === "chat" ? chat.busy : rounds.some((round) => !round.result && !round.failure);
  const empty = mode === "chat" && chat.turns.length === 0 && !chat.failure;
  return html`
    <a class="skip" href="#box">${t("Skip to the question box")}</a>
    <${Side} open=${menu} info=${info} conversations=${conversations} current=${chat.id} onClose=${() => setMenu(false)}
      onNew=${leave(chat.clear)} onOpen=${(id) => leave(() => chat.open(id))()} onForget=${forget} />
    <div class="stage" inert=${menu}>
      <header class="topbar">
        <button class="icon only-narrow" type="button" aria-label=${t("Conversations")} aria-expanded=${menu} onClick=${() => setMenu(true)}><${Icon} name="menu" /></button>
        ${several && mode === "chat"
          ? html`<label class="select"><span class="hidden-text">${t("Which run answers")}</span>
              <select value=${run ?? ""} onChange=${(event) => setRun(Number(event.target.value) || null)}>
                <option value="">${t("Newest")}</option>
                ${runs.map((one) => html`<option key=${one.number} value=${one.number}>${runName(one.number)}</option>`)}
              </select><${Icon} name="chevron" /></label>`
          : html`<b class="name">${mode === "chat" ? (info?.name ?? "") : t("Blind comparison")}</b>`}
        <span class="grow"></span>
        ${several && html`<div class="segments" role="group" aria-label=${t("Mode")}>
          <button type="button" aria-pressed=${mode === "chat"} onClick=${() => setMode("chat")}>${t("Chat")}</button>
          <button type="button" aria-pressed=${mode === "compare"} onClick=${() => setMode("compare")}>${t("Compare")}</button>
        </div>`}
        <${ThemeSwitch} />
        <button class="icon only-narrow" type="button" aria-label=${t("New conversation")} onClick=${leave(chat.clear)}><${Icon} name="plus" /></button>
      </header>
      <${Scroller} follow=${[chat.turns, rounds, mode]} empty=${empty}>
        <h1 class="hidden-text">${mode === "chat" ? t("Conversation") : t("Blind comparison")}</h1>
        ${failure && html`<${Trouble} failure=${failure} onRetry=${load} />`}
        ${chat.failure && mode === "chat" && html`<${Trouble} failure=${chat.failure} />`}
        ${info && empty && html`<${Empty} info=${info} onAsk=${submit} />`}
        ${info && mode === "chat" && chat.turns.map((turn) => html`<${Turn} key=${turn.key} turn=${turn} info=${info} onAsk=${chat.ask} onRetry=${() => chat.retry(turn)} />`)}
        ${mode === "compare" && html`<${Compare} runs=${runs} pair=${pair} setPair=${setPair} rounds=${rounds} setRounds=${setRounds} onChosen=${() => box.current?.focus()} onRetry=${(round) => compare(round.question, round.key)} />`}
      <//>
      <${Composer} info=${info} problem=${problem} box=${box} busy=${busy} online=${online} onAsk=${submit} onStop=${mode === "chat" ? chat.stop : null} />
    </div>
    <${Status} text=${said} />`;
}

/** The conversation on show: its turns, and what can be done with it. */
function useChat({ run, refresh, setSaid, focus }) {
  const [turns, setTurns] = useState([]);
  const [id, setId] = useState(null);
  const [failure, setFailure] = useState(null);
  const stopping = useRef(null);
  const show = (conversation) => {
    setId(conversation);
    history.replaceState(null, "", conversation ? `#${conversation}` : location.pathname);
  };
  const start = (next) => {
    stopping.current?.abort();
    setFailure(null);
    setTurns([]);
    show(next);
    setSaid("");
  };
  const open = async (wanted) => {
    start(wanted);
    try {
      const { replies } = await get(`/api/conversations/${encodeURIComponent(wanted)}`);
      setTurns(replies.map((reply) => ({ key: reply.id, question: reply.question, text: reply.answer, reply })));
      focus();
    } catch (error) {
      show(null);
      setFailure(error);
    }
  };
  const stream = async (turn) => {
    const set = (fields) => setTurns((all) => all.map((one) => (one.key === turn.key ? { ...one, ...(typeof fields === "function" ? fields(one) : fields) } : one)));
    const stop = (stopping.current = new AbortController());
    try {
      const reply = await ask({ question: turn.question, conversation: id, run, id: turn.key }, stop.signal, (name, data) => {
        if (name === "start" && data.conversation) show(data.conversation);
        if (name === "text") set(({ text }) => ({ text: text + data.text }));
      });
      set({ text: reply.answer, reply, busy: false });
      setSaid([reply.answer, ...reply.suggestions].join(" "));
    } catch (error) {
      set({ busy: false, failure: error instanceof Failure ? error : null });
    }
    if (stopping.current === stop) stopping.current = null;
    refresh();
  };
  const put = (question) => {
    const turn = { key: newId(), question, text: "", busy: true };
    setTurns((all) => [...all, turn]);
    stream(turn);
  };
  const retry = (turn) => {
    const again = { ...turn, text: "", failure: null, busy: true };
    setTurns((all) => all.map((one) => (one.key === turn.key ? again : one)));
    stream(again);
  };
  const clear = () => {
    start(null);
    focus();
  };
  useEffect(() => {
    if (location.hash.length > 1) open(decodeURIComponent(location.hash.slice(1)));
  }, []);
  const busy = turns.some((turn) => turn.busy);
  return { turns, id, failure, busy, open, clear, retry, ask: (question) => !busy && put(question), stop: () => stopping.current?.abort() };
}

function useOnline() {
  const [online, setOnline] = useState(navigator.onLine);
  useEffect(() => {
    const look = () => setOnline(navigator.onLine);
    addEventListener("online", look);
    addEventListener("offline", look);
    return () => {
      removeEventListener("online", look);
      removeEventListener("offline", look);
    };
  }, []);
  return online;
}

/** The part that scrolls; it follows new text as long as its reader is at the end. */
function Scroller({ follow, empty, children }) {
  const frame = useRef();
  const atEnd = useRef(true);
  const look = () => {
    const { scrollHeight, scrollTop, clientHeight } = frame.current;
    atEnd.current = scrollHeight - scrollTop - clientHeight < 80;
  };
  const turns = follow[0].length + follow[1].length;
  useLayoutEffect(() => {
    frame.current.scrollTop = frame.current.scrollHeight;
  }, [turns]);
  useLayoutEffect(() => {
    if (atEnd.current) frame.current.scrollTop = frame.current.scrollHeight;
  }, follow);
  return html`<main class="scroller" ref=${frame} onScroll=${look} tabindex="-1"><div class=${`column${empty ? " middle" : ""}`}>${children}</div></main>`;
}

function Empty({ info, onAsk }) {
  return html`<div class="empty">
    <${Mark} />
    <p class="welcome">${t("What would you like to know?")}</p>
    <p class="soft">${t("I know {count} questions and answers.", { count: count(info.pairs) })}</p>
    ${info.examples.length > 0 && html`<ul class="examples" aria-label=${t("Examples")}>
      ${info.examples.map((one) => html`<li key=${one}><button type="button" onClick=${() => onAsk(one)}><span>${one}</span><${Icon} name="send" /></button></li>`)}
    </ul>`}
  </div>`;
}

function Composer({ info, problem, box, busy, online, onAsk, onStop }) {
  const [text, setText] = useState("");
  const fit = () => {
    box.current.style.height = "auto";
    box.current.style.height = `${Math.min(box.current.scrollHeight, LONGEST_BOX)}px`;
  };
  useLayoutEffect(fit, [text]);
  const ready = online && !busy && text.trim();
  const submit = (event) => {
    event?.preventDefault();
    if (!ready) return;
    onAsk(text.trim());
    setText("");
    box.current.focus();
  };
  const keys = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return; // a syllable is being typed
    event.preventDefault();
    submit();
  };
  return html`<footer class="ask">
    <div class="column">
      ${!online && html`<p class="notice warn" role="status"><${Icon} name="alert" /><span>${t("You are offline. You can ask again once you are connected.")}</span></p>`}
      ${problem && html`<${Trouble} failure=${problem} />`}
      <form class="composer" onSubmit=${submit}>
        <textarea id="box" ref=${box} rows="1" value=${text} maxlength=${info?.max_question} placeholder=${t("Ask something")} aria-label=${t("Your question")} enterkeyhint="send"
          onInput=${(event) => setText(event.target.value)} onKeyDown=${keys} />
        ${busy && onStop
          ? html`<button class="go" type="button" aria-label=${t("Stop")} onClick=${onStop}><i class="square"></i></button>`
          : html`<button class="go" disabled=${!ready} aria-label=${t("Send")}><${Icon} name="send" /></button>`}
      </form>
      ${(info?.ai_notice ?? true) && html`<p class="ai">${t("An AI answers. It can be wrong.")}</p>`}
    </div>
  </footer>`;
}

function Side({ open, info, conversations, current, onClose, onNew, onOpen, onForget }) {
  const first = useRef();
  useEffect(() => {
    if (open) first.current?.focus();
  }, [open]);
  const groups = Object.entries(Object.groupBy(conversations, (one) => period(one.updated)));
  return html`
    ${open && html`<button class="veil" type="button" tabindex="-1" aria-label=${t("Close")} onClick=${onClose}></button>`}
    <aside class=${`side${open ? " open" : ""}`} aria-label=${t("Conversations")}>
      <div class="top"><a class="brand" href="/" onClick=${(event) => { event.preventDefault(); onNew(); }}><${Mark} /><span>${titled(info)}</span></a>
        <button class="icon only-narrow" type="button" aria-label=${t("Close")} onClick=${onClose}><${Icon} name="close" /></button></div>
      <button class="button new" type="button" ref=${first} onClick=${onNew}><${Icon} name="plus" />${t("New conversation")}</button>
      <nav class="history" aria-label=${t("Earlier conversations")}>
        ${groups.map(([name, several]) => html`<section key=${name}><h2>${name}</h2><ul>
          ${several.map((one) => html`<${Past} key=${one.id} one=${one} current=${one.id === current} onOpen=${onOpen} onForget=${onForget} />`)}</ul></section>`)}
      </nav>
      <div class="foot">
        ${info && html`<p class="soft small">${!info.stores ? t("Conversations are not stored.") : info.retention_days ? t("Conversations are deleted after {count} days.", { count: info.retention_days }) : ""}</p>`}
        ${conversations.length > 0 && html`<${Confirmed} label=${t("Delete all")} question=${t("Delete all of your conversations?")} onConfirm=${() => onForget(null)} />`}
        ${info && html`<a class="button quiet slim" href="/admin"><${Icon} name="gauge" />${t("Admin page")}${info.owner && html`<span class="tag good">${t("signed in")}</span>`}</a>`}
      </div>
    </aside>`;
}

function Past({ one, current, onOpen, onForget }) {
  const [asking, setAsking] = useState(false);
  if (asking)
    return html`<li class="asking" role="group" aria-label=${t("Delete “{title}”", { title: one.title })} onKeyDown=${(event) => event.key === "Escape" && setAsking(false)}>
      <span>${t("Delete it?")}</span>
      <button class="button danger slim" type="button" ref=${(button) => button?.focus()} onClick=${() => onForget(one.id)}>${t("Delete")}</button>
      <button class="button quiet slim" type="button" onClick=${() => setAsking(false)}>${t("Cancel")}</button>
    </li>`;
  return html`<li class=${current ? "current" : ""}>
    <button type="button" aria-current=${current ? "true" : null} onClick=${() => onOpen(one.id)} title=${one.title}>${one.title}</button>
    <button class="icon forget" type="button" aria-label=${t("Delete “{title}”", { title: one.title })} onClick=${() => setAsking(true)}><${Icon} name="trash" /></button>
  </li>`;
}

function period(iso) {
  const ago = days(iso);
  if (ago <= 0) return t("Today");
  if (ago === 1) return t("Yesterday");
  return ago <= 7 ? t("Last seven days") : t("Earlier");
}

/** The bot's own name, or the product's. */
function titled(info) {
  return info && info.name !== "daedap" ? info.name : t("Daedap");
}

render(html`<${App} />`, document.getElementById("app"));
