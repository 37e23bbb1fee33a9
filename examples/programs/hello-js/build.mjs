// node build.mjs TARGET: a component of hello.js, by componentize-js (StarlingMonkey, which is SpiderMonkey).
import { readFile, writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const { component } = await componentize(await readFile("hello.js", "utf8"), {
  witPath: "hello.wit",
  worldName: "command",
  disableFeatures: ["http", "fetch-event"], // a keep has no network
});
await writeFile(process.argv[2], component);
