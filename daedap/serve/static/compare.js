// The blind comparison of two runs: a question, two answers without names, one choice, and the tally so far.

import { get, post, put } from "./api.js";
import { Icon, Linked, percent, runName, Trouble, useLoaded } from "./parts.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";
import { t } from "./words.js";

const KEYS = { 1: "left", 2: "right", 0: "tie" };

/** @param pair numbers of the two runs; @param rounds, setRounds the comparisons of this visit, the last one open;
 *  @param onChosen called after each choice */
export function Compare({ runs, pair, setPair, rounds, setRounds, onRetry, onChosen }) {
  const [tally, failure, reload] = useLoaded(
    () => (pair[0] === pair[1] ? Promise.resolve(null) : get(`/api/comparisons/tally?first=${pair[0]}&second=${pair[1]}`)),
    pair,
  );
  const [latest, setLatest] = useState(null); // of the last choice; the first tally may arrive after it
  const counted = latest?.pair === String(pair) ? latest.tally : tally;
  const change = (place) => (event) => setPair(pair.map((number, at) => (at === place ? Number(event.target.value) : number)));
  const vote = async (round, winner) => {
    setRounds((all) => all.map((one) => (one === round ? { ...one, chosen: winner } : one)));
    const set = (fields) => setRounds((all) => all.map((one) => (one.key === round.key ? { ...one, ...fields } : one)));
    try {
      const result = await put(`/api/comparisons/${round.result.id}`, { winner });
      set({ verdict: result, failure: null });
      setLatest({ pair: String(pair), tally: result.tally });
      onChosen();
    } catch (error) {
      set({ chosen: null, failure: error });
    }
  };
  const open = rounds.findLast((round) => round.result && !round.result.same && !round.chosen);
  useLayoutEffect(() => {
    const press = (event) => {
      if (!open || event.target.closest("input, textarea, select") || event.ctrlKey || event.metaKey || event.altKey) return;
      if (KEYS[event.key]) vote(open, KEYS[event.key]);
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, [open]);
  return html`
    <section class="setup" aria-label=${t("The two runs")}>
      <div class="row">
        ${[0, 1].map((place) => html`<label class="select boxed" key=${place}>
          <span class="hidden-text">${place ? t("Second run") : t("First run")}</span>
          <select value=${pair[place]} onChange=${change(place)}>
            ${runs.map((run) => html`<option key=${run.number} value=${run.number} disabled=${run.number === pair[1 - place]}>${runName(run.number)}</option>`)}
          </select><${Icon} name="chevron" />
        </label>`)}
      </div>
      <p class="soft small">${t("Both answer the same question. Which is which is shown once you have chosen.")}</p>
      ${failure && html`<${Trouble} failure=${failure} onRetry=${reload} />`}
    </section>
    ${counted && html`<${Tally} tally=${counted} />`}
    ${rounds.map((round) => html`<${Round} key=${round.key} round=${round} open=${round === open} onVote=${(winner) => vote(round, winner)} onRetry=${() => onRetry(round)} />`)}`;
}

function Tally({ tally }) {
  const { wins, ties, clear, share } = tally;
  const total = wins[0] + wins[1] + ties;
  const better = share > 0.5 ? tally.second : tally.first;
  return html`<div class="tally" data-testid="tally">
    <div class="shares" aria-hidden="true">
      ${[wins[0], ties, wins[1]].map((part, at) => part > 0 && html`<i key=${at} class=${["first", "even", "second"][at]} style=${{ flexGrow: part }}></i>`)}
    </div>
    <div class="counts">
      <span><i class="first"></i>${runName(tally.first)} <b>${wins[0]}</b></span>
      <span><i class="even"></i>${t("Ties")} <b>${ties}</b></span>
      <span><i class="second"></i>${runName(tally.second)} <b>${wins[1]}</b></span>
    </div>
    <p class="soft small">${total === 0
      ? t("No choice yet.")
      : clear
        ? t("{run} is clearly better: {low} to {high} of the decided rounds.", { run: runName(better), low: percent(share > 0.5 ? tally.low : 1 - tally.high), high: percent(share > 0.5 ? tally.high : 1 - tally.low) })
        : t("No clear difference yet. Keep asking.")}</p>
  </div>`;
}

function Round({ round, open, onVote, onRetry }) {
  const { question, result, chosen, verdict, failure } = round;
  const choice = useRef();
  useEffect(() => open && choice.current?.focus(), [open]); // so that 1, 2 and 0 choose, and Tab goes on from here
  return html`<article class="turn">
    <h2 class="hidden-text">${question}</h2>
    <div class="asked"><p class="text"><${Linked} text=${question} /></p></div>
    ${!result && !failure && html`<p class="typing" aria-hidden="true"><i></i><i></i><i></i></p>`}
    ${failure && html`<${Trouble} failure=${failure} onRetry=${result ? null : onRetry} />`}
    ${result && html`
      <div class="pair">
        ${["left", "right"].map((side) => html`<section key=${side} class=${`candidate${chosen === side ? " chosen" : ""}`} aria-label=${side === "left" ? t("Answer A") : t("Answer B")}>
          <header><b>${side === "left" ? "A" : "B"}</b>${verdict && html`<span class="tag">${runName(verdict[side])}</span>`}${chosen === side && html`<span class="tag good">${t("Your choice")}</span>`}</header>
          <p class="text"><${Linked} text=${result[side].answer} /></p>
        </section>`)}
      </div>
      ${result.same
        ? html`<p class="soft small center">${t("Both give the same answer, so there is nothing to choose.")}</p>`
        : open
          ? html`<div class="verdicts" role="group" tabindex="-1" ref=${choice} aria-label=${t("Which answer is better?")}>
              <button class="button" type="button" onClick=${() => onVote("left")}>${t("A is better")} <kbd>1</kbd></button>
              <button class="button" type="button" onClick=${() => onVote("tie")}>${t("Equally good")} <kbd>0</kbd></button>
              <button class="button" type="button" onClick=${() => onVote("right")}>${t("B is better")} <kbd>2</kbd></button>
            </div>`
          : chosen === "tie" && html`<p class="center"><span class="tag">${t("Equally good")}</span></p>`}`}
  </article>`;
}

/** Ask both runs. */
export const askBoth = (question, pair) => post("/api/comparisons", { question, runs: pair });
