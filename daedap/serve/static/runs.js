// The runs on the admin page: their list, and one of them with its curves and scores.

import { get } from "./api.js";
import { ago, count, Icon, moment, runName, Trouble, useLoaded } from "./parts.js";
import { Nothing, Waiting } from "./queue.js";
import { html, useState } from "./vendor/preact.js";
import { t } from "./words.js";

const NARROW = matchMedia("(max-width: 40rem)").matches; // the text of a chart must not shrink with it
const WIDTH = NARROW ? 340 : 720, HEIGHT = NARROW ? 200 : 260, LEFT = 44, RIGHT = 12, TOP = 12, BOTTOM = 28; // px of a chart

/** Metrics in the order in which they are shown: name, factor, digits. */
const METRICS = [
  ["hits_at_1", () => t("Right answer first (%)"), 100, 1],
  ["recall_at_5", () => t("Right answer in the first five (%)"), 100, 1],
  ["mrr", () => t("Mean reciprocal rank"), 1, 3],
  ["question_gain", () => t("Question gain"), 1, 3],
  ["bpc", () => t("Bits per character"), 1, 3],
  ["bland", () => t("Bland answers (%)"), 100, 1],
  ["polite", () => t("Polite answers (%)"), 100, 1],
];
const SYSTEMS = { bot: () => t("bot"), model: () => t("model"), base: () => t("base"), retrieval: () => t("look-up"), human: () => t("human") };

export function Runs() {
  const [loaded, failure, reload] = useLoaded(() => get("/api/admin/runs"));
  const [chosen, setChosen] = useState(null);
  if (chosen != null) return html`<${Run} number=${chosen} onBack=${() => setChosen(null)} />`;
  const states = { interrupted: t("interrupted"), "in training": t("in training"), damaged: t("damaged") };
  return html`
    <header class="head"><h1>${t("Runs")}</h1></header>
    ${failure && html`<${Trouble} failure=${failure} onRetry=${reload} />`}
    ${!loaded && !failure && html`<${Waiting} />`}
    ${loaded?.runs.length === 0 && html`<${Nothing} icon="curve" text=${t("No run yet.")} />`}
    ${loaded && html`<ul class="cards">${loaded.runs.map((run) => html`<li key=${run.number} class="card">
      <button class="open" type="button" disabled=${run.state !== "complete"} onClick=${() => setChosen(run.number)}>
        <span class="card-top"><b class="title">${runName(run.number)}</b>
          ${run.current && html`<span class="tag good">${t("in use")}</span>`}${states[run.state] && html`<span class="tag warn">${states[run.state]}</span>`}</span>
        <span class="meta"><span>${run.base}</span>${run.rows != null && html`<span>${t("{count} rows", { count: count(run.rows) })}</span>`}${run.finished && html`<span title=${moment(run.finished)}>${ago(run.finished)}</span>`}${run.parent != null && html`<span>${t("from {run}", { run: runName(Number(run.parent)) })}</span>`}</span>
        <${Headline} headline=${run.headline ?? {}} />
      </button></li>`)}</ul>`}`;
}

/** The metrics of a run's headline: name, title and value of each. */
function figures(headline) {
  const shown = METRICS.filter(([name]) => ["hits_at_1", "question_gain", "bpc"].includes(name) && headline[name] != null);
  return shown.map(([name, title, factor, digits]) => [name, title(), (factor * headline[name]).toFixed(digits)]);
}

function Headline({ headline }) {
  const shown = figures(headline);
  return shown.length > 0 && html`<span class="figures">${shown.map(([name, title, value]) => html`<span key=${name}><small class="soft">${title}</small><b>${value}</b></span>`)}</span>`;
}

function Run({ number, onBack }) {
  const [run, failure, reload] = useLoaded(() => get(`/api/admin/runs/${number}`), [number]);
  const back = html`<button class="button quiet slim" type="button" onClick=${onBack}><${Icon} name="back" />${t("All runs")}</button>`;
  if (failure) return html`${back}<${Trouble} failure=${failure} onRetry=${reload} />`;
  if (!run) return html`${back}<${Waiting} />`;
  return html`${back}
    <header class="head"><div><h1>${runName(number)}</h1>
      <p class="soft">${[run.file, run.base, run.method, moment(run.finished)].filter(Boolean).join(" · ")}</p></div>
      <a class="button slim" href=${`/admin/runs/${number}/report`} target="_blank" rel="noopener">${t("Full report")}</a>
    </header>
    <div class="tiles">
      ${figures(run.headline).map(([name, title, value]) => html`<div class="tile" key=${name}><span>${title}</span><b>${value}</b></div>`)}
      <div class="tile"><span>${t("Training rows")}</span><b>${count(run.rows.train)}</b>${run.lessons > 0 && html`<span>${t("{count} of them lessons", { count: run.lessons })}</span>`}</div>
    </div>
    <section class="panel"><h2>${t("Curves")}</h2><${Loss} curves=${run.curves} /></section>
    <section class="panel"><h2>${t("Scores")}</h2><${Scores} scores=${run.scores} /></section>`;
}

