import { getStdout } from "wasi:cli/stdout@0.2.3";

const bytes = (text) => new Uint8Array(Array.from(text, (letter) => letter.charCodeAt(0)));

export const run = {
  run() {
    const squares = [1, 2, 3].map((number) => number * number);
    getStdout().blockingWriteAndFlush(bytes(`Hello from QuickJS, inside a keep! ${JSON.stringify({ squares })}\n`));
  },
};
