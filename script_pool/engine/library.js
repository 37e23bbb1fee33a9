  // A small standard library, put into the prelude: text and bytes, structuredClone, URL, digests, and Date in a zone.
  // What is a matter of the processor's time (digests) or of chance is asked of the engine, as strings.
  const Bytes = Uint8Array;
  const fromCode = String.fromCharCode;
  const codeAt = String.prototype.charCodeAt;
  const wellFormed = String.prototype.toWellFormed;
  const { floor } = Math;
  const uriEncode = encodeURIComponent;

  function bytesOf(data) {
    if (typeof data === 'string') return encodeText(data);
    if (data instanceof ArrayBuffer) return new Bytes(data);
    if (ArrayBuffer.isView(data)) return new Bytes(data.buffer, data.byteOffset, data.byteLength);
    throw new TypeError('expected a string, an ArrayBuffer or a view of one');
  }

  function latinOf(bytes) {
    let text = '';
    for (let at = 0; at < bytes.length; at += 4096) text += apply(fromCode, null, bytes.subarray(at, at + 4096));
    return text;
  }

  function bytesOfLatin(text) {
    const bytes = new Bytes(text.length);
    for (let at = 0; at < text.length; at++) bytes[at] = call(codeAt, text, at);
    return bytes;
  }

  function encodeText(text) {
    return bytesOfLatin(primitive('utf8', text));
  }

  function primitive(operation, given) {
    const found = host(operation, call(wellFormed, given));
    if (found[0] !== '+') throw new (found[0] === 'R' ? RangeError : TypeError)(call(slice, found, 1));
    return call(slice, found, 1);
  }

  class TextEncoder {
    get encoding() { return 'utf-8'; }
    encode(text = '') { return encodeText(`${text}`); }
  }

  class TextDecoder {
    #fatal; #ignoreBOM;
    constructor(label = 'utf-8', { fatal = false, ignoreBOM = false } = {}) {
      if (!/^(utf-?8|unicode-1-1-utf-8)$/i.test(`${label}`.trim())) throw new RangeError('only utf-8 can be decoded');
      this.#fatal = !!fatal;
      this.#ignoreBOM = !!ignoreBOM;
    }
    get encoding() { return 'utf-8'; }
    get fatal() { return this.#fatal; }
    decode(data = new Bytes(0)) {
      const text = primitive(this.#fatal ? 'decode-fatal' : 'decode', latinOf(bytesOf(data)));
      return !this.#ignoreBOM && call(codeAt, text, 0) === 0xfeff ? call(slice, text, 1) : text;
    }
  }

  const base64 = {
    encode(data) { return primitive('base64', latinOf(bytesOf(data))); },
    decode(text) { return bytesOfLatin(primitive('unbase64', `${text}`)); },
  };
  const hex = {
    encode(data) { return primitive('hex', latinOf(bytesOf(data))); },
    decode(text) { return bytesOfLatin(primitive('unhex', `${text}`)); },
  };
  const atob = (text) => primitive('unbase64', `${text}`);
  const btoa = (text) => {
    text = `${text}`;
    for (let at = 0; at < text.length; at++)
      if (call(codeAt, text, at) > 255) throw new TypeError('btoa takes characters up to U+00FF alone');
    return primitive('base64', text);
  };

  const digest = (name, data) => primitive('digest-' + `${name}`.toLowerCase().replace('-', ''), latinOf(bytesOf(data)));
  const crypto = {
    randomUUID: () => primitive('uuid', ''),
    getRandomValues(array) {
      const bytes = bytesOf(array);
      if (bytes.length > 65536) throw new RangeError('at most 65536 random bytes at a time');
      bytes.set(bytesOfLatin(primitive('random', `${bytes.length}`)));
      return array;
    },
    hash: (name, data) => digest(name, data),  // as Node's: in hexadecimal
    subtle: {
      async digest(name, data) {
        return hex.decode(digest(typeof name === 'object' && name !== null ? name.name : name, data)).buffer;
      },
    },
  };

  function structuredClone(value) {
    const known = new Map();
    const uncloneable = (what) => {
      const error = new NativeError(`${what} cannot be cloned`);
      error.name = 'DataCloneError';
      return error;
    };
    function copy(from) {
      if (typeof from === 'function' || typeof from === 'symbol') throw uncloneable(`a ${typeof from}`);
      if (typeof from !== 'object' || from === null) return from;
      if (known.has(from)) return known.get(from);
      const remember = (to) => (known.set(from, to), to);
      if (from instanceof Date) return remember(new Date(from.getTime()));
      if (from instanceof RegExp) return remember(new RegExp(from.source, from.flags));
      if (from instanceof Boolean || from instanceof Number || from instanceof String)
        return remember(Object(from.valueOf()));
      if (from instanceof ArrayBuffer) return remember(from.slice(0));
      if (ArrayBuffer.isView(from)) {
        const buffer = copy(from.buffer);
        const length = from instanceof DataView ? from.byteLength : from.length;
        return remember(new from.constructor(buffer, from.byteOffset, length));
      }
      if (from instanceof Map) {
        const to = remember(new Map());
        for (const [key, held] of [...from]) to.set(copy(key), copy(held));
        return to;
      }
      if (from instanceof Set) {
        const to = remember(new Set());
        for (const held of [...from]) to.add(copy(held));
        return to;
      }
      if (from instanceof WeakMap || from instanceof WeakSet || from instanceof NativePromise || from instanceof WeakRef)
        throw uncloneable('an object of this kind');
      let to;
      if (isError(from)) {
        const kinds = { EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError };
        to = remember(new (kinds[from.name] ?? NativeError)(from.message));
        hide(to, 'stack', from.stack);
        if ('cause' in from) hide(to, 'cause', copy(from.cause));
        return to;
      }
      to = remember(isArray(from) ? new Array(from.length) : {});
      for (const key of Object.keys(from))
        defineProperty(to, key, { value: copy(from[key]), writable: true, enumerable: true, configurable: true });
      return to;
    }
    return copy(value);
  }

  class URLSearchParams {
    #pairs = []; #changed = null;
    constructor(from = '') {
      if (typeof from === 'object' && from !== null) {
        if (typeof from[Symbol.iterator] === 'function') for (const [name, value] of from) this.append(name, value);
        else for (const name of Object.keys(from)) this.append(name, from[name]);
      } else this.#parse(`${from}`);
    }
    #parse(text) {
      const decode = (part) => primitive('decode', primitive('unpercent', part.replace(/\+/g, ' ')));
      this.#pairs = text.replace(/^\?/, '').split('&').filter(Boolean).map((part) => {
        const at = part.indexOf('=');
        return at < 0 ? [decode(part), ''] : [decode(part.slice(0, at)), decode(part.slice(at + 1))];
      });
    }
    static of(text, changed) {
      const made = new URLSearchParams(text);
      made.#changed = changed;
      return made;
    }
    #update() { if (this.#changed) this.#changed(this.toString()); }
    append(name, value) { this.#pairs.push([`${name}`, `${value}`]); this.#update(); }
    delete(name) { this.#pairs = this.#pairs.filter(([known]) => known !== `${name}`); this.#update(); }
    get(name) { return this.#pairs.find(([known]) => known === `${name}`)?.[1] ?? null; }
    getAll(name) { return this.#pairs.filter(([known]) => known === `${name}`).map(([, value]) => value); }
    has(name) { return this.#pairs.some(([known]) => known === `${name}`); }
    set(name, value) {
      const at = this.#pairs.findIndex(([known]) => known === `${name}`);
      if (at < 0) return this.append(name, value);
      this.#pairs = this.#pairs.filter(([known], index) => index <= at || known !== `${name}`);
      this.#pairs[at][1] = `${value}`;
      this.#update();
    }
    sort() { this.#pairs.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)); this.#update(); }
    get size() { return this.#pairs.length; }
    forEach(each) { for (const [name, value] of this.#pairs) each(value, name, this); }
    *entries() { for (const [name, value] of this.#pairs) yield [name, value]; }
    *keys() { for (const [name] of this.#pairs) yield name; }
    *values() { for (const [, value] of this.#pairs) yield value; }
    [Symbol.iterator]() { return this.entries(); }
    toString() {
      const encode = (part) => uriEncode(part.toWellFormed()).replace(/%20/g, '+')
        .replace(/[!'()~]/g, (mark) => '%' + mark.charCodeAt(0).toString(16).toUpperCase());
      return this.#pairs.map(([name, value]) => encode(name) + '=' + encode(value)).join('&');
    }
  }

  // The WHATWG URL standard's parts and setters, taken apart by the engine.
  class URL {
    #parts; #query;
    constructor(text, base) { this.#take(`${text}`, base === undefined ? undefined : `${base}`); }
    #take(text, base) {
      this.#parts = parse(primitive('url', stringify(base === undefined ? [text] : [text, base])));
      this.#query = undefined;
    }
    static canParse(text, base) { try { return !!new URL(text, base); } catch { return false; } }
    static parse(text, base) { try { return new URL(text, base); } catch { return null; } }
    get href() {
      const { protocol, username, password, host: place, pathname, search, hash } = this.#parts;
      const user = username || password ? username + (password && ':' + password) + '@' : '';
      return protocol + (place === null ? '' : '//' + user + place) + pathname + search + hash;
    }
    set href(text) { this.#take(`${text}`); }
    get origin() { return this.#parts.special ? this.protocol + '//' + this.host : 'null'; }
    get protocol() { return this.#parts.protocol; }
    get username() { return this.#parts.username; }
    get password() { return this.#parts.password; }
    get host() { return this.#parts.host ?? ''; }
    get hostname() { return this.#parts.hostname ?? ''; }
    get port() { return this.#parts.port; }
    get pathname() { return this.#parts.pathname; }
    get search() { return this.#parts.search; }
    get hash() { return this.#parts.hash; }
    #with(part, value) {
      const before = this.#parts;
      this.#parts = { ...before, [part]: value };
      try { this.#take(this.href); } catch { this.#parts = before; }
    }
    set protocol(value) { this.#with('protocol', `${value}`.replace(/:?$/, ':')); }
    set username(value) { this.#with('username', uriEncode(value)); }
    set password(value) { this.#with('password', uriEncode(value)); }
    set host(value) { this.#with('host', `${value}`); }
    set hostname(value) { this.#with('host', `${value}` + (this.port && ':' + this.port)); }
    set port(value) { this.#with('host', this.hostname + (`${value}` && ':' + value)); }
    set pathname(value) { this.#with('pathname', `${value}`.replace(/^\/?/, '/').replace(/\?/g, '%3F').replace(/#/g, '%23')); }
    set search(value) { this.#with('search', `${value}`.replace(/^\??(?=.)/, '?').replace(/#/g, '%23')); }
    set hash(value) { this.#with('hash', `${value}`.replace(/^#?(?=.)/, '#')); }
    get searchParams() {
      this.#query ??= URLSearchParams.of(this.search, (text) => {
        this.#parts = { ...this.#parts, search: text && '?' + text };
      });
      return this.#query;
    }
    toString() { return this.href; }
    toJSON() { return this.href; }
  }

  // Date, whose local time is UTC until now, in the zone of a table: [[seconds, minutes east of UTC], …], ascending.
  function setZone(table) {
    const Native = Date, methods = Native.prototype, MINUTE = 60000;
    const offset = (time) => {
      let low = 0, high = table.length;
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (table[middle][0] * 1000 <= time) low = middle; else high = middle;
      }
      return table.length ? table[low][1] * MINUTE : 0;
    };
    const toUtc = (local) => {
      const first = local - offset(local - offset(local));
      return first + offset(first) === local ? first : local - offset(local - 24 * 60 * MINUTE);
    };
    const shifted = (date) => {
      const time = call(methods.getTime, date);
      return new Native(time + offset(time));
    };
    for (const part of ['FullYear', 'Month', 'Date', 'Hours', 'Minutes', 'Seconds', 'Milliseconds', 'Day']) {
      const get = methods['getUTC' + part], set = methods['setUTC' + part];
      hide(methods, 'get' + part, function () { return call(get, shifted(this)); });
      if (set) hide(methods, 'set' + part, function (...given) {
        const date = shifted(this);
        apply(set, date, given);
        return call(methods.setTime, this, toUtc(call(methods.getTime, date)));
      });
    }
    const two = (number) => `${number}`.padStart(2, '0');
    const suffix = (date) => {
      const minutes = -date.getTimezoneOffset(), size = Math.abs(minutes);
      return (minutes < 0 ? '-' : '+') + two(floor(size / 60)) + two(size % 60);
    };
    hide(methods, 'getTimezoneOffset', function () {
      const time = call(methods.getTime, this);
      return time !== time ? time : -offset(time) / MINUTE;
    });
    const utcText = methods.toUTCString;
    const parts = (date) => call(utcText, shifted(date)).split(' ');  // Sat, 28 Nov 2026 09:00:00 GMT
    const valid = (date, text) => (Number.isNaN(call(methods.getTime, date)) ? 'Invalid Date' : text());
    const day = (date) => { const p = parts(date); return `${p[0].slice(0, 3)} ${p[2]} ${p[1]} ${p[3]}`; };
    const clock = (date) => `${parts(date)[4]} GMT${suffix(date)}`;
    hide(methods, 'toDateString', function () { return valid(this, () => day(this)); });
    hide(methods, 'toTimeString', function () { return valid(this, () => clock(this)); });
    hide(methods, 'toString', function () { return valid(this, () => `${day(this)} ${clock(this)}`); });
    const iso = methods.toISOString;
    const pieces = (date) => call(iso, shifted(date)).split(/[T.]/);
    hide(methods, 'toLocaleDateString', function () { return valid(this, () => pieces(this)[0]); });
    hide(methods, 'toLocaleTimeString', function () { return valid(this, () => pieces(this)[1]); });
    hide(methods, 'toLocaleString', function () { return valid(this, () => pieces(this).slice(0, 2).join(' ')); });
    const zoned = /(?:Z|GMT|UTC|[+-]\d\d:?\d\d)\s*(?:\(.*\))?$|^[+-]?\d{4,6}(?:-\d\d(?:-\d\d)?)?$/i;
    const nativeParse = Native.parse;
    const read = (text) => (zoned.test(text) ? nativeParse(text) : toUtc(nativeParse(text)));
    function ZonedDate(...given) {
      if (!new.target) return new ZonedDate().toString();
      let held = given;
      if (given.length > 1) held = [toUtc(apply(Native.UTC, Native, given))];
      else if (given.length === 1) {
        const value = given[0] instanceof Native ? call(methods.getTime, given[0]) : given[0];
        const plain = typeof value === 'object' && value !== null ? value[Symbol.toPrimitive]?.('default') ?? `${value}` : value;
        held = [typeof plain === 'string' ? read(plain) : plain];
      }
      return Reflect.construct(Native, held, new.target);
    }
    hide(ZonedDate, 'now', Native.now);
    hide(ZonedDate, 'UTC', Native.UTC);
    hide(ZonedDate, 'parse', (text) => read(`${text}`));
    defineProperty(ZonedDate, 'name', { value: 'Date' });
    defineProperty(ZonedDate, 'length', { value: 7 });
    defineProperty(ZonedDate, 'prototype', { value: methods, writable: false });
    hide(methods, 'constructor', ZonedDate);
    hide(globalThis, 'Date', ZonedDate);
  }

  for (const [name, value] of Object.entries({
    TextEncoder, TextDecoder, URL, URLSearchParams, atob, base64, btoa, crypto, hex, structuredClone,
  })) hide(globalThis, name, value);
