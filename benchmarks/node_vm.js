"use strict";
// What the script pool is measured against: node:vm with a new context for each call, in two processes. The parent reads
// Jefe's protocol with ids from standard input; each child has the scripts compiled once and a time limit, as a pool's.
// With the directory of isolated-vm as its argument it makes a new isolate for each call instead.
const { fork } = require("node:child_process");
const vm = require("node:vm");

if (process.argv[2] === "child") {
  const ivm = process.argv[3] && require(process.argv[3]);
  const scripts = new Map();
  const isolated = (code, sandbox) => {
    const isolate = new ivm.Isolate({ memoryLimit: 64 });
    const context = isolate.createContextSync();
    const given = JSON.parse(sandbox);
    for (const name of Object.keys(given)) context.global.setSync(name, new ivm.ExternalCopy(given[name]).copyInto());
    isolate.compileScriptSync(code).runSync(context, { timeout: 1000 });
    const names = JSON.stringify([...Object.keys(given), "total", "free"]);
    const output = context.evalSync(`JSON.stringify(Object.fromEntries(${names}.map((n) => [n, globalThis[n]])))`);
    isolate.dispose();
    return output;
  };
  process.on("message", ({ id, cmd, name, code, inputSandbox }) => {
    if (cmd === "AddCode") {
      scripts.set(name, ivm ? code : new vm.Script(code));
      return;
    }
    if (ivm) {
      process.send({ id, output: isolated(scripts.get(name), inputSandbox) });
      return;
    }
    const sandbox = vm.createContext(JSON.parse(inputSandbox));
    scripts.get(name).runInContext(sandbox, { timeout: 1000 });
    process.send({ id, output: JSON.stringify(sandbox) });
  });
} else {
  const children = [0, 1].map(() => ({ process: fork(__filename, ["child", ...process.argv.slice(2)]), open: 0 }));
  for (const child of children) {
    child.process.on("exit", (status) => status && process.exit(status));
    child.process.on("message", ({ id, output }) => {
      child.open--;
      process.stdout.write(`{"id":${id},"ok":true,"outputSandbox":${output}}\r\n`);
    });
  }
  let partial = "";
  process.stdin.setEncoding("utf8").on("data", (data) => {
    const lines = (partial + data).split("\r\n");
    partial = lines.pop();
    for (const line of lines) {
      const request = JSON.parse(line);
      if (request.cmd === "AddCode") {
        for (const child of children) child.process.send(request);
        process.stdout.write(`{"id":${request.id},"ok":true}\r\n`);
        continue;
      }
      const child = children[0].open <= children[1].open ? children[0] : children[1];
      child.open++;
      child.process.send({ ...request, inputSandbox: JSON.stringify(request.inputSandbox) });
    }
  });
  process.stdin.on("end", () => children.forEach((child) => child.process.disconnect()));
}
