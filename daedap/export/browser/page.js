// The page: a conversation with the bot in worker.js. Nothing that is asked leaves the browser.

const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map();
const part = (id) => document.getElementById(id);
const box = part("box"), go = part("go"), talk = part("talk");
let settings = null, ready = false, busy = false, count = 0;

worker.onmessage = ({ data }) => {
  if (data.share !== undefined) return void (part("state").textContent = `${settings?.texts.loading ?? "…"} ${Math.round(100 * data.share)} %`);
  const { resolve, reject } = waiting.get(data.id);
  waiting.delete(data.id);
  if (data.error) reject(new Error(data.error));
  else resolve(data.reply);
};

/** The bot's reply to a question; without a question: null, once it is loaded. */
function ask(question) {
  return new Promise((resolve, reject) => {
    waiting.set(++count, { resolve, reject });
    worker.postMessage({ id: count, question });
  });
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Text in which web addresses are links. */
function linked(text) {
  return text.split(/(https?:\/\/[^\s<>"']+[^\s<>"'.,!?)\]])/u).map((one, place) =>
    place % 2 ? element("a", { href: one, target: "_blank", rel: "noopener noreferrer" }, one) : one);
}

async function submit(question) {
  if (!ready || busy || !question.trim()) return;
  busy = true;
  box.value = "";
  resize();
  part("empty")?.remove();
  talk.classList.remove("middle");
  const typing = element("p", { class: "typing", "aria-hidden": "true" }, element("i"), element("i"), element("i"));
  const body = element("div", { class: "body" }, typing);
  talk.append(element("article", { class: "turn" },
    element("div", { class: "asked" }, element("p", { class: "text" }, question)), element("div", { class: "answer" }, element("span"), body)));
  body.scrollIntoView({ block: "end" });
  try {
    show(await ask(question), body);
  } catch (error) {
    body.replaceChildren(element("p", { class: "notice bad", role: "alert" }, settings.texts.failed, ` (${error.message})`));
  }
  busy = false;
  body.scrollIntoView({ block: "end" });
  box.focus();
}

function show(reply, body) {
  const parts = [element("p", { class: "text", "data-testid": "answer" }, ...linked(reply.answer))];
  if (reply.suggestions.length) {
    const chips = reply.suggestions.map((one) => {
      const chip = element("button", { class: "chip", type: "button" }, one);
      chip.onclick = () => submit(one);
      return element("li", {}, chip);
    });
    parts.push(element("ul", { class: "chips" }, ...chips));
  }
  if (reply.source !== "fallback" && reply.evidence) {
    const line = element("summary", {}, element("span", {}, `${settings.texts.source}: ${reply.evidence.question}`));
    parts.push(element("details", { class: "origin" }, line, element("dl", {}, element("dt", {}, "%"), element("dd", {}, String(Math.round(100 * reply.score))))));
  }
  body.replaceChildren(...parts);
}

function resize() {
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, 200)}px`;
  go.disabled = !ready || !box.value.trim();
}

part("form").onsubmit = (event) => {
  event.preventDefault();
  submit(box.value);
};
box.oninput = resize;
box.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return; // a syllable is being typed
  event.preventDefault();
  submit(box.value);
};

try {
  settings = await (await fetch("page.json")).json();
  const { texts } = settings;
  document.documentElement.lang = settings.language;
  document.title = settings.name;
  part("welcome").textContent = texts.welcome;
  part("private").textContent = texts.private;
  part("notice").textContent = texts.notice;
  box.placeholder = texts.placeholder;
  box.setAttribute("aria-label", texts.placeholder);
  go.setAttribute("aria-label", texts.send);
  await ask();
  ready = true;
  const examples = settings.examples.map((question) => {
    const button = element("button", { type: "button" }, element("span", {}, question));
    button.onclick = () => submit(question);
    return element("li", {}, button);
  });
  part("empty")?.append(element("ul", { class: "examples" }, ...examples));
  part("state").textContent = "";
  resize();
} catch (error) {
  part("state").textContent = `${settings?.texts.failed ?? ""} (${error.message})`;
}
