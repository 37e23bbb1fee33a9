// What every instance has before a script: a module, evaluated once, before the snapshot. It exports the object of
// functions that the engine calls. Scripts share the realm, so what is used after they ran is captured here first.
// library.js follows in the same function.
export default (function () {
  'use strict';
  const { parse, stringify } = JSON;
  const { apply, defineProperty, getOwnPropertyDescriptor, getPrototypeOf, ownKeys, set } = Reflect;
  const { create, setPrototypeOf } = Object;
  const then = Promise.prototype.then;
  const text = String;
  const isArray = Array.isArray;
  const isError = Error.isError ?? ((value) => value instanceof Error);
  const slice = String.prototype.slice;
  const call = (method, value, ...args) => apply(method, value, args);
  const NativeError = Error;
  const NativePromise = Promise;

  let lines = create(null);   // no array: a setter on Object.prototype or Array.prototype must not see it
  let lineCount = 0;
  let consoleLeft = 0;
  const evaluate = eval;      // called by another name, it evaluates a sloppy global script
  let program;
  let gate;
  let state = 0;              // 0 waiting, 1 done, 2 thrown
  let thrown;
  let callsMade = 0;
  let callsOpen = 0;
  let calls = create(null);   // by number: what settles a call's promise
  let outbox = '';            // JSON of the calls that the engine has not fetched
  let offered = [];
  let host;                   // the engine's own function: an operation and a string, gives a string

  function describe(value) {
    if (typeof value === 'string') return value;
    try {
      if (typeof value === 'object' && value !== null && !isError(value)) return stringify(value) ?? text(value);
      return text(value);
    } catch { return '[unprintable]'; }
  }

  function log(...values) {
    if (consoleLeft <= 0) return;
    let line = '';
    for (let i = 0; i < values.length; i++) line += (i ? ' ' : '') + describe(values[i]);
    if (line.length > consoleLeft) line = call(slice, line, 0, consoleLeft);
    consoleLeft -= line.length + 1;
    lines[lineCount++] = line;
  }

  function hide(object, name, value) {
    defineProperty(object, name, { value, writable: true, enumerable: false, configurable: true });
  }
  const console = {};
  for (const name of ['log', 'info', 'debug', 'warn', 'error']) hide(console, name, (...values) => log(...values));
  hide(globalThis, 'console', console);
  delete globalThis.performance;        // a finer clock than Date
  delete globalThis.SharedArrayBuffer;  // there is one thread

  function member(object, name) {
    try { const value = object[name]; return typeof value === 'string' ? value : ''; } catch { return ''; }
  }

  function report(kind, error) {
    let name = 'Error', message, stack = '';
    if (typeof error === 'object' && error !== null) {
      name = member(error, 'name') || name;
      message = member(error, 'message');
      stack = member(error, 'stack');
    } else message = describe(error);
    return kind + '\n' + stringify([name, message, stack]);
  }

  // A call of a host function: a promise, and an entry in the outbox.
  // `name`: as JSON.
  function ask(name, given) {
    return new NativePromise((resolve, reject) => {
      const text = stringify(given);
      if (typeof text !== 'string') throw new TypeError('the arguments have no JSON');
      const { stack } = new NativeError('');
      const number = ++callsMade;
      outbox += (outbox && ',') + '[' + number + ',' + name + ',' + text + ']';
      calls[number] = { resolve, reject, stack };
      callsOpen++;
    });
  }

  function offer(names) {
    for (let i = 0; i < offered.length; i++) delete globalThis[offered[i]];
    offered = parse(names);
    for (let i = 0; i < offered.length; i++) {
      const name = offered[i];
      const written = stringify(name);
      hide(globalThis, name, (...given) => ask(written, given));
    }
  }

  function answer(answers) {
    const list = parse(answers);
    for (let i = 0; i < list.length; i++) {
      const number = list[i][0], value = list[i][2], made = calls[number];
      if (made === undefined) continue;
      delete calls[number];
      callsOpen--;
      if (list[i][1]) {
        made.resolve(value);
        continue;
      }
      const error = new NativeError(value.message);
      hide(error, 'name', value.refused ? 'HostCallRefused' : 'HostCallError');
      hide(error, 'stack', made.stack);
      made.reject(error);
    }
  }

  function collected() {
    let found = '[';
    for (let i = 0; i < lineCount; i++) found += (i ? ',' : '') + stringify(lines[i]);
    return found + ']\n';
  }

//LIBRARY//

  return {
    // Declares what a sloppy script does, and runs none of it: throws SyntaxError, or else the one string.
    check(source) { evaluate('throw "checked";' + source); },
    hold(source) { program = source; },
    offer,
    answer,
    connect(given) { host = given; },
    // A promise that the script's first `await` waits for.
    gate() { hide(globalThis, '__gate', new NativePromise((resolve) => { gate = resolve; })); },
    // The script's promise, once it waits at the gate. A module that another imports comes to the gate later.
    watch(promise, module) {
      if (module === undefined) delete globalThis.__gate;
      call(then, promise, () => { state = 1; }, (error) => { state = 2; thrown = error; });
    },
    // Makes the input's members global variables, and runs the script, or opens its gate.
    // `table`: the zone that Date is in, or nothing.
    begin(input, consoleCharacters, table) {
      consoleLeft = consoleCharacters;
      const source = program;
      program = thrown = undefined;
      state = lineCount = 0;
      lines = create(null);
      if (table !== undefined) setZone(parse(table));
      const sandbox = parse(input);
      if (typeof sandbox !== 'object' || sandbox === null || isArray(sandbox))
        throw new TypeError('the input sandbox is not an object');
      const names = ownKeys(sandbox);
      for (let i = 0; i < names.length; i++) {
        const name = names[i];
        const known = getOwnPropertyDescriptor(globalThis, name);
        // A function the script declares stands, as it would had the declaration run after the sandbox was filled.
        if (known && known.enumerable && typeof known.value === 'function') continue;
        const value = getOwnPropertyDescriptor(sandbox, name).value;
        const defined = known && !known.configurable
          ? defineProperty(globalThis, name, { value })
          : defineProperty(globalThis, name, { value, writable: true, enumerable: true, configurable: true });
        if (!defined) throw new TypeError('the input sandbox cannot have a member ' + name);
      }
      if (source === undefined) gate();
      else try { evaluate(source); state = 1; } catch (error) { state = 2; thrown = error; }
    },
    // Kind, console and text, a line each: stringify writes no line feed of its own.
    // Or the calls that are to be answered before it goes on.
    end() {
      if (state !== 2 && callsOpen) {
        const made = outbox;
        outbox = '';
        return 'c\n[]\n[' + made + ']';
      }
      callsOpen = 0;
      calls = create(null);
      outbox = '';
      if (state === 0) return 'w\n' + collected();
      if (state === 2) return 't\n' + collected() + report('', thrown);
      let output;
      try { output = stringify(globalThis); } catch (error) { return 'n\n' + collected() + report('', error); }
      if (typeof output !== 'string') return 'n\n' + collected() + report('', new NativeError('the sandbox has no JSON'));
      return 'o\n' + collected() + output;
    },
    // What was thrown by a call of the engine's own.
    report(error) { return report('', error); },
    random() { return Math.random(); },
  };
})();
