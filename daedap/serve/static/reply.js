// One turn of a conversation: the question, the answer, where it came from, the vote and the correction.

import { put } from "./api.js";
import { Correction } from "./correction.js";
import { Icon, Linked, Mark, percent, runName, Trouble } from "./parts.js";
import { html, useRef, useState } from "./vendor/preact.js";
import { t } from "./words.js";

/**
 * @param turn {question, text, reply, failure, busy}: `text` grows while it streams; `reply` is there once it is complete
 */
export function Turn({ turn, info, onAsk, onRetry }) {
  const { question, text, reply, failure, busy } = turn;
  return html`<article class="turn">
    <h2 class="hidden-text">${question}</h2>
    <div class="asked"><p class="text"><${Linked} text=${question} /></p></div>
    <div class="answer">
      <span class="avatar"><${Mark} /></span>
      <div class="body">
        ${busy && !text
          ? html`<p class="typing" aria-hidden="true"><i></i><i></i><i></i></p>`
          : text && html`<p class=${`text${busy ? " growing" : ""}`} data-testid="answer"><${Linked} text=${text} /></p>`}
        ${failure && html`<${Trouble} failure=${failure} onRetry=${onRetry} />`}
        ${reply && html`<${Below} reply=${reply} info=${info} onAsk=${onAsk} />`}
      </div>
    </div>
  </article>`;
}

function Below({ reply, info, onAsk }) {
  const [editing, setEditing] = useState(false);
  const [saved, setSaved] = useState(null);
  const [vote, setVote] = useState(reply.vote);
  const [failure, setFailure] = useState(null);
  const opener = useRef();
  const close = () => {
    setEditing(false);
    opener.current.focus();
  };
  const choose = async (chosen) => {
    const before = vote;
    const next = vote === chosen ? null : chosen;
    setVote(next);
    setFailure(null);
    setEditing(next === "bad");
    try {
      await put(`/api/replies/${reply.id}/vote`, { vote: next });
    } catch (error) {
      setVote(before);
      setFailure(error);
    }
  };
  const done = (result) => {
    close();
    setSaved(result);
  };
  return html`
    ${reply.suggestions.length > 0 && html`<ul class="chips" aria-label=${t("Did you mean")}>
      ${reply.suggestions.map((one) => html`<li key=${one}><button class="chip" type="button" onClick=${() => onAsk(one)}>${one}</button></li>`)}
    </ul>`}
    <div class="below">
      <${Origin} reply=${reply} />
      <div class="actions" role="group" aria-label=${t("This answer")}>
        <${Copy} text=${reply.answer} />
        ${info.stores && html`
          <button class="icon" type="button" aria-pressed=${vote === "good"} aria-label=${t("Good answer")} title=${t("Good answer")} onClick=${() => choose("good")}><${Icon} name="up" /></button>
          <button class="icon" type="button" aria-pressed=${vote === "bad"} aria-label=${t("Bad answer")} title=${t("Bad answer")} onClick=${() => choose("bad")}><${Icon} name="down" /></button>`}
        <button class="icon" type="button" ref=${opener} aria-expanded=${editing} aria-label=${t("Correct this answer")} title=${t("Correct this answer")} onClick=${() => setEditing(!editing)}><${Icon} name="pencil" /></button>
      </div>
    </div>
    ${failure && html`<${Trouble} failure=${failure} />`}
    ${editing && html`<${Correction} reply=${info.stores ? reply.id : null} question=${reply.question} answer=${reply.source === "fallback" ? "" : reply.answer} owner=${info.owner} onSaved=${done} onClose=${close} />`}
    ${saved && html`<p class="notice good" role="status"><${Icon} name="check" />
      <span>${saved.effective ? t("Learned. This is the answer from now on.") : t("Thank you. It will be used once the owner has approved it.")}</span>
      ${saved.effective && html`<button class="button slim" type="button" onClick=${() => onAsk(reply.question)}>${t("Ask again")}</button>`}
    </p>`}`;
}

function Copy({ text }) {
  const [copied, setCopied] = useState(false);
  if (!navigator.clipboard) return null; // plain http from another machine
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  const label = copied ? t("Copied") : t("Copy");
  return html`<button class="icon" type="button" aria-label=${label} title=${label} onClick=${copy}><${Icon} name=${copied ? "check" : "copy"} /></button>`;
}

/** Where the answer came from: a line that opens to the known question behind it. */
export function Origin({ reply }) {
  const { evidence, source } = reply;
  const lines = {
    retrieved: evidence ? t("From: {question}", { question: evidence.question }) : t("A known answer"),
    lesson: t("Learned from a correction"),
    generated: t("Written by the model; it may be wrong"),
    fallback: t("No known question fits"),
  };
  return html`<details class="origin">
    <summary><span>${lines[source]}</span></summary>
    <dl>
      ${evidence && html`<dt>${source === "fallback" || source === "generated" ? t("Nearest known question") : t("Known question")}</dt><dd>${evidence.question}</dd>
        ${evidence.answer !== reply.answer && html`<dt>${t("Its answer")}</dt><dd><${Linked} text=${evidence.answer} /></dd>`}
        <dt>${t("Similarity")}</dt><dd>${percent(evidence.similarity)}</dd>`}
      ${reply.run != null && html`<dt>${t("Answered by")}</dt><dd>${runName(reply.run)}</dd>`}
    </dl>
  </details>`;
}
