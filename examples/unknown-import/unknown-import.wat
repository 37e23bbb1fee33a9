;; A valid module that asks for a function that no host has: a keep refuses it before it is accepted.
;; Built by: examples/build unknown-import
(module
  (import "env" "open_the_door" (func $open_the_door))
  (memory (export "memory") 1)
  (func (export "_start")
    (call $open_the_door)))
