// "Correct this answer": the editor of a lesson, with the questions that it will answer.

import { post } from "./api.js";
import { Icon, newId, percent, Trouble } from "./parts.js";
import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { t } from "./words.js";

const PAUSE = 300; // ms without a key before the preview is asked for

/**
 * @param reply    id of the reply that is corrected, or null
 * @param question what was asked
 * @param answer   what the editor starts with
 * @param scope    "exact" or "similar"
 * @param owner    whether the lesson will be in force at once
 * @param save     async ({id, reply, question, answer, scope}) → what `onSaved` gets
 */
export function Correction({ reply = null, question: asked, answer: given = "", scope: first = "similar", owner, save = saveCorrection, onSaved, onClose }) {
  const [question, setQuestion] = useState(asked);
  const [answer, setAnswer] = useState(given);
  const [scope, setScope] = useState(first);
  const [state, setState] = useState({ busy: false, failure: null });
  const id = useRef(newId());
  const box = useRef();
  useEffect(() => {
    box.current.focus();
    box.current.setSelectionRange(box.current.value.length, box.current.value.length);
    box.current.form.scrollIntoView({ block: "nearest" });
  }, []);
  const ready = question.trim() && answer.trim() && !(answer.trim() === given.trim() && question.trim() === asked.trim() && scope === first && reply);
  const draft = { reply, question: question.trim(), answer: answer.trim(), scope };
  const submit = async (event) => {
    event?.preventDefault();
    if (!ready || state.busy) return;
    setState({ busy: true, failure: null });
    try {
      onSaved(await save({ id: id.current, ...draft }));
    } catch (failure) {
      setState({ busy: false, failure });
    }
  };
  const keys = (event) => {
    event.stopPropagation();
    if (event.key === "Escape") onClose();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
  };
  return html`<form class="correction" onSubmit=${submit} onKeyDown=${keys} aria-label=${t("Correct this answer")}>
    <label class="field"><span>${t("Question")}</span>
      <input class="input" value=${question} maxlength="2000" onInput=${(event) => setQuestion(event.target.value)} />
    </label>
    <label class="field"><span>${t("The right answer")}</span>
      <textarea class="input" ref=${box} rows="3" maxlength="4000" value=${answer} placeholder=${t("How should this be answered?")} onInput=${(event) => setAnswer(event.target.value)} />
    </label>
    <fieldset><legend>${t("Use this answer for")}</legend>
      <div class="choices">
        <label class="choice"><input type="radio" name=${`scope-${id.current}`} checked=${scope === "similar"} onChange=${() => setScope("similar")} />${t("Questions like this one")}<small>${t("Also when it is asked in other words")}</small></label>
        <label class="choice"><input type="radio" name=${`scope-${id.current}`} checked=${scope === "exact"} onChange=${() => setScope("exact")} />${t("This question only")}<small>${t("Spacing and punctuation don't matter")}</small></label>
      </div>
    </fieldset>
    <${Preview} draft=${draft} />
    ${state.failure && html`<${Trouble} failure=${state.failure} onRetry=${submit} />`}
    <div class="row end">
      <small class="soft grow">${owner ? t("It takes effect with the next question.") : t("The owner reviews it first.")}</small>
      <button class="button quiet" type="button" onClick=${onClose}>${t("Cancel")}</button>
      <button class="button primary" disabled=${!ready || state.busy}>${owner ? t("Save") : t("Suggest")}</button>
    </div>
  </form>`;
}

const saveCorrection = (draft) => post("/api/corrections", draft);

function Preview({ draft }) {
  const { reply, question, answer, scope } = draft;
  const [preview, setPreview] = useState(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    setBusy(Boolean(question && answer));
    if (!question || !answer) {
      setPreview(null);
      return undefined;
    }
    let current = true;
    const timer = setTimeout(async () => {
      const found = await post("/api/corrections/preview", { reply, question, answer, scope }).catch(() => null);
      if (!current) return;
      setPreview(found);
      setBusy(false);
    }, PAUSE);
    return () => {
      current = false;
      clearTimeout(timer);
    };
  }, [question, answer, scope]);
  const frame = useRef();
  useEffect(() => void (preview && frame.current.closest("form").scrollIntoView({ block: "nearest" })), [preview]);
  if (!preview) return busy && html`<p class="typing" aria-hidden="true"><i></i><i></i><i></i></p>`;
  const { catches, near, conflict } = preview;
  return html`<div class="preview" ref=${frame} aria-live="polite">
    ${preview.masked && html`<p class="notice warn"><${Icon} name="alert" /><span>${t("Personal data is masked before it is saved:")} ${[preview.question !== question && preview.question, preview.answer !== answer && preview.answer].filter(Boolean).join(" / ")}</span></p>`}
    ${conflict && html`<p class="notice warn"><${Icon} name="alert" /><span>${t("The same question has another answer. The new one will be used:")} “${conflict.answer}”</span></p>`}
    <h3>${catches.length ? t("{count} questions will get this answer", { count: catches.length }) : t("No other known question will get this answer")}</h3>
    ${catches.length > 0 && html`<ul class="caught">${catches.map((one) => html`<${Caught} key=${one.kind + one.question} one=${one} />`)}</ul>`}
    ${near.length > 0 && html`<details><summary class="small soft">${t("Close questions that keep their answer")}</summary>
      <ul class="caught">${near.map((one) => html`<${Caught} key=${one.kind + one.question} one=${one} />`)}</ul>
    </details>`}
  </div>`;
}

function Caught({ one }) {
  const kinds = { known: t("known"), asked: t("asked"), lesson: t("lesson") };
  return html`<li>
    <span>${one.question}</span>
    <span class="tag">${kinds[one.kind]}${one.times > 1 ? ` ${t("{count} times", { count: one.times })}` : ""}</span>
    <small class="soft">${percent(one.similarity)}</small>
  </li>`;
}
