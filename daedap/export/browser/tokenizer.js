// Text → ids: the normalizers of tokenizer.json, then the likeliest pieces of each word (Unigram: Kudo 2018).

const SPACE = "▁";
const UNKNOWN_PENALTY = 10;

export class Tokenizer {
  /** saved: tokenizer.json; longest: tokens after which a text is cut off. */
  constructor(saved, longest) {
    this.normalizers = saved.normalizer.normalizers.map(normalizer);
    this.longest = longest;
    this.unknown = saved.model.unk_id;
    this.scores = saved.model.vocab.map(([, score]) => score);
    this.ids = new Map(saved.model.vocab.map(([piece], id) => [piece, id]));
    this.longestPiece = Math.max(...saved.model.vocab.map(([piece]) => Array.from(piece).length));
    this.unknownScore = this.scores.reduce((least, score) => Math.min(least, score), 0) - UNKNOWN_PENALTY;
    this.first = saved.post_processor.single.flatMap((part) =>
      part.SpecialToken ? saved.post_processor.special_tokens[part.SpecialToken.id].ids : []);
    this.words = new Map();
  }

  encode(text) {
    const normalized = this.normalizers.reduce((changed, normalize) => normalize(changed), text).replaceAll(" ", SPACE);
    if (!normalized) return this.first.length ? [...this.first] : [0];
    const marked = normalized.startsWith(SPACE) ? normalized : SPACE + normalized;
    const words = marked.match(/▁[^▁]*/gu);
    return [...this.first, ...words.flatMap((word) => this.word(word))].slice(0, this.longest);
  }

  word(word) {
    let ids = this.words.get(word);
    if (!ids) {
      ids = this.likeliest(Array.from(word));
      if (this.words.size < 10000) this.words.set(word, ids);
    }
    return ids;
  }

  likeliest(chars) {
    const best = Array.from({ length: chars.length + 1 }, () => null);
    best[0] = { score: 0 };
    const offer = (start, end, id, score) => {
      const total = best[start].score + score;
      if (!best[end] || total > best[end].score) best[end] = { score: total, start, id };
    };
    for (let start = 0; start < chars.length; start++) {
      let single = false;
      for (let end = start + 1; end <= Math.min(chars.length, start + this.longestPiece); end++) {
        const id = this.ids.get(chars.slice(start, end).join(""));
        if (id === undefined) continue;
        offer(start, end, id, this.scores[id]);
        single ||= end === start + 1;
      }
      if (!single) offer(start, start + 1, this.unknown, this.unknownScore);
    }
    const pieces = [];
    for (let end = chars.length; end > 0; end = best[end].start) pieces.unshift({ id: best[end].id, start: best[end].start, end });
    return pieces.flatMap(({ id, start, end }) => (id === this.unknown ? this.bytes(chars.slice(start, end).join("")) : [id]));
  }

  bytes(text) {
    const names = Array.from(new TextEncoder().encode(text), (octet) => `<0x${octet.toString(16).toUpperCase().padStart(2, "0")}>`);
    const ids = names.map((name) => this.ids.get(name));
    return ids.includes(undefined) ? [this.unknown] : ids;
  }
}

function normalizer(saved) {
  if (saved.type === "NFKC") return (text) => text.normalize("NFKC");
  if (saved.type === "Lowercase") return (text) => text.toLowerCase();
  if (saved.type !== "Replace") throw new Error(`normalizer ${saved.type}`);
  const { String: plain, Regex: pattern } = saved.pattern;
  return plain === undefined
    ? (text) => text.replace(new RegExp(pattern, "gu"), saved.content)
    : (text) => text.replaceAll(plain, saved.content);
}
