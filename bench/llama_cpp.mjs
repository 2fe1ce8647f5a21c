// A GGUF file of `daedap export --to gguf` in the real llama.cpp: the tokens of texts, and greedy answers.
//
//     npm install node-llama-cpp@3.21.1 @huggingface/jinja
//     python bench/llama_cpp.py RUN FOLDER > expected.json      (the run's tokens and answers)
//     node bench/llama_cpp.mjs FOLDER/model.gguf expected.json
//
// Prompts are rendered with the file's own chat template. Exit code 1 where something differs.
import { readFileSync } from "node:fs";
import { getLlama, LlamaLogLevel } from "node-llama-cpp";
import { Template } from "@huggingface/jinja";

const [file, expectedFile] = process.argv.slice(2);
const expected = JSON.parse(readFileSync(expectedFile, "utf8"));
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.warn });
const model = await llama.loadModel({ modelPath: file });
const template = new Template(model.fileInfo.metadata.tokenizer.chat_template);

const render = (text) =>
  template.render({ messages: [{ role: "user", content: text }], add_generation_prompt: true });
const tokens = (text) => Array.from(model.tokenize(render(text), true), Number);
const equal = (a, b) => a.length === b.length && a.every((id, place) => id === b[place]);

let wrong = 0;
const different = (kind, text, ours, theirs) => {
  if (++wrong <= 20) console.log(kind, JSON.stringify(text), "run", JSON.stringify(ours), "llama.cpp", JSON.stringify(theirs));
};
for (const { text, ids } of expected.texts) {
  const found = tokens(text);
  if (!equal(found, ids)) different("tokens", text, ids, found);
}
console.log(`${expected.texts.length - wrong} of ${expected.texts.length} texts have the same tokens`);

const leaks = expected.typed.filter(
  ({ text, controls }) => tokens(text).filter((id) => expected.controls.includes(id)).length !== controls,
);
leaks.forEach(({ text }) => different("typed control token", text, "", tokens(text)));
console.log(`${expected.typed.length - leaks.length} of ${expected.typed.length} texts keep typed control tokens out`);

const before = wrong;
const context = await model.createContext({ contextSize: expected.context, threads: 1 });
for (const { text, answer } of expected.answers) {
  const sequence = context.getSequence();
  const written = [];
  for await (const token of sequence.evaluate(tokens(text), { temperature: 0 })) {
    if (Number(token) === expected.end || written.length === expected.longest) break;
    written.push(Number(token));
  }
  if (!equal(written, answer)) different("answer", text, answer, written);
  sequence.dispose();
}
console.log(`${expected.answers.length - (wrong - before)} of ${expected.answers.length} greedy answers are the same`);
process.exit(wrong ? 1 : 0);
