;; Ends with exit code 3, to be found again in the keep's outcome.
;; Built by: examples/build exit-3
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param $code i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (call $proc_exit (i32.const 3))))
