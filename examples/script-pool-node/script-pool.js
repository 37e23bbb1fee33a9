"use strict";
// A client of script-pool for Node, in one file and without dependencies: starts `script-pool --stdio`, or connects to
// the Unix socket of one that is there.
//
//   const { Pool } = require("./script-pool.js");
//   const pool = new Pool();                       // or new Pool({ socket: "/run/user/1000/pool.sock" })
//   await pool.add("double", "x *= 2");
//   console.log(await pool.run("double", { x: 21 }));
//   await pool.close();
//
// Scripts call functions of the application's, each those that it was added with:
//   pool.hostFunction("lookup", async (key) => table[key]);
//   await pool.add("rule", "var found = await lookup(key)", { functions: ["lookup"] });
// and a session keeps their state:
//   const session = pool.session();
//   await session.run("rule", { key: 1 });
const { spawn } = require("node:child_process");
const { randomUUID } = require("node:crypto");
const net = require("node:net");

const MAX_VALUE = 5 * 1024 * 1024; // bytes of a host function's value: a longer line the pool does not read

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
    this._functions = new Map();
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

  // language: "js", "ts", "python" or "micropython". functions: those that the script may call, an array of names, or an
  // object of them with { calls, bytes, seconds } that differ.
  async add(name, code, { language = "js", functions } = {}) {
    await this._ask({ cmd: "AddCode", name, code, language, ...(functions && { hostFunctions: functions }) });
  }

  async remove(name) {
    await this._ask({ cmd: "RemoveCode", name });
  }

  // The sandbox as the script leaves it. settings: session, clock (milliseconds since 1970), zone ("Europe/Berlin").
  async run(name, inputSandbox, settings = {}) {
    return (await this._ask({ cmd: "ExecCode", name, inputSandbox, ...settings })).outputSandbox;
  }

  // A function of the application's, which may be async.
  hostFunction(name, call) {
    this._functions.set(name, call);
  }

  session(name = randomUUID()) {
    return new Session(this, name);
  }

  // saved: what Session.save gave, of this pool or of one with the same key.
  async loadSession(saved, name = randomUUID()) {
    await this._ask({ cmd: "LoadSession", session: name, saved: saved.toString("base64") });
    return new Session(this, name);
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
      if (answer.hostCall) {
        this._call(answer.id, answer.hostCall);
        continue;
      }
      const asked = this._open.get(answer.id);
      this._open.delete(answer.id);
      if (asked) answer.ok ? asked.resolve(answer) : asked.reject(new ScriptError(answer));
    }
    if (data.length) this._partial.push(data);
  }

  async _call(id, { call, name, arguments: given }) {
    const head = { cmd: "HostResult", id, call };
    let line;
    try {
      const known = this._functions.get(name);
      if (!known) throw new Error(`the application has no function ${name}`);
      line = JSON.stringify({ ...head, value: (await known(...given)) ?? null });
      if (Buffer.byteLength(line) > MAX_VALUE) throw new Error(`its value has over ${MAX_VALUE} bytes`);
    } catch (error) {
      line = JSON.stringify({ ...head, error: String(error).slice(0, 4096) });
    }
    if (!this._failure) this._out.write(line + "\r\n");
  }

  _fail(error) {
    this._failure ??= error;
    for (const { reject } of this._open.values()) reject(this._failure);
    this._open.clear();
  }
}

// State that is kept between calls. A call that fails leaves it as it was.
class Session {
  constructor(pool, name) {
    Object.assign(this, { name, _pool: pool });
  }

  run(script, inputSandbox, settings = {}) {
    return this._pool.run(script, inputSandbox, { ...settings, session: this.name });
  }

  async save() {
    return Buffer.from((await this._pool._ask({ cmd: "SaveSession", session: this.name })).saved, "base64");
  }

  async end() {
    await this._pool._ask({ cmd: "EndSession", session: this.name });
  }
}

module.exports = { Pool, ScriptError, Session };
