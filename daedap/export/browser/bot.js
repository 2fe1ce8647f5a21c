// Question → reply, as daedap/retrieval/bot.py decides: help, lessons, courtesies, known answers, suggestions, or the fallback.

import { Encoder } from "./encoder.js";
import { Interaction, Matcher, products, withRival } from "./matcher.js";
import { CharTfidf, Postings, comparisonForm, wellFormed, wordsOf } from "./text.js";
import { Tokenizer } from "./tokenizer.js";

const SUGGESTIONS = 3;
const KEPT = 500; // pairs whose token vectors are kept, 70 kB each

export class Bot {
  /** Read a bot from the folder at a URL. progress: called with the share that is loaded. */
  static async open(folder, progress = () => {}) {
    const get = async (name) => {
      const response = await fetch(new URL(name, folder));
      if (!response.ok) throw new Error(`${name}: ${response.status}`);
      return response;
    };
    const data = await (await get("bot.json")).json();
    let loaded = 0;
    const bytes = async (name) => {
      const found = await (await get(name)).arrayBuffer();
      progress(++loaded / 3);
      return found;
    };
    const [saved, encoder, index] = await Promise.all([get("tokenizer.json").then((one) => one.json()), bytes("encoder.bin"), bytes("index.bin")]);
    progress(1);
    return new Bot(data, saved, { "encoder.bin": encoder, "index.bin": index }, async (name) => (await get(name)).arrayBuffer());
  }

  constructor(data, saved, files, get) {
    this.data = data;
    const tensors = views(data.tensors, files);
    this.encoder = new Encoder(within(tensors, "encoder/"), within(mapped(data.tensors, (one) => one.shape), "encoder/"));
    this.tokenizer = new Tokenizer(saved, data.longest);
    const interaction = new Interaction(within(tensors, "interaction/"), within(mapped(data.tensors, (one) => one.shape), "interaction/"));
    const ngrams = Object.fromEntries(["questions", "answers", "distress"].map((name) =>
      [name, new CharTfidf(tensors[`ngrams/${name}/columns`], tensors[`ngrams/${name}/values`], data.ngrams[name])]));
    const weights = { ...data.matcher, direction: tensors["matcher/direction"] };
    const matcher = (name) => {
      const book = data[name], width = this.encoder.width;
      const vectors = { questions: tensors[`${name}/questions`], answers: tensors[`${name}/answers`] };
      return new Matcher(weights, { ...book, ...vectors, width, tokens: tokenReader(book, name, width, get) }, ngrams, interaction);
    };
    this.known = matcher("known");
    this.lessonMatcher = data.lessons.pairs.length ? matcher("lessons") : null;
    this.taught = new Map(data.taught.toReversed().map(([question, answer]) => [comparisonForm(question), { question, answer }]));
    this.distress = new DistressHelp(data.distress, ngrams.distress, tensors["distress/questions"]);
    this.courtesies = new Courtesies(data.courtesies);
  }

  /** What a question is answered: { answer, source, score, evidence, suggestions }. */
  async reply(question) {
    const text = wellFormed(question);
    if (!text.trim()) return this.fallback();
    const lesson = this.taught.get(comparisonForm(text));
    if (lesson) return reply(lesson.answer, "lesson", 1, lesson);
    const row = this.known.rowOf.get(comparisonForm(text));
    if (row !== undefined) return reply(pair(this.known.pairs[row]).answer, "retrieved", 1, pair(this.known.pairs[row]));
    const query = { text, ...this.encoder.encode(this.tokenizer.encode(text)) };
    const match = await this.known.signals(query, 1 + SUGGESTIONS);
    match.probability = this.known.probability(match.calibration);
    return this.decide(query, match, await this.similarLesson(query, match));
  }

  decide(query, match, lesson) {
    const { options } = this.data, evidence = match.rows.map((row) => pair(this.known.pairs[row]));
    const best = evidence[0];
    const toBeat = Math.max(clip(match.similarities[0]), match.probability, lesson?.probability ?? 0);
    const help = this.distress.help(query, toBeat);
    if (help) return reply(help.answer, "retrieved", help.similarity, help);
    if (lesson && lesson.probability >= options.direct) return reply(lesson.answer, "lesson", lesson.probability, lesson);
    const known = evidence.map((one, place) => ({ ...one, similarity: clip(match.similarities[place]) }));
    const courtesy = this.courtesies.reply(query.text, known);
    if (courtesy) return courtesy;
    if (match.probability >= options.direct) return reply(best.answer, "retrieved", match.probability, best);
    if (match.probability < options.suggestion) return this.fallback(best, match.probability);
    const suggestions = evidence.slice(0, SUGGESTIONS).map((one) => one.question);
    return { ...reply(this.data.texts.unsure, "fallback", match.probability, best), suggestions };
  }

  fallback(best = null, probability = 0) {
    return reply(this.data.texts.fallback, "fallback", probability, best);
  }

  async similarLesson(query, match) {
    if (!this.lessonMatcher) return null;
    const found = await this.lessonMatcher.signals(query, 2), lesson = pair(this.lessonMatcher.pairs[found.rows[0]]);
    const margin = found.calibration.score - this.rival(lesson, match);
    if (margin <= 0) return null;
    return { ...lesson, probability: this.lessonMatcher.probability(withRival(found.calibration, margin)) };
  }

