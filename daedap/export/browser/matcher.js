// Which known pair answers a question, and how sure that is, as daedap/retrieval/matcher.py and interaction.py compute it.

import { softmax, unit } from "./encoder.js";
import { Postings, comparisonForm } from "./text.js";

const RIVALS = 4, CANDIDATES = 6;

export class Matcher {
  /** data: weights and answer share; book: pairs, groups of equal answers, vectors, `tokens(row)`; ngrams: of questions and answers. */
  constructor(data, book, ngrams, interaction) {
    Object.assign(this, { data, interaction, ...book, ngrams });
    this.width = book.width;
    this.questionPostings = new Postings(ngrams.questions, book.pairs.map(([question]) => question));
    this.answerPostings = new Postings(ngrams.answers, book.pairs.map(([, answer]) => answer));
    this.rowOf = new Map(); // the first row of each question
    book.pairs.forEach(([question], row) => {
      const form = comparisonForm(question);
      if (form && !this.rowOf.has(form)) this.rowOf.set(form, row);
    });
  }

  /** That the best pair's answer is right. */
  probability(signals) {
    const { weights } = this.data;
    let logit = weights.intercept;
    for (const [name, weight] of Object.entries(weights.signals)) logit += weight * signals[name];
    return 1 / (1 + Math.exp(-logit));
  }

  scored({ text, vector }) {
    const views = [
      this.questionPostings.similarities(text),
      this.answerPostings.similarities(text),
      products(this.questions, vector),
      products(this.answers, vector),
    ];
    const scores = this.pairs.map((_, row) => views.reduce((sum, view, n) => sum + this.data.viewWeights[n] * view[row], 0));
    return { views, scores };
  }

  /** The k best pairs with different answers, and the signals by which they are decided upon. query: text, vector, tokens. */
  async signals(query, k) {
    const { views, scores } = this.scored(query);
    const count = Math.max(k, CANDIDATES);
    const near = this.distinct(largest(scores, 8 * count), count);
    const read = near.slice(0, CANDIDATES);
    const known = await Promise.all(read.map((row) => this.tokens(row)));
    const odds = this.logOdds(query, known, near, views);
    const order = near.map((_, place) => place);
    const total = near.map((row, place) => scores[row] + this.data.weights.interaction * odds[place]);
    order.sort((one, other) => total[other] - total[one] || one - other);
    const rows = order.map((place) => near[place]), ranked = order.map((place) => odds[place]);
    const met = order.filter((place) => place < known.length).slice(0, 2).map((place) => this.met(query.tokens, known[place]));
    const calibration = {
      ...this.lead(scores, views, rows),
      ...interactionSignals(ranked),
      ...tokenSignals(met),
      coverage: this.coverage(query.text, rows[0]),
      neighbour: Math.max(0, ...rows.slice(1).map((row) => this.between(this.questions, row, this.questions, rows[0]))),
      own_answer: this.between(this.questions, rows[0], this.answers, rows[0]),
      small_talk: this.smallTalk(query.vector, rows[0]),
      length: Math.log1p(Array.from(query.text).length),
    };
    return { rows: rows.slice(0, k), similarities: rows.slice(0, k).map((row) => scores[row]), calibration };
  }

  lead(scores, views, rows) {
    const best = rows[0], score = scores[best];
    const rivals = rows.slice(1, CANDIDATES).map((row) => scores[row]).sort((one, other) => other - one).slice(0, RIVALS);
    const behind = rivals.length ? rivals.reduce((sum, rival) => sum + rival, 0) / rivals.length : 0;
    return {
      lexical_question: views[0][best],
      lexical_answer: views[1][best],
      sentence_question: views[2][best],
      sentence_answer: views[3][best],
      score,
      margin: score - (rivals[0] ?? 0),
      lead: score - behind,
      question_margin: views[2][best] - this.behind(views[2], best),
      answer_margin: views[3][best] - this.behind(views[3], best),
    };
  }

