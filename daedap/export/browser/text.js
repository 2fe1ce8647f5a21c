// Comparison forms and character n-grams, as daedap/korean/text.py and daedap/retrieval/lexical.py compute them.

const BUCKETS = 2 ** 18;
const LAUGHTER = /([ㅋㅎㅠㅜ])\1+/gu;
const EMOTION = /[ㅋㅎㅠㅜ]{2,}/gu;
const LETTERS = /[\p{L}\p{N}]/u;
const CONJOINING = new Map(); // what NFKC makes of ㅋㅋ and ㅠㅠ → what people type
for (let code = 0x3131; code < 0x3164; code++) {
  const typed = String.fromCharCode(code), composed = typed.normalize("NFKC");
  if ([...composed].length === 1) CONJOINING.set(composed, typed);
}
const utf8 = new TextEncoder();
const known = new Map();

/** Text that can be encoded: half of a surrogate pair becomes "?". */
export function wellFormed(text) {
  return text.replace(/\p{Surrogate}/gu, "?");
}

/** The text without spacing, punctuation, width, case and the length of laughter. */
export function comparisonForm(text) {
  const composed = text.normalize("NFKC").normalize("NFC");
  const folded = Array.from(composed, (char) => CONJOINING.get(char) ?? char).join("").toLowerCase().replaceAll("ß", "ss");
  const letters = Array.from(folded).filter((char) => LETTERS.test(char)).join("");
  return letters.replace(LAUGHTER, "$1$1") || folded.split(/\s+/u).join("");
}

/** The comparison form without ㅋㅋ, ㅎㅎ, ㅠㅠ; a text that consists of them alone keeps them. */
function strippedForm(text) {
  const form = comparisonForm(text);
  return form.replace(EMOTION, "") || form;
}

/** Comparison forms of the words without emoticons, if there are others; of the text, if there are no words. */
export function wordsOf(text) {
  const found = text.match(/[\p{L}\p{N}]+/gu) ?? [], words = found.length ? found.map(strippedForm) : [strippedForm(text)];
  const spoken = words.filter((word) => !/^[ㅋㅎㅠㅜ]+$/u.test(word));
  return spoken.length ? spoken : words;
}

/** MurmurHash3 (x86, 32 bits, seed 0) of an n-gram, as a column. */
function bucket(ngram) {
  let found = known.get(ngram);
  if (found !== undefined) return found;
  const octets = utf8.encode(ngram);
  let state = 0;
  for (let start = 0; start < octets.length; start += 4) {
    let block = 0;
    for (let place = Math.min(3, octets.length - start - 1); place >= 0; place--) block = (block << 8) | octets[start + place];
    block = Math.imul(block, 0xcc9e2d51);
    state ^= Math.imul((block << 15) | (block >>> 17), 0x1b873593);
    if (octets.length - start >= 4) state = (Math.imul((state << 13) | (state >>> 19), 5) + 0xe6546b64) | 0;
  }
  state ^= octets.length;
  state = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
  state = Math.imul(state ^ (state >>> 13), 0xc2b2ae35);
  state = (state ^ (state >>> 16)) >>> 0;
  found = Math.min(state, 2 ** 32 - state) % BUCKETS;
  known.set(ngram, found);
  return found;
}

/** Texts as unit vectors, column → weight: characters and pairs of them, the ends included, weighted by rarity. */
export class CharTfidf {
  /** columns, values: how rare the n-grams are that occur; other: how rare all others. */
  constructor(columns, values, other) {
    this.idf = new Map(Array.from(columns, (column, place) => [column, values[place]]));
    this.other = other;
  }

  vector(text) {
    const form = strippedForm(text).replace(/\s\s+/gu, " ");
    const marked = form ? ["\x02", ...form, "\x03"] : [];
    const counts = new Map();
    const add = (ngram) => counts.set(bucket(ngram), (counts.get(bucket(ngram)) ?? 0) + 1);
    marked.forEach(add);
    marked.slice(1).forEach((char, place) => add(marked[place] + char));
    let length = 0;
    for (const [column, count] of counts) {
      const weight = count * (this.idf.get(column) ?? this.other);
      counts.set(column, weight);
      length += weight * weight;
    }
    length = Math.sqrt(length);
    for (const [column, weight] of counts) counts.set(column, weight / length);
    return counts;
  }
}

/** Vectors of known texts, n-grams down: a query reads only its own. */
export class Postings {
  constructor(tfidf, texts) {
    this.tfidf = tfidf;
    this.count = texts.length;
    this.byColumn = new Map();
    texts.forEach((text, row) => {
      for (const [column, weight] of tfidf.vector(text)) {
        if (!this.byColumn.has(column)) this.byColumn.set(column, []);
        this.byColumn.get(column).push(row, weight);
      }
    });
  }

  /** The cosine of a text with each known one. */
  similarities(text) {
    const found = new Float64Array(this.count);
    for (const [column, weight] of this.tfidf.vector(text)) {
      const list = this.byColumn.get(column) ?? [];
      for (let place = 0; place < list.length; place += 2) found[list[place]] += weight * list[place + 1];
    }
    return found;
  }
}