  /** Similarity of the best known pair that a lesson does not correct and that has another answer. */
  rival(lesson, match) {
    const place = match.rows.findIndex((row) => {
      const { question, answer } = pair(this.known.pairs[row]);
      return comparisonForm(question) !== comparisonForm(lesson.question) && answer !== lesson.answer;
    });
    return place < 0 ? 0 : match.similarities[place];
  }
}

/** Help for people in distress. */
class DistressHelp {
  constructor(data, ngrams, vectors) {
    Object.assign(this, { data, vectors });
    this.postings = new Postings(ngrams, data.pairs.map(([question]) => question));
    this.distress = new RegExp(data.distress, "u");
    this.ambiguous = new RegExp(data.ambiguous, "u");
  }

  help({ text, vector }, toBeat) {
    const { data } = this, lexical = this.postings.similarities(text), meaning = products(this.vectors, vector);
    const distress = this.distress.test(text) || (this.ambiguous.test(text) && toBeat < data.threshold);
    let best = 0, similarity = -Infinity;
    data.pairs.forEach((_, row) => {
      const value = distress && !data.comforts[row] ? -1 : (lexical[row] + Math.max(0, meaning[row])) / 2;
      if (value > similarity) [best, similarity] = [row, value];
    });
    similarity = clip(similarity);
    return distress || similarity >= Math.max(data.threshold, toBeat) ? { ...pair(data.pairs[best]), similarity } : null;
  }
}

/** Messages of set phrases, as daedap/retrieval/courtesies.py recognizes them. */
class Courtesies {
  constructor(data) {
    this.data = data;
    const groups = [...data.kinds, { name: "filler", phrases: data.fillers }];
    this.phrase = new RegExp(`^(?:${groups.map(({ name, phrases }) => `(?<${name}>${phrases.join("|")})`).join("|")})$`, "u");
  }

  /** The reply to a courtesy: of a lesson, of a known pair for the same kind, else the built-in one; null for others. */
  reply(text, known) {
    const kind = this.kindOf(text);
    if (!kind) return null;
    if (kind.lesson) return reply(kind.lesson[1], "lesson", 1, pair(kind.lesson));
    const near = known.find((one) => this.kindOf(one.question) === kind), own = near ?? pair(kind.known ?? kind.builtIn);
    return reply(own.answer, "retrieved", near ? near.similarity : 1, own);
  }

  kindOf(text) {
    const words = wordsOf(text), form = words.join(""), { kinds, longest } = this.data;
    if ([...form].length > longest) return null;
    const begins = new Set([0]), until = new Map([[0, new Set()]]);
    words.reduce((place, word) => (begins.add(place), place + word.length), 0);
    for (let start = 0; start < form.length; start++) {
      if (!until.has(start)) continue;
      for (let end = start + 1; end <= form.length; end++) {
        if (end === start + 1 && !begins.has(start) && form[start] !== form[start - 1]) continue; // inside a word
        const groups = this.phrase.exec(form.slice(start, end))?.groups;
        if (!groups) continue;
        const met = Object.keys(groups).filter((name) => groups[name] !== undefined);
        until.set(end, new Set([...(until.get(end) ?? []), ...until.get(start), ...met]));
      }
    }
    return kinds.find(({ name }) => until.get(form.length)?.has(name)) ?? null;
  }
}

/** row → its token vectors: read from the file of its part when first needed; the latest are kept. */
function tokenReader(book, name, width, get) {
  const parts = new Map(), kept = new Map();
  const read = async (row) => {
    const part = Math.floor(row / book.part), first = part * book.part;
    if (!parts.has(part)) parts.set(part, get(`tokens/${name}-${part}.bin`));
    const file = await parts.get(part).catch((error) => {
      parts.delete(part); // the next question tries again
      throw error;
    });
    const counts = book.counts.slice(first, first + book.part).map(([question, answer]) => question + answer);
    const all = counts.reduce((sum, count) => sum + count, 0), start = counts.slice(0, row - first).reduce((sum, count) => sum + count, 0);
    const [questionTokens, answerTokens] = book.counts[row], count = questionTokens + answerTokens;
    const rounded = new Int8Array(file, start * width, count * width), scales = new Float32Array(file, all * width + 4 * start, count);
    return { questionTokens, count, vectors: Float32Array.from(rounded, (value, n) => value * scales[Math.floor(n / width)]) };
  };
  return async (row) => {
    if (!kept.has(row)) {
      if (kept.size >= KEPT) kept.clear();
      kept.set(row, await read(row));
    }
    return kept.get(row);
  };
}

const TYPES = { int8: Int8Array, int16: Int16Array, int32: Int32Array, float32: Float32Array, float16: Uint16Array };

function views(tensors, files) {
  return mapped(tensors, ({ file, type, offset, shape }) => {
    const length = shape.reduce((product, size) => product * size, 1), found = new TYPES[type](files[file], offset, length);
    return type === "float16" ? Float32Array.from(found, half) : found;
  });
}

/** A number in half precision, from its 16 bits. */
function half(bits) {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

function within(entries, start) {
  return Object.fromEntries(Object.entries(entries).filter(([name]) => name.startsWith(start)).map(([name, one]) => [name.slice(start.length), one]));
}

function mapped(entries, change) {
  return Object.fromEntries(Object.entries(entries).map(([name, one]) => [name, change(one)]));
}

function pair([question, answer]) {
  return { question, answer };
}

function clip(value) {
  return Math.min(1, Math.max(0, value));
}

function reply(answer, source, score, evidence) {
  return { answer, source, score, evidence: evidence && { question: evidence.question, answer: evidence.answer }, suggestions: [] };
}
