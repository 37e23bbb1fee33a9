;; The kind of module the original's app-loader ran: no WASI, one export with an empty name, which returns 1.
;; Built by: examples/build return-1
(module
  (func (export "") (result i32)
    i32.const 1))
