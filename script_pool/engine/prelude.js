// What every instance has before a script: evaluated once, before the snapshot. Its value is the object of functions
// that the engine calls. Scripts share the realm, so what is used after they ran is captured here first.
(function () {
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

  function collected() {
    let found = '[';
    for (let i = 0; i < lineCount; i++) found += (i ? ',' : '') + stringify(lines[i]);
    return found + ']\n';
  }

  return {
    // Declares what a sloppy script does, and runs none of it: throws SyntaxError, or else the one string.
    check(source) { evaluate('throw "checked";' + source); },
    hold(source) { program = source; },
    // A promise that the script's first `await` waits for.
    gate() { hide(globalThis, '__gate', new NativePromise((resolve) => { gate = resolve; })); },
    // The script's promise, once it waits at the gate.
    watch(promise) {
      delete globalThis.__gate;
      call(then, promise, () => { state = 1; }, (error) => { state = 2; thrown = error; });
    },
    // Makes the input's members global variables, and runs the script, or opens its gate.
    begin(input, consoleCharacters) {
      consoleLeft = consoleCharacters;
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
      if (program === undefined) gate();
      else try { evaluate(program); state = 1; } catch (error) { state = 2; thrown = error; }
    },
    // Kind, console and text, a line each: stringify writes no line feed of its own.
    end() {
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
})()
