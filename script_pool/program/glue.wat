;; What stands between QuickJS and WASI: the program's entry, and the three functions of the host that its prelude has.
;; A word in double braces is a number that booting has found: where the scratch memory is, and the handles of the prelude's functions.
;; Scratch: +0 an iovec, +8 how many bytes, +16 a result's handle, +24 a number, +32 how many bytes were kept back,
;; +64 the buffer of standard input, and behind it rejected promises that nothing waits for: of each itself and its reason,
;; 0 where there is none.
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (import "guest" "memory" (memory 1))
  (import "guest" "qjs_alloc" (func $alloc (param i32) (result i32)))
  (import "guest" "qjs_last_ptr" (func $last_ptr (result i32)))
  (import "guest" "qjs_last_len" (func $last_len (result i32)))
  (import "guest" "qjs_result_free" (func $result_free))
  (import "guest" "new_string" (func $new_string (param i32 i32) (result i32)))
  (import "guest" "new_undefined" (func $new_undefined (result i32)))
  (import "guest" "get_string" (func $get_string (param i32) (result i32)))
  (import "guest" "get_number" (func $get_number (param i32 i32) (result i32)))
  (import "guest" "get_bool" (func $get_bool (param i32 i32) (result i32)))
  (import "guest" "call_function" (func $call_function (param i32 i32 i32 i32 i32) (result i32)))
  (import "guest" "eval_async" (func $eval_async (param i32 i32 i32) (result i32)))
  (import "guest" "last_exception" (func $last_exception (param i32) (result i32)))
  (import "guest" "execute_pending_jobs" (func $execute_pending_jobs (result i32)))

  ;; A number of JavaScript, as an integer.
  (func $integer (param $handle i32) (result i32)
    (if (call $get_number (local.get $handle) (i32.const {{NUMBER}})) (then (return (i32.const 70))))
    (i32.trunc_sat_f64_s (f64.load (i32.const {{NUMBER}}))))

  ;; Writes a string to standard output (1) or error (2): write(descriptor, text).
  (func $write (param $argv i32) (result i32)
    (local $fd i32) (local $at i32) (local $left i32)
    (local.set $fd (call $integer (i32.load (local.get $argv))))
    (if (call $get_string (i32.load offset=4 (local.get $argv))) (then (return (i32.const -1))))
    (local.set $at (call $last_ptr))
    (local.set $left (call $last_len))
    (block $done
      (loop $more
        (br_if $done (i32.eqz (local.get $left)))
        (i32.store (i32.const {{IOVEC}}) (local.get $at))
        (i32.store offset=4 (i32.const {{IOVEC}}) (local.get $left))
        (br_if $done (call $fd_write (local.get $fd) (i32.const {{IOVEC}}) (i32.const 1) (i32.const {{COUNT}})))
        (local.set $at (i32.add (local.get $at) (i32.load (i32.const {{COUNT}}))))
        (local.set $left (i32.sub (local.get $left) (i32.load (i32.const {{COUNT}}))))
        (br $more)))
    (call $result_free)
    (call $new_undefined))

  ;; How many bytes at the end of so many in the buffer are the beginning of a character that is not whole.
  (func $unfinished (param $size i32) (result i32)
    (local $back i32) (local $byte i32) (local $needs i32)
    (block $whole
      (loop $next
        (local.set $back (i32.add (local.get $back) (i32.const 1)))
        (br_if $whole (i32.gt_u (local.get $back) (i32.const 3)))
        (br_if $whole (i32.gt_u (local.get $back) (local.get $size)))
        (local.set $byte
          (i32.load8_u (i32.sub (i32.add (i32.const {{BUFFER}}) (local.get $size)) (local.get $back))))
        (br_if $next (i32.eq (i32.and (local.get $byte) (i32.const 0xC0)) (i32.const 0x80)))
        (br_if $whole (i32.lt_u (local.get $byte) (i32.const 0xC0)))
        (local.set $needs (i32.const 2))
        (if (i32.ge_u (local.get $byte) (i32.const 0xE0)) (then (local.set $needs (i32.const 3))))
        (if (i32.ge_u (local.get $byte) (i32.const 0xF0)) (then (local.set $needs (i32.const 4))))
        (if (i32.gt_u (local.get $needs) (local.get $back)) (then (return (local.get $back))))))
    (i32.const 0))

  ;; The next piece of standard input as a string of whole characters, "" at its end: read().
  (func $read (result i32)
    (local $size i32) (local $back i32) (local $string i32)
    (local.set $size (i32.load (i32.const {{KEPT}})))
    (i32.store (i32.const {{KEPT}}) (i32.const 0))
    (loop $more
      (i32.store (i32.const {{IOVEC}}) (i32.add (i32.const {{BUFFER}}) (local.get $size)))
      (i32.store offset=4 (i32.const {{IOVEC}}) (i32.sub (i32.const {{BUFFER_SIZE}}) (local.get $size)))
      (i32.store (i32.const {{COUNT}}) (i32.const 0))
      (drop (call $fd_read (i32.const 0) (i32.const {{IOVEC}}) (i32.const 1) (i32.const {{COUNT}})))
      (if (i32.eqz (i32.load (i32.const {{COUNT}})))
        (then (return (call $new_string (i32.const {{BUFFER}}) (local.get $size)))))
      (local.set $size (i32.add (local.get $size) (i32.load (i32.const {{COUNT}}))))
      (local.set $back (call $unfinished (local.get $size)))
      (br_if $more (i32.eq (local.get $back) (local.get $size))))
    (local.set $size (i32.sub (local.get $size) (local.get $back)))
    (local.set $string (call $new_string (i32.const {{BUFFER}}) (local.get $size)))
    (memory.copy (i32.const {{BUFFER}}) (i32.add (i32.const {{BUFFER}}) (local.get $size)) (local.get $back))
    (i32.store (i32.const {{KEPT}}) (local.get $back))
    (local.get $string))

  ;; What the prelude's `write`, `read` and `exit` call, by the first letter of their names.
  (func (export "host_call")
    (param $name i32) (param $size i32) (param $this i32) (param $argc i32) (param $argv i32) (result i32)
    (local $letter i32)
    (local.set $letter (i32.load8_u (local.get $name)))
    (if (i32.eq (local.get $letter) (i32.const 119)) (then (return (call $write (local.get $argv)))))
    (if (i32.eq (local.get $letter) (i32.const 114)) (then (return (call $read))))
    (call $proc_exit (call $integer (i32.load (local.get $argv))))
    (i32.const -1))

  (func (export "host_interrupt") (result i32) (i32.const 0)) ;; the keep's own limits stop it
  (func (export "host_module_normalize") (param i32 i32 i32 i32 i32) (result i32) (i32.const 0))
  (func (export "host_module_load") (param i32 i32 i32) (result i32) (i32.const 0))

  ;; Counts a reference to a value of QuickJS, or one less: objects, strings, symbols and large numbers have a count.
  (func $count (param $value i64) (param $more i32)
    (if (i64.ge_u (local.get $value) (i64.const 0xFFFFFFF700000000))
      (then (i32.store (i32.wrap_i64 (local.get $value))
        (i32.add (i32.load (i32.wrap_i64 (local.get $value))) (local.get $more))))))

  ;; QuickJS calls it, by its number in the table, for each promise that is rejected while nothing waits for it, and again
  ;; when something does. Where all places are taken a rejection is not noted.
  (func (export "rejected")
    (param $context i32) (param $promise i64) (param $reason i64) (param $handled i32) (param $opaque i32)
    (local $at i32) (local $change i32)
    (local.set $at (i32.const {{REJECTED}}))
    (local.set $change (select (i32.const -1) (i32.const 1) (local.get $handled)))
    (loop $next
      (if (i64.eq (i64.load (local.get $at)) (select (local.get $promise) (i64.const 0) (local.get $handled)))
        (then
          (i64.store (local.get $at) (select (i64.const 0) (local.get $promise) (local.get $handled)))
          (i64.store offset=8 (local.get $at) (local.get $reason))
          (call $count (local.get $promise) (local.get $change))
          (call $count (local.get $reason) (local.get $change))
          (return)))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const {{REJECTED_END}})))))

  ;; Gives the prelude the reason of the first rejection that nothing waits for, in the array that it shares.
  (func $find_rejected
    (local $at i32)
    (local.set $at (i32.const {{REJECTED}}))
    (loop $next
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0))
        (then
          (i64.store (i32.const {{SHARED}}) (i64.load offset=8 (local.get $at)))
          (call $ask (i32.const {{REJECT}}) (i32.const 0) (i32.const 0))
          (return)))
      (local.set $at (i32.add (local.get $at) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $at) (i32.const {{REJECTED_END}})))))

  (func $length (param $text i32) (result i32)
    (local $at i32)
    (local.set $at (local.get $text))
    (block $end
      (loop $next
        (br_if $end (i32.eqz (i32.load8_u (local.get $at))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (i32.sub (local.get $at) (local.get $text)))

  ;; Calls one of the prelude's functions; its result's handle is where results are. What cannot be reported ends with 70.
  (func $ask (param $function i32) (param $argv i32) (param $argc i32)
    (if (call $call_function
          (local.get $function) (i32.const {{UNDEFINED}}) (local.get $argv) (local.get $argc) (i32.const {{RESULT}}))
      (then (call $proc_exit (i32.const 70)) (unreachable))))

  ;; argv: the script's name, its text, and its own arguments.
  (func (export "_start")
    (local $argc i32) (local $argv i32) (local $handles i32) (local $at i32) (local $text i32)
    (drop (call $random_get (i32.const {{RANDOM}}) (i32.const 8)))
    (i32.store8 (i32.const {{RANDOM}}) (i32.or (i32.load8_u (i32.const {{RANDOM}})) (i32.const 1)))
    (drop (call $args_sizes_get (i32.const {{IOVEC}}) (i32.const {{COUNT}})))
    (local.set $argc (i32.load (i32.const {{IOVEC}})))
    (local.set $handles (i32.shl (local.get $argc) (i32.const 2)))
    (local.set $argv
      (call $alloc (i32.add (i32.load (i32.const {{COUNT}})) (i32.shl (local.get $handles) (i32.const 1)))))
    (if (i32.or (i32.eqz (local.get $argv)) (i32.lt_u (local.get $argc) (i32.const 2)))
      (then (call $proc_exit (i32.const 70)) (unreachable)))
    (drop (call $args_get
      (local.get $argv) (i32.add (local.get $argv) (i32.shl (local.get $handles) (i32.const 1)))))
    (local.set $handles (i32.add (local.get $argv) (local.get $handles)))
    (loop $next
      (local.set $text (i32.load (i32.add (local.get $argv) (i32.shl (local.get $at) (i32.const 2)))))
      (i32.store
        (i32.add (local.get $handles) (i32.shl (local.get $at) (i32.const 2)))
        (call $new_string (local.get $text) (call $length (local.get $text))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $at) (local.get $argc))))
    (call $ask (i32.const {{RUN}}) (local.get $handles) (local.get $argc))
    (drop (call $get_bool (i32.load (i32.const {{RESULT}})) (i32.const {{NUMBER}})))
    (if (i32.eqz (i32.load (i32.const {{NUMBER}})))
      (then ;; it awaits at its top, which the engine's own entry point evaluates
        (local.set $text (i32.load offset=4 (local.get $argv)))
        (if (call $eval_async (local.get $text) (call $length (local.get $text)) (i32.const {{RESULT}}))
          (then
            (drop (call $last_exception (i32.const {{RESULT}})))
            (call $ask (i32.const {{THREW}}) (i32.const {{RESULT}}) (i32.const 1)))
          (else (call $ask (i32.const {{WATCH}}) (i32.const {{RESULT}}) (i32.const 1))))))
    (loop $jobs (br_if $jobs (call $execute_pending_jobs)))
    (call $find_rejected)
    (call $ask (i32.const {{END}}) (i32.const 0) (i32.const 0))
    (call $proc_exit (call $integer (i32.load (i32.const {{RESULT}})))))
)