  /** The highest similarity among pairs with another answer than a row's; those with the same count as 0. */
  behind(similarities, row) {
    let highest = -Infinity;
    for (let other = 0; other < similarities.length; other++) {
      highest = Math.max(highest, this.groups[other] === this.groups[row] ? 0 : similarities[other]);
    }
    return highest;
  }

  logOdds(query, known, near, views) {
    if (!(this.data.weights.interaction > 0)) return near.map(() => 0);
    const talk = this.data.answerShare < 0.5; // small talk: the answers say nothing about the questions
    const read = known.map((pair, place) => {
      const row = near[place], sides = [2, 3].map((n) => views[n][row]);
      const margins = [2, 3].map((n, side) => sides[side] - this.behind(views[n], row));
      if (talk) sides[1] = margins[1] = 0;
      return this.interaction.logOdds(query.tokens, pair, talk ? pair.questionTokens : pair.count, [...sides, ...margins]);
    });
    return near.map((_, place) => read[place] ?? Math.min(...read));
  }

  /** For each of the query's tokens the highest cosine with one of a pair. */
  met(tokens, pair) {
    const { width } = this, found = [];
    for (let start = 0; start < tokens.length; start += width) {
      let highest = -Infinity;
      for (let other = 0; other < pair.vectors.length; other += width) highest = Math.max(highest, product(tokens, start, pair.vectors, other, width));
      found.push(highest);
    }
    return found;
  }

  coverage(text, row) {
    const [question, answer] = this.pairs[row], known = this.ngrams.questions.vector(`${question} ${answer}`);
    let inside = 0, total = 0;
    for (const [column, weight] of this.ngrams.questions.vector(text)) {
      total += weight * weight;
      if (known.has(column)) inside += weight * weight;
    }
    return inside / Math.max(total, 1e-9);
  }

  smallTalk(vector, row) {
    const { direction } = this.data;
    let sum = 0;
    for (let n = 0; n < direction.length; n++) sum += (vector[n] - this.questions[row * this.width + n]) * direction[n];
    return sum;
  }

  between(some, row, others, other) {
    return product(some, row * this.width, others, other * this.width, this.width);
  }

  /** The first k rows whose answers differ. */
  distinct(rows, k) {
    const seen = new Set();
    return rows.filter((row) => !seen.has(this.groups[row]) && seen.add(this.groups[row])).slice(0, k);
  }
}

/** Reads a query and a pair together: decomposable attention over token vectors. */
export class Interaction {
  constructor(weights, shapes) {
    this.weights = weights;
    this.pairs = new WeakMap();
    this.inner = shapes["project.weight"][0];
    this.width = shapes["project.weight"][1];
  }

  logOdds(query, pair, count, similarities) {
    const { width, inner, weights } = this, known = pair.vectors.subarray(0, count * width), tokens = query.length / width;
    const projected = this.linear("project", query, width), keys = this.keys(query), { values, keys: others } = this.ofPair(pair, known);
    const cosines = new Float64Array(tokens * count), attention = new Float64Array(tokens * count);
    for (let row = 0; row < tokens; row++) {
      for (let column = 0; column < count; column++) {
        const cosine = product(query, row * width, known, column * width, width);
        cosines[row * count + column] = cosine;
        attention[row * count + column] = weights.scale[0] * (product(keys, row * inner, others, column * inner, inner) + cosine);
      }
    }
    const asked = this.compared(projected, attended(attention, tokens, count, values, inner), highest(cosines, tokens, count));
    const turned = transposed(attention, tokens, count);
    const found = this.compared(values, attended(turned, count, tokens, projected, inner), highest(transposed(cosines, tokens, count), count, tokens));
    const pooled = [...this.pooled("query_gate", query, asked), ...this.pooled("pair_gate", known, found)];
    const hidden = this.linear("hidden", Float64Array.from([...pooled, ...similarities])).map(positive);
    return this.linear("output", hidden)[0];
  }

  /** What is computed of a pair alone, kept as long as the pair is. */
  ofPair(pair, known) {
    if (!this.pairs.has(pair)) {
      const { inner, weights } = this, values = this.linear("project", known, this.width);
      for (let n = 0; n < values.length; n++) values[n] += weights.side[(Math.floor(n / inner) < pair.questionTokens ? 0 : inner) + (n % inner)];
      this.pairs.set(pair, { values, keys: this.keys(known) });
    }
    return this.pairs.get(pair);
  }

