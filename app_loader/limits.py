"""Every limit of the app-loader, with its reason. The handshake's is `keep_protocol.tls_server.HANDSHAKE_SECONDS`.

Import rule: nothing.
"""

from __future__ import annotations

CERTIFICATE_DAYS = 397
"""A keep lives hours or weeks; 397 days is the longest any TLS client still takes (CA/Browser Forum, 2020)."""
MAX_IDENTITY_BYTES = 16 * 1024
"""A P-256 key and a certificate with 16 names are under 3 KiB."""

MAX_CONNECTIONS = 8
"""One uploads; the others let a second client hear 409 while the first is received."""
HEADERS_SECONDS = 10.0
"""From the handshake's end to the last header line: a client sends them with its next packet."""
STALL_SECONDS = 10.0
"""The longest an upload may send nothing; then another client gets its turn."""
GRACE_SECONDS = 30.0
"""An upload's time besides what its size earns it at MIN_BYTES_PER_SECOND."""
MIN_BYTES_PER_SECOND = 64 * 1024
"""The slowest average of an upload: half a megabit, an old DSL line. A drip of bytes ends after GRACE_SECONDS."""
ANSWER_SECONDS = 5.0
"""An answer is under 8 KiB and fits a socket's buffer; a client that does not take it is not waited for."""
LINGER_SECONDS = 2.0
"""How long a refused client may go on sending before the connection is cut; closing it immediately would reset it and
destroy the answer on its way (RFC 9112, section 9.6)."""
HANDOVER_SECONDS = 1.0
"""How long the answers of the last connections may take before the workload starts."""
ACCESS_RECHECK_SECONDS = 1.0
"""A certificate revoked, or expired, while its client uploads ends the upload within this time."""

MAX_HEADER_BYTES = 64 * 1024
"""Request line and header lines together."""
MAX_REQUEST_LINE = 8 * 1024
"""What RFC 9112, section 3, would have a server take at least; the longest that is served has 24 bytes."""
MAX_HEADERS = 100
"""curl sends six, a browser twenty."""
MAX_LENGTH_DIGITS = 18
"""Of a Content-Length: more than any disk holds."""
MAX_CHUNK_DIGITS = 16
"""Of a chunk's size, which some clients write with leading zeros; the body itself is bounded elsewhere."""
MAX_TRAILER_BYTES = 4 * 1024
"""Header lines behind a body in chunks: a checksum at most, and it is not used."""
READ_BYTES = 256 * 1024
"""Read from one connection before the others are looked at; sixteen TLS records, one write to the file."""
TLS_RECORD_BYTES = 16 * 1024
"""The most one TLS record holds (RFC 8446, section 5.1); with this much room a read leaves nothing behind."""
MAX_PAYLOAD_HEAD = 4 * 1024
"""Everything of a JSON payload but its numbers: it needs 40 bytes, the rest is for white space."""
PAYLOAD_SLICE = 32 * 1024
"""Text of numbers parsed in one step: 16,000 Python objects at most, under 1 MB."""

WHOLE_TIME_CODE_BYTES = 32 * 1024 * 1024
"""A module with this much code may have all of `compile_seconds`, with less its part: 7.5 seconds for each MiB where it
is at its default. Programs need two on a quiet core (docs/benchmarks.md)."""
SMALLEST_TIME_SHARE = 1 / 8
"""What of it the smallest module may have: a compile bomb of 120 KB, which would take 41 seconds, ends in 30."""
WHOLE_MEMORY_CODE_BYTES = 4 * 1024 * 1024
SMALLEST_MEMORY_SHARE = 1 / 4
"""The same of `compile_memory_bytes`. Memory follows the largest function more than their sum: programs need 20 to 90
bytes for each of their code."""
CHECKER_WALL_FACTOR = 10
"""Wall clock from the request to the checker's answer, by its processor time: a busy host gives it a tenth. Over it the
checker is killed; what it uses is bounded by its processor time, so this is for one that hangs."""
MAX_SECTION_HEADS = 10_000
"""Looked at to find how much code there is, three microseconds each; CPython's component has 700."""
MAX_IMPORTS = 10_000
"""WASI preview 1 has 46 functions, and all of WASI 0.2 under 300."""
MAX_EXPORTS = 50_000
"""Every one of them costs time and memory again at each start. Ruby's module has 170, a library that is linked
dynamically some thousands."""
RUNNER_ANSWER_SECONDS = 20.0
"""What a runner may take beyond that: to make its engine ready on a busy host, and to end the check before."""
CHECKER_END_SECONDS = 1.0
"""A checker that died of a limit has closed its descriptors some microseconds before it can be waited for."""
MAX_CHECKER_ANSWER = 32 * 1024
"""One packet of JSON: a message and at most MAX_EVIDENCE_LINES lines."""
MAX_EVIDENCE_LINES = 20
MAX_EVIDENCE_LINE = 200
"""An error names the first things that are wrong; a hostile module has a million of them."""

GUEST_TABLES = 16
GUEST_MEMORIES = 1
"""Several memories are a proposal that is switched off."""
GUEST_INSTANCES = 2
"""The module itself, and what stands for `proc_exit`."""
COMPONENT_TABLES = 64
COMPONENT_MEMORIES = 8
"""A component may be several modules, each with a memory of its own; the unit's MemoryMax= bounds their sum."""
COMPONENT_INSTANCES = 200
"""CPython's component is 30 instances, most of them adapters of a few functions."""
SCRIPT_STACK_BYTES = 8 * 1024 * 1024
"""What QuickJS's 256 KiB of its own stack may take of WebAssembly's: a call four times as much, an expression that is
nested too deeply twenty times. So both are errors that the script can catch, and no trap."""
ASYNC_STACK_SPARE_BYTES = 1024 * 1024
"""wasmtime runs components on a stack that must be larger than what it allows WebAssembly of it, or it aborts."""
OS_STACK_SPARE_BYTES = 4 * 1024 * 1024
"""Stack of the process besides WebAssembly's: the interpreter's own, and wasmtime's below a call out of the guest."""
EXACT_CPU_SECONDS = 60
"""Up to this limit of processor time the runner ends itself exactly; above, RLIMIT_CPU's second more or less is under
2 %, and the thread that counts is not worth its 60 KB."""
MAX_BACKTRACE_FRAMES = 20
MAX_EXIT_CODE = 125
"""The largest code the runner's own exit repeats; a shell gives others a meaning. The report has it whole."""