function Scores({ scores }) {
  const systems = Object.keys(SYSTEMS).filter((name) => scores[name]?.all);
  const shown = METRICS.filter(([name]) => systems.some((system) => scores[system].all[name]?.value != null));
  if (!shown.length) return html`<p class="soft">${t("This run was not scored.")}</p>`;
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${t("Scores")}><table class="scores">
    <thead><tr><th scope="col"><span class="hidden-text">${t("Score")}</span></th>${systems.map((system) => html`<th key=${system} scope="col">${SYSTEMS[system]()}</th>`)}</tr></thead>
    <tbody>${shown.map(([name, title, factor, digits]) => html`<tr key=${name}><td>${title()}</td>${systems.map((system) => {
      const score = scores[system].all[name];
      if (score?.value == null) return html`<td key=${system}>–</td>`;
      const interval = score.low != null && `[${(factor * score.low).toFixed(digits)}, ${(factor * score.high).toFixed(digits)}]`;
      return html`<td key=${system}>${(factor * score.value).toFixed(digits)}${interval && html` <small>${interval}</small>`}</td>`;
    })}</tr>`)}</tbody>
  </table></div><p class="soft small">${t("Brackets: 95 % interval.")}</p>`;
}

function Loss({ curves }) {
  const lines = [[t("training"), curves.train, "s0"], ["dev", curves.dev, "s1"], [t("average"), curves.average ?? [], "s2"]].filter(([, points]) => points.length);
  const all = lines.flatMap(([, points]) => points).filter(({ loss }) => Number.isFinite(loss));
  if (!all.length) return html`<p class="soft">${t("The training was too short for a curve.")}</p>`;
  const last = Math.max(...all.map(({ step }) => step)), top = Math.max(...all.map(({ loss }) => loss));
  const ticks = roundTicks(top), high = ticks.at(-1);
  const x = (step) => LEFT + (step / (last || 1)) * (WIDTH - LEFT - RIGHT), y = (loss) => HEIGHT - BOTTOM - (loss / high) * (HEIGHT - TOP - BOTTOM);
  const title = t("Loss (nats per token)");
  return html`<figure class="single"><figcaption><b>${title}</b>${lines.map(([name, , kind]) => html`<span key=${kind} class=${kind}><i></i>${name}</span>`)}</figcaption>
    <svg class="chart" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${title}>
      ${ticks.map((tick, n) => html`<g key=${tick}><line class=${n ? "grid" : "base"} x1=${LEFT} x2=${WIDTH - RIGHT} y1=${y(tick)} y2=${y(tick)} /><text x=${LEFT - 8} y=${y(tick) + 4} text-anchor="end">${+tick.toFixed(6)}</text></g>`)}
      <text x=${LEFT} y=${HEIGHT - 8}>0</text><text x=${WIDTH - RIGHT} y=${HEIGHT - 8} text-anchor="end">${t("{count} steps", { count: count(last) })}</text>
      ${lines.map(([name, points, kind]) => html`<g key=${kind} class=${kind}><path class="curve" d=${`M${points.map((one) => `${x(one.step).toFixed(1)} ${y(one.loss).toFixed(1)}`).join("L")}`} />
        ${kind !== "s0" && points.map((one) => html`<circle key=${one.step} cx=${x(one.step)} cy=${y(one.loss)} r="3.5"><title>${name} ${one.loss.toFixed(3)}</title></circle>`)}</g>`)}
    </svg></figure>`;
}

/** From 0 to at least `top` in about four steps of 1, 2 or 5 times a power of ten. */
function roundTicks(top) {
  const power = 10 ** Math.floor(Math.log10(top / 4 || 1));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= (top / 4) * 0.999);
  return Array.from({ length: Math.ceil(top / step - 1e-9) + 1 }, (_, n) => n * step);
}