  compared(own, other, cosines) {
    const { inner } = this, width = 4 * inner + 1, both = new Float64Array(cosines.length * width);
    cosines.forEach((cosine, row) => {
      for (let n = 0; n < inner; n++) {
        const one = own[row * inner + n], two = other[row * inner + n];
        [one, two, one * two, Math.abs(one - two)].forEach((value, part) => (both[row * width + part * inner + n] = value));
      }
      both[row * width + width - 1] = cosine;
    });
    return this.linear("compare", both, width).map(positive);
  }

  /** The mean over tokens, weighted by a gate, and the maximum. */
  pooled(gate, tokens, compared) {
    const shares = this.linear(gate, tokens, this.width), { inner } = this, mean = new Float64Array(inner), most = mean.map(() => -Infinity);
    softmax(shares);
    for (let n = 0; n < compared.length; n++) {
      mean[n % inner] += shares[Math.floor(n / inner)] * compared[n];
      most[n % inner] = Math.max(most[n % inner], compared[n]);
    }
    return [...mean, ...most];
  }

  keys(tokens) {
    const keys = this.linear("key", tokens, this.width);
    unit(keys, this.inner);
    return keys;
  }

  linear(name, inputs, width = inputs.length) {
    const weight = this.weights[`${name}.weight`], bias = this.weights[`${name}.bias`], outputs = weight.length / width;
    const found = new Float64Array((inputs.length / width) * outputs);
    for (let row = 0; row * width < inputs.length; row++) {
      for (let output = 0; output < outputs; output++) {
        found[row * outputs + output] = product(inputs, row * width, weight, output * width, width) + (bias ? bias[output] : 0);
      }
    }
    return found;
  }
}

/** Signals beside one more pair with another answer, whose score is `margin` lower. */
export function withRival(signals, margin) {
  const found = { ...signals };
  for (const name of ["margin", "lead", "question_margin", "answer_margin", "token_margin"]) found[name] = Math.min(margin, found[name]);
  return found;
}

function interactionSignals(odds) {
  return { interaction: odds[0], interaction_margin: odds[0] - Math.max(0, ...odds.slice(1)) };
}

function tokenSignals([first, second]) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const sorted = [...first].sort((one, other) => one - other), place = 0.25 * (sorted.length - 1), below = Math.floor(place);
  const quartile = sorted[below] + (place - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
  return { tokens: mean(first), token_quartile: quartile, token_margin: mean(first) - (second ? mean(second) : 0) };
}

/** Rows of the k largest values, largest first, equal ones by row. */
function largest(values, k) {
  return Array.from(values, (_, row) => row).sort((one, other) => values[other] - values[one] || one - other).slice(0, k);
}

function product(some, start, others, other, width) {
  let sum = 0;
  for (let n = 0; n < width; n++) sum += some[start + n] * others[other + n];
  return sum;
}

export function products(rows, vector) {
  const found = new Float64Array(rows.length / vector.length);
  for (let row = 0; row < found.length; row++) found[row] = product(rows, row * vector.length, vector, 0, vector.length);
  return found;
}

function attended(attention, rows, columns, values, inner) {
  const found = new Float64Array(rows * inner);
  for (let row = 0; row < rows; row++) {
    const shares = attention.slice(row * columns, (row + 1) * columns);
    softmax(shares);
    for (let column = 0; column < columns; column++) {
      for (let n = 0; n < inner; n++) found[row * inner + n] += shares[column] * values[column * inner + n];
    }
  }
  return found;
}

function transposed(values, rows, columns) {
  return Float64Array.from(values, (_, place) => values[(place % rows) * columns + Math.floor(place / rows)]);
}

function highest(values, rows, columns) {
  return Array.from({ length: rows }, (_, row) => Math.max(...values.subarray(row * columns, (row + 1) * columns)));
}

function positive(value) {
  return Math.max(0, value);
}
