"use strict";
// A client of script-pool for Node, in one file and without dependencies: starts `script-pool --stdio`, or connects to
// the Unix socket of one that is there.
//
//   const { Pool } = require("./script-pool.js");
//   const pool = new Pool();                       // or new Pool({ socket: "/run/user/1000/pool.sock" })
//   await pool.add("double", "x *= 2");
//   console.log(await pool.run("double", { x: 21 }));
//   await pool.close();
const { spawn } = require("node:child_process");
const net = require("node:net");

// A request that was not done: `reason` is the pool's word for why; name, message, stack and console are its evidence.
class ScriptError extends Error {
  constructor({ reason, name = "", message = "", stack = [], console = [] }) {
    super([reason, name, message].filter(Boolean).join(": "));
    Object.assign(this, { name: "ScriptError", reason, thrown: name, scriptStack: stack, console });
  }
}

class Pool {
  constructor({ socket, command = ["script-pool", "--stdio"] } = {}) {
    this._open = new Map();
    this._next = 1;
    this._partial = [];
    if (socket) {
      this._out = this._in = net.connect(socket);
    } else {
      this._child = spawn(command[0], command.slice(1), { stdio: ["pipe", "pipe", "inherit"] });
      this._child.on("error", (error) => this._fail(error));
      this._out = this._child.stdin;
      this._in = this._child.stdout;
    }
    this._ended = new Promise((resolve) => this._in.once("close", resolve));
    this._in.on("data", (data) => this._read(data));
    this._in.on("close", () => this._fail(new Error("the script pool has ended the connection")));
    for (const stream of new Set([this._in, this._out])) stream.on("error", (error) => this._fail(error));
  }

  async add(name, code, language = "js") {
    await this._ask({ cmd: "AddCode", name, code, language });
  }

  async remove(name) {
    await this._ask({ cmd: "RemoveCode", name });
  }

  // The sandbox as the script leaves it.
  async run(name, inputSandbox) {
    return (await this._ask({ cmd: "ExecCode", name, inputSandbox })).outputSandbox;
  }

  // What was asked is answered first.
  async close() {
    this._out.end();
    await this._ended;
  }

  _ask(request) {
    return new Promise((resolve, reject) => {
      if (this._failure) return reject(this._failure);
      const id = this._next++;
      this._open.set(id, { resolve, reject });
      this._out.write(JSON.stringify({ id, ...request }) + "\r\n");
    });
  }

  _read(data) {
    let end;
    while ((end = data.indexOf("\n")) >= 0) {
      const line = Buffer.concat([...this._partial, data.subarray(0, end)]).toString("utf8");
      this._partial = [];
      data = data.subarray(end + 1);
      const answer = JSON.parse(line);
      const asked = this._open.get(answer.id);
      this._open.delete(answer.id);
      if (asked) answer.ok ? asked.resolve(answer) : asked.reject(new ScriptError(answer));
    }
    if (data.length) this._partial.push(data);
  }

  _fail(error) {
    this._failure ??= error;
    for (const { reject } of this._open.values()) reject(this._failure);
    this._open.clear();
  }
}

module.exports = { Pool, ScriptError };
