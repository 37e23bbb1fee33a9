;; Reads past the end of its memory: a trap, which ends the keep's workload and nothing else.
;; Built by: examples/build trap-wat
(module
  (memory (export "memory") 1)
  (func $read_past_the_end (result i32)
    (i32.load (i32.const 65536)))
  (func (export "_start")
    (drop (call $read_past_the_end))))
