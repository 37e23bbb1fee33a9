// What a script finds that runs as a whole program: evaluated once, before the snapshot. Its value is the object of
// functions that glue.wat calls.
(function (write, read, exit) {
  'use strict';
  const { apply, defineProperty } = Reflect;
  const { stringify } = JSON;
  const text = String, number = Number;
  const then = Promise.prototype.then;
  const { indexOf, slice, startsWith, replace, split, includes } = String.prototype;
  const call = (method, value, ...args) => apply(method, value, args);
  const isError = Error.isError ?? ((value) => value instanceof Error);
  const evaluate = eval;          // called by another name, it evaluates a sloppy global script
  const PLACE = /(?:eval_script|<input>|<evalScript>):(\d+)/g;
  const shared = [0xBEEF0 * 0x7A1]; // glue.wat writes a value of the engine's over this one, which stands nowhere else
  let name = 'script', state = 0; // 0 waiting, 1 done, 2 thrown, 3 rejected while nothing waited
  let thrown, input = '', ended = false;

  function member(object, key) {
    try { const value = object[key]; return typeof value === 'string' ? value : ''; } catch { return ''; }
  }

  // An error as a person reads it: its name and message, then the script's own lines.
  function describeError(error) {
    const head = (member(error, 'name') || 'Error') + ': ' + member(error, 'message');
    const own = call(split, member(error, 'stack'), /\n\s*at (?:eval|run|<eval>) \(native\)/)[0];
    const stack = call(replace, own, PLACE, name + ':$1');
    return stack ? head + '\n' + call(replace, stack, /\s+$/, '') : head;
  }

  function describe(value) {
    if (typeof value === 'string') return value;
    try {
      if (isError(value)) return describeError(value);
      if (typeof value === 'object' && value !== null) return stringify(value) ?? text(value);
      return text(value);
    } catch { return '[unprintable]'; }
  }

  function line(descriptor, values) {
    let whole = '';
    for (let i = 0; i < values.length; i++) whole += (i ? ' ' : '') + describe(values[i]);
    write(descriptor, whole + '\n');
  }

  function hide(object, key, value) {
    defineProperty(object, key, { value, writable: true, enumerable: false, configurable: true });
  }
  const console = {};
  for (const key of ['log', 'info', 'debug']) hide(console, key, (...values) => line(1, values));
  for (const key of ['warn', 'error']) hide(console, key, (...values) => line(2, values));
  hide(globalThis, 'console', console);
  hide(globalThis, 'print', (...values) => line(1, values));
  hide(globalThis, 'write', (value) => { write(1, text(value)); });
  function piece() {
    let found;
    try { found = read(); } catch { throw new TypeError('standard input is not text in UTF-8'); }
    if (found === '') ended = true;
    return found;
  }
  // The next line of standard input without its end, null where there is none.
  hide(globalThis, 'readline', () => {
    let at;
    while ((at = call(indexOf, input, '\n')) < 0 && !ended) {
      input += piece();
    }
    if (at < 0 && input === '') return null;
    const found = at < 0 ? input : call(slice, input, 0, at);
    input = at < 0 ? '' : call(slice, input, at + 1);
    return found;
  });
  // All that is left of standard input.
  hide(globalThis, 'readAll', () => {
    let whole = input;
    for (input = ''; !ended;) whole += piece();
    return whole;
  });
  hide(globalThis, 'exit', (code) => { exit(code === undefined ? 0 : number(code)); });

  // Whether the source is a program only where `await` may stand at its top.
  function awaits(source) {
    if (!call(includes, source, 'await')) return false;
    try { evaluate('throw "checked";' + source); } catch (error) { return isError(error); }
    return false;
  }

  return {
    // Evaluates the script; false where it awaits at its top.
    run(script, source, ...args) {
      name = script;
      hide(globalThis, 'scriptArgs', [script, ...args]);
      if (call(startsWith, source, '#!')) source = '//' + call(slice, source, 2);
      if (awaits(source)) return false;
      try { evaluate(source); state = 1; } catch (error) { state = 2; thrown = error; }
      return true;
    },
    watch(promise) { call(then, promise, () => { state = 1; }, (error) => { state = 2; thrown = error; }); },
    threw(error) { state = 2; thrown = error; },
    // A promise was rejected, for the shared reason, and nothing waits for it; what the script itself throws comes first.
    reject() { if (state !== 2) { state = 3; thrown = shared[0]; } },
    // The exit code; says what was thrown.
    end() {
      if (state === 1) return 0;
      if (state >= 2) {
        write(2, (state === 2 ? 'uncaught ' : 'uncaught (in promise) ') + describe(thrown) + '\n');
        return 1;
      }
      write(2, 'the program waits for a promise that nothing will resolve\n');
      return 13;
    },
    random() { return Math.random(); },
  };
})
