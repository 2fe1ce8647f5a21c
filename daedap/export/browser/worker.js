// The bot in a thread of its own, so that the page stays quick.

import { Bot } from "./bot.js";

let bot = null;

onmessage = async ({ data }) => {
  try {
    bot ??= Bot.open(self.location.href, (share) => postMessage({ share }));
    const opened = await bot;
    postMessage({ id: data.id, reply: data.question === undefined ? null : await opened.reply(data.question) });
  } catch (error) {
    postMessage({ id: data.id, error: String(error?.message ?? error) });
  }
};
