;; What MicroPython imports besides WASI: the host functions of a pool, which a program has none of.
(module
  (import "guest" "_start" (func $start))
  (func (export "host_result_cap") (result i32) (i32.const 4096)) ;; what it allocates before it asks
  (func (export "host_call") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const -1))
  (func (export "_start") (call $start)))
