;; Hello, by hand: the smallest useful WASI program. One call writes one line to standard output.
;; Built by: examples/build hello-wat
(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param $fd i32) (param $iovs i32) (param $iovs_len i32) (param $written i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param $code i32)))
  (memory (export "memory") 1)
  ;; One iovec at 0: where the text lies, and how long it is. The number of bytes written goes to 8.
  (data (i32.const 0) "\10\00\00\00\1f\00\00\00")
  (data (i32.const 16) "Hello from WAT, inside a keep!\n")
  (func (export "_start")
    (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))
      (then (call $proc_exit (i32.const 1))))))
